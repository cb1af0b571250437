r"""The BEIR folder: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`. One pass reads it for everybody.

`scan` walks the three kinds of file once, hands each whole record to a visitor and every damage to `Findings`. `read_beir` is a visitor
that keeps the records and refuses when there is a damage; `check` (data.check) is a visitor that counts. So what one accepts, the
other accepts. `write_beir` writes the same form.

    corpus.jsonl    {"_id": str, "title": str (optional), "text": str}
    queries.jsonl   {"_id": str, "text": str}
    qrels/SPLIT.tsv header `query-id corpus-id score`, then rows, separated by tabs; score is a whole number

Ids are strings: a number in the place of an id is refused, since `7` and `"007"` would meet in no judgement.
A judgement that stands twice with one grade is merged and noted; with two grades it is a damage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from negatron import store
from negatron.data.collection import Collection
from negatron.data.lines import Findings, describe, lines_of, objects_of, unwritable
from negatron.errors import DataError
from negatron.progress import say
from negatron.types import Document, Judgement, Query

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
HEADER = ("query-id", "corpus-id", "score")
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
SPLIT_ORDER = {"train": 0, "dev": 1, "validation": 2, "test": 3}


class Visitor(Protocol):
    """Whoever takes the whole records of a folder, in the order of the files: documents, queries, judgements by split."""

    def document(self, document: Document) -> None:
        """Takes a document."""
        ...

    def query(self, query: Query) -> None:
        """Takes a query."""
        ...

    def judgement(self, split: str, judgement: Judgement) -> None:
        """Takes a judgement of known ids."""
        ...


def scan(folder: Path, visitor: Visitor, findings: Findings) -> None:
    """Reads the whole folder once; every record that is whole goes to the visitor, every damage to the findings."""
    if not folder.is_dir():
        findings.damage(
            folder, None, "no such folder" if not folder.exists() else f"a file, expected a folder with {CORPUS}, {QUERIES} and {QRELS}/"
        )
        return
    documents: dict[str, int] = {}
    for number, value in records(folder / CORPUS, documents, findings, "documents"):
        title = value.get("title")
        title = "" if title is None else title
        if not isinstance(title, str):
            findings.damage(folder / CORPUS, number, f'"title" is {describe(title)}, expected a string')
        elif unwritable(title):
            findings.damage(folder / CORPUS, number, '"title" holds half of a surrogate pair')
        else:
            visitor.document(Document(value["_id"], value["text"], title))
    queries: dict[str, int] = {}
    for number, value in records(folder / QUERIES, queries, findings, "queries"):
        if not value["text"].strip():
            findings.damage(folder / QUERIES, number, '"text" is empty: a query must ask something')
        else:
            visitor.query(Query(value["_id"], value["text"]))
    for path in split_files(folder, findings):
        for judgement in judgements(path, queries, documents, findings):
            visitor.judgement(path.stem, judgement)


def records(path: Path, seen: dict[str, int], findings: Findings, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object with a new `_id` and a `text`, both strings). `seen` gets the line of every id, of damaged records too."""
    if not path.is_file():
        findings.damage(path, None, f"no such file; it holds the {what}, one JSON object a line")
        return
    found = len(findings.damages)
    for number, value in objects_of(path, findings):
        wrong = wrong_id(value) or wrong_text(value)
        id_ = value.get("_id")
        if isinstance(id_, str) and id_:
            if id_ in seen:
                findings.damage(path, number, f'"_id" {id_!r} is doubled: line {seen[id_]} has it too; ids must be unique')
                continue
            seen[id_] = number
        if wrong:
            findings.damage(path, number, wrong)
        else:
            yield number, value
    if not seen and len(findings.damages) == found:
        findings.damage(path, None, f"holds no {what}")


def wrong_id(value: Mapping[str, Any]) -> str | None:
    """What is wrong with the id of a record, in words; None for nothing."""
    if "_id" not in value:
        return f'no "_id"; found the keys {", ".join(value) or "(none)"}'
    id_ = value["_id"]
    if not isinstance(id_, str):
        return f'"_id" is {describe(id_)}, expected a string: write it in quotes'
    if not id_.strip():
        return '"_id" is empty'
    if "\t" in id_ or "\n" in id_ or "\r" in id_:
        return f'"_id" {id_!r} holds a tab or a line break, which the tables of judgements cannot hold'
    return f'"_id" {id_!r} holds half of a surrogate pair' if unwritable(id_) else None


