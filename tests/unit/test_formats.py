"""The forms of other tools: what a reader makes of them, and how it refuses damaged lines with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negatron.data.formats import as_dataset, export, from_dataset, read, read_columns, read_qrels, read_run
from negatron.errors import DataError, SettingError
from negatron.types import Candidate, Document, Judged, JudgedQuery, Judgement, Origin, Positive, Query, Verdict


def judged(name: str, negatives: int, positives: int = 1, rejected: int = 0) -> JudgedQuery:
    """A query with that many kept negatives and rejected candidates."""

    def candidate(document: str, *verdicts: Verdict) -> Judged:
        return Judged(Candidate(name, Document(document, f"text of {document}"), (Origin("bm25", "hand", rank=1),)), verdicts)

    found = [candidate(f"{name}-n{k}") for k in range(negatives)]
    found += [candidate(f"{name}-r{k}", Verdict(False, "same text")) for k in range(rejected)]
    known = tuple(Positive(Document(f"{name}-p{k}", f"text of {name}-p{k}")) for k in range(positives))
    return JudgedQuery(Query(name, f"query {name}"), known, tuple(found))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_columns_keep_the_most_negatives_and_count_what_they_cannot_hold(tmp_path: Path) -> None:
    counts = export(
        [judged("a", 3), judged("b", 2, positives=2), judged("c", 0, rejected=4)], "sentence-transformers", tmp_path / "t.parquet"
    )
    assert counts == {"rows": 3, "queries": 2, "negatives_a_row": 2, "queries_left_out": 1, "negatives_left_out": 1}
    assert pq.read_table(tmp_path / "t.parquet").to_pylist()[1] == {
        "anchor": "query b",
        "positive": "text of b-p0",
        "negative_1": "text of b-n0",
        "negative_2": "text of b-n1",
    }


def test_pairs_without_any_negative_become_two_columns(tmp_path: Path) -> None:
    assert export([judged("a", 0)], "sentence-transformers", tmp_path / "t.jsonl")["negatives_a_row"] == 0
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {"anchor": "query a", "positive": "text of a-p0"}
    assert read_columns(tmp_path / "t.jsonl").judged == ()


def test_triplets_pair_every_positive_with_every_negative(tmp_path: Path) -> None:
    counts = export([judged("a", 2, positives=2), judged("b", 0)], "triplets", tmp_path / "t")
    assert counts == {"rows": 4, "queries": 1, "queries_left_out": 1}
    assert (tmp_path / "t.parquet").is_file()
    assert len(read(tmp_path / "t.parquet", "triplets").judged[0].judged) == 2


def test_flagembedding_leaves_out_queries_that_its_trainer_cannot_use(tmp_path: Path) -> None:
    counts = export([judged("a", 2), judged("b", 0)], "flagembedding", tmp_path / "t.jsonl")
    assert counts == {"queries": 1, "positives": 1, "negatives": 2, "queries_left_out": 1}
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {
        "query": "query a",
        "pos": ["text of a-p0"],
        "neg": ["text of a-n0", "text of a-n1"],
    }


def test_trec_and_beir_grade_positives_1_and_negatives_0(tmp_path: Path) -> None:
    assert export([judged("a", 1)], "trec", tmp_path / "qrels.txt") == {"queries": 1, "positives": 1, "negatives": 1}
    assert (tmp_path / "qrels.txt").read_text() == "a 0 a-p0 1\na 0 a-n0 0\n"
    export([judged("a", 1)], "beir", tmp_path / "beir")
    assert (tmp_path / "beir/qrels/train.tsv").read_text() == "query-id\tcorpus-id\tscore\na\ta-p0\t1\na\ta-n0\t0\n"


def test_rows_open_as_a_dataset_and_come_back_from_it() -> None:
    pytest.importorskip("datasets", reason="needs negatron[train]")
    queries = [judged("a", 2), judged("b", 2)]
    wide = as_dataset(queries)
    assert wide.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert [item.query.text for item in from_dataset(wide).judged] == ["query a", "query b"]
    assert len(as_dataset(queries, "triplets")) == 4
    assert as_dataset(queries, "labelled")[0]["labels"] == [1, 0, 0]
    with pytest.raises(SettingError, match="did you mean 'triplets'"):
        as_dataset(queries, "triplet")


def test_rows_of_one_query_are_gathered_and_a_negative_that_is_a_positive_elsewhere_is_turned_away(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {"anchor": "how", "positive": "one", "negative": "two"},
        {"anchor": "How ", "positive": "two", "negative": "three"},
    )
    (item,) = read_columns(path).judged
    assert [positive.document.text for positive in item.positives] == ["one", "two"]
    assert [(found.candidate.document.text, found.kept) for found in item.judged] == [("two", False), ("three", True)]
    assert item.judged[0].verdicts[0].rule == "known positive"
    assert item.judged[1].candidate.origins[0].source == "imported"


def test_scores_of_mined_rows_become_teacher_scores(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"anchor": ["q"], "positive": ["p"], "negative_1": ["n"], "scores": [[0.9, 0.4]]}), path)
    (item,) = read_columns(path).judged
    assert item.positives[0].teacher_score == 0.9
    assert item.judged[0].candidate.teacher_score == 0.4


def test_labelled_pairs_become_judgements(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {"query_id": "7", "a": "q", "b": "good", "label": 1},
        {"query_id": "7", "a": "q", "b": "bad", "label": 0},
        {"query_id": "7", "a": "q", "b": "best", "label": 3},
        {"query_id": "7", "a": "q", "b": "fair", "label": 0.7},
    )
    imported = read_columns(path)
    texts = {row.document_id: imported.collection.documents[row.document_id].text for row in imported.collection.judgements["train"]}
    assert {texts[row.document_id]: row.grade for row in imported.collection.judgements["train"]} == {
        "good": 1,
        "bad": 0,
        "best": 3,
        "fair": 1,
    }
    assert [found.candidate.document.text for found in imported.judged[0].judged] == ["bad"]


GOOD_FLAG = {"query": "q", "pos": ["p"], "neg": ["n"]}
REFUSED = {
    "text for a list": ("flagembedding", GOOD_FLAG | {"neg": "n"}, '"neg" is a string ("n"), expected a list of texts'),
    "no positive": ("flagembedding", {"query": "q", "pos": []}, '"pos" is a list ([]), expected a list of texts'),
    "no query": ("flagembedding", {"question": "q", "pos": ["p"]}, '"query" is null, expected a text; found the keys question, pos'),
    "empty text": ("flagembedding", GOOD_FLAG | {"pos": ["p", " "]}, '"pos" holds a string (" "), expected texts that are not empty'),
    "too few scores": ("flagembedding", GOOD_FLAG | {"neg_scores": [1, 2]}, '"neg_scores" is a list ([1, 2]), expected 1 numbers'),
    "empty cell": ("sentence-transformers", {"a": "q", "b": ""}, "column 'b' is empty, expected a text"),
    "number as text": ("sentence-transformers", {"a": "q", "b": 7}, "column 'b' is a number (7), expected a text"),
    "other columns": ("sentence-transformers", {"a": "q", "c": "x"}, "there is no column 'b'"),
    "word as label": ("labelled", {"a": "q", "b": "x", "label": "yes"}, 'the label is a string ("yes"), expected a number'),
    "too few labels": ("labelled", {"a": "q", "b": ["x", "y"], "label": [1]}, "1 labels for 2 documents"),
    "legacy without ids": (
        "tevatron",
        {"query_id": "1", "query": "q", "positive_passages": [{"text": "x"}], "negative_passages": []},
        'expected objects with "docid" and "text"',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_line_is_refused_with_its_number(name: str, tmp_path: Path) -> None:
    format, row, words = REFUSED[name]
    good = {
        "flagembedding": GOOD_FLAG,
        "sentence-transformers": {"a": "q", "b": "x"},
        "labelled": {"a": "q", "b": "x", "label": 1},
        "tevatron": {"query_id": "0", "query": "q0", "positive_passages": [{"docid": "d", "text": "x"}], "negative_passages": []},
    }[format]
    assert read(write(tmp_path / "good.jsonl", good), format).collection.queries
    path = write(tmp_path / "t.jsonl", good, row)
    with pytest.raises(DataError) as refusal:
        read(path, format)
    assert str(refusal.value).startswith(f"{path}:2: ")
    assert words in str(refusal.value)


def test_tevatrons_older_form_keeps_titles_and_ids(tmp_path: Path) -> None:
    row = {
        "query_id": "7",
        "query": "q",
        "positive_passages": [{"docid": "d1", "title": "T", "text": "x"}],
        "negative_passages": [{"docid": "d2", "text": "y"}],
    }
    imported = read(write(tmp_path / "t.jsonl", row), "tevatron")
    assert imported.collection.documents == {"d1": Document("d1", "x", "T"), "d2": Document("d2", "y")}
    assert imported.judged[0].query == Query("7", "q")
    with pytest.raises(DataError, match=r":2: .*document id 'd1' stands for two texts"):
        read(write(tmp_path / "u.jsonl", row, row | {"positive_passages": [{"docid": "d1", "text": "other"}]}), "tevatron")


def test_tevatrons_ids_must_be_in_its_corpus(tmp_path: Path) -> None:
    export([judged("a", 1)], "tevatron", tmp_path / "t")
    with (tmp_path / "t/train.jsonl").open("a") as file:
        file.write('{"query_id": "b", "query_text": "x", "positive_document_ids": ["d9"], "negative_document_ids": []}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: document 'd9' is not in corpus\.jsonl"):
        read(tmp_path / "t", "tevatron")


def test_trec_rows_are_refused_with_their_line(tmp_path: Path) -> None:
    assert read_qrels(write(tmp_path / "good.txt", "q 0 d 1", "q 0 d 1")) == (Judgement("q", "d", 1),)
    for text, words in (("q d 1", "four columns"), ("q 0 d one", "four columns"), ("q 0 d 2", "the grades 1 and 2")):
        with pytest.raises(DataError, match=words) as refusal:
            read_qrels(write(tmp_path / "qrels.txt", "q 0 d 1", text))
        assert refusal.value.line == 2
    for text, words in (("q Q0 e 1 nan t", "finite number"), ("q Q0 e 1 0.5", "six columns"), ("q Q0 d 2 0.4 t", "'d' twice")):
        with pytest.raises(DataError, match=words) as refusal:
            read_run(write(tmp_path / "run.txt", "q Q0 d 1 0.5 t", text))
        assert refusal.value.line == 2


def test_unknown_formats_and_empty_exports_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="did you mean 'tevatron'"):
        export([judged("a", 1)], "tevatorn", tmp_path / "t")
    with pytest.raises(SettingError, match="holds ids and no texts"):
        read(tmp_path / "t", "trec")
    with pytest.raises(DataError, match="nothing to export"):
        export([judged("a", 1, positives=0)], "beir", tmp_path / "t")
    with pytest.raises(SettingError, match=r"\.jsonl or \.parquet"):
        export([judged("a", 1)], "triplets", tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())
