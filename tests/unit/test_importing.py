"""A table of pairs becomes a data set with a fixed split, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from negatron.data.beir import read_beir
from negatron.data.importing import import_pairs, split_of
from negatron.errors import DataError, NegatronError, SettingError

PAIRS = [
    ("why do ships float", "the hull displaces water"),
    ('a "quoted", one', "line\nbreak"),
    ("why do stars shine", "the hull displaces water"),
]


def write(folder: Path, ending: str, pairs: list[tuple[str, str]] = PAIRS) -> Path:
    path = folder / f"pairs{ending}"
    rows = [{"question": query, "answer": positive} for query, positive in pairs]
    if ending in (".csv", ".tsv"):
        cells = [("question", "answer"), *pairs]
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in cells]
        path.write_text("\n".join({".csv": ",", ".tsv": "\t"}[ending].join(row) for row in quoted))
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == ".json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_table_gives_the_same_data_set(ending: str, tmp_path: Path) -> None:
    made = import_pairs(write(tmp_path, ending), tmp_path / "out")
    collection = read_beir(tmp_path / "out")
    assert {query.text for query in collection.queries.values()} == {query for query, _ in PAIRS}
    assert {document.text for document in collection.documents.values()} == {"the hull displaces water", "line\nbreak"}
    assert (made.pairs, made.queries, made.documents, made.merged_documents) == (3, 3, 2, 1)
    for split, rows in collection.judgements.items():
        assert {split_of(collection.queries[row.query_id].text, (0.8, 0.1, 0.1)) for row in rows} == {split}


def test_a_split_does_not_move_when_rows_are_added(tmp_path: Path) -> None:
    many = [(f"query {n}", f"document {n}") for n in range(300)]
    import_pairs(write(tmp_path, ".csv", many[:200]), tmp_path / "few")
    import_pairs(write(tmp_path, ".csv", many[::-1]), tmp_path / "all")
    few, full = read_beir(tmp_path / "few").judgements, read_beir(tmp_path / "all").judgements
    assert set(few) == {"train", "dev", "test"}
    assert all(set(rows) < set(full[split]) for split, rows in few.items())


def test_the_shares_of_the_splits_have_an_effect_or_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ".csv", [(f"query {n}", f"document {n}") for n in range(50)])
    made = import_pairs(path, tmp_path / "out", split_shares=(0.0, 0.0, 1.0))
    assert dict(made.judgements) == {"test": 50}
    assert "no query fell into train" in made.notes
    for shares in ((0.8, 0.1, 0.2), (1.1, -0.1, 0.0)):
        with pytest.raises(SettingError, match="add to 1"):
            import_pairs(path, tmp_path / "out2", split_shares=shares)


def test_the_same_command_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    first = import_pairs(write(tmp_path, ".csv"), tmp_path / "out")
    before = (tmp_path / "out" / "corpus.jsonl").stat().st_mtime_ns
    assert import_pairs(write(tmp_path, ".csv"), tmp_path / "out") == first
    assert (tmp_path / "out" / "corpus.jsonl").stat().st_mtime_ns == before
    with pytest.raises(NegatronError, match="already holds another result"):
        import_pairs(write(tmp_path, ".csv", PAIRS[:1]), tmp_path / "out")


def test_named_columns_are_used_and_the_others_noted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ask,reply,negative\nq,d,n\n")
    made = import_pairs(tmp_path / "t.csv", tmp_path / "out", query_column="ask", positive_column="reply")
    assert made.columns == {"query": "ask", "positive": "reply"}
    assert made.notes[0] == "columns not used: negative"
    assert "negatives are not pairs" in made.notes[1]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("query,answer,passage", "which column is the positive? answer and passage are possible; set positive_column"),
        ("query,reply", "which column is the positive? none is called positive, answer, document, passage, text"),
        ("ask,answer", "which column is the query? none is called query, question, anchor; set query_column to one of: ask, answer"),
    ],
)
def test_columns_are_guessed_only_where_the_choice_is_plain(header: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n" + ",".join("x" * (header.count(",") + 1)) + "\n")
    with pytest.raises(SettingError) as refusal:
        import_pairs(tmp_path / "t.csv", tmp_path / "out")
    assert words in str(refusal.value)


DAMAGED = {
    "empty cell": (".csv", b'query,answer\n"a\nb",x\nq,\n', 4, "column 'answer' is empty"),
    "column too many": (".csv", b"query,answer\nq,a,b\n", 2, "3 columns, expected 2"),
    "open quote": (".csv", b'query,answer\n"q,a\n', 2, "not a row of a table"),
    "not UTF-8": (".csv", b"query,answer\nq,caf\xe9\n", 2, "not UTF-8"),
    "NUL": (".csv", b"query,answer\n" + b"q,a\n" * 2000 + b"q,\0\n", 2002, "a NUL byte"),
    "binary": (".csv", b"\x1f\x8b\x08", None, "a binary file (gzip)"),
    "doubled column": (".csv", b"query,query\nq,a\n", 1, "names a column twice"),
    "nothing": (".csv", b"", None, "expected a header line"),
    "no rows": (".csv", b"query,answer\n", None, "holds no rows"),
    "broken JSON line": (".jsonl", b'{"query": "q", "answer": "a"}\n{"query"\n', 2, "not JSON"),
    "number": (".jsonl", b'{"query": "q", "answer": "a"}\n{"query": "q", "answer": 3}\n', 2, "is a number (3), expected a string"),
    "missing key": (".jsonl", b'{"query": "q", "answer": "a"}\n{"query": "q"}\n', 2, "column 'answer' is missing"),
    "no list": (".json", b'{"query": "q"}', None, "expected a list of objects"),
    "no Parquet": (".parquet", b"query,answer\nq,a\n", None, "not Parquet"),
    "unknown ending": (".xlsx", b"query", None, "unknown kind of table '.xlsx'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_refused_with_its_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    ending, data, line, words = DAMAGED[name]
    path = tmp_path / f"t{ending}"
    path.write_bytes(data)
    with pytest.raises(DataError) as refusal:
        import_pairs(path, tmp_path / "out")
    assert words in str(refusal.value)
    assert (refusal.value.path, refusal.value.line) == (path, line)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        import_pairs(tmp_path / "none.csv", tmp_path / "out")
