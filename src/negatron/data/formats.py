"""The forms in which negatives and judgements travel between tools, each read and written; ids and names are translated here, once.

What comes in: a file or folder of a form. What goes out: `Imported` (a Collection, and the negatives as JudgedQuery with the origin
"imported"). The other way round, judged queries become files: the kept candidates are the negatives, and every known positive is one.

    beir                    data.beir; written: positives with grade 1, negatives with grade 0
    sentence-transformers   columns by position: anchor, positive, negative_1 ... negative_n; Parquet or JSON Lines
    triplets                the same with one negative a row
    labelled                query, docs, labels: one list a query
    flagembedding           JSON Lines {"query", "pos", "neg", "pos_scores", "neg_scores", "prompt", "type"}
    tevatron                a folder: train.jsonl with ids, corpus.jsonl with texts; the older form with whole passages is read too
    trec                    qrels.txt: `query_id 0 document_id grade`; runs have functions of their own

`FORMATS` is the table; adding a form is a row there. A form that knows no titles holds title and text as one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negatron import store
from negatron.data.beir import WHOLE_NUMBER, read_beir, write_beir, write_beir_files, write_lines
from negatron.data.building import Builder, Imported
from negatron.data.collection import Collection
from negatron.data.lines import Findings, describe, lines_of, objects_of, unwritable
from negatron.data.tables import Row, Table, read_table, write_table
from negatron.errors import DataError, MissingExtra, SettingError, nearest
from negatron.identity import file_sha256, fingerprint, same_words
from negatron.types import Document, JudgedQuery, Judgement, ScoredDocument

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["FORMATS", "as_dataset", "export", "read", "read_beir", "read_qrels", "read_run", "write_beir", "write_qrels", "write_run"]

LABEL_COLUMNS = frozenset({"label", "labels", "score", "scores"})
"""The names by which sentence-transformers knows labels, whatever their position."""
EXPORT_SPLIT = "train"
Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Format:
    """One form. `write` takes judged queries and a place and gives counts; `read` is None where the form holds no texts."""

    about: str
    write: Callable[[Sequence[JudgedQuery], Path], Counts]
    read: Callable[[Path], Imported] | None


def export(judged: Iterable[JudgedQuery], format: str, out: Path) -> Counts:
    """Writes kept negatives in a form that other tools read; counts of what was written and of what the form could not hold.

    Raises SettingError for an unknown form, DataError where there is nothing to write, NegatronError when `out` holds something else.
    """
    found = chosen(format)
    queries = [query for query in judged if query.positives]
    if not queries:
        raise DataError("there are no judged queries with a positive: nothing to export")
    return found.write(queries, Path(out))


def read(path: Path, format: str) -> Imported:
    """The collection and the negatives in a file or folder of a form. Raises SettingError for a form that is unknown or holds no texts."""
    found = chosen(format)
    if found.read is None:
        raise SettingError(f"{format} holds ids and no texts: read_qrels and read_run give its rows")
    return found.read(Path(path))


def chosen(format: str) -> Format:
    """The form of this name."""
    if format not in FORMATS:
        raise SettingError(f"there is no format {format!r}{nearest(format, FORMATS)}")
    return FORMATS[format]


def negatives_of(query: JudgedQuery) -> list[Document]:
    """The documents of the kept candidates, each text once; a copy of a known positive is never one."""
    positives = {same_words(positive.document.content) for positive in query.positives}
    kept = {judged.candidate.document.content: judged.candidate.document for judged in query.judged if judged.kept}
    return [document for text, document in kept.items() if same_words(text) not in positives]


# ---- BEIR -------------------------------------------------------------------------------------------------------------------------


def judgements_of(queries: Iterable[JudgedQuery]) -> Iterator[Judgement]:
    """Positives with grade 1, negatives with grade 0, no pair twice."""
    for query in queries:
        grades = {positive.document.id: 1 for positive in query.positives}
        for document in negatives_of(query):
            grades.setdefault(document.id, 0)
        yield from (Judgement(query.query.id, document, grade) for document, grade in grades.items())


def export_beir(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """A BEIR folder of the queries, their positives (grade 1) and their negatives (grade 0), and no other documents."""
    documents: dict[str, Document] = {}
    for query in queries:
        for document in (*(positive.document for positive in query.positives), *negatives_of(query)):
            if documents.setdefault(document.id, document) != document:
                raise DataError(f"document id {document.id!r} stands for two texts; their negatives come from different data sets")
    rows = tuple(judgements_of(queries))
    collection = Collection(out.name, documents, {query.query.id: query.query for query in queries}, {EXPORT_SPLIT: rows})
    with store.begin(out, kind="data", inputs={"collection": collection.fingerprint, "exported": "negatives"}) as work:
        if work.finished is None:
            write_beir_files(collection, work.path)
            work.finish()
    relevant = sum(row.grade > 0 for row in rows)
    return {"queries": len(queries), "documents": len(documents), "positives": relevant, "negatives": len(rows) - relevant}


def import_beir(folder: Path) -> Imported:
    """A BEIR folder; judgements of grade 0 in its training split are negatives."""
    collection = read_beir(folder)
    builder = Builder(dict(collection.queries), dict(collection.documents))
    for split, rows in collection.judgements.items():
        for row in rows:
            builder.judge(row.query_id, row.document_id, row.grade, split=split)
            if row.grade == 0 and split == EXPORT_SPLIT:
                builder.negative(row.query_id, row.document_id)
    return builder.finish(collection.name, collection.fingerprint)


# ---- columns of sentence-transformers -----------------------------------------------------------------------------------------------


def write_columns(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """(anchor, positive, negative_1 ... negative_n), one row a positive; n is the number of columns that keeps the most negatives.

    Rows must all have n negatives: queries with fewer are left out and negatives beyond the n-th too; both are counted.
    """
    width = best_width([len(negatives_of(query)) for query in queries])
    columns = column_names(width)
    kept = [query for query in queries if len(negatives_of(query)) >= width]
    rows = write_table(table_path(out), columns, wide_rows(kept, columns))
    written, there = width * len(kept), sum(len(negatives_of(query)) for query in queries)
    return {
        "rows": rows,
        "queries": len(kept),
        "negatives_a_row": width,
        "queries_left_out": len(queries) - len(kept),
        "negatives_left_out": there - written,
    }


def best_width(counts: Sequence[int]) -> int:
    """The n that maximises n times the number of queries with at least n negatives; the larger on a tie.

    >>> best_width([5, 5, 5, 1]), best_width([0, 0])
    (5, 0)
    """
    having = Counter(counts)
    reach, best = 0, (0, 0)
    for width in sorted(having, reverse=True):
        reach += having[width]
        best = max(best, (width * reach, width))
    return best[1]


def column_names(width: int) -> list[str]:
    """anchor, positive, and the names of n negatives.

    >>> column_names(1), column_names(2)
    (['anchor', 'positive', 'negative'], ['anchor', 'positive', 'negative_1', 'negative_2'])
    """
    return ["anchor", "positive", *(["negative"] if width == 1 else [f"negative_{i}" for i in range(1, width + 1)])]


def wide_rows(queries: Iterable[JudgedQuery], columns: Sequence[str]) -> Iterator[Row]:
    """One row a positive, with the first negatives of its query."""
    for query in queries:
        negatives = [document.content for document in negatives_of(query)[: len(columns) - 2]]
        for positive in query.positives:
            yield dict(zip(columns, [query.query.text, positive.document.content, *negatives], strict=True))


def write_triplets(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """(anchor, positive, negative), one row for every positive with every negative of its query."""
    with_any = [query for query in queries if negatives_of(query)]
    rows = write_table(table_path(out), column_names(1), triplet_rows(with_any))
    return {"rows": rows, "queries": len(with_any), "queries_left_out": len(queries) - len(with_any)}


def triplet_rows(queries: Iterable[JudgedQuery]) -> Iterator[Row]:
    """Every positive with every negative."""
    for query in queries:
        for positive in query.positives:
            for negative in negatives_of(query):
                yield {"anchor": query.query.text, "positive": positive.document.content, "negative": negative.content}


def write_labelled(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """(query, docs, labels): one list of documents a query, label 1 for a positive and 0 for a negative, as cross-encoders train on."""
    rows = write_table(table_path(out), ["query", "docs", "labels"], labelled_rows(queries))
    return {"rows": rows, "queries": rows, "negatives": sum(len(negatives_of(query)) for query in queries)}


def labelled_rows(queries: Iterable[JudgedQuery]) -> Iterator[Row]:
    """Positives first, each list without repetitions."""
    for query in queries:
        labels = {positive.document.content: 1 for positive in query.positives}
        for document in negatives_of(query):
            labels.setdefault(document.content, 0)
        yield {"query": query.query.text, "docs": list(labels), "labels": list(labels.values())}


def table_path(out: Path) -> Path:
    """Where a table is written: a name without an ending gets `.parquet`."""
    return out if out.suffix else out.with_name(out.name + ".parquet")


def as_dataset(judged: Iterable[JudgedQuery], format: str = "sentence-transformers") -> Dataset:
    """The rows of `sentence-transformers`, `triplets` or `labelled` as a `datasets.Dataset`, for SentenceTransformerTrainer."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "train") from error
    queries = [query for query in judged if query.positives]
    if format == "sentence-transformers":
        columns = column_names(best_width([len(negatives_of(query)) for query in queries]))
        rows = list(wide_rows((query for query in queries if len(negatives_of(query)) >= len(columns) - 2), columns))
    elif format in ("triplets", "labelled"):
        rows = list(triplet_rows(queries) if format == "triplets" else labelled_rows(queries))
    else:
        raise SettingError(f"no columns in the format {format!r}{nearest(format, ['sentence-transformers', 'triplets', 'labelled'])}")
    return datasets.Dataset.from_list([dict(row) for row in rows])


