"""Exact top-k of inner products, in blocks: the same result to the last bit whatever the blocks, the engine or the company.

1. An engine (faiss on a CPU, torch on a GPU) finds the k + SPARE best rows of each block of the corpus in fp32; `nearest` keeps the best
   of all blocks. A matrix product rounds a pair's score differently in different company, so this order is not yet to be trusted.
2. `pair_scores` scores what was found once more, summed in fp64 and rounded once to fp32: a number that depends on the pair alone.
3. A query's answer is certain when its k-th score lies above the worst fp32 score found by more than fp32 can err: then no row that was
   not found can belong there. Queries that are not certain (many ties) are searched deeper, at last by scoring every row.

Memory: one block of queries with what was found for it, and the engine's own tiles. Rows are given by score, then by row ascending.

What it does not know: documents, files, encoders.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from negatron.errors import MissingExtra
from negatron.seams import Float32Array

Rows = NDArray[np.int64]

SPARE = 16
"""Rows found beyond the k asked for, so that exact scores decide who is the k-th."""
DEEPEN = 4
"""How many times deeper an uncertain query is searched."""
DEEPEST = 2048
"""Rows beyond which every row is scored instead."""
BLOCK_BYTES = 512 * 1024 * 1024
"""Of the corpus searched at a time: large, since what was found in each block is sorted; mapped, not copied, on a CPU."""
PAIRS_AT_A_TIME = 1024
"""Pairs scored at a time: their fp64 copies (3 MB at 384 dimensions) should fit a core's cache."""


class Engine(Protocol):
    """Top-k in one block by fp32 products."""

    def best(self, queries: Float32Array, block: Float32Array, k: int) -> tuple[Float32Array, Rows]:
        """(scores [Q, k], rows of the block [Q, k]) of the k <= len(block) best, in any order."""
        ...


class FaissEngine:
    """faiss's exhaustive search over an array as it lies, without an index that would copy it."""

    def __init__(self) -> None:
        self.faiss = imported_faiss()

    def best(self, queries: Float32Array, block: Float32Array, k: int) -> tuple[Float32Array, Rows]:
        """See Engine."""
        scores, rows = self.faiss.knn(queries, block, k, metric=self.faiss.METRIC_INNER_PRODUCT)
        return scores, rows


class TorchEngine:
    """Matrix product and top-k on a torch device, in tiles of the block."""

    def __init__(self, device: str, tile: int = 65_536) -> None:
        self.device, self.tile = device, tile

    def best(self, queries: Float32Array, block: Float32Array, k: int) -> tuple[Float32Array, Rows]:
        """See Engine."""
        import torch

        asked = torch.tensor(queries, device=self.device)
        scores, rows = [], []
        with full_precision():
            for start in range(0, len(block), self.tile):
                tile = torch.tensor(block[start : start + self.tile], device=self.device)
                top = (asked @ tile.T).topk(min(k, len(tile)), dim=1, sorted=False)
                scores.append(top.values)
                rows.append(top.indices + start)
        values, places = torch.cat(scores, 1).topk(k, dim=1, sorted=False)
        return values.cpu().numpy(), torch.cat(rows, 1).gather(1, places).cpu().numpy()


class full_precision:  # noqa: N801 - used as a context manager
    """Within it a GPU's fp32 products are fp32: TF32 would err by far more than the check of certainty allows."""

    def __enter__(self) -> None:
        import torch

        self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_float32_matmul_precision(self._before)


