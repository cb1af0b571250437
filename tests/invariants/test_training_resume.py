"""A training killed by SIGKILL and started again ends with the same bytes as one that never stopped (DESIGN invariant 4)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from negatron.errors import NegatronError  # noqa: E402 - after the check for torch
from negatron.identity import file_sha256  # noqa: E402
from negatron.models.precision import autocast  # noqa: E402
from negatron.training.trainer import ExampleSet, TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Origin, Query, TrainingExample  # noqa: E402

KILLED_AFTER = 5  # of 2 epochs of 4 steps; the newest checkpoint is then that of step 4
PLAIN = {
    "epochs": 2,
    "batch_size": 3,
    "chunk_size": 2,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "evaluate_every": 2,
    "keep": "best",
}
STAGES = (
    {"name": "easy", "share": 0.4, "quotas": {"bm25": 1}, "temperature": {"from": 0.1, "to": 0.05}},
    {"name": "hard", "share": 0.6, "quotas": {"bm25": 1, "dense": 2}, "bands": {"dense": [1, 3]}, "false_negative_margin": 0.2},
)
KINDS = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "curriculum": {
        "stages": STAGES,
        "weighting": {"focal": {"from": 0.0, "to": 2.0}, "hardness": 1.0},
        "remine": {"rule": "conan.v2", "limit": 2.0, "every": 3, "negatives": 2, "first_rank": 2},
        "lora": {"rank": 2, "targets": ["query"], "dropout": 0.1},
    },
    "mixture": {
        "temperature_learning_rate": 0.05,
        "mixing_exponent": 0.5,
        "dimensions": (16,),
        "patience": 9,
        "prompts": {"small": {"query": "ask: "}},
    },
}
"""What differs from PLAIN."""


def examples(first, count):
    """Each with a negative of one source and four ranked ones of another."""
    texts = [f"some words about number {n} and {n * n} more of them" for n in range(first, first + 6 * count)]
    return [
        TrainingExample(
            Query(f"q{first + n}", f"question {first + n}"),
            Document(f"p{first + n}", texts[n]),
            tuple(
                Negative(Document(f"n{first + n}-{k}", texts[k * count + n]), (Origin("dense" if k > 1 else "bm25", "maker", rank=k),))
                for k in range(1, 6)
            ),
        )
        for n in range(count)
    ]


def run(model, work, kind, on_step=None, seconds=0.0):
    """Two epochs with dropout on and the best of four evaluations kept, a checkpoint after every step."""
    mixed = (ExampleSet("large", examples(0, 8)), ExampleSet("small", examples(100, 3)))
    settings = TrainingSettings(**(PLAIN | KINDS[kind]), checkpoint_seconds=seconds)

    def evaluate(trained):  # the fourth evaluation, after step 8, is not the best
        return -abs(float(trained.encode("question 1", convert_to_tensor=True)[0]))

    given = mixed if kind == "mixture" else examples(0, 11)
    return train(model, given, settings, work, autocast=autocast, device="cpu", on_step=on_step, evaluate=evaluate)


def kill_at(step):
    return lambda line: os.kill(os.getpid(), signal.SIGKILL) if line["step"] == step else None


def files(work):
    return {str(path.relative_to(work)): file_sha256(path) for path in sorted(work.rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(tiny_encoder, tmp_path_factory):
    """kind -> the folder of a training that a real SIGKILL ended in the middle of its second epoch."""
    place = tmp_path_factory.mktemp("killed")
    ended = subprocess.run([sys.executable, __file__, str(tiny_encoder), str(place)], capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == [f"{kind}:{-signal.SIGKILL}" for kind in KINDS]
    return {kind: place / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_goes_on_and_ends_with_the_same_files(tiny_encoder, tmp_path, killed, kind):
    work = killed[kind]
    assert [path.name for path in (work / "checkpoints").glob("step-*")] == ["step-000000004"]
    (work / "checkpoints" / ".partial").mkdir()  # as a kill in the middle of writing a checkpoint leaves it
    (work / "checkpoints" / ".partial" / "model.safetensors").write_bytes(b"torn")
    with (work / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    steps = []
    resumed = run(tiny_encoder, work, kind, on_step=lambda line: steps.append(line["step"]))
    assert steps == [5, 6, 7, 8]
    whole = run(tiny_encoder, tmp_path, kind, seconds=1e9)
    assert whole.first_loss != whole.last_loss, "nothing was learnt"
    assert files(work) == files(tmp_path)
    assert (resumed.facts(), resumed.model) == (whole.facts(), work / "model")


def log_of(work):
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def test_weights_quotas_and_temperature_change_by_step_and_survive_a_resume(tiny_encoder, killed):
    run(tiny_encoder, killed["curriculum"], "curriculum")  # goes on, or finds itself finished
    lines = log_of(killed["curriculum"])
    assert [line["stage"] for line in lines] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert [line["examples"] for line in lines] == [3, 3, 3, 2, 3, 3, 3, 2]  # 0.4 of 2 x 11 examples are 9; no batch reaches over a border
    assert [line["temperature"] for line in lines] == pytest.approx([0.1, 0.1 - 0.05 / 3, 0.1 - 0.1 / 3, *[0.05] * 5])
    assert [line["focal"] for line in lines] == pytest.approx([2 * seen / 22 for seen in (0, 3, 6, 9, 11, 14, 17, 20)])
    assert [line["quotas"] for line in lines] == [{"bm25": 1}] * 3 + [{"bm25": 1, "dense": 2}] * 5
    assert [line["chosen"] for line in lines[2:4]] == [{"bm25": 3}, {"bm25": 2, "dense": 4}]
    assert [line["false_negative_margin"] for line in lines] == [None] * 3 + [0.2] * 5
    assert [step for step, line in enumerate(lines) if "renewed" in line] == [0, 3, 6]
    assert sum(line.get("renewed", 0) for line in lines) > 0, "nothing was renewed"


def test_a_learnt_temperature_and_a_mixture_go_on_where_they_stopped(tiny_encoder, killed):
    run(tiny_encoder, killed["mixture"], "mixture")
    lines = log_of(killed["mixture"])
    temperatures = [line["temperature"] for line in lines]
    assert temperatures[0] == pytest.approx(0.05) and len(set(temperatures)) >= 7  # the first step has learning rate 0
    seen = {name: sum(line["examples"] for line in lines if line["set"] == name) for name in ("large", "small")}
    assert sum(seen.values()) == 22 and seen["small"] > 22 * 3 / 11, "the smaller set has more than its size's share"


def test_a_checkpoint_of_other_settings_is_refused_and_the_difference_named(tiny_encoder, tmp_path):
    def stop(line):
        if line["step"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(tiny_encoder, tmp_path, "fp32", on_step=stop)
    with pytest.raises(NegatronError, match="step-000000001 belongs to another training \\(precision: 'fp32' there, 'bf16' now\\)"):
        run(tiny_encoder, tmp_path, "bf16")


if __name__ == "__main__":  # what the fixture starts: a child a kind, so that the libraries are loaded once
    torch.set_num_threads(1)
    for name in KINDS:
        child = os.fork()
        if not child:
            run(Path(sys.argv[1]), Path(sys.argv[2]) / name, name, on_step=kill_at(KILLED_AFTER))
            os._exit(3)
        print(f"{name}:{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
