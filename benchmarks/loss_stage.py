"""The loss stage alone: forward and backward of InfoNCE over given vectors, ours against sentence-transformers' cached loss.

    python benchmarks/loss_stage.py [--queries 4096] [--negatives 5] [--width 384] [--threads 2] [--repeat 3] [--json]

In one run: the machine's own matmul rate; ours plain, and with masks, hardness and weights; theirs at its default mini-batch and at several
others; and, in fresh processes, the memory that ours needs beyond inputs and gradients, with every option on, at Q and at 4 Q queries.
Counted operations: 8 Q N D (logits once, again in the backward, two gradients). Ours multiplies the logits out only once where their
exponentials fit into its workspace, so its share can exceed 1.
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
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

from negatron.training.formula import Options
from negatron.training.targets import GuideVectors, Targets
from negatron.training.tiled import tiled

TEMPERATURE = 0.05
MASKED = Options(TEMPERATURE, false_negative_margin=0.1, hardness=5.0, own_weight=2.0, in_batch_weight=0.5, focal=1.0)
EVERYTHING = Options(
    TEMPERATURE,
    false_negative_margin=0.1,
    guide_absolute_margin=0.0,
    hardness=5.0,
    own_weight=2.0,
    in_batch_weight=0.5,
    importance=2.0,
    focal=1.0,
    directions=("query_to_document", "query_to_query", "document_to_document", "document_to_query"),
)
MINI_BATCHES = (128, 256, 512, 1024, 2048)


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return vectors.div_(vectors.norm(dim=1, keepdim=True))


def inputs(queries: int, negatives: int, width: int, *, weighted: bool) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Column layout: the positives first, then each negative column, as sentence-transformers has them."""
    rows = torch.arange(queries)
    own = torch.stack([rows.repeat_interleave(negatives), (rows[:, None] + queries * torch.arange(1, negatives + 1)).flatten()], 1)
    excluded = torch.stack([rows, (rows + 7) % queries], 1) if weighted else torch.empty(0, 2, dtype=torch.long)
    weights = torch.rand(queries, generator=torch.Generator().manual_seed(5)) if weighted else None
    documents = unit(queries * (1 + negatives), width, 2)
    return unit(queries, width, 1), documents, Targets(rows, excluded, own, weights=weights)


def matmul_rate(queries: int, width: int) -> float:
    """Operations a second of [queries, width] x [width, queries] in fp32: the best of ten."""
    a, b = unit(queries, width, 3), unit(queries, width, 4)
    out = torch.empty(queries, queries)
    seconds = [timed(lambda: torch.mm(a, b.T, out=out)) for _ in range(12)][2:]
    return 2 * queries * queries * width / min(seconds)


def timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ours(queries: torch.Tensor, documents: torch.Tensor, targets: Targets, options: Options, guide: GuideVectors | None = None):
    queries, documents = queries.detach().requires_grad_(), documents.detach().requires_grad_()
    loss = tiled(queries, documents, targets, options, guide=guide) / len(queries)
    loss.backward()
    return loss.item(), queries.grad, documents.grad


def theirs(queries: torch.Tensor, documents: torch.Tensor, mini_batch: int):
    loss = CachedMultipleNegativesRankingLoss(torch.nn.Sequential(torch.nn.Identity()), scale=1 / TEMPERATURE, mini_batch_size=mini_batch)
    columns = [queries, *documents.split(len(queries))]
    reps = [[part.detach().requires_grad_() for part in column.split(mini_batch)] for column in columns]
    value = loss.calculate_loss(reps, with_backward=True).item()
    of_queries, *of_documents = (torch.cat([part.grad for part in column]) for column in reps)
    return value, of_queries, torch.cat(of_documents)


def check_equal(queries: torch.Tensor, documents: torch.Tensor, targets: Targets) -> float:
    """The largest relative difference of loss and gradients to theirs, at full size. Theirs normalises once more, so its gradient at the
    vectors is ours without the part along each vector, which normalisation removes from both."""
    found, right = ours(queries, documents, targets, Options(TEMPERATURE)), theirs(queries, documents, 512)
    differences = [abs(found[0] - right[0]) / right[0]]
    for vectors, mine, other in zip((queries, documents), found[1:], right[1:], strict=True):
        across = mine - (mine * vectors).sum(1, keepdim=True) * vectors
        differences.append(((across - other).norm() / other.norm()).item())
    return max(differences)


def extra_mib(queries: int, negatives: int, width: int, threads: int) -> float:
    """Of a fresh process: peak resident memory beyond inputs and gradients."""
    command = [sys.executable, __file__, "--memory", str(queries), str(negatives), str(width), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_memory(queries: int, negatives: int, width: int, threads: int) -> None:
    torch.set_num_threads(threads)
    asked, documents, targets = inputs(queries, negatives, width, weighted=True)
    guide = GuideVectors(asked, documents)
    small = inputs(64, negatives, width, weighted=True)
    ours(*small, EVERYTHING, GuideVectors(*small[:2]))  # what libraries set up once for a process is not the loss's
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    ours(asked, documents, targets, EVERYTHING, guide)
    print(peak_mib() - before - (asked.numel() + documents.numel()) * 4 / 2**20)


def peak_mib() -> float:
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("queries", 4096), ("negatives", 5), ("width", 384), ("threads", 2), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", nargs=4, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        return measure_memory(*given.memory)
    torch.set_num_threads(given.threads)
    asked, documents, targets = inputs(given.queries, given.negatives, given.width, weighted=False)
    masked = inputs(given.queries, given.negatives, given.width, weighted=True)[2]
    operations = 8 * given.queries * len(documents) * given.width
    difference = check_equal(asked, documents, targets)
    assert difference < 1e-4, f"ours and theirs differ by {difference}"
    seconds: dict[str, list[float]] = {}
    rates, shares = [], []
    for _ in range(given.repeat):  # in turn, so that a slow minute of the machine hits all alike
        rates.append(matmul_rate(given.queries, given.width))
        plain = min(timed(lambda: ours(asked, documents, targets, Options(TEMPERATURE))) for _ in range(2))
        seconds.setdefault("ours", []).append(plain)
        shares.append(operations / plain / rates[-1])
        seconds.setdefault("ours, masks and weights", []).append(
            min(timed(lambda: ours(asked, documents, masked, MASKED)) for _ in range(2))
        )
        seconds.setdefault("theirs, default (32)", []).append(timed(lambda: theirs(asked, documents, 32)))
        for size in MINI_BATCHES:
            if size <= given.queries:
                seconds.setdefault(f"theirs, {size}", []).append(timed(lambda size=size: theirs(asked, documents, size)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if name.startswith("theirs")), key=medians.__getitem__)
    memory = [extra_mib(size, given.negatives, given.width, given.threads) for size in (given.queries, 4 * given.queries)]
    figures = {
        "queries": given.queries,
        "documents": len(documents),
        "width": given.width,
        "threads": given.threads,
        "torch": torch.__version__,
        "matmul_gflops": statistics.median(rates) / 1e9,
        "share_of_matmul": statistics.median(shares),
        "times_faster_than_default": medians["theirs, default (32)"] / medians["ours"],
        "times_faster_than_best": medians[best] / medians["ours"],
        "best_of_theirs": best,
        "masked_over_plain": medians["ours, masks and weights"] / medians["ours"],
        "extra_mib": max(memory),
        "extra_mib_at": dict(zip((str(given.queries), str(4 * given.queries)), memory, strict=True)),
        "largest_relative_difference": difference,
        "seconds": {name: spread(values) for name, values in seconds.items()},
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
