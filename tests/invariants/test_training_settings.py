"""Every setting of a training has an effect (DESIGN invariant 8); most of them on the weights themselves."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

import numpy as np  # noqa: E402 - after the check for torch
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from negatron.identity import file_sha256  # noqa: E402
from negatron.models.precision import autocast  # noqa: E402
from negatron.training.trainer import ExampleSet, TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Origin, Query, TrainingExample  # noqa: E402

BASE = {"batch_size": 3, "chunk_size": 2, "learning_rate": 1e-3, "weight_decay": 0.01, "precision": "fp32", "checkpoint_seconds": 1e9}
HALVES = ({"share": 0.5, "quotas": {"bm25": 1}}, {"share": 0.5, "quotas": {"dense": 1}})
CHANGES_THE_WEIGHTS = {
    "epochs": {"epochs": 2},
    "batch_size": {"batch_size": 2},
    "chunk_tokens": {"chunk_tokens": 12},  # one text, by the draws of dropout alone
    "chunk_size": {"chunk_size": 3},  # so too
    "learning_rate": {"learning_rate": 2e-3},
    "schedule": {"schedule": "constant"},
    "warmup_share": {"warmup_share": 0.5},
    "weight_decay": {"weight_decay": 0.5},
    "gradient_clip": {"gradient_clip": 0.01},
    "temperature": {"temperature": 0.5},
    "temperature_learning_rate": {"temperature_learning_rate": 0.1},
    "false_negative_margin": {"false_negative_margin": -0.05},
    "guide": {"guide": "letters", "guide_absolute_margin": 0.5},
    "guide_absolute_margin": {"guide": "letters", "guide_absolute_margin": 0.5},
    "guide_relative_margin": {"guide": "letters", "guide_relative_margin": 0.5},
    "own_weight": {"own_weight": 3.0},
    "in_batch_weight": {"in_batch_weight": 3.0},
    "directions": {"directions": ("query_to_document", "document_to_query")},
    "joint_directions": {"directions": ("query_to_document", "document_to_query"), "joint_directions": False},
    "in_batch_negatives": {"in_batch_negatives": False},
    "weighting": {"weighting": {"focal": 2.0}},
    "stages": {"stages": HALVES},
    "causalneg_weight": {"causalneg_weight": 1.0},
    "distillation": {"distillation": "kl"},
    "distillation_weight": {"distillation": "kl", "distillation_weight": 3.0},
    "teacher_scale": {"distillation": "margin_mse", "teacher_scale": 3.0},
    "info_nce_weight": {"distillation": "kl", "info_nce_weight": 0.0},
    "dimensions": {"dimensions": (16,)},
    "lora": {"lora": {"rank": 2, "targets": ("query",)}},
    "remine": {"remine": {"rule": "conan.v2", "limit": 2.0, "every": 1, "negatives": 1, "first_rank": 1, "source": "bm25"}},
    "prompts": {"prompts": {"examples": {"query": "ask: "}}},
    "max_length": {"max_length": 6},
    "precision": {"precision": "bf16"},
    "seed": {"seed": 14},
    "keep": {"keep": "best"},
    "patience": {"patience": 1},
}
"""Setting -> a training in which it differs; compared with the same one without it, which mostly is the plain one."""
COMPARED_WITH = {
    "guide_absolute_margin": {"guide": "letters", "guide_absolute_margin": 0.0},
    "guide_relative_margin": {"guide": "letters", "guide_absolute_margin": 0.0},
    "joint_directions": {"directions": ("query_to_document", "document_to_query")},
    "distillation_weight": {"distillation": "kl"},
    "teacher_scale": {"distillation": "margin_mse"},
    "info_nce_weight": {"distillation": "kl"},
}
CHANGES_SOMETHING_ELSE = {
    "keep_graphs",
    "keep_tokens",
    "keep_product_tokens",
    "checkpoint_seconds",
    "evaluate_every",
    "mixing_exponent",
    "trackers",
}


def examples():
    """Each with a negative of two sources and a written one, and a teacher who thinks little of the second."""
    texts = [f"some words about number {n} and more of them" for n in range(28)]
    return [
        TrainingExample(
            Query(f"q{n}", f"question {n}"),
            Document(f"p{n}", texts[n]),
            tuple(
                Negative(Document(f"{source}{n}", texts[n + 7 * (place + 1)]), (Origin(source, "maker", rank=place % 2 + 1),), 0.3 * place)
                for place, source in enumerate(("bm25", "bm25", "synthetic:syneg.v1") if n % 2 else ("bm25", "dense", "synthetic:syneg.v1"))
            ),
            positive_score=1.0,
        )
        for n in range(7)
    ]


class Guide:
    """An encoder of seams.Encoder that knows a text by its letters."""

    fingerprint = "letters"

    def encode_queries(self, texts):
        counts = np.array([[1 + text.count(letter) for letter in "0123456789"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    encode_documents = encode_queries


def run(model, work, given=None, *, on_step=None, **changes):
    scores = iter(range(100, 0, -1))  # the first evaluation is the best
    settings = TrainingSettings(**(BASE | changes))
    return train(
        model,
        examples() if given is None else given,
        settings,
        work,
        autocast=autocast,
        device="cpu",
        on_step=on_step,
        evaluate=lambda _: next(scores),
        guide=Guide() if settings.guide else None,
    )


@pytest.fixture(scope="module")
def base(tiny_encoder, tmp_path_factory):
    return run(tiny_encoder, tmp_path_factory.mktemp("base"), evaluate_every=1)


def weights(result):
    return file_sha256(result.model / "model.safetensors")


def test_every_setting_is_in_one_of_the_two_lists():
    assert CHANGES_THE_WEIGHTS.keys() | CHANGES_SOMETHING_ELSE == set(TrainingSettings.model_fields)
    assert all(name in changes for name, changes in CHANGES_THE_WEIGHTS.items())


@pytest.mark.parametrize("name", CHANGES_THE_WEIGHTS)
def test_changing_it_changes_the_weights(tiny_encoder, tmp_path, base, name):
    other = run(tiny_encoder, tmp_path / "a", evaluate_every=1, **COMPARED_WITH[name]) if name in COMPARED_WITH else base
    assert weights(run(tiny_encoder, tmp_path / "b", **({"evaluate_every": 1} | CHANGES_THE_WEIGHTS[name]))) != weights(other)


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


@pytest.mark.parametrize(("kept", "passes"), [({}, 2), ({"keep_graphs": 99}, 1), ({"keep_tokens": 10**6}, 1)])
def test_kept_graphs_spare_second_passes(tiny_encoder, tmp_path, base, kept, passes):
    calls = []
    result = train(
        tiny_encoder,
        examples(),
        TrainingSettings(**(BASE | kept)),
        tmp_path,
        autocast=lambda device, precision: calls.append(device) or autocast(device, precision),
        device="cpu",
    )
    chunks_of_step = [2 + 6, 2 + 6, 1 + 2]  # queries and documents of batches of 3, 3 and 1 examples, two texts at a time
    assert len(calls) == 1 + passes * sum(chunks_of_step)  # once more to see which precision it is
    assert weights(result) == weights(base)


class Products(TorchDispatchMode):
    """Counts the linear layers that are really computed."""

    count = 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        self.count += operation is torch.ops.aten.addmm.default
        return operation(*given, **(named or {}))


def test_kept_products_are_not_computed_again(tiny_encoder, tmp_path, base):
    counts = {}
    for tokens in (0, 10**6):
        with Products() as products:
            result = run(tiny_encoder, tmp_path / str(tokens), evaluate_every=1, keep_product_tokens=tokens)
        assert weights(result) == weights(base)
        counts[tokens] = products.count
    assert counts[10**6] == counts[0] / 2 > 0


def test_mixing_exponent_changes_whose_turn_it_is(tiny_encoder, tmp_path):
    def turns(work, **changes):
        sets = []
        more = [replace(e, query=Query(f"r{e.query.id}", f"another {e.query.text}")) for e in examples()[:3]]
        run(
            tiny_encoder,
            work,
            (ExampleSet("a", examples()), ExampleSet("b", more)),
            on_step=lambda line: sets.append(line["set"]),
            **changes,
        )
        return sets

    assert turns(tmp_path / "plain", epochs=2) != turns(tmp_path / "even", epochs=2, mixing_exponent=0.0)
