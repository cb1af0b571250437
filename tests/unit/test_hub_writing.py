from __future__ import annotations

from pathlib import Path

import pytest

from negatron.data.catalog import load
from negatron.data.collection import Collection
from negatron.data.hub import read_saved, write_saved


def test_a_collection_written_as_a_hub_data_set_comes_back_whole(small_collection: Collection, tmp_path: Path) -> None:
    written = write_saved(small_collection, tmp_path / "hub")
    assert read_saved(written).fingerprint == load(written).fingerprint == small_collection.fingerprint


def test_datasets_opens_what_was_written(small_collection: Collection, tmp_path: Path) -> None:

    datasets = pytest.importorskip("datasets", reason="needs negatron[train]")
    write_saved(small_collection, tmp_path / "hub")
    corpus = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "hub" / "corpus" / "corpus.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert corpus["_id"] == list(small_collection.documents)
