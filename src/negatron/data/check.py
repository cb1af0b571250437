"""The diagnosis of a BEIR folder: every damage with file and line, and what is suspicious though it can be used.

The folder is walked by the same `scan` that `read_beir` uses, so what this finds, reading refuses, and nothing else. Texts are not kept:
equal ones are found by 64-bit hashes, so a corpus of a million documents needs a few hundred megabytes, whatever their length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from negatron.data.beir import scan
from negatron.data.collection import HELD_OUT
from negatron.data.lines import Damage, Findings
from negatron.identity import same_words
from negatron.types import Document, Judgement, Query

SHOWN = 100
"""Damages that the printed form lists; `as_json` has them all."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found. Any entry in `errors` means that the folder cannot be used; `notes` are for the eye."""

    path: Path
    errors: tuple[Damage, ...]
    notes: tuple[str, ...]
    documents: int
    queries: int
    splits: Mapping[str, Mapping[str, Any]]
    lengths: Mapping[str, Mapping[str, int]]

    @property
    def ok(self) -> bool:
        """True when there is no error."""
        return not self.errors

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.documents:,} documents, {self.queries:,} queries"]
        for split, facts in self.splits.items():
            grades = ", ".join(f"grade {grade}: {count:,}" for grade, count in facts["grades"].items())
            lines.append(f"  {split}: {facts['queries']:,} queries, {facts['judgements']:,} judgements ({grades})")
        for what, of in self.lengths.items():
            lines.append(f"  {what} text: {of['median']:,} characters at the median, {of['p95']:,} at 95 %, {of['longest']:,} at most")
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"error: {damage}" for damage in self.errors[:SHOWN]]
        if len(self.errors) > SHOWN:
            lines.append(f"... and {len(self.errors) - SHOWN:,} more errors (--json lists all)")
        lines.append(f"{len(self.errors):,} in all: this folder cannot be used until they are mended" if self.errors else "no errors")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "errors": [{"file": str(e.path), "line": e.line, "message": e.message} for e in self.errors],
            "notes": list(self.notes),
            "documents": self.documents,
            "queries": self.queries,
            "splits": {split: dict(facts) for split, facts in self.splits.items()},
            "lengths": {what: dict(of) for what, of in self.lengths.items()},
        }


@dataclass(slots=True)
class Tally:
    """A visitor that counts: lengths, equal texts, grades, queries of each split."""

    document_lengths: Counter[int] = field(default_factory=Counter)
    query_lengths: Counter[int] = field(default_factory=Counter)
    document_texts: Counter[int] = field(default_factory=Counter)
    query_texts: dict[str, int] = field(default_factory=dict)
    grades: dict[str, Counter[int]] = field(default_factory=dict)
    judged: dict[str, dict[str, bool]] = field(default_factory=dict)
    empty_documents: int = 0

    def document(self, document: Document) -> None:
        """Counts a document."""
        self.document_lengths[len(document.content)] += 1
        if document.content.strip():
            self.document_texts[hash(same_words(document.content))] += 1
        else:
            self.empty_documents += 1

    def query(self, query: Query) -> None:
        """Counts a query."""
        self.query_lengths[len(query.text)] += 1
        self.query_texts[query.id] = hash(same_words(query.text))

    def judgement(self, split: str, judgement: Judgement) -> None:
        """Counts a judgement; `judged` maps a query to whether anything is relevant to it."""
        self.grades.setdefault(split, Counter())[judgement.grade] += 1
        relevant = self.judged.setdefault(split, {})
        relevant[judgement.query_id] = relevant.get(judgement.query_id, False) or judgement.grade > 0


def check(path: Path | str) -> Report:
    """Examines a BEIR folder; never raises for what is in it."""
    folder = Path(path)
    findings, tally = Findings(), Tally()
    scan(folder, tally, findings)
    splits = {
        split: {"queries": len(tally.judged[split]), "judgements": grades.total(), "grades": {str(g): grades[g] for g in sorted(grades)}}
        for split, grades in tally.grades.items()
    }
    lengths = {what: spread(of) for what, of in (("document", tally.document_lengths), ("query", tally.query_lengths)) if of}
    notes = [f"{text}: {count:,}" for text, count in findings.oddities.items()] + suspicions(tally)
    documents, queries = tally.document_lengths.total(), tally.query_lengths.total()
    return Report(folder, tuple(findings.damages), tuple(notes), documents, queries, splits, lengths)


def suspicions(tally: Tally) -> list[str]:
    """In words, what is allowed but worth knowing before one trusts a figure."""
    notes = []
    if tally.empty_documents:
        notes.append(f"documents with neither title nor text: {tally.empty_documents:,}")
    if copies := [count for count in tally.document_texts.values() if count > 1]:
        notes.append(f"documents that share their text with another id: {several(copies)}; a copy of a positive is no negative")
    asked = Counter(tally.query_texts.values())
    if copies := [count for count in asked.values() if count > 1]:
        notes.append(f"queries that share their text with another id: {several(copies)}")
    for one, other in combinations(tally.judged, 2):
        texts = {tally.query_texts[query] for query in tally.judged[other]}
        if shared := sum(tally.query_texts[query] in texts for query in tally.judged[one]):
            ending = "; training leaves out what a held-out split asks" if other in HELD_OUT else ""
            notes.append(f"queries of {one} that are also asked in {other}: {shared:,}{ending}")
    if unjudged := len(tally.query_texts) - len(set().union(*tally.judged.values())):
        notes.append(f"queries without a judgement in any split: {unjudged:,}")
    for split, judged in tally.judged.items():
        if without := sum(not relevant for relevant in judged.values()):
            notes.append(f"queries of {split} with judgements but nothing relevant: {without:,}; measures leave them out")
        if negative := sum(count for grade, count in tally.grades[split].items() if grade < 0):
            notes.append(f"judgements of {split} with a negative grade: {negative:,}; read as not relevant")
    return notes


def several(copies: Sequence[int]) -> str:
    """How many ids share how many texts.

    >>> several([2, 3])
    '5 (2 texts)'
    """
    return f"{sum(copies):,} ({len(copies):,} texts)"


def spread(lengths: Mapping[int, int]) -> dict[str, int]:
    """Median, 95th percentile and greatest of counted lengths, in characters.

    >>> spread({10: 3, 20: 1})
    {'median': 10, 'p95': 20, 'longest': 20}
    """
    total, found = sum(lengths.values()), []
    for share in (0.5, 0.95):
        passed = 0
        for length in sorted(lengths):
            passed += lengths[length]
            if passed >= share * total:
                found.append(length)
                break
    return {"median": found[0], "p95": found[1], "longest": max(lengths)}
