"""The file of a negatives folder: every candidate of every query, kept and rejected, with origins, scores and verdicts.

`judged.parquet` has one row a candidate, `queries.parquet` one a query with its positives and their teacher scores; both hold the
queries in the same order, so that they are read side by side, a few queries in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from negatron.errors import DataError, MissingExtra, NegatronError
from negatron.negatives.summary import Summary, in_words
from negatron.store import Manifest, read_manifest, writing
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict

if TYPE_CHECKING:
    from datasets import Dataset

KIND = "negatives"
JUDGED, QUERIES = "judged.parquet", "queries.parquet"
QUERIES_AT_A_TIME = 256
DICTIONARY_BYTES = 64 << 20
"""Distinct texts that the rows of 256 queries may share in one dictionary: written once each, however many queries they stand with."""
T = TypeVar("T")

ORIGIN = pa.struct(
    [
        ("source", pa.string()),
        ("maker", pa.string()),
        ("round", pa.int32()),
        ("rank", pa.int32()),
        ("score", pa.float64()),
        ("note", pa.string()),
    ]
)
VERDICT = pa.struct(
    [("kept", pa.bool_()), ("rule", pa.string()), ("measured", pa.float64()), ("limit", pa.float64()), ("detail", pa.string())]
)
JUDGED_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("document_id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("kept", pa.bool_()),
        ("teacher_score", pa.float64()),
        ("origins", pa.list_(ORIGIN)),
        ("verdicts", pa.list_(VERDICT)),
    ]
)
POSITIVE = pa.struct([("document_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("teacher_score", pa.float64())])
QUERIES_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("text", pa.string()), ("positives", pa.list_(POSITIVE)), ("candidates", pa.int32())]
)


def write_negatives(folder: Path, items: Iterable[JudgedQuery]) -> Summary:
    """Writes both files into `folder`, streaming; each whole or not at all."""
    summary = Summary()
    with (
        writing(folder / JUDGED) as judged_path,
        writing(folder / QUERIES) as queries_path,
        pq.ParquetWriter(judged_path, JUDGED_SCHEMA, compression="zstd", dictionary_pagesize_limit=DICTIONARY_BYTES) as judged_file,
        pq.ParquetWriter(queries_path, QUERIES_SCHEMA, compression="zstd", dictionary_pagesize_limit=DICTIONARY_BYTES) as queries_file,
    ):
        for block in blocks(items, QUERIES_AT_A_TIME):
            judged_file.write_table(judged_table([judged for item in block for judged in item.judged]))
            queries_file.write_table(queries_table(block))
            for item in block:
                summary.add(item)
    return summary


def blocks(items: Iterable[JudgedQuery], size: int) -> Iterator[list[JudgedQuery]]:
    """The items in lists of `size`, the last one shorter."""
    block: list[JudgedQuery] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


def judged_table(rows: Sequence[Judged]) -> pa.Table:
    """Candidates as rows of judged.parquet."""
    candidates = [judged.candidate for judged in rows]
    columns = [
        [candidate.query_id for candidate in candidates],
        [candidate.document.id for candidate in candidates],
        [candidate.document.title for candidate in candidates],
        [candidate.document.text for candidate in candidates],
        [judged.kept for judged in rows],
        [candidate.teacher_score for candidate in candidates],
        list_of_structs([candidate.origins for candidate in candidates], ORIGIN),
        list_of_structs([judged.verdicts for judged in rows], VERDICT),
    ]
    return table(columns, JUDGED_SCHEMA)


def queries_table(items: Sequence[JudgedQuery]) -> pa.Table:
    """Queries as rows of queries.parquet."""
    rows = [[(p.document.id, p.document.title, p.document.text, p.teacher_score) for p in item.positives] for item in items]
    flat = [row for own in rows for row in own]
    positives = [[row[n] for row in flat] for n in range(POSITIVE.num_fields)]
    columns = [
        [item.query.id for item in items],
        [item.query.text for item in items],
        lists(positives, POSITIVE, [len(own) for own in rows]),
        [len(item.judged) for item in items],
    ]
    return table(columns, QUERIES_SCHEMA)


def table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """A table of columns, each a list of values or an array already made."""
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, kind.type) for c, kind in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def list_of_structs(rows: Sequence[Sequence[Any]], struct: pa.StructType) -> pa.Array:
    """Lists of dataclass values whose attributes are the fields of `struct`, made column by column: ten times as fast as by dicts."""
    flat = [value for own in rows for value in own]
    return lists([list(map(attrgetter(own.name), flat)) for own in struct], struct, [len(own) for own in rows])


def lists(columns: Sequence[Sequence[Any]], struct: pa.StructType, lengths: Sequence[int]) -> pa.Array:
    """An array of lists of structs, from the columns of all structs one after another and the length of each list."""
    arrays = [pa.array(values, own.type) for values, own in zip(columns, struct, strict=True)]
    offsets = pa.array([0, *accumulate(lengths)], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=list(struct)))


def judged_of(batch: pa.RecordBatch) -> Iterator[Judged]:
    """The candidates in rows of judged.parquet."""
    query_ids, ids, titles, texts = (strings(batch.column(name)) for name in ("query_id", "document_id", "title", "text"))
    scores = batch.column("teacher_score").to_pylist()
    origins, verdicts = values_of(batch.column("origins"), Origin), values_of(batch.column("verdicts"), Verdict)
    for row, query_id in enumerate(query_ids):
        document = Document(ids[row], texts[row], titles[row])
        yield Judged(Candidate(query_id, document, origins[row], scores[row]), verdicts[row])


def queries_of(batch: pa.RecordBatch) -> Iterator[tuple[Query, tuple[Positive, ...], int]]:
    """(query, positives, number of candidates) in rows of queries.parquet."""

    def positive(id_: str, title: str, text: str, score: float | None) -> Positive:
        return Positive(Document(id_, text, title), score)

    positives = values_of(batch.column("positives"), positive)
    ids, texts, counts = (batch.column(name).to_pylist() for name in ("query_id", "text", "candidates"))
    for row, id_ in enumerate(ids):
        yield Query(id_, texts[row]), positives[row], counts[row]


def strings(column: pa.Array) -> list[str]:
    """The texts of a column; those that are equal are one object where the column has a dictionary."""
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    distinct = column.dictionary.to_pylist()
    return [distinct[index] for index in column.indices.to_pylist()]


def values_of(column: pa.Array, make: Callable[..., T]) -> list[tuple[T, ...]]:
    """The rows of a column of lists of structs, each struct made a value from its fields in their order."""
    made = list(map(make, *(own.to_pylist() for own in column.flatten().flatten())))
    edges = [0, *accumulate(column.value_lengths().to_pylist())]
    return [tuple(made[start:end]) for start, end in pairwise(edges)]


@dataclass(frozen=True)
class Negatives:
    """A finished negatives folder. Iterating it gives a JudgedQuery at a time; `len` is the number of queries."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Negatives:
        """Raises DataError when the folder is not a finished negatives folder."""
        return cls(Path(path), read_manifest(Path(path), KIND))

    @property
    def fingerprint(self) -> str:
        """Of the contents."""
        return self.manifest.fingerprint

    @property
    def summary(self) -> dict[str, Any]:
        """The counts written when the folder was made."""
        summary: dict[str, Any] = self.manifest.facts["summary"]
        return summary

    def __len__(self) -> int:
        return int(self.summary["queries"])

    def __iter__(self) -> Iterator[JudgedQuery]:
        candidates = (judged for batch in batches_of(self.path / JUDGED, ["document_id", "title", "text"]) for judged in judged_of(batch))
        for query, positives, count in (row for batch in batches_of(self.path / QUERIES, []) for row in queries_of(batch)):
            judged = tuple(islice(candidates, count))
            if len(judged) < count:
                raise DataError("holds fewer candidates than queries.parquet says; make the folder again", self.path / JUDGED)
            if any(j.candidate.query_id != query.id for j in judged):
                raise DataError(f"candidates of query {query.id} are not where queries.parquet says", self.path / JUDGED)
            yield JudgedQuery(query, positives, judged)
        if next(candidates, None) is not None:
            raise DataError("holds more candidates than queries.parquet says; make the folder again", self.path / JUDGED)

    def find(self, query_id: str) -> JudgedQuery:
        """One query's record. Raises NegatronError when there is none."""
        for item in self:
            if item.query.id == query_id:
                return item
        raise NegatronError(f"{self.path} has no query {query_id!r}; it holds {len(self):,} queries")

    def as_json(self) -> dict[str, Any]:
        """Place, fingerprint and facts, as JSON values."""
        return {"folder": str(self.path), "fingerprint": self.fingerprint, **self.manifest.facts}

    def dataset(self) -> Dataset:
        """The candidates as a memory-mapped `datasets.Dataset`."""
        try:
            from datasets import Dataset
        except ImportError as error:
            raise MissingExtra("datasets", "train") from error
        return Dataset.from_parquet(str(self.path / JUDGED))

    def __str__(self) -> str:
        wanted = self.manifest.inputs.get("settings", {}).get("negatives")
        return f"negatives of {len(self):,} queries in {self.path}\n{in_words(self.manifest.facts, wanted)}"


def batches_of(path: Path, texts: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a row group at a time. Raises DataError when it is not one.

    The columns of `texts` are kept as dictionaries, since the candidates of many queries are the same documents.
    """
    try:
        with pq.ParquetFile(path, read_dictionary=list(texts)) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group).combine_chunks().to_batches()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable Parquet file ({error}); make the folder again", path) from error
