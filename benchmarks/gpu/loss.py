"""The loss stage on a GPU: forward and backward of InfoNCE over given bf16 vectors, up to 80,000 queries x 480,000 documents.

    python benchmarks/gpu/loss.py [--queries 8192 --queries 80000] [--negatives 5] [--width 768] [--repeat 3] [--out FILE] [--json]

In one run: the card's own matmul rate (bf16, 8192 cubed, the best of ten); the kernels alone; the loss as shipped; the loss without
Triton, in a process of its own; and sentence-transformers' cached loss at the smallest size. Counted operations: 8 Q N D (logits once,
again in the backward, two gradients). Memory is what the call's peak has beyond the inputs and the gradients in the inputs' dtype.
First, kernels and plain matrices in fp64 are compared at a small size. --out is written anew after each part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from negatron.training import kernels
from negatron.training.losses import InfoNCE, Targets

TEMPERATURE = 0.05
GIB = 2**30


def unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    draw = torch.Generator("cuda").manual_seed(seed)
    parts = [torch.randn(min(65_536, rows - start), width, device="cuda", generator=draw) for start in range(0, rows, 65_536)]
    return torch.cat([torch.nn.functional.normalize(part, dim=1).to(dtype) for part in parts])


def inputs(queries: int, negatives: int, width: int) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Column layout: the positives first, then each negative column."""
    rows = torch.arange(queries, device="cuda")
    columns = rows[:, None] + queries * torch.arange(1, negatives + 1, device="cuda")
    own = torch.stack([rows.repeat_interleave(negatives), columns.flatten()], 1)
    targets = Targets(rows, torch.empty(0, 2, dtype=torch.long, device="cuda"), own)
    return unit(queries, width, 1), unit(queries * (1 + negatives), width, 2), targets


def seconds_of(work) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def matmul_rate(size: int = 8192) -> float:
    """Operations a second in bf16: the best of ten, after two to warm up."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / min([seconds_of(lambda: torch.mm(a, b, out=out)) for _ in range(12)][2:])


def kernels_alone(queries: torch.Tensor, documents: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """The dense part: every column but a query's own positive and own negatives."""
    rows = torch.arange(len(queries), device=queries.device)
    given = {"slope": 1 / TEMPERATURE, "skipped": torch.cat([torch.stack([rows, targets.positive], 1), targets.own])}
    lse = kernels.dense_lse(queries, documents, **given)
    return kernels.dense_gradients(queries, documents, lse=lse, factors=torch.full_like(lse, 1 / len(rows)), **given)


def shipped(queries: torch.Tensor, documents: torch.Tensor, targets: Targets) -> float:
    queries, documents = queries.detach().requires_grad_(), documents.detach().requires_grad_()
    loss = InfoNCE(temperature=TEMPERATURE)(queries, documents, targets) / len(queries)
    loss.backward()
    return loss.item()


def theirs(queries: torch.Tensor, documents: torch.Tensor, mini_batch: int) -> float:
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    loss = CachedMultipleNegativesRankingLoss(torch.nn.Sequential(torch.nn.Identity()), scale=1 / TEMPERATURE, mini_batch_size=mini_batch)
    columns = [queries, *documents.split(len(queries))]
    reps = [[part.detach().requires_grad_() for part in column.split(mini_batch)] for column in columns]
    return float(loss.calculate_loss(reps, with_backward=True))


def measured(work, batch: tuple[torch.Tensor, torch.Tensor, Targets], repeat: int, rate: float) -> dict[str, float]:
    """Median seconds, share of the matmul rate, GiB beyond inputs and gradients; the first run warms up and is not counted."""
    queries, documents, targets = batch
    work(queries, documents, targets)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = [seconds_of(lambda: work(queries, documents, targets)) for _ in range(repeat)]
    gradients = sum(part.numel() * part.element_size() for part in (queries, documents))
    operations = 8 * len(queries) * len(documents) * queries.shape[1]
    return {
        "seconds": statistics.median(times),
        "seconds_min": min(times),
        "seconds_max": max(times),
        "share_of_matmul": operations / statistics.median(times) / rate,
        "extra_gib": (torch.cuda.max_memory_allocated() - before - gradients) / GIB,
    }


