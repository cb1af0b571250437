"""Batches without a repeated text: the plan of an epoch against the no-duplicate samplers of sentence-transformers, in one run.

    python benchmarks/batch_plan.py [--rows 200000] [--batch-size 4096] [--words 16] [--repeats 5] [--json]
    python benchmarks/batch_plan.py --scale 1000000 10000000 [--json]

First it checks that no batch of ours repeats a text and that the rows out are the rows in, also where one text is in half of the rows;
then it measures. The texts are generated: a query and a positive of their own in each row, five negatives drawn from as many documents as
there are rows, and each tenth query asked by two rows. `--scale` plans generated hashes that lie on disk, each number of rows in a fresh
process, and tells the peak of the memory that is the process's own (mapped files are the system's to drop).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from negatron.identity import same_words
from negatron.training.planning import Plan, TextHashes, least_conflicts, plan_epoch
from negatron.training.shuffling import mixed
from negatron.training.text_hashes import kept_once
from negatron.types import Document, Negative, Query, TrainingExample

TEXTS = 7
WORDS = [f"word{n}" for n in range(5000)]


def generated(rows: int, words: int, *, seed: int = 1) -> list[tuple[str, ...]]:
    """(query, positive, five negatives) a row."""
    draw = random.Random(seed)
    documents = [f"{n} " + " ".join(draw.choices(WORDS, k=words)) for n in range(2 * rows)]
    queries = [f"what is {n} " + " ".join(draw.choices(WORDS, k=words // 3)) for n in range(rows)]
    for n in range(0, rows - 1, 20):
        queries[n + 1] = queries[n]
    order = draw.sample(range(rows), rows)
    negatives = iter(draw.choices(documents[rows:], k=5 * rows))
    return [(queries[n], documents[n], *(next(negatives) for _ in range(TEXTS - 2))) for n in order]


def examples_of(table: list[tuple[str, ...]]) -> list[TrainingExample]:
    rows = []
    for query, positive, *negatives in table:
        own = tuple(Negative(Document("", text), ()) for text in negatives)
        rows.append(TrainingExample(Query("", query), Document("", positive), own, frozenset({positive})))
    return rows


def repeated(plan: Plan, table: list[tuple[str, ...]]) -> int:
    """Texts that are in two rows of a batch, counted on the texts themselves."""
    found = 0
    for batch in plan:
        counts = Counter(text for row in batch.tolist() for text in {same_words(text) for text in table[row]})
        found += sum(count - 1 for count in counts.values())
    return found


def check(plan: Plan, table: list[tuple[str, ...]], expected: int) -> None:
    rows = np.sort(np.concatenate(plan[:]))
    if not np.array_equal(rows, np.arange(len(table))):
        raise SystemExit("the rows out are not the rows in")
    if (found := repeated(plan, table)) != expected:
        raise SystemExit(f"{found} texts are in two rows of a batch, expected {expected}")


def seconds_of(job, repeats: int) -> tuple[list[float], float]:
    """Wall seconds of each repetition, and the median of the processor's seconds: all of it runs on one thread."""
    times, cpu = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        job()
        times.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return times, statistics.median(cpu)


