"""Candidates from several sources, merged with all their ranks and scores, scored by the teacher, judged, and chosen.

1. Sources propose (see `sources`), one after the other; what each proposes is held in some 20 bytes a candidate.
2. `merge` makes one Candidate of a document that several sources found, with one Origin each.
3. `scored` gives candidates and positives their teacher scores; `reranked` makes these an origin of their own, where asked.
4. Filters judge (see `filters`), a choice keeps so many per query (see `selection`).

`decide` does 3 and 4 for some queries at a time, so that memory does not grow with the number of queries beyond steps 1 and 2.
What it does not know: which models there are, where results are stored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from negatron.identity import stream
from negatron.negatives.filters import judge
from negatron.negatives.selection import SelectionSettings, choose
from negatron.negatives.selection import select as select
from negatron.negatives.sources import SearchSource as SearchSource
from negatron.seams import CrossScorer, Filter, NegativeSource
from negatron.types import Candidate, Document, JudgedQuery, NegativeRequest, Origin, Positive

QUERIES_AT_A_TIME = 256
"""Queries scored and judged at a time: bounds the pairs that a teacher is asked about at once."""
Scored = tuple[tuple[Positive, ...], list[Candidate]]
"""The positives and the candidates of a query."""


@dataclass
class Held:
    """What one source proposed for each of many requests, some 20 bytes a candidate beside the documents, which are shared.

    That is possible for candidates that differ in document, rank and score alone; others are held as they are.
    """

    _pattern: Origin | None = None
    _documents: list[tuple[Document, ...]] = field(default_factory=list)
    _ranks: list[array[int]] = field(default_factory=list)
    _scores: list[array[float]] = field(default_factory=list)
    _others: dict[int, tuple[Candidate, ...]] = field(default_factory=dict)

    def add(self, candidates: Sequence[Candidate]) -> None:
        """Takes what was proposed for the next request."""
        if self._pattern is None and candidates:
            self._pattern = replace(candidates[0].origins[0], rank=None, score=None)
        alike = all(self._fits(candidate) for candidate in candidates)
        if not alike:
            self._others[len(self._documents)] = tuple(candidates)
        taken = candidates if alike else ()
        self._documents.append(tuple(candidate.document for candidate in taken))
        self._ranks.append(array("q", (c.origins[0].rank or 0 for c in taken)))
        self._scores.append(array("d", (math.nan if (s := c.origins[0].score) is None else s for c in taken)))

    def _fits(self, candidate: Candidate) -> bool:
        """True for a candidate that can be made again from its document, rank and score."""
        one, known = candidate.origins[0], self._pattern
        alike = known is not None and (one.source, one.maker, one.round, one.note) == (known.source, known.maker, known.round, known.note)
        return alike and len(candidate.origins) == 1 and candidate.teacher_score is None

    def of(self, row: int, query_id: str) -> list[Candidate]:
        """What was proposed for a request, as it was."""
        if row in self._others:
            return list(self._others[row])
        rows = zip(self._documents[row], self._ranks[row], self._scores[row], strict=True)
        return [Candidate(query_id, document, (self._origin(rank, score),)) for document, rank, score in rows]

    def _origin(self, rank: int, score: float) -> Origin:
        known = self._pattern
        assert known is not None
        return Origin(known.source, known.maker, known.round, rank or None, None if math.isnan(score) else score, known.note)


def hold(source: NegativeSource, requests: Sequence[NegativeRequest], per_query: int) -> Held:
    """All that a source proposes."""
    held = Held()
    for own in source.propose(requests, per_query):
        held.add(own)
    return held


def merge(lists: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """One candidate a document, with every source's origin; in the order of rank, then of the sources as given.

    >>> a, b = Document("a", "..."), Document("b", "...")
    >>> bm25 = [Candidate("q", a, (Origin("bm25", "m", rank=1),)), Candidate("q", b, (Origin("bm25", "m", rank=2),))]
    >>> dense = [Candidate("q", b, (Origin("dense", "n", rank=1),))]
    >>> [(c.document.id, c.sources) for c in merge([bm25, dense])]
    [('a', ('bm25',)), ('b', ('bm25', 'dense'))]
    """
    merged: dict[str, Candidate] = {}
    order: dict[str, tuple[int, int]] = {}
    for place, candidates in enumerate(lists):
        for position, candidate in enumerate(candidates, 1):
            key = candidate.document.id
            if key in merged:
                merged[key] = replace(merged[key], origins=merged[key].origins + candidate.origins)
                order[key] = min(order[key], (position, place))
            else:
                merged[key], order[key] = candidate, (position, place)
    return sorted(merged.values(), key=lambda c: (order[c.document.id], c.document.id))


def proposals(sources: Sequence[NegativeSource], requests: Sequence[NegativeRequest], depths: Sequence[int]) -> Iterator[list[Candidate]]:
    """What all sources propose, merged; one list a request. The sources are asked at once, one after the other; merging is done as read."""
    held = [hold(source, requests, depth) for source, depth in zip(sources, depths, strict=True)]
    return (merge([own.of(row, request.query.id) for own in held]) for row, request in enumerate(requests))


def propose_all(sources: Sequence[NegativeSource], requests: Sequence[NegativeRequest], depth: int) -> list[list[Candidate]]:
    """`proposals` of equal depth, all at once."""
    return list(proposals(sources, requests, [depth] * len(sources)))


def scored(requests: Sequence[NegativeRequest], candidates: Sequence[Sequence[Candidate]], teacher: CrossScorer | None) -> list[Scored]:
    """For each request its positives and candidates, both scored by the same teacher; scores None without one."""
    if teacher is None:
        return [(tuple(map(Positive, request.positives)), list(own)) for request, own in zip(requests, candidates, strict=True)]
    pairs = [
        (request.query.text, document.content)
        for request, own in zip(requests, candidates, strict=True)
        for document in (*request.positives, *(c.document for c in own))
    ]
    scores = iter(teacher.score(pairs).tolist())
    return [
        (tuple(Positive(document, next(scores)) for document in request.positives), [replace(c, teacher_score=next(scores)) for c in own])
        for request, own in zip(requests, candidates, strict=True)
    ]


def reranked(candidates: Sequence[Candidate], scores: Sequence[float], origin: Origin) -> list[Candidate]:
    """The candidates with one origin more: who scored the whole pool anew, at which rank in it (ties by id), with which score."""
    order = sorted(range(len(candidates)), key=lambda row: (-scores[row], candidates[row].document.id))
    rank = {row: place for place, row in enumerate(order, 1)}
    return [
        replace(candidate, origins=(*candidate.origins, replace(origin, rank=rank[row], score=scores[row])))
        for row, candidate in enumerate(candidates)
    ]


@dataclass(frozen=True)
class Reranking:
    """A cross-encoder as a source: it proposes nothing of its own and ranks what the others propose."""

    name: str
    scorer: CrossScorer
    round: int = 0

    def applied(self, requests: Sequence[NegativeRequest], items: Sequence[Scored], teacher: CrossScorer | None) -> list[Scored]:
        """The items with its ranks; scores that it gave as the teacher are used again."""
        if teacher is self.scorer:
            scores = iter([c.teacher_score or 0.0 for _, found in items for c in found])
        else:
            pairs = [(request.query.text, c.document.content) for request, (_, found) in zip(requests, items, strict=True) for c in found]
            scores = iter(self.scorer.score(pairs).tolist())
        origin = Origin(self.name, self.scorer.fingerprint, self.round)
        return [(positives, reranked(found, [next(scores) for _ in found], origin)) for positives, found in items]


def decide(
    requests: Sequence[NegativeRequest],
    candidates: Iterable[Sequence[Candidate]],
    teacher: CrossScorer | None,
    filters: Sequence[Filter],
    selection: SelectionSettings,
    seed: int,
    *,
    reranking: Reranking | None = None,
    at_a_time: int = QUERIES_AT_A_TIME,
) -> Iterator[JudgedQuery]:
    """Proposals scored by the teacher, judged by the filters, and chosen from; `at_a_time` queries at a time, given one after another."""
    proposed = iter(candidates)
    for start in range(0, len(requests), at_a_time):
        block = requests[start : start + at_a_time]
        items = scored(block, list(islice(proposed, len(block))), teacher)
        if reranking is not None:
            items = reranking.applied(block, items, teacher)
        for request, (positives, own) in zip(block, items, strict=True):
            item = JudgedQuery(request.query, positives, judge(filters, request.query, positives, own))
            yield choose(item, selection, stream(seed, "select", request.query.id))
