"""The dense searcher: many queries on disk, copies, approximate indexes by choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs negatron[train]")

from negatron.conformance import TableEncoder, check_searcher
from negatron.identity import stream
from negatron.models import dense_index
from negatron.models.dense_index import Copies, DenseSearcher, SearchSettings
from negatron.models.vectors import VectorStore
from negatron.store import read_manifest
from negatron.types import Document, Query


def random_table(count: int, dimensions: int = 8) -> dict[str, list[float]]:
    """text number n -> a vector near one of ten directions."""
    draw = stream(1, "table")
    directions = [[draw.gauss(0, 1) for _ in range(dimensions)] for _ in range(10)]
    return {f"text {n}": [x + draw.gauss(0, 0.3) for x in directions[n % 10]] for n in range(count)}


TABLE = random_table(600)


def searcher(store: Path, settings: SearchSettings | None = None, *, copies: bool = False) -> DenseSearcher:
    documents = [Document(f"{n:03d}", f"text {n % 400 if copies else n}") for n in range(600)]
    return DenseSearcher(TableEncoder(TABLE), documents, VectorStore(store), "table", settings=settings)


QUERIES = [Query(f"q{n}", f"text {n}") for n in range(0, 600, 11)]


@pytest.mark.parametrize("copies", [False, True])
def test_many_queries_are_searched_in_blocks_on_disk_and_get_what_few_get(
    copies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = list(searcher(tmp_path, copies=copies).search(QUERIES, 9))
    monkeypatch.setattr(dense_index, "QUERIES_AT_A_TIME", 10)
    assert list(searcher(tmp_path, copies=copies).search(QUERIES, 9)) == few
    (stored,) = tmp_path.glob("search-*")
    assert sorted(read_manifest(stored, "search").files) == ["rows.npy", "scores.npy"]
    assert "dense search: 55/55 queries" in capsys.readouterr().err
    assert list(searcher(tmp_path, copies=copies).search(QUERIES, 9)) == few
    assert "dense search" not in capsys.readouterr().err, "a search that is stored is found again"
    assert list(searcher(tmp_path, copies=copies).search(QUERIES, 8)) == [hits[:8] for hits in few]
    assert len(list(tmp_path.glob("search-*"))) == 2, "another depth is another search"


def test_the_documents_of_one_text_have_one_score_and_go_by_id(tmp_path: Path) -> None:
    found = searcher(tmp_path, copies=True)
    check_searcher(found, QUERIES, 7)
    assert [hit.document_id for hit in next(iter(found.search([Query("q", "text 30")], 2)))] == ["030", "430"]
    assert len(found.vectors) == 400 and len(next(iter(found.search(QUERIES, 1000)))) == 600


def test_expanding_texts_gives_the_best_documents() -> None:
    copies = Copies.of([0, 1, 0, 2, 1])  # documents 0 and 2 have text 0, 1 and 4 text 1, 3 text 2
    texts, scores = np.array([[1, 0, 2], [2, 0, 1]]), np.array([[0.9, 0.9, 0.1], [0.5, 0.4, 0.4]], np.float32)
    rows, own = copies.expanded(texts, scores, 3)
    assert rows.tolist() == [[0, 1, 2], [3, 0, 1]]
    assert own.tolist() == [pytest.approx([0.9, 0.9, 0.9]), pytest.approx([0.5, 0.4, 0.4])]


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_tells_its_recall_and_scores_exactly(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = searcher(tmp_path)
    approximate = searcher(tmp_path, SearchSettings(index=kind, probes=8))
    scores = {
        query.id: {hit.document_id: hit.score for hit in hits} for query, hits in zip(QUERIES, exact.search(QUERIES, 600), strict=True)
    }
    for query, hits in zip(QUERIES, approximate.search(QUERIES, 20), strict=True):
        assert {hit.document_id: hit.score for hit in hits}.items() <= scores[query.id].items() and hits
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    (stored,) = tmp_path.glob("index-*")
    recall = read_manifest(stored, "index").facts["recall"]
    assert 0.5 < recall <= 1 and f"finds {recall:.1%} of the" in capsys.readouterr().err
    assert approximate.fingerprint != exact.fingerprint


def test_fewer_probes_find_fewer_and_nothing_stands_in_for_what_was_not_found(tmp_path: Path) -> None:
    found = {probes: list(searcher(tmp_path, SearchSettings(index="ivf", probes=probes)).search(QUERIES, 300)) for probes in (1, 999)}
    assert all(len(hits) == 300 for hits in found[999])
    assert all(0 < len(few) < 300 for few in found[1])
    exact = list(searcher(tmp_path).search(QUERIES, 300))
    assert found[999] == exact and all(
        set(few) <= set(next(iter(searcher(tmp_path).search([q], 600)))) for q, few in zip(QUERIES, found[1], strict=True)
    )


def test_nothing_asked_and_nothing_to_find(tmp_path: Path) -> None:
    empty = DenseSearcher(TableEncoder(TABLE), [], VectorStore(tmp_path), "empty")
    assert list(empty.search(QUERIES[:2], 5)) == [[], []]
    assert list(searcher(tmp_path).search([], 5)) == []


def test_other_queries_or_documents_are_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_index, "QUERIES_AT_A_TIME", 10)
    first = [[hit.document_id for hit in hits] for hits in searcher(tmp_path).search(QUERIES, 5)]
    turned = [[hit.document_id for hit in hits] for hits in searcher(tmp_path).search(QUERIES[::-1], 5)]
    assert turned == first[::-1] != first
    documents, moved = (  # the same distinct texts in the same order; the copies of them stand elsewhere
        [Document(f"{n:03d}", f"text {n if n < 300 else (n + shift) % 300}") for n in range(600)] for shift in (0, 7)
    )
    for corpus in (documents, moved):
        other = DenseSearcher(TableEncoder(TABLE), corpus, VectorStore(tmp_path), "table")
        few = [next(iter(other.search([query], 5))) for query in QUERIES]
        assert list(other.search(QUERIES, 5)) == few
    assert len(list(tmp_path.glob("search-*"))) == 4
