"""Exact top-k: against a full sort, in any blocks, by any engine, with any number of ties."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs negatron[train]")

from negatron.models import topk
from negatron.models.topk import FaissEngine, TorchEngine, best_of_all, exact_top, nearest, pair_scores, scores_of


def unit_vectors(count: int, dimensions: int = 24, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_full_sort(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """(rows, scores) by sorting the exact score of every row, then by row."""
    scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    rows = [sorted(range(len(vectors)), key=lambda row, own=own: (-own[row], row))[:k] for own in scores]
    return rows, [[float(own[row]) for row in best] for own, best in zip(scores, rows, strict=True)]


class Counting(FaissEngine):
    """Counts how deep it was asked to search."""

    def __init__(self) -> None:
        super().__init__()
        self.depths: list[int] = []

    def best(self, queries, block, k):
        self.depths.append(k)
        return super().best(queries, block, k)


@pytest.mark.parametrize("k", [1, 7, 300, 999])
def test_the_k_best_are_those_of_a_full_sort(k: int) -> None:
    vectors, queries = unit_vectors(300), unit_vectors(20, seed=1)
    rows, scores = exact_top(FaissEngine(), queries, vectors, k)
    expected = by_full_sort(queries, vectors, k)
    assert rows.tolist() == expected[0]
    assert scores.tolist() == [pytest.approx(own, abs=1e-7) for own in expected[1]]


def test_neither_blocks_nor_engine_nor_company_changes_a_bit() -> None:
    pytest.importorskip("torch", reason="needs negatron[train]")
    vectors, queries = unit_vectors(500), unit_vectors(9, seed=1)
    vectors[100:140] = queries[0] = vectors[7]  # more ties than are found beyond k
    right = exact_top(FaissEngine(), queries, vectors, 10)
    assert right[0][0].tolist() == [7, *range(100, 109)]
    ways = [(FaissEngine(), 1), (FaissEngine(), 64), (TorchEngine("cpu"), 500), (TorchEngine("cpu", tile=33), 100)]
    for engine, block in ways:
        rows, scores = exact_top(engine, queries, vectors, 10, block_rows=block)
        assert np.array_equal(rows, right[0]) and scores.tobytes() == right[1].tobytes()
    for query in range(len(queries)):
        rows, scores = exact_top(FaissEngine(), queries[query : query + 1], vectors, 10)
        assert np.array_equal(rows[0], right[0][query]) and scores[0].tobytes() == right[1][query].tobytes()


def test_a_matrix_product_rounds_differently_or_the_second_scoring_would_not_be_needed() -> None:
    vectors, queries = unit_vectors(2000, 384), unit_vectors(40, 384, seed=1)
    rough, rows = nearest(FaissEngine(), queries, vectors, 50)
    exact = scores_of(queries, vectors, rows)
    assert np.abs(rough - exact).max() < 1e-6 and not np.array_equal(rough, exact)


def test_a_query_whose_ties_reach_beyond_what_was_found_is_searched_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(400)
    vectors[50:350] = vectors[399]
    engine = Counting()
    rows, _ = exact_top(engine, vectors[399:], vectors, 5)
    assert rows.tolist() == [[50, 51, 52, 53, 54]]
    assert engine.depths == [21, 84, 336]  # 300 ties: only then does the worst that was found lie below them
    monkeypatch.setattr(topk, "DEEPEST", 100)
    engine = Counting()
    assert exact_top(engine, vectors[399:], vectors, 5)[0].tolist() == rows.tolist()
    assert engine.depths == [21, 84]


def test_scoring_every_row_gives_what_searching_gives() -> None:
    vectors, queries = unit_vectors(300), unit_vectors(4, seed=1)
    vectors[10:60] = vectors[200]
    for query in (*queries, vectors[200]):
        rows, scores = best_of_all(query, vectors, 30)
        right = exact_top(FaissEngine(), query[None], vectors, 30)
        assert rows.tolist() == right[0][0].tolist() and scores.tolist() == right[1][0].tolist()


def test_a_score_depends_on_its_pair_alone() -> None:
    vectors, queries = unit_vectors(700, 384), unit_vectors(40, 384, seed=1)
    rows = np.random.default_rng(2).integers(0, 700, (40, 33))
    scores = scores_of(queries, vectors, rows)
    assert (
        scores.tobytes()
        == np.stack([pair_scores(np.tile(q, (33, 1)), vectors[own]) for q, own in zip(queries, rows, strict=True)]).tobytes()
    )
    assert scores[5, 3:4].tobytes() == pair_scores(queries[5:6], vectors[rows[5, 3] : rows[5, 3] + 1]).tobytes()
    assert scores_of(queries[:0], vectors, rows[:0]).shape == (0, 33)
