"""Hugging Face data sets saved to disk become the same collection as the BEIR folder they were made from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negatron.data.catalog import load
from negatron.data.collection import Collection
from negatron.errors import DataError
from negatron.types import Document, Judgement, Query

CORPUS = [{"_id": "d1", "title": "T", "text": "x"}, {"_id": "d2", "title": "", "text": "y\nz"}]
QUERIES = [{"_id": "1", "text": "q one"}, {"_id": "2", "text": "q two"}]
TRAIN = [{"query-id": "1", "corpus-id": "d1", "score": 1}, {"query-id": "1", "corpus-id": "d2", "score": 2}]
TEST = [{"query-id": "2", "corpus-id": "d2", "score": 0}]
EXPECTED = Collection(
    "set",
    {"d1": Document("d1", "x", "T"), "d2": Document("d2", "y\nz")},
    {"1": Query("1", "q one"), "2": Query("2", "q two")},
    {"train": (Judgement("1", "d1", 1), Judgement("1", "d2", 2)), "test": (Judgement("2", "d2", 0),)},
)


def parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def parquet_set(folder: Path, **changed: list[dict[str, object]]) -> Path:
    parts: dict[str, list[dict[str, object]]] = {"corpus": CORPUS, "queries": QUERIES, "train": TRAIN, "test": TEST} | changed  # type: ignore[assignment]
    parquet(folder / "corpus" / "corpus-00000-of-00002.parquet", parts["corpus"][:1])
    parquet(folder / "corpus" / "corpus-00001-of-00002.parquet", parts["corpus"][1:])
    parquet(folder / "queries" / "queries-00000-of-00001.parquet", parts["queries"])
    parquet(folder / "default" / "test-00000-of-00001.parquet", parts["test"])
    parquet(folder / "default" / "train-00000-of-00001.parquet", parts["train"])
    return folder


def test_parquet_parts_as_the_hub_stores_them(tmp_path: Path) -> None:
    assert load(parquet_set(tmp_path / "set")) == EXPECTED


def test_numbers_as_ids_become_their_digits_and_whole_scores_grades(tmp_path: Path) -> None:
    queries = [{"_id": 1, "text": "q one"}, {"_id": 2, "text": "q two"}]
    train = [{"query-id": 1, "corpus-id": "d1", "score": 1.0}, {"query-id": 1, "corpus-id": "d2", "score": 2.0}]
    assert load(parquet_set(tmp_path / "set", queries=queries, train=train)) == EXPECTED


def test_saved_by_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs negatron[train]")
    folder = tmp_path / "set"
    datasets.Dataset.from_list(CORPUS).save_to_disk(str(folder / "corpus"))
    datasets.DatasetDict({"queries": datasets.Dataset.from_list(QUERIES)}).save_to_disk(str(folder / "queries"))
    judgements = {"test": datasets.Dataset.from_list(TEST), "train": datasets.Dataset.from_list(TRAIN)}
    datasets.DatasetDict(judgements).save_to_disk(str(folder / "qrels"))
    assert load(folder) == EXPECTED


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train": [{"query-id": "1", "corpus-id": "d9", "score": 1}]}, "train:1: document 'd9' is not in the corpus"),
        ({"train": [{"query-id": "9", "corpus-id": "d1", "score": 1}]}, "train:1: query '9' is not among the queries"),
        ({"train": [{"query-id": "1", "corpus-id": "d1", "score": 0.5}]}, "train:1: grade 0.5 is no whole number"),
        ({"train": [*TRAIN, TRAIN[0] | {"score": 0}]}, "train:3: '1' and 'd1' have two grades"),
        ({"corpus": [CORPUS[0], CORPUS[0]]}, "corpus:2: the id 'd1' is doubled"),
        ({"queries": [{"id": "1", "text": "x"}]}, "queries:1: '_id' is null, expected a text; found the columns id, text"),
    ],
)
def test_damages_are_refused_with_part_and_row(changed: dict[str, list[dict[str, object]]], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        load(parquet_set(tmp_path / "set", **changed))
    assert words in str(refusal.value)


def test_a_missing_part_is_said(tmp_path: Path) -> None:
    folder = parquet_set(tmp_path / "set")
    (folder / "default").rename(folder / "other")
    with pytest.raises(DataError, match="no part default or qrels"):
        load(folder)
    (folder / "other").rename(folder / "qrels")
    (folder / "queries" / "queries-00000-of-00001.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="not Parquet"):
        load(folder)