def read_columns(path: Path, *, columns: Sequence[str] | None = None) -> Imported:
    """A table of texts in columns: anchor, positive and any number of negatives by position, or those named by `columns`.

    Columns called id or *_id are dropped; `scores` (of the positive, then of the negatives) become teacher scores; a (text, text, label)
    table gives judgements with the label as grade; (query, docs, labels) gives one list a query. Raises SettingError for unknown columns,
    DataError for damaged rows.
    """
    findings = Findings()
    return from_table(read_table(path, findings), findings, path.stem, file_sha256(path), columns)


def from_dataset(dataset: Dataset, *, name: str = "dataset", columns: Sequence[str] | None = None) -> Imported:
    """The same from a `datasets.Dataset`."""
    table = Table(Path(name), tuple(dataset.column_names), ((number, row) for number, row in enumerate(dataset, 1)))
    return from_table(table, Findings(), name, str(dataset._fingerprint), columns)


def from_table(table: Table, findings: Findings, name: str, source: str, columns: Sequence[str] | None) -> Imported:
    """Columns of texts as a collection with negatives."""
    texts = [table.column(column) for column in columns] if columns is not None else text_columns(table.columns)
    labels = [column for column in table.columns if column in LABEL_COLUMNS]
    if len(texts) < 2 or len(labels) > 1:
        listed = ", ".join(table.columns)
        raise DataError(f"the columns are {listed}; expected an anchor, a positive and any negatives, with at most one label", table.path)
    builder = Builder()
    for line, row in table.rows:
        if wrong := wrong_cells(row, texts, labels):
            findings.damage(table.path, line, wrong)
        else:
            add_row(builder, [row[column] for column in texts], row[labels[0]] if labels else None)
    findings.refuse()
    return builder.finish(name, source)