def wrong_text(value: Mapping[str, Any]) -> str | None:
    """What is wrong with the text of a record, in words; None for nothing."""
    if "text" not in value:
        return f'no "text"; found the keys {", ".join(value)}'
    if not isinstance(value["text"], str):
        return f'"text" is {describe(value["text"])}, expected a string'
    return '"text" holds half of a surrogate pair' if unwritable(value["text"]) else None


def split_files(folder: Path, findings: Findings) -> list[Path]:
    """The files of judgements: train, dev, test, then the others by name."""
    if not (folder / QRELS).is_dir():
        findings.damage(folder / QRELS, None, f"no such folder; it holds the judgements of each split, such as {QRELS}/test.tsv")
        return []
    files = [path for path in (folder / QRELS).iterdir() if not path.name.startswith(".")]
    tables = [path for path in files if path.suffix == ".tsv" and path.is_file()]
    for path in sorted(set(files) - set(tables)):
        findings.oddity(path, "not a .tsv file (ignored)")
    if not tables:
        findings.damage(folder / QRELS, None, "holds no .tsv file: without judgements nothing can be trained or measured")
    return sorted(tables, key=lambda path: (SPLIT_ORDER.get(path.stem, len(SPLIT_ORDER)), path.stem))


def judgements(path: Path, queries: Mapping[str, int], documents: Mapping[str, int], findings: Findings) -> Iterator[Judgement]:
    """The whole rows of one split. Ids must be keys of `queries` and `documents`."""
    found, rows = len(findings.damages), 0
    header_seen = False
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    for number, text in lines_of(path, findings):
        columns = text.split("\t")
        if not header_seen:
            header_seen = True
            if tuple(column.strip().casefold().replace("_", "-") for column in columns) == HEADER:
                continue
            findings.damage(path, number, f"{wrong_header(columns)}, expected the header {' '.join(HEADER)}, separated by tabs")
            if not is_row(columns):
                continue
        rows += 1
        row = checked_row(path, number, columns, queries, documents, findings)
        if row is None:
            continue
        key = (row.query_id, row.document_id)
        grade, line = seen.setdefault(key, (row.grade, number))
        if line == number:
            yield row
        elif grade == row.grade:
            findings.oddity(path, "judgements that stand twice with the same grade (merged)")
        else:
            findings.damage(
                path, number, f"query {key[0]!r} and document {key[1]!r} have grade {row.grade}, but grade {grade} in line {line}; keep one"
            )
    if not rows and len(findings.damages) == found:
        findings.damage(path, None, "holds no judgements; remove the file or fill it")


def is_row(columns: list[str]) -> bool:
    """True for columns that look like a judgement and not like a header."""
    return len(columns) == 3 and WHOLE_NUMBER.fullmatch(columns[2].strip()) is not None


def wrong_header(columns: list[str]) -> str:
    """What stands where the header should, in words."""
    return "the first line is a judgement, which other tools skip" if is_row(columns) else f"the first line is {' | '.join(columns)[:80]!r}"


def checked_row(
    path: Path, number: int, columns: list[str], queries: Mapping[str, int], documents: Mapping[str, int], findings: Findings
) -> Judgement | None:
    """The judgement of one row; None, and the damages reported, where something is wrong with it."""
    if len(columns) != len(HEADER):
        counted = f"{len(columns)} column{'s' * (len(columns) != 1)}"
        findings.damage(path, number, f"{counted}, expected 3 ({', '.join(HEADER)}); separate them by tabs")
        return None
    query_id, document_id, grade = columns
    before = len(findings.damages)
    if not query_id or not document_id:
        findings.damage(path, number, f"the {HEADER[0] if not query_id else HEADER[1]} is empty")
    else:
        if query_id not in queries:
            findings.damage(path, number, f"query {query_id!r} is not in {QUERIES}")
        if document_id not in documents:
            findings.damage(path, number, f"document {document_id!r} is not in {CORPUS}")
    if WHOLE_NUMBER.fullmatch(grade.strip()) is None:
        findings.damage(path, number, f"grade {grade!r} is no whole number")
    return None if len(findings.damages) > before else Judgement(query_id, document_id, int(grade))


