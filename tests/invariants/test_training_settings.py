"""Every setting of a training has an effect (DESIGN invariant 8); most of them on the weights themselves."""

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from negatron.identity import file_sha256  # noqa: E402 - after the check for torch
from negatron.models.precision import autocast  # noqa: E402
from negatron.training.trainer import TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Query, TrainingExample  # noqa: E402

BASE = {"batch_size": 3, "chunk_size": 2, "learning_rate": 1e-3, "weight_decay": 0.01, "precision": "fp32", "checkpoint_seconds": 1e9}
CHANGES_THE_WEIGHTS = {
    "epochs": 2,
    "batch_size": 2,
    "chunk_size": 3,  # by the draws of dropout alone
    "learning_rate": 2e-3,
    "schedule": "constant",
    "warmup_share": 0.5,
    "weight_decay": 0.5,
    "gradient_clip": 0.01,
    "temperature": 0.5,
    "max_length": 6,
    "in_batch_negatives": False,
    "precision": "bf16",
    "seed": 14,
    "keep": "best",
}
CHANGES_SOMETHING_ELSE = {"keep_graphs", "checkpoint_seconds", "evaluate_every"}


def examples():
    texts = [f"some words about number {n} and more of them" for n in range(14)]
    return [
        TrainingExample(Query(f"q{n}", f"question {n}"), Document(f"p{n}", texts[n]), (Negative(Document(f"n{n}", texts[7 + n]), ()),))
        for n in range(7)
    ]


def run(model, work, *, on_step=None, **changes):
    scores = iter(range(100, 0, -1))  # the first evaluation is the best
    settings = TrainingSettings(**(BASE | changes))
    return train(model, examples(), settings, work, autocast=autocast, device="cpu", on_step=on_step, evaluate=lambda _: next(scores))


@pytest.fixture(scope="module")
def base(tiny_encoder, tmp_path_factory):
    return run(tiny_encoder, tmp_path_factory.mktemp("base"), evaluate_every=1)


def weights(result):
    return file_sha256(result.model / "model.safetensors")


def test_every_setting_is_in_one_of_the_two_lists():
    assert CHANGES_THE_WEIGHTS.keys() | CHANGES_SOMETHING_ELSE == set(TrainingSettings.model_fields)


@pytest.mark.parametrize("name", CHANGES_THE_WEIGHTS)
def test_changing_it_changes_the_weights(tiny_encoder, tmp_path, base, name):
    result = run(tiny_encoder, tmp_path, **({"evaluate_every": 1} | {name: CHANGES_THE_WEIGHTS[name]}))
    assert weights(result) != weights(base)


def test_the_same_settings_give_the_same_bytes(tiny_encoder, tmp_path, base):
    again = run(tiny_encoder, tmp_path, evaluate_every=1)
    assert {p.name: file_sha256(p) for p in again.model.iterdir() if p.is_file()} == {
        p.name: file_sha256(p) for p in base.model.iterdir() if p.is_file()
    }


def test_evaluate_every_says_how_often(tiny_encoder, tmp_path, base):
    assert [steps for steps, _ in base.evaluations] == [1, 2, 3]
    assert [steps for steps, _ in run(tiny_encoder, tmp_path / "a", evaluate_every=2).evaluations] == [2, 3]
    assert [steps for steps, _ in run(tiny_encoder, tmp_path / "b", evaluate_every=0, epochs=2).evaluations] == [3, 6]


def test_checkpoint_seconds_says_how_often(tiny_encoder, tmp_path):
    def kept(seconds):
        seen = []
        work = tmp_path / str(seconds)
        run(
            tiny_encoder, work, checkpoint_seconds=seconds, on_step=lambda _: seen.append([p.name for p in work.glob("checkpoints/step-*")])
        )
        assert not (work / "checkpoints").exists(), "a finished training keeps none"
        return seen

    assert kept(1e9) == [[], [], []]
    assert kept(0.0) == [[], ["step-000000001"], ["step-000000002"]]


@pytest.mark.parametrize(("keep_graphs", "passes"), [(0, 2), (99, 1)])
def test_keep_graphs_spares_second_passes(tiny_encoder, tmp_path, base, keep_graphs, passes):
    calls = []
    result = train(
        tiny_encoder,
        examples(),
        TrainingSettings(**(BASE | {"keep_graphs": keep_graphs})),
        tmp_path,
        autocast=lambda device, precision: calls.append(device) or autocast(device, precision),
        device="cpu",
    )
    chunks_of_step = [2 + 3, 2 + 3, 1 + 1]  # queries and documents of batches of 3, 3 and 1 examples, two texts at a time
    assert len(calls) == 1 + passes * sum(chunks_of_step)  # once more to see which precision it is
    assert weights(result) == weights(base)