def text_columns(columns: Sequence[str]) -> list[str]:
    """The columns that hold texts, by position: all but labels and ids.

    >>> text_columns(["query_id", "anchor", "positive", "negative", "label"])
    ['anchor', 'positive', 'negative']
    """
    return [c for c in columns if c not in LABEL_COLUMNS and c.casefold() not in ("id", "idx", "_id") and not c.casefold().endswith("_id")]


def wrong_cells(row: Row, texts: Sequence[str], labels: Sequence[str]) -> str | None:
    """What is wrong with a row, in words; None for nothing."""
    listed = isinstance(row.get(texts[1]), list)
    for place, column in enumerate(texts):
        if column not in row:
            return f"there is no column {column!r}{nearest(column, row)}"
        value = row[column]
        if listed and place == 1:
            if not value or not all(isinstance(text, str) and text.strip() for text in value):
                return f"column {column!r} is {describe(value)}, expected a list of texts"
        elif not isinstance(value, str) or not value.strip():
            return f"column {column!r} is {'empty' if value in (None, '') else describe(value)}, expected a text"
        elif unwritable(value):
            return f"column {column!r} holds half of a surrogate pair"
    return wrong_label(row.get(labels[0]), len(row[texts[1]]) if listed else len(texts) - 1, listed) if labels else None


