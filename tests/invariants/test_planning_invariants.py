"""What holds for every plan: the rows out are the rows in; whoever can be parted is; the same on any number of workers; memory of a batch.

The checker below is written on sets of texts, without a hash or an array, so that it shares nothing with what it checks.
"""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from negatron.training.planning import TextHashes, plan_epoch
from negatron.training.text_hashes import kept_once
from negatron.types import Document, Negative, Query, TrainingExample

SETS = ("distinct", "shared negatives", "queries of five", "a text in half of the rows", "known positives", "few texts", "one text")


def table_of(kind, rows, draw):
    """rows of (texts, known positives)."""
    found = []
    for n in range(rows):
        texts, known = [f"q{n}", f"p{n}", f"n{3 * n}", f"n{3 * n + 1}"], [f"p{n}"]
        if kind == "shared negatives":
            texts[2:] = [f"n{draw.integers(rows)}", f"n{draw.integers(rows)}"]
        elif kind == "queries of five":
            texts[0] = f"q{n // 5}"
        elif kind == "a text in half of the rows" and n % 2:
            texts[1] = "the same text"
        elif kind == "known positives":
            known += [f"p{draw.integers(rows)}"]
        elif kind == "few texts":
            texts = [f"t{draw.integers(30)}" for _ in range(4)]
            known = [f"t{draw.integers(30)}", "t0"]
        elif kind == "one text":
            texts = ["t", "t", "t"]
        found.append((texts, known))
    return found


def hashes_of(table):
    return TextHashes.of(
        [
            TrainingExample(Query("", q), Document("", p), tuple(Negative(Document("", text), ()) for text in own), frozenset(known))
            for (q, p, *own), known in table
        ]
    )


def meetings(batch, table):
    """Rows of a batch that share a text with an earlier row, or of which one holds what the other knows."""
    found = 0
    for place, row in enumerate(batch):
        texts, known = map(set, table[row])
        for other in batch[:place]:
            other_texts, other_known = map(set, table[other])
            if texts & other_texts or texts & other_known or other_texts & known:
                found += 1
                break
    return found


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (7, 3), (60, 7), (61, 61), (61, 100), (200, 32), (301, 2)])
def test_the_rows_out_are_the_rows_in_and_the_conflicts_are_counted(kind, rows, batch_size):
    for seed in range(3):
        table = table_of(kind, rows, np.random.default_rng([seed, rows, batch_size]))
        plan = plan_epoch(hashes_of(table), batch_size, seed=seed, epoch=seed)
        assert sorted(row for batch in plan for row in batch.tolist()) == list(range(rows))
        assert all(len(batch) == batch_size for batch in plan[:-1])
        assert plan.conflicts == sum(meetings(batch.tolist(), table) for batch in plan)


def numbers(kind, rows):
    """Hashes of a larger set, made of numbers: two windows and more."""
    draw = np.random.default_rng(3)
    texts = np.arange(rows * 4).reshape(rows, 4) + 10**9
    if kind == "shared negatives":
        texts[:, 2:] = draw.integers(1, rows, (rows, 2))
    elif kind == "queries of ten":
        texts[:, 0] = np.arange(rows) // 10 + 1
    elif kind == "a text in half of the rows":
        texts[::2, 1] = 1
    ranges, known = np.zeros((rows, 2), np.int64), np.zeros(0, np.int64)
    if kind == "known positives":
        ranges = np.stack([np.arange(rows), np.arange(1, rows + 1)], 1)
        known = texts[draw.permutation(rows), 1]
    spread = np.uint64(0x9E3779B97F4A7C15)
    return TextHashes(kept_once(texts.astype(np.uint64) * spread), ranges, known.astype(np.uint64) * spread, kind)


def repeats(hashes, batch):
    """Texts too many in a batch, and known positives beside their query."""
    texts = hashes.texts[batch]
    known = [set(hashes.known_values[first:end].tolist()) for first, end in hashes.known_ranges[batch].tolist()]
    held = set(texts.reshape(-1).tolist())
    beside = sum(len((knows & held) - set(own)) for knows, own in zip(known, texts.tolist(), strict=True))
    return texts.size - len(held) + beside


@pytest.mark.parametrize("kind", ["shared negatives", "queries of ten", "known positives"])
def test_whoever_can_be_parted_is_parted(kind):
    rows, batch_size = 40_000, 1000
    hashes = numbers(kind, rows)
    shuffled = np.random.default_rng(1).permutation(rows).reshape(-1, batch_size)
    assert sum(repeats(hashes, batch) for batch in shuffled) > 500  # there was something to part
    plan = plan_epoch(hashes, batch_size, seed=1, epoch=0)
    assert sum(repeats(hashes, batch) for batch in plan) == plan.conflicts == 0
    assert sorted(plan.positions.tolist()) == list(range(rows))


def test_a_text_in_half_of_the_rows_is_spread_evenly_and_meets_itself_as_seldom_as_can_be():
    rows, batch_size = 40_000, 1000
    hashes = numbers("a text in half of the rows", rows)
    shuffled = np.random.default_rng(1).permutation(rows).reshape(-1, batch_size)

    def most(batches):
        return max(np.count_nonzero(batch % 2 == 0) for batch in batches)

    plan = plan_epoch(hashes, batch_size, seed=2, epoch=0)
    assert sorted(plan.positions.tolist()) == list(range(rows))
    assert plan.conflicts == rows // 2 - len(plan)
    assert most(plan) <= 520 < most(shuffled)  # 500 were quite even


def test_a_plan_is_the_same_in_another_process_and_whatever_its_hash_seed(tmp_path):
    program = """
import sys, numpy as np
from negatron.training.planning import TextHashes, plan_epoch
from negatron.training.text_hashes import kept_once
from negatron.training.shuffling import mixed
texts = mixed(np.arange(4000, dtype=np.uint64) % np.uint64(1500), 3).reshape(1000, 4)
hashes = TextHashes(texts, np.zeros((1000, 2), np.int64), np.zeros(0, np.uint64), "x")
sys.stdout.write(str(plan_epoch(hashes, 16, seed=5, epoch=2).positions.tolist()))
"""
    runs = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) > 1000


def test_memory_grows_with_the_batch_and_not_with_the_rows(tmp_path):
    peaks = []
    for rows in (100_000, 500_000):
        texts = np.lib.format.open_memmap(tmp_path / f"{rows}.npy", "w+", np.uint64, (rows, 2))
        texts[:] = np.random.default_rng(1).integers(1, rows * 2, (rows, 2)).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        hashes = TextHashes(texts, np.broadcast_to(np.zeros((1, 2), np.int64), (rows, 2)), np.zeros(0, np.uint64), str(rows))
        tracemalloc.start()
        plan = plan_epoch(hashes, 256, seed=1, epoch=0, folder=tmp_path / f"plan {rows}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(np.unique(plan.positions)) == rows
    assert peaks[1] < 1.2 * peaks[0], peaks  # 8 bytes a row would be 3.2 MB more
