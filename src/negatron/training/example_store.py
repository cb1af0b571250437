"""Training examples at rest: one Arrow file, memory-mapped, read by row positions without loading the rest.

In: an iterable of TrainingExample. Out: `ExampleStore`, a sequence of the same examples, which fits wherever a list of them does.

The file is Arrow IPC with one row an example and ROWS_IN_A_BLOCK rows a block (a record batch); any Arrow reader opens it. An empty last
block carries, as metadata, what can only be known at the end: the most negatives an example has, and the fingerprint of the rows.

What stays true: what was written comes back equal, and a file is whole or not there. Memory does not grow with the file: a block is in
memory while it is written, the rows asked for while they are read.

What it does not know: seeds, batches, hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import pyarrow as pa

from negatron.errors import DataError
from negatron.store import writing
from negatron.types import Document, Negative, Origin, Query, TrainingExample

ROWS_IN_A_BLOCK = 1024
FORMAT = "negatron training examples 1"
Value = TypeVar("Value")

TEXT = pa.large_string()
ORIGIN = pa.struct(
    [("source", TEXT), ("maker", TEXT), ("round", pa.int32()), ("rank", pa.int32()), ("score", pa.float64()), ("note", TEXT)]
)
DOCUMENT = [("id", TEXT), ("text", TEXT), ("title", TEXT)]
NEGATIVE = pa.struct([*DOCUMENT, ("teacher_score", pa.float64()), ("origins", pa.list_(ORIGIN))])
SCHEMA = pa.schema(
    [
        ("query_id", TEXT),
        ("query", TEXT),
        ("positive", pa.struct(DOCUMENT)),
        ("negatives", pa.list_(NEGATIVE)),
        ("known_positives", pa.list_(TEXT)),
        ("stage", pa.int32()),
        ("positive_score", pa.float64()),
        ("weight", pa.float64()),
    ]
)


class ExampleTexts(NamedTuple):
    """The texts of one example, as they are encoded and compared."""

    query: str
    documents: tuple[str, ...]
    """The positive, then the own negatives."""
    known: frozenset[str]
    """All known positives of the query."""


def texts_of(examples: Sequence[TrainingExample]) -> Iterator[ExampleTexts]:
    """The texts of each example; of a stored one without making the example."""
    if isinstance(examples, ExampleStore):
        yield from examples.texts(0, len(examples))
        return
    for example in examples:
        documents = (example.positive.content, *(negative.document.content for negative in example.negatives))
        yield ExampleTexts(example.query.text, documents, example.known_positives)


class ExampleStore(Sequence[TrainingExample]):
    """The examples of a file that `write` made. Slices and `take` give lists. Raises DataError when the file is missing or another's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            last = self._file.num_record_batches - 1
            _, raw = self._file.get_batch_with_custom_metadata(last) if last >= 0 else (None, None)
        except FileNotFoundError as error:
            raise DataError("no such file", path) from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"not a whole Arrow file ({error}); write the examples again", path) from error
        facts = {key.decode(): value.decode() for key, value in (raw or {}).items()}
        if facts.get("format") != FORMAT:
            raise DataError(f"not a file of training examples (format {facts.get('format')!r}, expected {FORMAT!r})", path)
        self.most_negatives = int(facts["most_negatives"])
        self.fingerprint = facts["fingerprint"]
        self._rows = int(facts["rows"])
        self._blocks = last

    def __reduce__(self) -> tuple[type[ExampleStore], tuple[Path]]:
        return ExampleStore, (self.path,)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, position: int) -> TrainingExample: ...
    @overload
    def __getitem__(self, position: slice) -> list[TrainingExample]: ...
    def __getitem__(self, position: int | slice) -> TrainingExample | list[TrainingExample]:
        if isinstance(position, slice):
            return self.take(range(*position.indices(len(self))))
        if not -len(self) <= position < len(self):
            raise IndexError(f"row {position} of {len(self)}")
        return self.take([position % len(self)])[0]

    def __iter__(self) -> Iterator[TrainingExample]:
        for block in range(self._blocks):
            yield from examples_in(self._file.get_batch(block))

    def take(self, positions: Sequence[int] | np.ndarray[Any, np.dtype[np.integer[Any]]]) -> list[TrainingExample]:
        """The examples at these positions, in their order; only their rows are read. Raises IndexError for a position outside."""
        wanted = np.asarray(positions, np.int64)
        if not len(wanted):
            return []
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise IndexError(f"rows {wanted.min()} .. {wanted.max()} of {len(self)}")
        in_file_order = np.argsort(wanted, kind="stable")
        blocks, firsts = np.unique(wanted[in_file_order] // ROWS_IN_A_BLOCK, return_index=True)
        slices = []
        for block, places in zip(blocks.tolist(), np.split(wanted[in_file_order], firsts[1:]), strict=True):
            slices.append(self._file.get_batch(block).take(pa.array(places - block * ROWS_IN_A_BLOCK)))
        found: list[TrainingExample] = [example for part in slices for example in examples_in(part)]
        back = np.empty(len(wanted), np.int64)
        back[in_file_order] = np.arange(len(wanted))
        return [found[place] for place in back.tolist()]

    def texts(self, first: int, end: int) -> Iterator[ExampleTexts]:
        """The texts of the rows first .. end-1."""
        for block in range(first // ROWS_IN_A_BLOCK, -(-end // ROWS_IN_A_BLOCK)):
            start = block * ROWS_IN_A_BLOCK
            rows = self._file.get_batch(block)
            yield from texts_in(rows.slice(max(first - start, 0), min(end - start, len(rows)) - max(first - start, 0)))

    @classmethod
    def write(cls, path: Path, examples: Iterable[TrainingExample]) -> ExampleStore:
        """Writes the examples to a file, whole or not at all, and opens it. Raises DataError for a text that is no Unicode."""
        most, count, digest, rest = 0, 0, sha256(), iter(examples)
        with writing(path) as beside, pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as file:
            while block := list(islice(rest, ROWS_IN_A_BLOCK)):
                rows = [row_of(example) for example in block]
                try:
                    file.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                except UnicodeEncodeError as error:
                    raise DataError(f"rows {count} .. {count + len(rows) - 1} hold a text that is no Unicode: {error}", path) from error
                digest.update(repr(rows).encode())
                most, count = max(most, *(len(example.negatives) for example in block)), count + len(rows)
            facts = {"format": FORMAT, "rows": str(count), "most_negatives": str(most), "fingerprint": digest.hexdigest()[:16]}
            file.write_batch(pa.RecordBatch.from_pylist([], SCHEMA), custom_metadata=facts)
        return cls(path)


def row_of(example: TrainingExample) -> dict[str, Any]:
    """The example as a row of SCHEMA; known positives sorted, so that equal examples make equal rows."""
    return {
        "query_id": example.query.id,
        "query": example.query.text,
        "positive": values_of(example.positive),
        "negatives": [
            {
                **values_of(negative.document),
                "teacher_score": negative.teacher_score,
                "origins": [values_of(origin) for origin in negative.origins],
            }
            for negative in example.negatives
        ],
        "known_positives": sorted(example.known_positives),
        "stage": example.stage,
        "positive_score": example.positive_score,
        "weight": example.weight,
    }


def values_of(noun: Document | Origin) -> dict[str, Any]:
    """The fields of a flat noun by name; `dataclasses.asdict` copies deeply and takes many times as long."""
    return {name: getattr(noun, name) for name in noun.__slots__}


def examples_in(rows: pa.RecordBatch) -> list[TrainingExample]:
    """The examples of some rows, column by column, which is many times faster than value by value."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    queries = map(Query, strings(columns["query_id"]), strings(columns["query"]))
    negatives = lists(columns["negatives"], negatives_in)
    known = map(frozenset, lists(columns["known_positives"], strings))
    rest = (columns[name].to_pylist() for name in ("stage", "positive_score", "weight"))
    return list(map(TrainingExample, queries, documents_in(columns["positive"]), negatives, known, *rest))


def negatives_in(structs: pa.StructArray) -> list[Negative]:
    """The negatives of a struct column."""
    fields = fields_of(structs)
    return list(map(Negative, documents_in(structs), lists(fields["origins"], origins_in), fields["teacher_score"].to_pylist()))


def documents_in(structs: pa.StructArray) -> list[Document]:
    """The documents of a struct column, which may have other fields too."""
    fields = fields_of(structs)
    return list(map(Document, *(strings(fields[name]) for name, _ in DOCUMENT)))


def origins_in(structs: pa.StructArray) -> list[Origin]:
    """The origins of a struct column."""
    fields = fields_of(structs)
    texts = {name: strings(fields[name]) for name in ("source", "maker", "note")}
    numbers = (fields[name].to_pylist() for name in ("round", "rank", "score"))
    return list(map(Origin, texts["source"], texts["maker"], *numbers, texts["note"]))


def texts_in(rows: pa.RecordBatch) -> Iterator[ExampleTexts]:
    """The texts of some rows; the other columns are not read."""
    positives = contents_in(rows.column("positive"))
    negatives = lists(rows.column("negatives"), contents_in)
    known = map(frozenset, lists(rows.column("known_positives"), strings))
    documents = ((positive, *own) for positive, own in zip(positives, negatives, strict=True))
    return map(ExampleTexts, strings(rows.column("query")), documents, known)


def contents_in(structs: pa.StructArray) -> list[str]:
    """What is read of the documents of a struct column: Document.content."""
    fields = fields_of(structs)
    pairs = zip(strings(fields["title"]), strings(fields["text"]), strict=True)
    return [f"{title} {text}".strip() if title else text for title, text in pairs]


def fields_of(structs: pa.StructArray) -> dict[str, pa.Array]:
    """Name -> values of the fields of a struct column; `flatten`, unlike `field`, minds that the column may be a slice."""
    return {field.name: values for field, values in zip(structs.type, structs.flatten(), strict=True)}


def strings(array: pa.Array) -> list[str]:
    """The texts of a column without nulls."""
    return list(array.to_numpy(zero_copy_only=False))


def lists(array: pa.ListArray, read: Callable[[Any], list[Value]]) -> list[tuple[Value, ...]]:
    """The values of a column of lists, read all at once and cut into one tuple a row."""
    ends = array.offsets.to_pylist()
    values = read(array.values.slice(ends[0], ends[-1] - ends[0]))
    return [tuple(values[first - ends[0] : end - ends[0]]) for first, end in pairwise(ends)]
