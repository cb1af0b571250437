"""Every damage of a BEIR folder is found with file and line, reading refuses exactly those, and oddities are only noted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from negatron.data.beir import read_beir
from negatron.data.check import check
from negatron.errors import DataError
from negatron.types import Document, Judgement

CORPUS = [
    {"_id": "d1", "title": "Biology", "text": "Cells divide."},
    {"_id": "d2", "title": "", "text": "Stars shine."},
    {"_id": "d3", "text": "Bread rises."},
]
QUERIES = [{"_id": "q1", "text": "how do cells divide"}, {"_id": "q2", "text": "why do stars shine"}]
TRAIN = ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q1\td2\t0"]
TEST = ["query-id\tcorpus-id\tscore", "q2\td2\t2"]


def write_folder(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [json.dumps(line) for line in CORPUS])
    write(folder / "queries.jsonl", [json.dumps(line) for line in QUERIES])
    write(folder / "qrels" / "train.tsv", TRAIN)
    write(folder / "qrels" / "test.tsv", TEST)
    return folder


def write(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def append(name: str, line: bytes | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")

    return change


def replace(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(data))


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def void(_: object) -> None:
    return None


C, Q, T = "corpus.jsonl", "queries.jsonl", "qrels/train.tsv"
HEADER = b"query-id\tcorpus-id\tscore\n"


def without_judgements(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        change(folder)
        for path in (folder / "qrels").iterdir():
            path.unlink()

    return both


DAMAGES = {
    "broken JSON": (append(C, '{"_id": "d4", "text": '), C, 4, "not JSON"),
    "no object": (append(C, '["d4", "text"]'), C, 4, 'a list (["d4", "text"]), expected a JSON object'),
    "deep nesting": (append(C, "[" * 100_000), C, 4, "not JSON"),
    "missing id": (append(C, '{"id": "d4", "text": "x"}'), C, 4, 'no "_id"; found the keys id, text'),
    "empty id": (append(C, '{"_id": "", "text": "x"}'), C, 4, '"_id" is empty'),
    "number as id": (append(C, '{"_id": 4, "text": "x"}'), C, 4, '"_id" is a number (4), expected a string'),
    "id with a tab": (append(C, r'{"_id": "a\tb", "text": "x"}'), C, 4, "holds a tab or a line break"),
    "doubled id": (append(C, '{"_id": "d1", "text": "x"}'), C, 4, "'d1' is doubled: line 1 has it too"),
    "doubled query id": (append(Q, '{"_id": "q2", "text": "x"}'), Q, 3, "'q2' is doubled: line 2 has it too"),
    "missing text": (append(C, '{"_id": "d4", "contents": "x"}'), C, 4, 'no "text"; found the keys _id, contents'),
    "null text": (append(C, '{"_id": "d4", "text": null}'), C, 4, '"text" is null, expected a string'),
    "title of numbers": (append(C, '{"_id": "d4", "text": "x", "title": 3}'), C, 4, '"title" is a number (3), expected a string'),
    "half a surrogate": (append(C, r'{"_id": "d4", "text": "\ud83d"}'), C, 4, "half of a surrogate pair"),
    "empty query": (append(Q, '{"_id": "q3", "text": " "}'), Q, 3, "a query must ask something"),
    "not UTF-8": (append(C, b'{"_id": "d4", "text": "caf\xe9"}'), C, 4, "not UTF-8 (byte 0xe9 at column 27)"),
    "NUL byte late": (append(C, b"x" * 5000 + b"\0"), C, 4, "a NUL byte at column 5001"),
    "gzip": (replace(C, gzip.compress(b"{}")), C, None, "a binary file (gzip)"),
    "Parquet": (replace(Q, b"PAR1\x15\x04"), Q, None, "a binary file (Parquet)"),
    "NUL bytes": (replace(T, b"a\0b"), T, None, "a binary file (with NUL bytes)"),
    "two columns": (append(T, "q1\td3"), T, 4, "2 columns, expected 3 (query-id, corpus-id, score); separate them by tabs"),
    "spaces for tabs": (append(T, "q1 d3 1"), T, 4, "1 column, expected 3"),
    "grade of words": (append(T, "q1\td3\tgood"), T, 4, "grade 'good' is no whole number"),
    "grade with a point": (append(T, "q1\td3\t1.0"), T, 4, "grade '1.0' is no whole number"),
    "unknown document": (append(T, "q1\td9\t1"), T, 4, "document 'd9' is not in corpus.jsonl"),
    "unknown query": (append(T, "q9\td1\t1"), T, 4, "query 'q9' is not in queries.jsonl"),
    "empty cell": (append(T, "\td1\t1"), T, 4, "the query-id is empty"),
    "two grades": (append(T, "q1\td1\t2"), T, 4, "have grade 2, but grade 1 in line 2"),
    "no header": (replace(T, b"q1\td1\t1\n"), T, 1, "the first line is a judgement, which other tools skip, expected the header"),
    "swapped header": (replace(T, b"corpus-id\tquery-id\tscore\nq1\td1\t1\n"), T, 1, "'corpus-id | query-id | score', expected the header"),
    "no rows": (replace(T, HEADER), T, None, "holds no judgements"),
    "empty corpus": (without_judgements(replace(C, b"")), C, None, "holds no documents"),
    "empty split": (replace(T, b""), T, None, "holds no judgements"),
    "no corpus": (without_judgements(remove(C)), C, None, "no such file"),
    "no judgements": (without_judgements(void), "qrels", None, "holds no .tsv file"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_with_file_and_line_and_reading_refuses_it(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    assert check(folder).errors == ()
    damage, file, line, words = DAMAGES[name]
    damage(folder)
    report = check(folder)
    found = [error for error in report.errors if error.path == folder / file]
    assert [error.line for error in found] == [line]
    assert words in found[0].message
    with pytest.raises(DataError) as refusal:
        read_beir(folder)
    assert str(report.errors[0]) in str(refusal.value)
    assert (refusal.value.path, refusal.value.line) == (report.errors[0].path, report.errors[0].line)


def test_all_damages_are_found_at_once_and_reading_lists_the_first_five(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    for line in ("{", "[]", '{"_id": "d1", "text": "x"}', '{"text": "x"}'):
        append(C, line)(folder)
    for line in ("q1\td9\t1", "q9\td9\tx"):
        append(T, line)(folder)
    report = check(folder)
    assert [(error.path.name, error.line) for error in report.errors] == [
        ("corpus.jsonl", 4), ("corpus.jsonl", 5), ("corpus.jsonl", 6), ("corpus.jsonl", 7),
        ("train.tsv", 4), ("train.tsv", 5), ("train.tsv", 5), ("train.tsv", 5),
    ]  # fmt: skip
    with pytest.raises(DataError) as refusal:
        read_beir(folder)
    lines = str(refusal.value).split("\n")
    assert len(lines) == 6
    assert lines[0].startswith(f"{folder / C}:4: not JSON")
    assert lines[4].startswith(f"{folder / T}:4: document 'd9'")
    assert lines[5] == "and 3 more; `negatron data check` lists them all"


def test_a_record_with_a_damage_is_still_known_to_the_judgements(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    replace(C, b'{"_id": "d1", "text": 5}\n{"_id": "d2", "text": "x"}\n')(folder)
    assert [(error.path.name, error.line) for error in check(folder).errors] == [("corpus.jsonl", 1)]


def test_what_is_odd_but_harmless_is_noted_and_accepted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    plain = read_beir(folder)
    (folder / C).write_bytes(b"\xef\xbb\xbf" + (folder / C).read_bytes().replace(b"\n", b"\r\n") + b"\n")
    append(T, "q1\td1\t1")(folder)
    (folder / "qrels" / "notes.md").write_text("about")
    report = check(folder)
    assert report.ok
    assert [note for note in report.notes if ".jsonl" in note or "train.tsv" in note or "notes.md" in note] == [
        "corpus.jsonl: begins with a byte order mark (accepted): 1",
        "corpus.jsonl: lines that end with a carriage return (accepted): 3",
        "corpus.jsonl: blank lines (skipped): 1",
        "notes.md: not a .tsv file (ignored): 1",
        "train.tsv: judgements that stand twice with the same grade (merged): 1",
    ]
    assert read_beir(folder) == plain


def test_the_report_tells_copies_overlaps_and_queries_without_judgement(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    append(C, '{"_id": "d4", "text": "stars  SHINE."}')(folder)
    append(C, '{"_id": "d5", "text": ""}')(folder)
    append(Q, '{"_id": "q3", "text": "How do cells divide"}')(folder)
    append(Q, '{"_id": "q4", "text": "nobody judged this"}')(folder)
    append("qrels/test.tsv", "q3\td3\t0")(folder)
    report = check(folder)
    assert report.ok
    assert report.notes == (
        "documents with neither title nor text: 1",
        "documents that share their text with another id: 2 (1 texts); a copy of a positive is no negative",
        "queries that share their text with another id: 2 (1 texts)",
        "queries of train that are also asked in test: 1; training leaves out what a held-out split asks",
        "queries without a judgement in any split: 1",
        "queries of test with judgements but nothing relevant: 1; measures leave them out",
    )
    assert report.splits["test"] == {"queries": 2, "judgements": 2, "grades": {"0": 1, "2": 1}}
    assert report.lengths["query"]["longest"] == len("how do cells divide")
    assert json.loads(json.dumps(report.as_json()))["notes"] == list(report.notes)
    assert "5 documents, 4 queries" in str(report)
    assert str(report).endswith("no errors")


def test_a_path_that_is_no_folder_is_a_damage(tmp_path: Path) -> None:
    assert "no such folder" in str(check(tmp_path / "none").errors[0])
    (tmp_path / "file").write_text("x")
    assert "a file, expected a folder" in str(check(tmp_path / "file"))


def test_a_whole_folder_becomes_its_nouns(tmp_path: Path) -> None:
    collection = read_beir(write_folder(tmp_path / "set"))
    assert collection.name == "set"
    assert collection.documents["d1"] == Document("d1", "Cells divide.", "Biology")
    assert collection.documents["d3"] == Document("d3", "Bread rises.", "")
    assert list(collection.judgements) == ["train", "test"]
    assert collection.judgements["train"] == (Judgement("q1", "d1", 1), Judgement("q1", "d2", 0))