def wrong_label(label: object, documents: int, listed: bool) -> str | None:
    """What is wrong with a label or a list of scores, in words."""
    values = label if isinstance(label, list) else [label]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return f"the label is {describe(label)}, expected a number or a list of numbers"
    if isinstance(label, list) and len(label) != documents:
        return f"{len(label)} labels for {documents} documents"
    if listed and not isinstance(label, list):
        return f"one label for a list of {documents} documents"
    return None


def add_row(builder: Builder, texts: Sequence[Any], label: Any) -> None:
    """One row: a list with labels, a labelled pair, or a positive with its negatives and perhaps their scores."""
    query = builder.query(texts[0])
    if isinstance(texts[1], list):
        for text, grade in zip(texts[1], label or [1] * len(texts[1]), strict=True):
            add_labelled(builder, query, builder.document(text), grade)
    elif label is not None and not isinstance(label, list):
        add_labelled(builder, query, builder.document(texts[1]), label)
    else:
        scores = label or [None] * (len(texts) - 1)
        builder.judge(query, builder.document(texts[1]), score=scores[0])
        for text, score in zip(texts[2:], scores[1:], strict=True):
            builder.negative(query, builder.document(text), score=score)


def add_labelled(builder: Builder, query: str, document: str, label: float) -> None:
    """A judgement with the label as grade: whole numbers as they are, other numbers as 1 from 0.5 on; grade 0 is a negative."""
    grade = int(label) if float(label).is_integer() else int(label >= 0.5)
    builder.judge(query, document, grade)
    if grade <= 0:
        builder.negative(query, document)


# ---- FlagEmbedding -----------------------------------------------------------------------------------------------------------------


