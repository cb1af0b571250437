"""The file of a negatives folder: every candidate of every query, kept and rejected, with origins, scores and verdicts.

`judged.parquet` has one row a candidate, `queries.parquet` one a query with its positives and their teacher scores; both hold the
queries in the same order, so that they are read side by side, a few queries in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from negatron.errors import DataError, MissingExtra, NegatronError
from negatron.store import Manifest, read_manifest, writing
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict

if TYPE_CHECKING:
    from datasets import Dataset

KIND = "negatives"
JUDGED, QUERIES = "judged.parquet", "queries.parquet"
QUERIES_AT_A_TIME = 256

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


@dataclass
class Summary:
    """Counts over a negatives folder. `rejected` counts the first rule that rejected a candidate; a choice is no rejection."""

    queries: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    not_chosen: int = 0
    kept_per_query: Counter[int] = field(default_factory=Counter)

    def add(self, item: JudgedQuery) -> None:
        """Counts one query. A candidate that two sources found counts once for each."""
        self.queries += 1
        self.kept_per_query[sum(judged.kept for judged in item.judged)] += 1
        for judged in item.judged:
            self.candidates.update(judged.candidate.sources)
            if judged.kept:
                self.kept.update(judged.candidate.sources)
            elif judged.spare:
                self.not_chosen += 1
            else:
                self.rejected[next(v.rule for v in judged.verdicts if not v.kept)] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a manifest or `--json`."""
        return {
            "queries": self.queries,
            "candidates": dict(sorted(self.candidates.items())),
            "kept": dict(sorted(self.kept.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "not_chosen": self.not_chosen,
            "negatives_per_query": {str(n): count for n, count in sorted(self.kept_per_query.items())},
        }


def write_negatives(folder: Path, items: Iterable[JudgedQuery]) -> Summary:
    """Writes both files into `folder`, streaming; each whole or not at all."""
    summary = Summary()
    with (
        writing(folder / JUDGED) as judged_path,
        writing(folder / QUERIES) as queries_path,
        pq.ParquetWriter(judged_path, JUDGED_SCHEMA, compression="zstd") as judged_file,
        pq.ParquetWriter(queries_path, QUERIES_SCHEMA, compression="zstd") as queries_file,
    ):
        for block in blocks(items, QUERIES_AT_A_TIME):
            rows = [judged_row(judged) for item in block for judged in item.judged]
            judged_file.write_table(pa.Table.from_pylist(rows, schema=JUDGED_SCHEMA))
            queries_file.write_table(pa.Table.from_pylist([query_row(item) for item in block], schema=QUERIES_SCHEMA))
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


def judged_row(judged: Judged) -> dict[str, Any]:
    """One candidate as a row of judged.parquet."""
    candidate = judged.candidate
    return {
        "query_id": candidate.query_id,
        "document_id": candidate.document.id,
        "title": candidate.document.title,
        "text": candidate.document.text,
        "kept": judged.kept,
        "teacher_score": candidate.teacher_score,
        "origins": [asdict(origin) for origin in candidate.origins],
        "verdicts": [asdict(verdict) for verdict in judged.verdicts],
    }


def query_row(item: JudgedQuery) -> dict[str, Any]:
    """One query as a row of queries.parquet."""
    positives = [
        {"document_id": p.document.id, "title": p.document.title, "text": p.document.text, "teacher_score": p.teacher_score}
        for p in item.positives
    ]
    return {"query_id": item.query.id, "text": item.query.text, "positives": positives, "candidates": len(item.judged)}


def read_judged(row: dict[str, Any]) -> Judged:
    """The candidate and verdicts of a row of judged.parquet."""
    document = Document(row["document_id"], row["text"], row["title"])
    origins = tuple(Origin(**origin) for origin in row["origins"])
    return Judged(
        Candidate(row["query_id"], document, origins, row["teacher_score"]), tuple(Verdict(**verdict) for verdict in row["verdicts"])
    )


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
        candidates = rows_of(self.path / JUDGED)
        for row in rows_of(self.path / QUERIES):
            positives = tuple(Positive(Document(p["document_id"], p["text"], p["title"]), p["teacher_score"]) for p in row["positives"])
            try:
                judged = tuple(read_judged(next(candidates)) for _ in range(row["candidates"]))
            except RuntimeError as error:
                raise DataError("holds fewer candidates than queries.parquet says; make the folder again", self.path / JUDGED) from error
            if any(j.candidate.query_id != row["query_id"] for j in judged):
                raise DataError(f"candidates of query {row['query_id']} are not where queries.parquet says", self.path / JUDGED)
            yield JudgedQuery(Query(row["query_id"], row["text"]), positives, judged)
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
        facts = self.summary
        kept = ", ".join(f"{count:,} {source}" for source, count in facts["kept"].items()) or "none"
        rejected = ", ".join(f"{count:,} {rule}" for rule, count in facts["rejected"].items()) or "none"
        return f"negatives of {facts['queries']:,} queries in {self.path}\n  kept: {kept}\n  rejected: {rejected}"


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file as dicts, a block in memory at a time. Raises DataError when it is not one."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=2048):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"not a readable Parquet file ({error}); make the folder again", path) from error
