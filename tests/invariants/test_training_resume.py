"""A training killed by SIGKILL and started again ends with the same bytes as one that never stopped (DESIGN invariant 4)."""

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
from negatron.training.trainer import TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Query, TrainingExample  # noqa: E402

PRECISIONS = ("fp32", "bf16")
KILLED_AFTER = 5  # of 2 epochs of 4 steps; the newest checkpoint is then that of step 4


def run(model, work, precision, on_step=None, seconds=0.0):
    """Two epochs with dropout on and the best of four evaluations kept, a checkpoint after every step."""
    texts = [f"some words about number {n} and {n * n} more of them" for n in range(22)]
    examples = [
        TrainingExample(Query(f"q{n}", f"question {n}"), Document(f"p{n}", texts[n]), (Negative(Document(f"n{n}", texts[11 + n]), ()),))
        for n in range(11)
    ]
    settings = TrainingSettings(
        epochs=2,
        batch_size=3,
        chunk_size=2,
        learning_rate=1e-3,
        precision=precision,
        checkpoint_seconds=seconds,
        evaluate_every=2,
        keep="best",
    )

    def evaluate(trained):  # the fourth evaluation, after step 8, is not the best
        return -abs(float(trained.encode("question 1", convert_to_tensor=True)[0]))

    return train(model, examples, settings, work, autocast=autocast, device="cpu", on_step=on_step, evaluate=evaluate)


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
    """precision -> the folder of a training that a real SIGKILL ended in the middle of its second epoch."""
    place = tmp_path_factory.mktemp("killed")
    ended = subprocess.run([sys.executable, __file__, str(tiny_encoder), str(place)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == [f"{precision}:{-signal.SIGKILL}" for precision in PRECISIONS]
    return {precision: place / precision for precision in PRECISIONS}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_killed_training_goes_on_and_ends_with_the_same_files(tiny_encoder, tmp_path, killed, precision):
    work = killed[precision]
    assert [path.name for path in (work / "checkpoints").glob("step-*")] == ["step-000000004"]
    (work / "checkpoints" / ".partial").mkdir()  # as a kill in the middle of writing a checkpoint leaves it
    (work / "checkpoints" / ".partial" / "model.safetensors").write_bytes(b"torn")
    with (work / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    steps = []
    resumed = run(tiny_encoder, work, precision, on_step=lambda line: steps.append(line["step"]))
    assert steps == [5, 6, 7, 8]
    whole = run(tiny_encoder, tmp_path, precision, seconds=1e9)
    assert whole.first_loss != whole.last_loss, "nothing was learnt"
    assert files(work) == files(tmp_path)
    assert (resumed.facts(), resumed.model) == (whole.facts(), work / "model")


def test_a_checkpoint_of_other_settings_is_refused_and_the_difference_named(tiny_encoder, tmp_path):
    def stop(line):
        if line["step"] == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(tiny_encoder, tmp_path, "fp32", on_step=stop)
    with pytest.raises(NegatronError, match="step-000000001 belongs to another training \\(precision: 'fp32' there, 'bf16' now\\)"):
        run(tiny_encoder, tmp_path, "bf16")


if __name__ == "__main__":  # what the fixture starts: a child a precision, so that the libraries are loaded once
    torch.set_num_threads(1)
    for name in PRECISIONS:
        child = os.fork()
        if not child:
            run(Path(sys.argv[1]), Path(sys.argv[2]) / name, name, on_step=kill_at(KILLED_AFTER))
            os._exit(3)
        print(f"{name}:{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