def imported_faiss() -> Any:
    """The faiss package. Raises MissingExtra without it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingExtra("faiss", "train") from error
    return faiss


def engine_for_this_machine() -> Engine:
    """torch where it is in use and has a GPU, else faiss."""
    torch = sys.modules.get("torch")
    return TorchEngine("cuda") if torch is not None and torch.cuda.is_available() else FaissEngine()


def nearest(
    engine: Engine, queries: Float32Array, vectors: Float32Array, k: int, *, block_rows: int | None = None
) -> tuple[Float32Array, Rows]:
    """(fp32 scores [Q, k], rows [Q, k]) of the k <= len(vectors) best rows, in any order, the corpus block by block."""
    size = block_rows or max(1, BLOCK_BYTES // (4 * vectors.shape[1]))
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), size):
        block = np.ascontiguousarray(vectors[start : start + size])
        own_scores, own_rows = engine.best(queries, block, min(k, len(block)))
        scores, rows = np.hstack([scores, own_scores]), np.hstack([rows, own_rows + start])
        if scores.shape[1] > k:
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return scores, rows


def pair_scores(queries: Float32Array, documents: Float32Array) -> Float32Array:
    """[n] inner products of the rows of two [n, D] arrays, summed in fp64, rounded once to fp32: the same for a pair in any company."""
    scores: Float32Array = np.einsum("nd,nd->n", queries.astype(np.float64), documents.astype(np.float64)).astype(np.float32)
    return scores


def scores_of(queries: Float32Array, vectors: Float32Array, rows: Rows) -> Float32Array:
    """[Q, m] the `pair_scores` of query q and vectors[rows[q]].

    Takes few queries at a time into the same two buffers: fresh memory for each would cost eight times the products (measured).
    """
    count, width = rows.shape
    scores = np.empty(rows.shape, np.float32)
    at_a_time = max(1, PAIRS_AT_A_TIME // max(width, 1))
    found = np.empty((at_a_time, width, vectors.shape[1]), np.float32)
    exact = np.empty(found.shape, np.float64)
    for start in range(0, count, at_a_time):
        own = min(at_a_time, count - start)
        np.take(vectors, rows[start : start + own], axis=0, out=found[:own], mode="clip")  # "clip": the other modes copy `out`
        exact[:own] = found[:own]
        asked = np.broadcast_to(queries[start : start + own, None].astype(np.float64), exact[:own].shape)
        scores[start : start + own] = np.einsum("qmd,qmd->qm", asked, exact[:own])
    return scores


def error_bound(queries: Float32Array, vectors_length: float) -> NDArray[np.float64]:
    """[Q] by how much an fp32 inner product can be wrong, whatever the order of its sum: D u |q| |d|, u = 2^-24 (Higham 2002, eq. 3.5)."""
    bound: NDArray[np.float64] = 1.01 * queries.shape[1] * 2.0**-24 * vectors_length * np.linalg.norm(queries.astype(np.float64), axis=1)
    return bound + 2.0**-24  # the exact score is rounded too


def exact_top(
    engine: Engine, queries: Float32Array, vectors: Float32Array, k: int, *, longest: float = 1.001, block_rows: int | None = None
) -> tuple[Rows, Float32Array]:
    """(rows [Q, k], scores [Q, k]) of the k best rows of vectors [n, D], by `pair_scores`, then by row. k is cut to n.

    longest: no row of `vectors` is longer; unit vectors are not, beyond rounding.
    """
    k = min(k, len(vectors))
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    open_queries, depth = np.arange(len(queries)), min(k + SPARE, len(vectors))
    while len(open_queries) and depth <= max(DEEPEST, k + SPARE):
        asked = np.ascontiguousarray(queries[open_queries])
        rough, found = nearest(engine, asked, vectors, depth, block_rows=block_rows)
        found.sort(axis=1)  # so that equal scores stay in the order of their rows, and rows are read in the order they lie in
        own = scores_of(asked, vectors, found)
        best = np.argsort(-own, axis=1, kind="stable")[:, :k]
        rows[open_queries], scores[open_queries] = np.take_along_axis(found, best, 1), np.take_along_axis(own, best, 1)
        certain = (
            scores[open_queries, -1] > rough.min(axis=1) + error_bound(asked, longest)
            if depth < len(vectors)
            else np.ones(len(asked), bool)
        )
        open_queries, depth = open_queries[~certain], min(depth * DEEPEN, len(vectors))
    for query in open_queries:
        rows[query], scores[query] = best_of_all(queries[query], vectors, k)
    return rows, scores


def best_of_all(query: Float32Array, vectors: Float32Array, k: int) -> tuple[Rows, Float32Array]:
    """(rows [k], scores [k]) of one query, from the exact score of every row."""
    scores = np.empty(len(vectors), np.float32)
    for rows in blocks(len(vectors), PAIRS_AT_A_TIME):
        own = vectors[rows.start : rows.stop]
        scores[rows.start : rows.stop] = pair_scores(np.broadcast_to(query, own.shape), own)
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= limit)
    best = found[np.argsort(-scores[found], kind="stable")][:k]
    return best, scores[best]


def blocks(count: int, size: int) -> Iterator[range]:
    """Ranges of `size` that cover 0 .. count.

    >>> list(blocks(5, 2))
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