def write_flagembedding(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """One line a query with all its positives and negatives; teacher scores where every text of the line has one.

    Queries without a negative are left out and counted: FlagEmbedding's trainer divides by their number.
    """
    kept = [query for query in queries if negatives_of(query)]
    out = out if out.suffix else out.with_name(out.name + ".jsonl")
    write_lines(out, (json_line(flag_row(query)) for query in kept))
    return {
        "queries": len(kept),
        "positives": sum(len(query.positives) for query in kept),
        "negatives": sum(len(negatives_of(query)) for query in kept),
        "queries_left_out": len(queries) - len(kept),
    }


def flag_row(query: JudgedQuery) -> dict[str, Any]:
    """The line of one query."""
    positives = {positive.document.content: positive.teacher_score for positive in query.positives}
    scores = {judged.candidate.document.content: judged.candidate.teacher_score for judged in query.judged if judged.kept}
    negatives = {document.content: scores[document.content] for document in negatives_of(query)}
    row: dict[str, Any] = {"query": query.query.text, "pos": list(positives), "neg": list(negatives)}
    if None not in (*positives.values(), *negatives.values()):
        row |= {"pos_scores": list(positives.values()), "neg_scores": list(negatives.values())}
    return row


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_flagembedding(path: Path) -> Imported:
    """FlagEmbedding's lines. Raises DataError for a text where a list is expected, and for as many scores as there are no texts."""
    findings, builder = Findings(), Builder()
    for line, row in objects_of(path, findings):
        if wrong := wrong_flag_row(row):
            findings.damage(path, line, wrong)
            continue
        query = builder.query(row["query"])
        for text, score in zip(row["pos"], row.get("pos_scores") or [None] * len(row["pos"]), strict=True):
            builder.judge(query, builder.document(text), score=score)
        negatives = row.get("neg") or []
        for text, score in zip(negatives, row.get("neg_scores") or [None] * len(negatives), strict=True):
            builder.negative(query, builder.document(text), score=score)
    if not builder.queries and not findings.damages:
        findings.damage(path, None, "holds no lines")
    findings.refuse()
    return builder.finish(path.stem, file_sha256(path))


def wrong_flag_row(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a line, in words; None for nothing."""
    if not isinstance(row.get("query"), str) or not row["query"].strip():
        return f'"query" is {describe(row.get("query"))}, expected a text; found the keys {", ".join(row)}'
    for key, needed in (("pos", True), ("neg", False)):
        texts = row.get(key)
        if texts is None and not needed:
            continue
        if not isinstance(texts, list) or (needed and not texts):
            return f'"{key}" is {describe(texts)}, expected a list of texts'
        wrong = [text for text in texts if not isinstance(text, str) or not text.strip() or unwritable(text)]
        if wrong:
            return f'"{key}" holds {describe(wrong[0])}, expected texts that are not empty'
        scores = row.get(f"{key}_scores")
        if scores and (not isinstance(scores, list) or len(scores) != len(texts) or not all(isinstance(s, int | float) for s in scores)):
            return f'"{key}_scores" is {describe(scores)}, expected {len(texts)} numbers'
    return None


# ---- Tevatron ----------------------------------------------------------------------------------------------------------------------


def write_tevatron(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """A folder with `train.jsonl` (ids) and `corpus.jsonl` (texts), Tevatron's second form."""
    documents: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for query in queries:
        negatives = negatives_of(query)
        for document in (*(positive.document for positive in query.positives), *negatives):
            if documents.setdefault(document.id, document.content) != document.content:
                raise DataError(f"document id {document.id!r} stands for two texts; their negatives come from different data sets")
        rows.append(
            {
                "query_id": query.query.id,
                "query_text": query.query.text,
                "query_image": None,
                "positive_document_ids": [positive.document.id for positive in query.positives],
                "negative_document_ids": [document.id for document in negatives],
            }
        )
    lines = [json_line(row) for row in rows]
    corpus = [json_line({"docid": id_, "document_text": text, "document_image": None}) for id_, text in documents.items()]
    with store.begin(out, kind="tevatron", inputs={"lines": fingerprint(lines), "corpus": fingerprint(corpus)}) as work:
        if work.finished is None:
            write_lines(work.path / "train.jsonl", lines)
            write_lines(work.path / "corpus.jsonl", corpus)
            work.finish()
    return {"queries": len(rows), "documents": len(documents), "negatives": sum(len(row["negative_document_ids"]) for row in rows)}


def read_tevatron(path: Path) -> Imported:
    """Tevatron's folder, or one file of its older form with `positive_passages` and `negative_passages`."""
    findings, builder = Findings(), Builder()
    train = path / "train.jsonl" if path.is_dir() else path
    if path.is_dir():
        for line, row in objects_of(path / "corpus.jsonl", findings):
            if isinstance(row.get("docid"), str) and isinstance(row.get("document_text"), str):
                added(findings, path / "corpus.jsonl", line, builder, row)
            else:
                findings.damage(path / "corpus.jsonl", line, 'expected "docid" and "document_text", both strings')
    for line, row in objects_of(train, findings):
        if wrong := wrong_tevatron_row(row, builder.documents):
            findings.damage(train, line, wrong)
            continue
        try:
            add_tevatron_row(builder, row)
        except DataError as error:
            findings.damage(train, line, str(error))
    if not builder.queries and not findings.damages:
        findings.damage(train, None, "holds no lines")
    findings.refuse()
    return builder.finish(path.stem, file_sha256(train))


def added(findings: Findings, path: Path, line: int, builder: Builder, row: Mapping[str, Any]) -> None:
    """Keeps a document of the corpus; a doubled id is a damage."""
    if row["docid"] in builder.documents:
        findings.damage(path, line, f'"docid" {row["docid"]!r} is doubled; ids must be unique')
    else:
        builder.document(row["document_text"], id_=row["docid"])


def wrong_tevatron_row(row: Mapping[str, Any], documents: Mapping[str, Document]) -> str | None:
    """What is wrong with a line of either form, in words; None for nothing."""
    text = row.get("query_text", row.get("query"))
    if not isinstance(row.get("query_id"), str) or not isinstance(text, str) or not text.strip():
        return f'expected "query_id" and "query_text" (or "query"), both strings; found the keys {", ".join(row)}'
    for side, needed in (("positive", True), ("negative", False)):
        ids, passages = row.get(f"{side}_document_ids"), row.get(f"{side}_passages")
        found = ids if ids is not None else passages
        if not isinstance(found, list) or (needed and not found):
            return f'"{side}_document_ids" or "{side}_passages" is {describe(found)}, expected a list'
        for item in found:
            if ids is not None and item not in documents:
                return f"document {item!r} is not in corpus.jsonl"
            if ids is None and not (isinstance(item, dict) and isinstance(item.get("docid"), str) and isinstance(item.get("text"), str)):
                return f'"{side}_passages" holds {describe(item)}, expected objects with "docid" and "text"'
    return None


def add_tevatron_row(builder: Builder, row: Mapping[str, Any]) -> None:
    """One line of either form."""
    query = builder.query(row.get("query_text", row.get("query")), row["query_id"])
    sides: dict[str, list[str]] = {}
    for side in ("positive", "negative"):
        if (ids := row.get(f"{side}_document_ids")) is not None:
            sides[side] = ids
        else:
            sides[side] = [builder.document(p["text"], p.get("title") or "", p["docid"]) for p in row[f"{side}_passages"]]
    for document in sides["positive"]:
        builder.judge(query, document)
    for document in sides["negative"]:
        builder.negative(query, document)


# ---- TREC --------------------------------------------------------------------------------------------------------------------------


def export_trec(queries: Sequence[JudgedQuery], out: Path) -> Counts:
    """A qrels file: positives with grade 1, negatives with grade 0. It holds ids only."""
    out = out if out.suffix else out.with_name(out.name + ".txt")
    rows = list(judgements_of(queries))
    write_qrels(rows, out)
    relevant = sum(row.grade > 0 for row in rows)
    return {"queries": len(queries), "positives": relevant, "negatives": len(rows) - relevant}


def word(id_: str) -> str:
    """An id as TREC's files hold it. Raises DataError for one that is empty or holds white space, which separates their columns."""
    if id_.split() != [id_]:
        raise DataError(f"the id {id_!r} is empty or holds white space; TREC files separate their columns by it")
    return id_


def write_qrels(rows: Iterable[Judgement], path: Path) -> int:
    """`query_id 0 document_id grade`, in the order given; the number of rows."""
    return write_lines(path, (f"{word(row.query_id)} 0 {word(row.document_id)} {row.grade}" for row in rows))


def read_qrels(path: Path) -> tuple[Judgement, ...]:
    """The judgements of a TREC qrels file. Raises DataError; a repeated row with the same grade is merged."""
    findings = Findings()
    grades: dict[tuple[str, str], int] = {}
    for line, text in lines_of(path, findings):
        columns = text.split()
        if len(columns) != 4 or WHOLE_NUMBER.fullmatch(columns[3]) is None:
            findings.damage(path, line, f"{text[:60]!r}, expected four columns: query_id 0 document_id grade (a whole number)")
            continue
        key, grade = (columns[0], columns[2]), int(columns[3])
        if grades.setdefault(key, grade) != grade:
            findings.damage(path, line, f"query {key[0]!r} and document {key[1]!r} have the grades {grades[key]} and {grade}; keep one")
    if not grades and not findings.damages:
        findings.damage(path, None, "holds no judgements")
    findings.refuse()
    return tuple(Judgement(query, document, grade) for (query, document), grade in grades.items())


def write_run(rows: Iterable[ScoredDocument], path: Path, *, tag: str = "negatron") -> int:
    """`query_id Q0 document_id rank score tag`: ranks from 1, by score descending, then by document id ascending; the number of rows.

    Queries keep the order in which they first occur. A score is written so that reading it gives the same number, bit for bit.
    """
    by_query: dict[str, dict[str, float]] = {}
    for row in rows:
        if not math.isfinite(row.score):
            raise DataError(f"query {row.query_id!r}, document {row.document_id!r}: the score {row.score} cannot be ranked")
        scores = by_query.setdefault(row.query_id, {})
        if row.document_id in scores:
            raise DataError(f"query {row.query_id!r} has document {row.document_id!r} twice")
        scores[row.document_id] = float(row.score)
    return write_lines(path, run_lines(by_query, word(tag)))


def run_lines(by_query: Mapping[str, Mapping[str, float]], tag: str) -> Iterator[str]:
    """The lines of a run."""
    for query, scores in by_query.items():
        ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        for rank, (document, score) in enumerate(ranked, 1):
            yield f"{word(query)} Q0 {word(document)} {rank} {score!r} {tag}"


def read_run(path: Path) -> tuple[ScoredDocument, ...]:
    """The rows of a TREC run file, in the order of the file. Raises DataError for wrong columns, scores and doubled documents."""
    findings = Findings()
    rows: dict[tuple[str, str], ScoredDocument] = {}
    for line, text in lines_of(path, findings):
        columns = text.split()
        score = number(columns[4]) if len(columns) == 6 else None
        if score is None:
            findings.damage(path, line, f"{text[:60]!r}, expected six columns: query_id Q0 document_id rank score tag (a finite number)")
        elif (columns[0], columns[2]) in rows:
            findings.damage(path, line, f"query {columns[0]!r} has document {columns[2]!r} twice")
        else:
            rows[columns[0], columns[2]] = ScoredDocument(columns[0], columns[2], score)
    if not rows and not findings.damages:
        findings.damage(path, None, "holds no rows")
    findings.refuse()
    return tuple(rows.values())


def number(text: str) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


FORMATS: Mapping[str, Format] = {
    "beir": Format("a BEIR folder: positives with grade 1, negatives with grade 0", export_beir, import_beir),
    "sentence-transformers": Format("columns anchor, positive, negative_1 ...; .parquet or .jsonl", write_columns, read_columns),
    "triplets": Format("columns anchor, positive, negative; .parquet or .jsonl", write_triplets, read_columns),
    "labelled": Format("columns query, docs, labels; .parquet or .jsonl", write_labelled, read_columns),
    "flagembedding": Format("FlagEmbedding's lines: query, pos, neg, scores", write_flagembedding, read_flagembedding),
    "tevatron": Format("a folder with Tevatron's train.jsonl and corpus.jsonl", write_tevatron, read_tevatron),
    "trec": Format("a TREC qrels file: positives with grade 1, negatives with grade 0", export_trec, None),
}
"""Every form by its name."""