def peers(table: list[tuple[str, ...]], batch_size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of an epoch of both samplers, and what came out."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers.base.sampler import NoDuplicatesBatchSampler

    disable_progress_bars()
    names = ["query", "positive", *(f"negative_{n}" for n in range(1, TEXTS - 1))]
    data = Dataset.from_dict(dict(zip(names, map(list, zip(*table, strict=True)), strict=True)))
    found = {}
    for name, hashed in (("NO_DUPLICATES_HASHED", True), ("NO_DUPLICATES", False)):
        generator = torch.Generator()
        sampler = NoDuplicatesBatchSampler(
            data, batch_size=batch_size, drop_last=False, generator=generator, seed=1, precompute_hashes=hashed
        )
        began = time.perf_counter()
        sampler._build_hashes()
        hashing = time.perf_counter() - began
        times, cpu, batches = [], [], []
        for _ in range(repeats if hashed else 1):
            began, used = time.perf_counter(), time.process_time()
            batches = list(sampler)
            times.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
        full = sum(len(batch) == batch_size for batch in batches)
        found[name] = {
            "seconds": statistics.median(times),
            "cpu_seconds": statistics.median(cpu),
            "hashing_seconds": hashing,
            "batches": len(batches),
            "full_batches": full,
            "rows": sum(map(len, batches)),
        }
    return found


def against_peers(options: argparse.Namespace) -> dict[str, object]:
    table = generated(options.rows, options.words)
    examples = examples_of(table)
    (hashing,), hashing_cpu = seconds_of(lambda: TextHashes.of(examples), 1)
    hashes = TextHashes.of(examples)
    plan = plan_epoch(hashes, options.batch_size, seed=1, epoch=0)
    check(plan, table, 0)
    half = [(q, "the same text", *rest) if n % 2 else (q, p, *rest) for n, (q, p, *rest) in enumerate(table)]
    half_hashes = TextHashes.of(examples_of(half))
    half_plan = plan_epoch(half_hashes, options.batch_size, seed=1, epoch=0)
    least = least_conflicts(half_hashes, options.batch_size)
    check(half_plan, half, least)
    times, cpu = seconds_of(lambda: plan_epoch(hashes, options.batch_size, seed=1, epoch=0), options.repeats)
    half_times, half_cpu = seconds_of(lambda: plan_epoch(half_hashes, options.batch_size, seed=1, epoch=0), options.repeats)
    ours = statistics.median(times)
    result: dict[str, object] = {
        "rows": options.rows,
        "texts": options.rows * TEXTS,
        "batch_size": options.batch_size,
        "plan_seconds": ours,
        "plan_seconds_all": times,
        "plan_cpu_seconds": cpu,
        "plan_seconds_per_200k_rows": ours * 200_000 / options.rows,
        "hashing_seconds": hashing,
        "hashing_cpu_seconds": hashing_cpu,
        "batches": len(plan),
        "full_batches": sum(len(batch) == options.batch_size for batch in plan),
        "conflicts": plan.conflicts,
        "half": {
            "plan_seconds": statistics.median(half_times),
            "plan_cpu_seconds": half_cpu,
            "conflicts": half_plan.conflicts,
            "least": least,
        },
    }
    if not options.alone:
        found = peers(table, options.batch_size, min(3, options.repeats))
        result["peers"] = found
        result["times_faster"] = {name: peer["seconds"] / ours for name, peer in found.items()}
        result["times_faster_first_epoch"] = {
            name: (peer["seconds"] + peer["hashing_seconds"]) / (ours + hashing) for name, peer in found.items()
        }
    return result


class OwnMemory(threading.Thread):
    """The peak of the process's own memory (RssAnon), looked at every two milliseconds. MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.first = self.peak = self.now()

    @staticmethod
    def now() -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1024

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, self.now())


def make_hashes(folder: Path, rows: int) -> None:
    """Hashes as of a query and a positive of its own in each row, and five negatives out of as many documents as there are rows."""
    texts = np.lib.format.open_memmap(folder / "texts.npy", "w+", np.uint64, (rows, TEXTS))
    for first in range(0, rows, 1 << 18):
        own = np.arange(first, min(first + (1 << 18), rows), dtype=np.uint64)
        block = mixed(own[:, None] * np.uint64(TEXTS) + np.arange(TEXTS, dtype=np.uint64), 1)
        block[:, 2:] = mixed(block[:, 2:] % np.uint64(rows), 2)
        texts[first : first + len(own)] = kept_once(block)
    texts.flush()


def planned(folder: Path, rows: int, batch_size: int) -> dict[str, float]:
    """Seconds and memory of one plan of hashes on disk; in a process of its own, which has not held anything large before."""
    stored = np.load(folder / "texts.npy", mmap_mode="r")
    nothing = np.broadcast_to(np.zeros((1, 2), np.int64), (rows, 2))
    hashes = TextHashes(stored, nothing, np.zeros(0, np.uint64), f"generated {rows}")
    watch = OwnMemory()
    watch.start()
    plan_epoch(hashes, batch_size, seed=1, epoch=0, count=min(rows, 2 * batch_size))  # what is only paid once: imports, caches
    began, cpu = time.perf_counter(), time.process_time()
    plan = plan_epoch(hashes, batch_size, seed=1, epoch=0, folder=folder / "plan")
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    watch.done.set()
    watch.join()
    seen = np.zeros(rows, np.bool_)
    seen[plan.positions] = True
    return {
        "rows": rows,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "seconds_per_200k_rows": seconds * 200_000 / rows,
        "peak_own_mib": watch.peak - watch.first,
        "conflicts": plan.conflicts,
        "every_row_once": bool(seen.all()),
    }


def at_scale(options: argparse.Namespace) -> dict[str, object]:
    found = []
    for rows in options.scale:
        with tempfile.TemporaryDirectory(dir=options.folder) as work:
            for job, *values in ((make_hashes, rows), (planned, rows, options.batch_size)):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    made = pool.apply(job, (Path(work), *values))
            found.append(made)
        print(json.dumps(found[-1]), flush=True)
    largest = found[-1]
    times = {f"{name}_at_100m_extrapolated": largest[name] * 1e8 / largest["rows"] for name in ("seconds", "cpu_seconds")}
    return {"scale": found, "batch_size": options.batch_size, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--words", type=int, default=16, help="words in a generated document")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the samplers of sentence-transformers")
    parser.add_argument("--scale", type=int, nargs="+", help="numbers of rows to plan from disk instead")
    parser.add_argument("--folder", type=Path, help="where --scale keeps its files; 56 bytes a row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = at_scale(options) if options.scale else against_peers(options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
