"""Candidates from any Searcher, merged with all their ranks and scores, scored by the teacher, judged, and chosen.

1. `SearchSource` turns a Searcher into a NegativeSource.
2. `merge` makes one Candidate of a document that several sources found, with one Origin each.
3. `scored` gives candidates and positives their teacher scores.
4. filters judge (see `filters`).
5. `select` keeps so many per query, best first; the others stay on file with the verdict "selection".

What it does not know: which models there are, where results are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from negatron.seams import CrossScorer, NegativeSource, Searcher
from negatron.types import Candidate, Document, Judged, JudgedQuery, NegativeRequest, Origin, Positive, Verdict

SELECTION = "selection"


@dataclass(frozen=True)
class SearchSource:
    """A NegativeSource made of a Searcher over `documents`.

    The candidates of a query are the hits down to the rank at which `per_query` of them are not known positives. Known positives among
    them stay in, with their rank, for the filters to reject and the file to tell of.
    """

    name: str
    searcher: Searcher
    documents: Mapping[str, Document]
    round: int = 0

    def propose(self, requests: Sequence[NegativeRequest], per_query: int) -> Iterator[list[Candidate]]:
        """One list a request, best first."""
        deepest = per_query + max((len(request.positives) for request in requests), default=0)
        found = self.searcher.search([request.query for request in requests], deepest)
        for request, hits in zip(requests, found, strict=True):
            known = {document.id for document in request.positives}
            candidates, others = [], 0
            for rank, hit in enumerate(hits, 1):
                if others == per_query:
                    break
                others += hit.document_id not in known
                origin = Origin(self.name, self.searcher.fingerprint, self.round, rank, hit.score)
                candidates.append(Candidate(request.query.id, self.documents[hit.document_id], (origin,)))
            yield candidates


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


def scored(
    requests: Sequence[NegativeRequest], candidates: Sequence[Sequence[Candidate]], teacher: CrossScorer | None
) -> list[tuple[tuple[Positive, ...], list[Candidate]]]:
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


def propose_all(sources: Sequence[NegativeSource], requests: Sequence[NegativeRequest], depth: int) -> list[list[Candidate]]:
    """What all sources propose, merged; one list a request."""
    proposals = [list(source.propose(requests, depth)) for source in sources]
    return [merge([own[row] for own in proposals]) for row in range(len(requests))]


def interleaved(judged: Sequence[Judged]) -> list[int]:
    """Rows of the candidates no filter rejects, taken in turn from each source (sources in the order of their names), best first.

    A candidate of several sources counts for whichever comes first to it.
    """
    open_rows = [row for row, item in enumerate(judged) if item.spare]
    sources = sorted({source for row in open_rows for source in judged[row].candidate.sources})
    queues = {
        name: sorted(
            (row for row in open_rows if name in judged[row].candidate.sources),
            key=lambda row: (
                next(o.rank or 0 for o in judged[row].candidate.origins if o.source == name),
                judged[row].candidate.document.id,
            ),
        )
        for name in sources
    }
    taken: dict[int, None] = {}
    while len(taken) < len(open_rows):
        for name in sources:
            row = next((row for row in queues[name] if row not in taken), None)
            if row is not None:
                taken[row] = None
    return list(taken)


def select(item: JudgedQuery, count: int, how: Literal["top", "random"], stream: Random) -> JudgedQuery:
    """Keeps `count` of the candidates that no filter rejects: the best of each source in turn, or drawn at random.

    Every such candidate gets a verdict "selection" with its place and the limit. Earlier choices are dropped; rejections stay.
    """
    judged = [Judged(j.candidate, tuple(v for v in j.verdicts if v.rule != SELECTION)) for j in item.judged]
    order = interleaved(judged)
    if how == "random":
        order = sorted(order, key=lambda row: judged[row].candidate.document.id)
        stream.shuffle(order)
    for place, row in enumerate(order, 1):
        verdict = Verdict(place <= count, SELECTION, float(place), float(count))
        judged[row] = replace(judged[row], verdicts=(*judged[row].verdicts, verdict))
    return JudgedQuery(item.query, item.positives, tuple(judged))
