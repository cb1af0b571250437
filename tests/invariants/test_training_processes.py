"""A training of two processes ends with the weights of one (DESIGN invariant 2): the same steps on the same sums of gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

import numpy as np  # noqa: E402 - after the check for torch
from sentence_transformers import SentenceTransformer  # noqa: E402

from negatron.models.precision import autocast  # noqa: E402
from negatron.training.trainer import ExampleSet, TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Origin, Query, TrainingExample  # noqa: E402

SETTINGS = {
    "epochs": 3,
    "batch_size": 4,
    "chunk_size": 3,
    "learning_rate": 1e-3,
    "temperature_learning_rate": 1e-2,
    "precision": "fp32",
    "checkpoint_seconds": 0.0,
    "evaluate_every": 2,
    "keep": "best",
    "causalneg_weight": 0.05,
    "guide": "letters",
    "guide_absolute_margin": -0.05,
}
REMINE = {"rule": "conan.v2", "limit": 2.0, "every": 2, "negatives": 1, "first_rank": 2, "source": "bm25"}


class Guide:
    """An encoder of seams.Encoder that knows a text by its digits."""

    fingerprint = "digits"

    def encode_queries(self, texts):
        counts = np.array([[1 + text.count(digit) for digit in "0123456789"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    encode_documents = encode_queries


def examples(first):
    """Five, with two ranked negatives and a written one each, of different lengths; one query more than divides evenly."""
    return [
        TrainingExample(
            Query(f"q{n}", f"question {n}"),
            Document(f"p{n}", f"the answer to {n} is {n * n} " * (1 + n % 3)),
            (
                *(Negative(Document(f"b{n}{k}", f"no answer {n} {k}"), (Origin("bm25", "maker", rank=k + 1),)) for k in range(3)),
                Negative(Document(f"s{n}", f"a written text on {n}"), (Origin("synthetic:syneg.v1", "maker"),)),
            ),
        )
        for n in range(first, first + 5)
    ]


def run(model, work, kind):
    """How many chunks this process has encoded, and how many lines of the log it was told.

    kind: "sets" mixes two sets, "remine" has one whose negatives are renewed.
    """
    given = (ExampleSet("a", examples(0)), ExampleSet("b", examples(20))) if kind == "sets" else examples(0)
    settings = TrainingSettings(**SETTINGS, **({"remine": REMINE} if kind == "remine" else {"prompts": {"a": {"query": "ask: "}}}))

    def evaluate(trained):
        return float(trained.encode("question 1", convert_to_tensor=True)[0])

    entered, told = [], []
    counting = lambda device, precision: entered.append(device) or autocast(device, precision)  # noqa: E731
    train(model, given, settings, work, autocast=counting, device="cpu", evaluate=evaluate, guide=Guide(), on_step=told.append)
    return len(entered), len(told)


KINDS = ("sets", "remine")


@pytest.fixture(scope="module")
def still_encoder(tiny_encoder, tmp_path_factory):
    """The tiny encoder without dropout: processes draw it for other texts than a single one does."""
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    model[0].model.config.hidden_dropout_prob = model[0].model.config.attention_probs_dropout_prob = 0.0
    folder = tmp_path_factory.mktemp("still") / "model"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def of_two(still_encoder, tmp_path_factory):
    """kind -> the folder of a training by two processes, started as torchrun starts them."""
    place = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, str(still_encoder), str(place)], capture_output=True, text=True, timeout=900, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {kind: place / kind for kind in KINDS}


def weights(folder):
    state = SentenceTransformer(str(folder), device="cpu").state_dict()
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(still_encoder, tmp_path, of_two, kind):
    run(still_encoder, tmp_path, kind)
    start, one, two = (weights(folder) for folder in (still_encoder, tmp_path / "model", of_two[kind] / "model"))
    assert (one - start).norm() > 0.1, "nothing to compare: nothing was learnt"
    assert (two - one).abs().max() < 1e-5
    alone, together = ([json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()] for work in (tmp_path, of_two[kind]))
    assert len(together) == len(alone), "more than one process has written"
    for line, other in zip(alone, together, strict=True):
        assert line.keys() == other.keys()
        assert {k: v for k, v in line.items() if not isinstance(v, float | dict)} == {
            k: v for k, v in other.items() if not isinstance(v, float | dict)
        }
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-4)
        assert other["temperature"] == pytest.approx(line["temperature"], rel=1e-5)
        assert other["terms"] == pytest.approx(line["terms"], rel=1e-3, abs=1e-5)
    if kind == "remine":
        assert any(line.get("renewed") for line in alone), "nothing was renewed"


def test_the_processes_have_shared_the_work(still_encoder, tmp_path, of_two):
    """Each doing all of it would end with the same weights."""
    for kind in KINDS:
        alone, steps = run(still_encoder, tmp_path / kind, kind)
        first, second = (json.loads((of_two[kind] / f"told-{rank}").read_text()) for rank in (0, 1))
        assert 0 < max(first[0], second[0]) < 0.75 * alone
        assert (first[1], second[1]) == (steps, 0), "the first process alone speaks"


if __name__ == "__main__":  # what the fixture starts, in both processes
    torch.set_num_threads(1)
    for kind in KINDS:
        counts = run(Path(sys.argv[1]), Path(sys.argv[2]) / kind, kind)
        (Path(sys.argv[2]) / kind / f"told-{os.environ['RANK']}").write_text(json.dumps(counts))
    torch.distributed.destroy_process_group()
