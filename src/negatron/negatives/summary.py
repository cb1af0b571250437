"""What is in a negatives folder, in numbers: counts by source and rule, scores, shortage, and an estimate of false negatives.

`Summary.add` takes one query after another and keeps counts and 4 bytes a score; `as_json` gives plain values for the manifest;
`in_words` makes the table of these values that `negatron mine` ends with.

**The estimate.** `Sieve` treats one known positive of each query that has several as if it were unknown, and looks whether the filters
let it through and whether it would have been chosen. If there are as many unknown positives among the candidates as known ones, and
they fare alike, then (chosen / hidden) x (known positives among the candidates) of the kept negatives are false. Neither is known: with
twice as many unknown ones the share doubles, and it says nothing of queries with one positive. Only a judge who reads them could tell.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from negatron.identity import fingerprint, stream
from negatron.negatives.bounds import PSEUDO_POSITIVE
from negatron.negatives.filters import judge
from negatron.negatives.selection import DROPPED, RESERVE, SelectionSettings, choose
from negatron.seams import Filter
from negatron.types import Judged, JudgedQuery

GROUPS = ("positives", "candidates", "kept")
"""Whose teacher scores are told."""
QUARTILES = (0, 25, 50, 75, 100)


@dataclass
class Sieve:
    """Counts what would have become of known positives, hidden one at a time.

    `known`: known positives among the candidates, of queries with several; `hidden`: how many were hidden; of these `let_through` pass
    the filters, and `chosen` would be negatives.
    """

    filters: Sequence[Filter]
    selection: SelectionSettings
    seed: int = 0
    known: int = 0
    hidden: int = 0
    let_through: int = 0
    chosen: int = 0

    def watch(self, items: Iterable[JudgedQuery]) -> Iterator[JudgedQuery]:
        """The items, passed on as they are."""
        for item in items:
            self.add(item)
            yield item

    def add(self, item: JudgedQuery) -> None:
        """Hides one known positive that a source found, drawn by a hash of ids."""
        known = {positive.document.id for positive in item.positives}
        rows = [row for row, judged in enumerate(item.judged) if judged.candidate.document.id in known]
        if len(known) < 2 or not rows:
            return
        names = {row: item.judged[row].candidate.document.id for row in rows}
        row = min(rows, key=lambda row: fingerprint("sieve", item.query.id, names[row]))
        others = tuple(positive for positive in item.positives if positive.document.id != names[row])
        (judged,) = judge(self.filters, item.query, others, [item.judged[row].candidate])
        self.known += len(rows)
        self.hidden += 1
        self.let_through += judged.kept
        if judged.kept:
            company = (*item.judged[:row], judged, *item.judged[row + 1 :])
            chosen = choose(JudgedQuery(item.query, others, company), self.selection, stream(self.seed, "select", item.query.id))
            self.chosen += chosen.judged[row].kept

    def as_json(self) -> dict[str, int]:
        """Plain values, for a manifest."""
        return {"known": self.known, "hidden": self.hidden, "let_through": self.let_through, "chosen": self.chosen}


def estimated_false(sieve: Mapping[str, int]) -> float:
    """How many negatives are false, if there are as many unknown positives among the candidates as known ones.

    >>> estimated_false({"known": 40, "hidden": 10, "let_through": 5, "chosen": 2})
    8.0
    """
    return sieve["chosen"] / sieve["hidden"] * sieve["known"]


@dataclass
class Summary:
    """Counts over a negatives folder. `rejected` counts the first rule that rejected a candidate; a choice is no rejection."""

    queries: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_by_source: dict[str, Counter[str]] = field(default_factory=dict)
    not_chosen: int = 0
    kept_per_query: Counter[int] = field(default_factory=Counter)
    filled: int = 0
    dropped_queries: int = 0
    pseudo_positives: int = 0
    above_weakest: int = 0
    scores: dict[str, array[float]] = field(default_factory=lambda: {name: array("f") for name in GROUPS})

    def add(self, item: JudgedQuery) -> None:
        """Counts one query. A candidate that two sources found counts once for each."""
        self.queries += 1
        kept = [judged for judged in item.judged if judged.kept]
        self.kept_per_query[len(kept)] += 1
        for judged in item.judged:
            self._count(judged)
        positives = [p.teacher_score for p in item.positives if p.teacher_score is not None]
        chosen = [j.candidate.teacher_score for j in kept if j.candidate.teacher_score is not None]
        self.scores["positives"].extend(positives)
        self.scores["candidates"].extend(s for j in item.judged if (s := j.candidate.teacher_score) is not None)
        self.scores["kept"].extend(chosen)
        self.above_weakest += sum(score >= min(positives) for score in chosen) if positives else 0
        self.filled += sum(any(v.rule == RESERVE for v in judged.verdicts) for judged in kept)
        self.dropped_queries += any(v.detail == DROPPED for judged in item.judged for v in judged.verdicts)

    def _count(self, judged: Judged) -> None:
        sources = judged.candidate.sources
        self.candidates.update(sources)
        if judged.kept:
            self.kept.update(sources)
            return
        last = next(verdict for verdict in judged.verdicts if not verdict.kept)
        if judged.spare or last.rule == RESERVE:
            self.not_chosen += 1
            return
        self.rejected[last.rule] += 1
        self.pseudo_positives += last.detail == PSEUDO_POSITIVE
        for source in sources:
            self.rejected_by_source.setdefault(source, Counter())[last.rule] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a manifest or `--json`."""
        return {
            "queries": self.queries,
            "candidates": dict(sorted(self.candidates.items())),
            "kept": dict(sorted(self.kept.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "rejected_by_source": {name: dict(sorted(own.items())) for name, own in sorted(self.rejected_by_source.items())},
            "not_chosen": self.not_chosen,
            "negatives_per_query": {str(n): count for n, count in sorted(self.kept_per_query.items())},
            "filled": self.filled,
            "dropped_queries": self.dropped_queries,
            "pseudo_positives": self.pseudo_positives,
            "above_weakest": self.above_weakest,
            "scores": {name: quartiles(values) for name, values in self.scores.items() if values},
        }


def quartiles(values: array[float]) -> list[float]:
    """[lowest, first quartile, median, third quartile, highest], to six decimals.

    >>> quartiles(array("f", [1, 2, 3, 4, 5]))
    [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    return [round(float(value), 6) for value in np.percentile(np.frombuffer(values, np.float32), QUARTILES)]


def in_words(facts: Mapping[str, Any], wanted: int | None) -> str:
    """The report of a folder from its manifest's facts; `wanted` negatives a query, None where that is not known."""
    summary = facts["summary"]
    parts = [sources_table(summary), *([scores_table(summary["scores"])] if summary.get("scores") else [])]
    return "\n".join([*parts, *shortage_lines(summary, wanted), *sign_lines(facts)])


def sources_table(summary: Mapping[str, Any]) -> str:
    """One row a source: proposed, kept, and the rejections of each rule."""
    rejected = summary.get("rejected_by_source", {})
    rules = sorted({rule for own in rejected.values() for rule in own})
    rows = [["source", "proposed", "kept", *rules]]
    for source, count in summary["candidates"].items():
        own = rejected.get(source, {})
        rows.append([source, f"{count:,}", f"{summary['kept'].get(source, 0):,}", *(f"{own.get(rule, 0):,}" for rule in rules)])
    return aligned(rows)


def scores_table(scores: Mapping[str, Sequence[float]]) -> str:
    """One row a group: quartiles of its teacher scores."""
    rows = [["teacher score", "lowest", "25 %", "median", "75 %", "highest"]]
    return aligned([*rows, *([name, *(f"{value:.3f}" for value in values)] for name, values in scores.items())])


def shortage_lines(summary: Mapping[str, Any], wanted: int | None) -> Iterator[str]:
    """How many queries got fewer than wanted, and what was done about it."""
    counts = {int(number): queries for number, queries in summary["negatives_per_query"].items()}
    short = sum(queries for number, queries in counts.items() if wanted is not None and number < wanted)
    if short:
        yield f"{short:,} of {summary['queries']:,} queries have fewer than {wanted} negatives, {counts.get(0, 0):,} have none"
    if summary.get("dropped_queries"):
        yield f"{summary['dropped_queries']:,} queries were dropped, having too few"
    if summary.get("filled"):
        yield f"{summary['filled']:,} negatives were filled up from the reserve"


def sign_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """What points to false negatives."""
    summary, sieve = facts["summary"], facts.get("sieve", {})
    kept = sum(int(number) * queries for number, queries in summary["negatives_per_query"].items())
    if sieve.get("hidden"):
        hidden = sieve["hidden"]
        yield (
            f"known positives, hidden one at a time: {share(sieve['let_through'], hidden)} of {hidden:,} pass the filters, "
            f"{share(sieve['chosen'], hidden)} would have been chosen"
        )
        yield f"estimated false negatives: {share(estimated_false(sieve), kept)} of {kept:,}, if as many positives are unknown as known"
    if summary.get("above_weakest"):
        yield f"{summary['above_weakest']:,} of {kept:,} negatives score at least as high as their query's weakest positive"
    if summary.get("pseudo_positives"):
        yield f"{summary['pseudo_positives']:,} candidates look like positives to the teacher (marked, not relabelled)"


def share(part: float, whole: float) -> str:
    """A percentage with one decimal.

    >>> share(1, 8), share(0, 0)
    ('12.5 %', '-')
    """
    return f"{100 * part / whole:.1f} %" if whole else "-"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows as text: the first column to the left, numbers to the right.

    >>> print(aligned([["a", "b"], ["long", "1"]]))
      a     b
      long  1
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)
