"""What was mined with every kind of source and verdict leaves in every form that other tools read, and as `datasets.Dataset`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from negatron.identity import stream
from negatron.negatives.filters import chain, judge
from negatron.negatives.records import KIND, Negatives, write_negatives
from negatron.negatives.selection import SelectionSettings, choose
from negatron.store import begin
from negatron.types import Candidate, Document, JudgedQuery, Origin, Positive, Query
from negatron.verbs.negatives import dataset, explain, export

SETTINGS = SelectionSettings(negatives=3, rank_from=2, max_score=0.7, negative_below=0.5, when_short="fill:random")


def candidate(id_: str, score: float, *origins: Origin) -> Candidate:
    return Candidate("q", Document(id_, f"a text of {id_} that nobody else has"), origins, score)


@pytest.fixture
def mined(tmp_path: Path) -> Negatives:
    """Kept: b (bm25 and cross-encoder), f (a file), r (the reserve). Rejected: a by its rank, h by its score, p by the threshold."""
    found = [
        candidate("a", 0.2, Origin("bm25", "m", 0, 1, 9.0)),
        candidate("b", 0.3, Origin("bm25", "m", 0, 2, 8.0), Origin("cross-encoder", "ce", 0, 4, 0.3)),
        candidate("f", 0.1, Origin("file:run.trec", "f", 1, 2, None)),
        candidate("h", 0.75, Origin("dense", "n", 1, 2, 0.75)),
        candidate("p", 0.65, Origin("dense", "n", 1, 3, 0.65)),
        candidate("r", 0.05, Origin("random", "r", 0, 1)),
        candidate("s", 0.04, Origin("random", "r", 0, 2)),
    ]
    query, positives = Query("q", "who asks"), (Positive(Document("d", "the answer", "Title"), 0.95),)
    item = choose(JudgedQuery(query, positives, judge(chain(SETTINGS), query, positives, found)), SETTINGS, stream(0))
    with begin(tmp_path / "neg", kind=KIND, inputs={}) as work:
        work.finish(summary=write_negatives(work.path, [item]).as_json())
    return Negatives.open(tmp_path / "neg")


def test_the_record_comes_back_with_every_field(mined: Negatives) -> None:
    (item,) = mined
    assert [(j.candidate.document.id, j.verdicts[-1].rule) for j in item.judged if j.kept] == [(id_, "selection") for id_ in "bfr"]
    assert {j.candidate.document.id: next(v.rule for v in j.verdicts if not v.kept) for j in item.judged if not j.kept} == {
        "a": "rank window",
        "h": "score range",
        "p": "teacher threshold",
        "s": "reserve",
    }
    assert item.judged[1].candidate.origins[1] == Origin("cross-encoder", "ce", 0, 4, 0.3)
    assert mined.summary["filled"] == 1 and mined.summary["not_chosen"] == 1


def test_the_rows_open_as_a_dataset(mined: Negatives) -> None:
    pytest.importorskip("datasets", reason="needs negatron[train]")
    rows = mined.dataset()
    assert [row["document_id"] for row in rows if row["kept"]] == ["b", "f", "r"]
    assert [origin["source"] for origin in rows[1]["origins"]] == ["bm25", "cross-encoder"]
    assert rows[2]["origins"][0] == {"source": "file:run.trec", "maker": "f", "round": 1, "rank": 2, "score": None, "note": ""}


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("sentence-transformers", ["anchor", "positive", "negative_1", "negative_2", "negative_3"]),
        ("triplets", ["anchor", "positive", "negative"]),
        ("labelled", ["query", "docs", "labels"]),
    ],
)
def test_the_kept_ones_open_as_a_trainers_dataset(form: str, columns: list[str], mined: Negatives) -> None:
    pytest.importorskip("datasets", reason="needs negatron[train]")
    found = dataset(mined, form)
    assert found.column_names == columns and len(found) == (3 if form == "triplets" else 1)
    assert found[0][columns[1]] == (["Title the answer", *texts()] if form == "labelled" else "Title the answer")


def texts() -> list[str]:
    return [f"a text of {id_} that nobody else has" for id_ in "bfr"]


@pytest.mark.parametrize("form", ["sentence-transformers", "triplets", "labelled", "flagembedding", "tevatron", "beir", "trec"])
def test_every_form_takes_the_kept_ones_and_no_other(form: str, mined: Negatives, tmp_path: Path) -> None:
    place = tmp_path / "out" / ("data" if form in ("beir", "tevatron") else "rows.txt" if form == "trec" else "rows.jsonl")
    place.parent.mkdir()
    export(mined, form, place)
    written = "".join(path.read_text() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file())
    if form == "trec":
        assert sorted(line.split()[2] for line in written.splitlines() if line.endswith(" 0")) == ["b", "f", "r"]
    else:
        assert all(text in written for text in texts()) and not any(f"text of {id_} " in written for id_ in "ahps")
    if form == "flagembedding":
        row = json.loads(written)
        assert row["neg_scores"] == [0.3, 0.1, 0.05] and row["pos_scores"] == [0.95]


def test_the_biography_tells_of_every_source_and_rule(mined: Negatives) -> None:
    text = str(explain(mined, "q"))
    for words in (
        "bm25 rank 2, score 8.0000 (maker m, round 0); cross-encoder rank 4, score 0.3000 (maker ce, round 0)",
        "file:run.trec rank 2 (maker f, round 1)",
        "rank window: rejects, 1.0000 against 2.0000 (rank from 2)",
        "score range: rejects, 0.7500 against 0.7000 (score to 0.7)",
        "teacher threshold: rejects, 0.6500 against 0.5000",
        "reserve: keeps, 1.0000 against 1.0000",
        "reserve: rejects, 2.0000 against 1.0000",
    ):
        assert words in text, text
