"""Candidates that somebody else found: a TREC run, or JSON Lines of (query id, document id), checked against a data set.

    run.trec     query_id Q0 document_id rank score tag        best first by score, ties by document id
    pairs.jsonl  {"query_id": "q1", "document_id": "d7"}       best first as listed; "score" may be added to all lines of a query

BEIR's names "query-id" and "corpus-id" are accepted for the two ids. Queries that the data set does not have are counted and left out,
since a run may cover more; a document that it does not have is an error, since its text would be missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from negatron.data.collection import Collection
from negatron.data.lines import Findings, describe, lines_of, objects_of
from negatron.errors import DataError
from negatron.identity import file_sha256

JSON_LINES = frozenset({".jsonl", ".json", ".ndjson"})
NAMES = {"query": ("query_id", "query-id"), "document": ("document_id", "corpus-id")}
Row = tuple[int, str, str, float | None]
"""(line, query id, document id, score or None)."""


@dataclass(frozen=True, slots=True)
class Listed:
    """query id -> (document id, score or None), best first; the file's SHA-256; how many of its queries the data set does not have."""

    documents: Mapping[str, Sequence[tuple[str, float | None]]]
    sha256: str
    unknown_queries: int


def read_candidates(path: Path, collection: Collection) -> Listed:
    """What a file lists for the queries of a data set.

    Raises DataError with file and line for anything that is no such line, an unknown document, a document twice under a query, or a query
    of which only some lines have a score.
    """
    findings = Findings()
    rows = list(json_rows(path, findings) if path.suffix in JSON_LINES else run_rows(path, findings))
    found: dict[str, dict[str, tuple[int, float | None]]] = {}
    for line, query, document, score in rows:
        own = found.setdefault(query, {})
        if document not in collection.documents:
            findings.damage(path, line, f"there is no document {document!r} in {collection.name}; its text would be missing")
        elif document in own:
            findings.damage(path, line, f"query {query!r} has document {document!r} twice, in line {own[document][0]} too")
        elif own and (score is None) != (next(iter(own.values()))[1] is None):
            findings.damage(path, line, f"some lines of query {query!r} have a score and some have none; expected all or none")
        else:
            own[document] = (line, score)
    known = {query: own for query, own in found.items() if query in collection.queries}
    if not known and not findings.damages:
        findings.damage(path, None, f"lists no query of {collection.name}; expected ids such as {next(iter(collection.queries), '')!r}")
    findings.refuse()
    return Listed({query: best_first(own) for query, own in known.items()}, file_sha256(path), len(found) - len(known))


def best_first(own: Mapping[str, tuple[int, float | None]]) -> tuple[tuple[str, float | None], ...]:
    """(document id, score) by score, ties by id; as listed where there are no scores.

    >>> best_first({"b": (1, 0.5), "a": (2, 0.9)})
    (('a', 0.9), ('b', 0.5))
    """
    rows = [(document, score) for document, (_, score) in own.items()]
    return tuple(sorted(rows, key=lambda row: (-row[1], row[0]) if row[1] is not None else (0.0, "")))


def run_rows(path: Path, findings: Findings) -> Iterator[Row]:
    """The lines of a TREC run."""
    for line, text in lines_of(path, findings):
        columns = text.split()
        score = finite(columns[4]) if len(columns) == 6 else None
        if score is None:
            findings.damage(path, line, f"{text[:60]!r}, expected six columns: query_id Q0 document_id rank score tag (a finite number)")
        else:
            yield line, columns[0], columns[2], score


def json_rows(path: Path, findings: Findings) -> Iterator[Row]:
    """The lines of a JSON Lines file of pairs."""
    for line, row in objects_of(path, findings):
        try:
            query, document = (text_under(row, NAMES[what]) for what in ("query", "document"))
            score = row.get("score")
            if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score)):
                raise DataError(f'"score" is {describe(score)}, expected a finite number')
        except DataError as error:
            findings.damage(path, line, str(error))
        else:
            yield line, query, document, None if score is None else float(score)


def text_under(row: Mapping[str, object], names: Sequence[str]) -> str:
    """The text under the first of the names that is there. Raises DataError that says what is there instead."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise DataError(f'no "{names[0]}" among {", ".join(map(repr, row)) or "no keys"}; expected "query_id" and "document_id"')
    value = row[name]
    if not isinstance(value, str) or not value:
        raise DataError(f'"{name}" is {describe(value)}, expected an id as text')
    return value


def finite(text: str) -> float | None:
    """A finite number; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
