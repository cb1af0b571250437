"""A plain table of pairs becomes a data set: a BEIR folder with a fixed split, written whole or not at all.

1. The columns are found: those that were named, or the only ones whose names say what they hold.
2. Every row is read; every empty cell and broken line is reported together, and then nothing is written.
3. Equal queries and equal documents are merged; ids come from contents.
4. A query belongs to train, dev or test by a hash of its words, so that no query is in two splits, whatever else is in the file,
   and a row that is added later moves no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negatron import store
from negatron.data.beir import counts, write_beir_files
from negatron.data.building import Builder
from negatron.data.collection import Collection
from negatron.data.lines import Findings, describe, unwritable
from negatron.data.tables import Table, read_table
from negatron.errors import SettingError
from negatron.identity import file_sha256, same_words

QUERY_COLUMNS = ("query", "question", "anchor")
POSITIVE_COLUMNS = ("positive", "answer", "document", "passage", "text")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class ImportedPairs:
    """What `import_pairs` made. `merged_queries` and `merged_documents` count rows whose text was there before."""

    out: Path
    pairs: int
    documents: int
    queries: int
    judgements: Mapping[str, int]
    merged_queries: int
    merged_documents: int
    doubled_pairs: int
    columns: Mapping[str, str]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        shares = ", ".join(f"{split} {rows:,}" for split, rows in self.judgements.items())
        merged = f"{self.merged_queries:,} repeated queries and {self.merged_documents:,} repeated documents merged"
        lines = [f"{self.out}: {self.pairs:,} pairs -> {self.documents:,} documents, {self.queries:,} queries ({shares}); {merged}"]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def as_json(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "out": str(self.out),
            "pairs": self.pairs,
            "documents": self.documents,
            "queries": self.queries,
            "judgements": dict(self.judgements),
            "merged_queries": self.merged_queries,
            "merged_documents": self.merged_documents,
            "doubled_pairs": self.doubled_pairs,
            "columns": dict(self.columns),
            "notes": list(self.notes),
        }


def import_pairs(
    path: Path | str,
    out: Path | str,
    *,
    query_column: str | None = None,
    positive_column: str | None = None,
    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> ImportedPairs:
    """Makes the BEIR folder `out` from a CSV, TSV, JSON Lines, JSON or Parquet table with a query and a positive in each row.

    `split_shares` are the shares of queries that train, dev and test get, 0..1. Raises SettingError for unknown or ambiguous columns
    and shares that are none, DataError for damaged rows (the first five with file and line), and then leaves nothing behind.
    """
    path, out = Path(path), Path(out)
    if len(split_shares) != len(SPLITS) or min(split_shares) < 0 or abs(sum(split_shares) - 1) > 1e-6:
        raise SettingError(
            f"split_shares = {split_shares}: expected three shares of train, dev and test that are not negative and add to 1"
        )
    findings = Findings()
    table = read_table(path, findings)
    query_column = chosen(table, query_column, QUERY_COLUMNS, "query_column")
    positive_column = chosen(table, positive_column, POSITIVE_COLUMNS, "positive_column")
    columns = {"query": query_column, "positive": positive_column}
    builder, pairs = gather(table, query_column, positive_column, split_shares, findings)
    if not pairs and not findings.damages:
        findings.damage(path, None, "holds no rows")
    findings.refuse()
    collection = builder.finish(out.name, "pairs").collection
    inputs = {"file": file_sha256(path), "columns": columns, "split_shares": list(split_shares)}
    with store.begin(out, kind="data", inputs=inputs) as work:
        if work.finished is None:
            write_beir_files(in_split_order(collection), work.path)
            work.finish(**counts(collection))
    return summary(out, table, columns, pairs, in_split_order(collection), findings)


def gather(
    table: Table, query_column: str, positive_column: str, shares: tuple[float, float, float], findings: Findings
) -> tuple[Builder, int]:
    """Reads all rows; gives the builder and the number of whole rows."""
    builder, pairs = Builder(), 0
    for line, row in table.rows:
        texts = [cell(table, line, row, column, findings) for column in (query_column, positive_column)]
        if texts[0] is not None and texts[1] is not None:
            query, document = builder.query(texts[0]), builder.document(texts[1])
            builder.judge(query, document, split=split_of(texts[0], shares))
            pairs += 1
    return builder, pairs


def cell(table: Table, line: int, row: Mapping[str, Any], column: str, findings: Findings) -> str | None:
    """The text of a cell; None, and the damage reported, where there is none."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        findings.damage(table.path, line, f"column {column!r} is {'missing' if column not in row else 'empty'}")
    elif not isinstance(value, str):
        findings.damage(table.path, line, f"column {column!r} is {describe(value)}, expected a string")
    elif unwritable(value):
        findings.damage(table.path, line, f"column {column!r} holds half of a surrogate pair")
    else:
        return value
    return None


def chosen(table: Table, name: str | None, usual: tuple[str, ...], option: str) -> str:
    """The named column, or the only one with a usual name. Raises SettingError when it is unknown, or when the choice is not plain."""
    if name is not None:
        return table.column(name)
    found = [column for column in table.columns if column.strip().casefold() in usual]
    if len(found) == 1:
        return found[0]
    listed, why = ", ".join(table.columns), "none is called " + ", ".join(usual) if not found else f"{' and '.join(found)} are possible"
    raise SettingError(f"{table.path}: which column is the {option.removesuffix('_column')}? {why}; set {option} to one of: {listed}")


def split_of(query: str, shares: tuple[float, float, float]) -> str:
    """The split of a query, by a hash of its words.

    >>> split_of("Why do ships float?", (0.8, 0.1, 0.1)) == split_of(" why do  ships float?", (0.8, 0.1, 0.1))
    True
    """
    draw = int.from_bytes(hashlib.sha256(same_words(query).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return SPLITS[0] if draw < shares[0] else SPLITS[1] if draw < shares[0] + shares[1] else SPLITS[2]


def in_split_order(collection: Collection) -> Collection:
    """The same with its splits in the order train, dev, test, as they are read back."""
    rows = {split: collection.judgements[split] for split in SPLITS if split in collection.judgements}
    return Collection(collection.name, collection.documents, collection.queries, rows)


def summary(out: Path, table: Table, columns: Mapping[str, str], pairs: int, collection: Collection, findings: Findings) -> ImportedPairs:
    """The counts, and what was left aside."""
    judgements = {split: len(rows) for split, rows in collection.judgements.items()}
    total = sum(judgements.values())
    notes = [f"{text}: {count:,}" for text, count in findings.oddities.items()]
    if left := [column for column in table.columns if column not in columns.values()]:
        negatives = [column for column in left if column.casefold().startswith("neg")]
        notes.append(f"columns not used: {', '.join(left)}")
        if negatives:
            notes.append(f"negatives are not pairs: read {', '.join(negatives)} as the sentence-transformers form instead")
    notes += [f"no query fell into {split}" for split in SPLITS if split not in judgements]
    return ImportedPairs(
        out=out,
        pairs=pairs,
        documents=len(collection.documents),
        queries=len(collection.queries),
        judgements=judgements,
        merged_queries=pairs - len(collection.queries),
        merged_documents=pairs - len(collection.documents),
        doubled_pairs=pairs - total,
        columns=columns,
        notes=tuple(notes),
    )