@dataclass(slots=True)
class Keeper:
    """A visitor that keeps everything."""

    documents: dict[str, Document] = field(default_factory=dict)
    queries: dict[str, Query] = field(default_factory=dict)
    rows: dict[str, list[Judgement]] = field(default_factory=dict)

    def document(self, document: Document) -> None:
        """Keeps a document."""
        self.documents[document.id] = document

    def query(self, query: Query) -> None:
        """Keeps a query."""
        self.queries[query.id] = query

    def judgement(self, split: str, judgement: Judgement) -> None:
        """Keeps a judgement."""
        self.rows.setdefault(split, []).append(judgement)

    def collection(self, name: str) -> Collection:
        """Everything kept, as a Collection."""
        return Collection(name, self.documents, self.queries, {split: tuple(rows) for split, rows in self.rows.items()})


def read_beir(folder: Path, *, name: str | None = None) -> Collection:
    """The collection in a BEIR folder, named after the folder unless `name` is given.

    Raises DataError with the first five damages (file, line, what to do) and their number: the same that `negatron data check` finds.
    """
    keeper, findings = Keeper(), Findings()
    scan(folder, keeper, findings)
    findings.refuse()
    for oddity, count in findings.oddities.items():
        say(f"{folder.name}: {oddity}: {count:,}")
    return keeper.collection(name or folder.resolve().name)


def write_beir(collection: Collection, out: Path) -> Path:
    """Writes a collection as a BEIR folder with a manifest, whole or not at all.

    Raises DataError for ids that the tables of judgements cannot hold, NegatronError when `out` holds something else.
    """
    with store.begin(out, kind="data", inputs={"collection": collection.fingerprint}) as work:
        if work.finished is None:
            write_beir_files(collection, work.path)
            work.finish(**counts(collection))
    return out


def write_beir_files(collection: Collection, folder: Path) -> None:
    """Writes the files of a BEIR folder into `folder`; a split without rows gets none. Raises DataError for what `scan` would refuse."""
    (folder / QRELS).mkdir(parents=True, exist_ok=True)
    documents = ({"_id": d.id, "title": d.title, "text": d.text} for d in collection.documents.values())
    write_lines(folder / CORPUS, (checked_json(value, collection.name) for value in documents))
    queries = ({"_id": q.id, "text": q.text} for q in collection.queries.values())
    write_lines(folder / QUERIES, (checked_json(value, collection.name) for value in queries))
    if empty := [query.id for query in collection.queries.values() if not query.text.strip()]:
        raise DataError(f"{collection.name} cannot be written as a BEIR folder: query {empty[0]!r} is empty")
    if not collection.documents or not any(collection.judgements.values()):
        missing = "judgements" if collection.documents else "documents"
        raise DataError(f"{collection.name} cannot be written as a BEIR folder: it holds no {missing}")
    for split, rows in collection.judgements.items():
        if not rows:
            continue
        table = (f"{row.query_id}\t{row.document_id}\t{row.grade}" for row in rows)
        write_lines(folder / QRELS / f"{split}.tsv", (line for part in (["\t".join(HEADER)], table) for line in part))


def checked_json(value: Mapping[str, Any], name: str) -> str:
    """One line of JSON. Raises DataError for what the reader would refuse."""
    if wrong := wrong_id(value) or wrong_text(value) or ('"title" holds half of a surrogate pair' * unwritable(value.get("title", ""))):
        raise DataError(f"{name} cannot be written as a BEIR folder: {wrong}")
    return json.dumps(value, ensure_ascii=False)


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Writes lines as UTF-8, each ended by a line feed, whole or not at all; gives their number."""
    count = 0
    with store.writing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def counts(collection: Collection) -> dict[str, Any]:
    """Documents, queries, and the judgements of each split."""
    return {
        "documents": len(collection.documents),
        "queries": len(collection.queries),
        "judgements": {split: len(rows) for split, rows in collection.judgements.items()},
    }
