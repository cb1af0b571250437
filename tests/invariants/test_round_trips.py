"""Invariant 4: what is written is read back, in every form, whatever the texts hold. Rows 10 and 12 of the silent errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from negatron.data.beir import read_beir, write_beir
from negatron.data.collection import Collection
from negatron.data.formats import FORMATS, export, read, read_columns, read_qrels, read_run, write_qrels, write_run
from negatron.data.importing import import_pairs
from negatron.errors import DataError, SettingError
from negatron.types import Candidate, Document, Judged, JudgedQuery, Judgement, Origin, Positive, Query, ScoredDocument, Verdict

NASTY = [
    "line\nbreak",
    "tab\there",
    "a \"quoted\" word, and 'single'",
    "back\\slash \\n",
    "umlaut ü, 中文, עברית",
    "emoji 👩‍🔬🇩🇪",
    "line separator \u2028 and \u2029, next line \x85, form feed \x0c",
    "carriage\rreturn\r\n",
    " spaces around ",
    "<b>&amp;</b>",
    "\ufeffmark",
]
ORIGIN = (Origin("bm25", "made by hand", rank=1),)


def nasty_collection() -> Collection:
    documents = {f"d{n}/ü": Document(f"d{n}/ü", text, "" if n % 2 else f"title {text}") for n, text in enumerate(NASTY)}
    queries = {f"q {n}": Query(f"q {n}", f"query {text}") for n, text in enumerate(NASTY)}
    rows = [Judgement(query, document, (a + b) % 4) for a, query in enumerate(queries) for b, document in enumerate(documents)]
    return Collection("nasty", documents, queries, {"train": tuple(rows[:60]), "test": tuple(rows[60:])})


def candidate(query: str, document: Document, score: float | None, *verdicts: Verdict) -> Judged:
    return Judged(Candidate(query, document, ORIGIN, score), verdicts)


def nasty_judged(scored: bool = True) -> list[JudgedQuery]:
    """Two positives and three kept negatives a query, and one that a rule rejected."""
    judged = []
    for n, text in enumerate(NASTY):
        positives = tuple(Positive(Document(f"p{n}-{k}", f"positive {k} {text}"), 0.9 - k / 8 if scored else None) for k in range(2))
        negatives = [candidate(f"q{n}", Document(f"n{n}-{k}", f"negative {k} {text}"), 0.5 - k / 8 if scored else None) for k in range(3)]
        rejected = candidate(f"q{n}", Document(f"r{n}", f"rejected {text}"), 0.95, Verdict(False, "relative margin", 0.95, 0.8))
        judged.append(JudgedQuery(Query(f"q{n}", f"query {n} {text}"), positives, (*negatives, rejected)))
    return judged


def texts(judged: Sequence[JudgedQuery]) -> dict[str, tuple[set[str], list[str]]]:
    """query text -> texts of its positives, texts of its kept negatives in order."""
    return {
        item.query.text: (
            {positive.document.content for positive in item.positives},
            [found.candidate.document.content for found in item.judged if found.kept],
        )
        for item in judged
    }


def test_the_nasty_texts_are_nasty() -> None:
    assert any(len(text.splitlines()) > 1 for text in NASTY)
    assert any(text != text.strip() for text in NASTY)
    assert texts(nasty_judged()) != texts(nasty_judged()[:-1])


def test_writing_then_reading_judgements_gives_them_all_back(tmp_path: Path) -> None:
    collection = nasty_collection()
    assert max(len(grades) for grades in collection.graded("train").values()) > 1
    again = read_beir(write_beir(collection, tmp_path / "nasty"))
    assert again == collection
    assert again.fingerprint == collection.fingerprint
    rows = tuple(Judgement(row.query_id.replace(" ", ""), row.document_id, row.grade) for row in collection.judgements["train"])
    write_qrels(rows, tmp_path / "qrels.txt")
    assert read_qrels(tmp_path / "qrels.txt") == rows


@pytest.mark.parametrize(
    ("format", "ending"),
    [(name, "") for name, found in FORMATS.items() if found.read is not None]
    + [(name, ".jsonl") for name in ("sentence-transformers", "triplets", "labelled")],
)
def test_exported_negatives_come_back_from_every_form(format: str, ending: str, tmp_path: Path) -> None:
    judged = nasty_judged()
    export(judged, format, tmp_path / f"out{ending}")
    (written,) = tmp_path.iterdir()
    assert texts(read(written, format).judged) == texts(judged)


def test_teacher_scores_come_back_from_flagembedding(tmp_path: Path) -> None:
    def scores(items: Sequence[JudgedQuery]) -> list[list[float | None]]:
        kept = [[found.candidate.teacher_score for found in item.judged if found.kept] for item in items]
        return [[positive.teacher_score for positive in item.positives] + of for item, of in zip(items, kept, strict=True)]

    export(nasty_judged(), "flagembedding", tmp_path / "scored.jsonl")
    export(nasty_judged(scored=False), "flagembedding", tmp_path / "bare.jsonl")
    assert scores(read(tmp_path / "scored.jsonl", "flagembedding").judged) == scores(nasty_judged())
    assert {score for row in scores(read(tmp_path / "bare.jsonl", "flagembedding").judged) for score in row} == {None}


def test_ids_come_back_from_the_forms_that_hold_them(tmp_path: Path) -> None:
    judged = nasty_judged()
    for format in ("beir", "tevatron"):
        export(judged, format, tmp_path / format)
        again = read(tmp_path / format, format).judged
        assert [item.query for item in again] == [item.query for item in judged]
        assert [[found.candidate.document.id for found in item.judged] for item in again] == [
            [found.candidate.document.id for found in item.judged if found.kept] for item in judged
        ]


def test_a_run_comes_back_bit_for_bit_in_rank_order(tmp_path: Path) -> None:
    scores = [0.1, 1 / 3, 1e-30, -2.5, 123456.789, 0.30000001192092896, 0.3, 0.1]
    rows = [ScoredDocument("q1", f"d{n}", score) for n, score in enumerate(scores)]
    write_run(rows, tmp_path / "run.trec")
    again = read_run(tmp_path / "run.trec")
    assert {row.document_id: row.score for row in again} == {row.document_id: row.score for row in rows}
    assert [row.document_id for row in again] == ["d4", "d1", "d5", "d6", "d0", "d7", "d2", "d3"]
    assert (tmp_path / "run.trec").read_text().split("\n")[0] == "q1 Q0 d4 1 123456.789 negatron"


def test_what_a_form_cannot_hold_is_refused_when_writing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tab or a line break"):
        write_beir(Collection("x", {"a\tb": Document("a\tb", "x")}, {}, {}), tmp_path / "x")
    with pytest.raises(DataError, match="surrogate"):
        write_beir(Collection("x", {"a": Document("a", "\ud83d")}, {}, {}), tmp_path / "x")
    with pytest.raises(DataError, match="'q' is empty"):
        write_beir(Collection("x", {"a": Document("a", "x")}, {"q": Query("q", "\n")}, {"test": (Judgement("q", "a", 1),)}), tmp_path / "x")
    with pytest.raises(DataError, match="holds no judgements"):
        write_beir(Collection("x", {"a": Document("a", "x")}, {"q": Query("q", "x")}, {"test": ()}), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(DataError, match="white space"):
        write_qrels([Judgement("q 1", "d1", 1)], tmp_path / "qrels.txt")
    with pytest.raises(DataError, match="cannot be ranked"):
        write_run([ScoredDocument("q1", "d1", float("nan"))], tmp_path / "run.trec")
    with pytest.raises(DataError, match="twice"):
        write_run([ScoredDocument("q1", "d1", 1.0), ScoredDocument("q1", "d1", 2.0)], tmp_path / "run.trec")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_an_unknown_column_is_an_error_that_names_the_columns(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"anchor": "a", "positive": "b", "negative": "c"}\n')
    assert len(read_columns(tmp_path / "t.jsonl", columns=["anchor", "positive"]).collection.documents) == 1
    with pytest.raises(SettingError, match=r"no column 'postive'; did you mean 'positive'\? \(its columns: anchor, positive, negative\)"):
        read_columns(tmp_path / "t.jsonl", columns=["anchor", "postive"])
    with pytest.raises(SettingError, match="no column 'anchr'; did you mean 'anchor'"):
        import_pairs(tmp_path / "t.jsonl", tmp_path / "out", query_column="anchr")


def test_no_copy_of_a_known_positive_is_exported_as_a_negative(tmp_path: Path) -> None:
    positive = Document("p", "Cells divide.")
    copy, good = candidate("q", Document("c", "cells  DIVIDE."), 0.1), candidate("q", Document("n", "Stars shine."), 0.1)
    judged = [JudgedQuery(Query("q", "how"), (Positive(positive, 0.9),), (copy, good))]
    for format, found in FORMATS.items():
        export(judged, format, tmp_path / format)
        if found.read is not None:
            (written,) = tmp_path.glob(f"{format}*")
            assert [item.candidate.document.content for item in read(written, format).judged[0].judged] == ["Stars shine."]


def test_the_same_query_never_lands_in_two_splits(tmp_path: Path) -> None:
    spellings = ("why do ships float {}", "Why do  ships FLOAT {}", " why do ships float {} ")
    lines = ["query,positive"] + [f"{spelling.format(n)},document {n} {k}" for n in range(60) for k, spelling in enumerate(spellings)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    made = import_pairs(tmp_path / "pairs.csv", tmp_path / "out")
    collection = read_beir(tmp_path / "out")
    assert (made.pairs, made.queries, len(collection.judgements)) == (180, 60, 3)
    for one in collection.judgements:
        assert not collection.overlapping(one, tuple(set(collection.judgements) - {one}))
