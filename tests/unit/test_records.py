"""A negatives folder gives back what was put in, or says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from negatron.errors import DataError, NegatronError
from negatron.negatives.records import JUDGED, KIND, QUERIES, QUERIES_AT_A_TIME, Negatives, write_negatives
from negatron.store import begin
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict

HOSTILE = ["", " ", "tab\tline\nquote\"' back\\slash", "\U0001f9ea \u0000 \ufeff", "深度学习", "NaN", "null", "x" * 5000]
VERDICTS = (Verdict(True, "known positive"), Verdict(False, "relative margin", 0.81, 0.798, "detail"), Verdict(True, "selection", 3.0, 5.0))
ORIGINS = (Origin("bm25", "m", 0, 1, 14.25), Origin("synthetic", "n", 2, None, None, '{"told": "a"}'))


def judged(query_id: str, number: int, *verdicts: Verdict, score: float | None = None) -> Judged:
    document = Document(f"d{number}", HOSTILE[number % len(HOSTILE)], HOSTILE[(number + 3) % len(HOSTILE)])
    return Judged(Candidate(query_id, document, ORIGINS[: number % 3], score), verdicts)


def items(queries: int, candidates: int = 3) -> list[JudgedQuery]:
    return [
        JudgedQuery(
            Query(f"q{n}", f"{HOSTILE[n % len(HOSTILE)]} {n}"),
            tuple(Positive(Document(f"p{n}-{k}", "text", "title"), None if k else -0.25) for k in range(n % 3)),
            tuple(judged(f"q{n}", k, *VERDICTS[: k % 4], score=0.1 * k if k % 2 else None) for k in range(candidates if n % 5 else 0)),
        )
        for n in range(queries)
    ]


def folder(path: Path, records: list[JudgedQuery]) -> Negatives:
    with begin(path, kind=KIND, inputs={}) as work:
        work.finish(summary=write_negatives(work.path, records).as_json())
    return Negatives.open(path)


def test_everything_comes_back_over_several_blocks_of_queries(tmp_path: Path) -> None:
    records = items(2 * QUERIES_AT_A_TIME + 3, candidates=9)
    opened = folder(tmp_path / "neg", records)
    assert list(opened) == records and list(opened) == records, "a second reading gives the same"
    assert len(opened) == len(records) and opened.find("q7") == records[7]


def test_what_is_read_does_not_depend_on_whether_there_is_anything(tmp_path: Path) -> None:
    empty = folder(tmp_path / "none", [])
    assert list(empty) == [] and len(empty) == 0 and "negatives of 0 queries" in str(empty)
    (alone,) = folder(tmp_path / "one", [JudgedQuery(Query("q", "text"), (), ())])
    assert (type(alone.positives), type(alone.judged)) == (tuple, tuple)


def test_the_summary_counts_each_candidate_once_by_the_rule_that_rejected_it_first(tmp_path: Path) -> None:
    candidates = (
        judged("q", 1, Verdict(False, "near copy", 0.9, 0.8)),
        judged("q", 2, Verdict(True, "near copy"), Verdict(False, "selection", 6.0, 5.0)),
        judged("q", 2, Verdict(True, "near copy"), Verdict(True, "selection", 1.0, 5.0)),
        judged("q", 4, Verdict(False, "same text"), Verdict(False, "near copy")),
    )
    summary = folder(tmp_path / "neg", [JudgedQuery(Query("q", "text"), (), candidates)]).summary
    assert summary == {
        "queries": 1,
        "candidates": {"bm25": 4, "synthetic": 2},
        "kept": {"bm25": 1, "synthetic": 1},
        "rejected": {"near copy": 1, "same text": 1},
        "rejected_by_source": {"bm25": {"near copy": 1, "same text": 1}},
        "not_chosen": 1,
        "negatives_per_query": {"1": 1},
        "filled": 0,
        "dropped_queries": 0,
        "pseudo_positives": 0,
        "above_weakest": 0,
        "scores": {},
    }


def test_an_unknown_query_is_named_with_how_many_there_are(tmp_path: Path) -> None:
    with pytest.raises(NegatronError, match="has no query 'x'; it holds 4 queries"):
        folder(tmp_path / "neg", items(4)).find("x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "not a readable Parquet file"),
        (lambda path: pq.write_table(pq.read_table(path).slice(0, 2), path), "fewer candidates than queries.parquet says"),
        (lambda path: pq.write_table(pq.read_table(path).slice(1), path), "not where queries.parquet says"),
    ],
)
def test_a_damaged_file_is_an_error_with_its_name_not_fewer_negatives(tmp_path: Path, damage, message: str) -> None:
    opened = folder(tmp_path / "neg", items(4))
    damage(tmp_path / "neg" / JUDGED)
    with pytest.raises(DataError, match=f"{JUDGED}: .*{message}"):
        list(opened)


def test_candidates_beyond_those_the_queries_name_are_an_error(tmp_path: Path) -> None:
    opened = folder(tmp_path / "neg", items(4))
    pq.write_table(pq.read_table(tmp_path / "neg" / QUERIES).slice(0, 2), tmp_path / "neg" / QUERIES)
    with pytest.raises(DataError, match="more candidates than queries"):
        list(opened)
