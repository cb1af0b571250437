"""The BM25 index on disk: found again, memory-mapped, the same in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from negatron.data.collection import Collection
from negatron.models import bm25
from negatron.models.bm25 import BM25Searcher, BM25Settings
from negatron.models.words import count_parts
from negatron.store import read_manifest
from negatron.types import Document, Query


@pytest.fixture
def documents(small_collection: Collection) -> list[Document]:
    return list(small_collection.documents.values())


def is_mapped(array: np.ndarray | None) -> bool:
    """True when the array's memory is that of a mapped file."""
    return array is not None and (isinstance(array, np.memmap) or is_mapped(getattr(array, "base", None)))


def test_an_index_on_disk_is_memory_mapped_found_again_and_gives_what_one_in_memory_gives(
    documents: list[Document], small_collection: Collection, tmp_path: Path
) -> None:
    queries = list(small_collection.queries.values())
    kept = BM25Searcher(documents, "c", folder=tmp_path)
    found = list(kept.search(queries, 5))
    folder = tmp_path / kept.fingerprint
    manifest = (folder / "manifest.json").stat().st_mtime_ns
    again = BM25Searcher(documents, "c", folder=tmp_path)
    assert list(again.search(queries, 5)) == found == list(BM25Searcher(documents, "c").search(queries, 5))
    assert any(found) and (folder / "manifest.json").stat().st_mtime_ns == manifest, "it was made anew"
    assert is_mapped(again.index.matrix.data) and is_mapped(again.index.matrix.indices)
    assert not is_mapped(BM25Searcher(documents, "c").index.matrix.data)
    assert sorted(read_manifest(folder, "bm25").files) == ["lengths.npy", "rows.npy", "starts.npy", "terms.json", "weights.npy"]


def test_other_settings_are_another_index(documents: list[Document], tmp_path: Path) -> None:
    for settings in (BM25Settings(), BM25Settings(b=0.75), BM25Settings(language="plain")):
        BM25Searcher(documents, "c", settings, tmp_path).index  # noqa: B018 - made when looked at
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_queries_in_small_blocks_get_what_they_get_together(
    documents: list[Document], small_collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [*small_collection.queries.values(), Query("none", "of the"), Query("unknown", "zzz")]
    searcher = BM25Searcher(documents, "c")
    together = list(searcher.search(queries, 5))
    assert len(list(searcher.index.blocks([[0], [0], [], [0]]))) == 1
    monkeypatch.setattr(bm25, "POSTINGS_AT_A_TIME", 3)
    asked = [searcher.index.numbers(searcher.words.of(query.text)) for query in queries]
    assert len(list(searcher.index.blocks(asked))) > 2
    assert list(searcher.search(queries, 5)) == together and together[-2:] == [[], []]


def test_an_empty_corpus_and_one_without_words_find_nothing(tmp_path: Path) -> None:
    for documents in ([], [Document("a", ""), Document("b", "of the")]):
        for folder in (None, tmp_path / str(len(documents))):
            assert list(BM25Searcher(documents, "c", folder=folder).search([Query("q", "cells")], 5)) == [[]]


def test_an_index_of_several_parts_is_the_index_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(f"{n:03d}", f"number {n} of {n % 7} cells divides {n % 13} times") for n in range(100)]
    queries = [Query("q", "the number of cells that divide 4 12 times")]
    one = BM25Searcher(documents, "c", folder=tmp_path / "one")
    found = list(one.search(queries, 20))
    monkeypatch.setattr(bm25, "count_parts", lambda *own: count_parts(*own, characters=500))
    several = BM25Searcher(documents, "c", folder=tmp_path / "several")
    assert list(several.search(queries, 20)) == found and len(found[0]) == 20
    files = [(tmp_path / name / one.fingerprint) for name in ("one", "several")]
    for name in ("lengths.npy", "rows.npy", "starts.npy", "terms.json", "weights.npy"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes(), name
