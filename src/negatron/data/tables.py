"""Tables of texts as rows of columns: CSV, TSV, JSON Lines, JSON, Parquet. Damages are kept with file and line.

`read_table` gives the columns and then the rows, each with the line where it begins (for Parquet and JSON its number, from 1).
What it does not know: what the columns mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negatron.data.lines import BYTE_ORDER_MARK, Findings, binary_kind, describe, objects_of
from negatron.errors import DataError, SettingError, nearest
from negatron.store import writing

Row = Mapping[str, Any]
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
LONGEST_CELL = 1 << 30
"""Characters; csv refuses cells of more than 131,072 by default, and documents are longer."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns in their order, and (line, row). Rows can be walked once."""

    path: Path
    columns: tuple[str, ...]
    rows: Iterator[tuple[int, Row]]

    def column(self, name: str) -> str:
        """`name` if the table has such a column. Raises SettingError that names the columns and the nearest one."""
        if name not in self.columns:
            listed = ", ".join(self.columns)
            raise SettingError(f"{self.path}: there is no column {name!r}{nearest(name, self.columns)} (its columns: {listed})")
        return name


def read_table(path: Path, findings: Findings) -> Table:
    """The table in a file, by its ending. Raises DataError for an unknown ending, a missing file, a binary one, or a broken header."""
    if not path.is_file():
        raise DataError("no such file", path)
    ending = path.suffix.lower()
    readers: dict[str, Callable[[Path, Findings], Table]] = {".jsonl": jsonl, ".ndjson": jsonl, ".json": json_list, ".parquet": parquet}
    readers |= dict.fromkeys(DELIMITERS, delimited)
    if ending not in readers:
        raise DataError(f"unknown kind of table {ending or '(no ending)'!r}; expected one of {', '.join(sorted(readers))}", path)
    if ending != ".parquet":
        with path.open("rb") as file:
            if (kind := binary_kind(file.read(4096))) is not None:
                raise DataError(f"a binary file ({kind}), expected text", path)
    return readers[ending](path, findings)


def delimited(path: Path, findings: Findings) -> Table:
    """CSV or TSV with a header line; cells may be quoted and hold line breaks."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(decoded(path), delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    try:
        columns = next(reader, [])
    except csv.Error as error:
        raise DataError(f"not a table: {error}", path, 1) from error
    if not columns:
        raise DataError("empty: expected a header line with the names of the columns", path)
    if len(set(columns)) < len(columns) or "" in columns:
        raise DataError(f"the header {', '.join(map(repr, columns))} names a column twice or not at all", path, 1)
    return Table(path, tuple(columns), delimited_rows(path, reader, columns, findings))


def delimited_rows(path: Path, reader: Any, columns: Sequence[str], findings: Findings) -> Iterator[tuple[int, Row]]:
    """Rows with the line on which each begins."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            findings.damage(path, line, f"not a row of a table: {error}")
            return
        if not cells:
            continue
        if len(cells) != len(columns):
            findings.damage(
                path, line, f"{len(cells)} columns, expected {len(columns)} ({', '.join(columns)}); quote cells that hold separators"
            )
        else:
            yield line, dict(zip(columns, cells, strict=True))


def decoded(path: Path) -> Iterator[str]:
    """Lines with their ends. Raises DataError where one is no UTF-8 text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            raw = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                place = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                raise DataError(f"not UTF-8 ({place}); convert the file to UTF-8", path, number) from error
            if "\0" in text:
                raise DataError("a NUL byte, expected text", path, number)
            yield text


def jsonl(path: Path, findings: Findings) -> Table:
    """JSON Lines; the columns are those of the first object, and the others must have them too."""
    rows = objects_of(path, findings)
    first = next(rows, None)
    if first is None:
        findings.refuse()
        raise DataError("holds no rows", path)
    return Table(path, tuple(first[1]), chained(first, rows))


def chained(first: tuple[int, Row], others: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """The first row, then the others."""
    yield first
    yield from others


def json_list(path: Path, findings: Findings) -> Table:
    """A JSON list of objects."""
    try:
        value = json.loads("".join(decoded(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", path, getattr(error, "lineno", None)) from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{describe(value)}, expected a list of objects", path)
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            findings.damage(path, number, f"entry {number} is {describe(row)}, expected an object")
    rows = [(number, row) for number, row in enumerate(value, 1) if isinstance(row, dict)]
    return Table(path, tuple(rows[0][1]) if rows else (), iter(rows))


def parquet(path: Path, findings: Findings) -> Table:
    """Parquet, a few rows in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not Parquet: {error}", path) from error
    return Table(path, tuple(file.schema_arrow.names), parquet_rows(file))


def parquet_rows(file: Any) -> Iterator[tuple[int, Row]]:
    """Rows by number, from 1."""
    number = 0
    for batch in file.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> int:
    """Writes rows as JSON Lines or, for the ending `.parquet`, as Parquet, whole or not at all; gives their number."""
    if path.suffix.lower() == ".parquet":
        return write_parquet(path, columns, rows)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise SettingError(f"{path}: a table is written as .jsonl or .parquet")
    count = 0
    with writing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps({column: row[column] for column in columns}, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> int:
    """Writes rows as Parquet; the types are those of the values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = list(rows)
    with writing(path) as beside:
        pq.write_table(pa.table({column: [row[column] for row in kept] for column in columns}), beside)
    return len(kept)