def check_equal(width: int) -> float:
    """The largest relative difference of the kernels' gradients to those of plain matrices in fp64, over fp32 vectors."""
    queries, documents, targets = (part.float() if isinstance(part, torch.Tensor) else part for part in inputs(1024, 5, width))
    logits = queries.double() @ documents.double().T / TEMPERATURE
    rows = torch.arange(len(queries), device="cuda")
    logits[rows, targets.positive] = -torch.inf
    logits[targets.own.unbind(1)] = -torch.inf
    weights = logits.softmax(1) / len(queries)
    expected = (weights @ documents.double(), weights.T @ queries.double())
    found = kernels_alone(queries, documents, targets)
    return max(((one.double() - other).norm() / other.norm()).item() for one, other in zip(found, expected, strict=True))


def without_triton(given: argparse.Namespace, queries: int, rate: float) -> dict[str, float]:
    """The loss as shipped in a process that cannot import Triton."""
    command = [sys.executable, __file__, "--hide-triton", str(rate), "--queries", str(queries), "--negatives", str(given.negatives)]
    run = subprocess.run([*command, "--width", str(given.width), "--repeat", "2"], capture_output=True, text=True)
    if run.returncode:
        return {"failed": run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit code {run.returncode}"}
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, action="append")
    for name, value in (("negatives", 5), ("width", 768), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--hide-triton", type=float, metavar="RATE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = sorted(given.queries or [8192, 80_000])
    if not torch.cuda.is_available():
        return print("skipped: no CUDA device")
    if given.hide_triton:
        sys.modules["triton"] = None  # as if it were not installed
        assert not kernels.available("cuda")
        return print(json.dumps(measured(shipped, inputs(sizes[0], given.negatives, given.width), given.repeat, given.hide_triton)))
    if not kernels.available("cuda"):
        return print("skipped: the kernels need Triton and a device of compute capability 8.0 or more")
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": kernels.tiles().triton.__version__,
    }
    figures |= {"negatives": given.negatives, "width": given.width}

    def note(name: str, value: object) -> None:
        figures[name] = value
        print(f"{name}: {value}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(figures))

    note("largest_relative_difference", check_equal(given.width))
    assert figures["largest_relative_difference"] < 1e-5
    rate = matmul_rate()
    note("matmul_tflops", rate / 1e12)
    for queries in sizes:
        batch = inputs(queries, given.negatives, given.width)
        note(f"kernels, {queries}", measured(kernels_alone, batch, given.repeat, rate))
        note(f"loss, {queries}", measured(shipped, batch, given.repeat, rate))
        if queries == sizes[0]:
            compare_theirs(batch, given.repeat, rate, note)
        del batch
        torch.cuda.empty_cache()
        note(f"loss without Triton, {queries}", without_triton(given, queries, rate))
    note("matmul_tflops_again", matmul_rate() / 1e12)  # a card that grew hot shows here
    if given.json:
        print(json.dumps(figures))


def compare_theirs(batch: tuple[torch.Tensor, torch.Tensor, Targets], repeat: int, rate: float, note) -> None:
    """sentence-transformers' cached loss over the same vectors: its value beside ours, and its time at several mini-batches."""
    try:
        import sentence_transformers
    except ImportError:
        return note("theirs", "skipped: sentence-transformers is not installed")
    note("sentence_transformers", sentence_transformers.__version__)
    note("loss_values", {"ours": shipped(*batch), "theirs": theirs(batch[0], batch[1], 1024)})
    for mini_batch in (32, 512, 2048, len(batch[0])):
        work = lambda queries, documents, _, size=mini_batch: theirs(queries, documents, size)  # noqa: E731 - bound to this size
        note(f"theirs, mini-batch {mini_batch}, {len(batch[0])}", measured(work, batch, 1 if mini_batch == 32 else repeat, rate))


if __name__ == "__main__":
    main()
