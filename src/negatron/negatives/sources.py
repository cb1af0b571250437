"""Who proposes negatives: a search, chance, or a file of the user's.

    SearchSource   the hits of any Searcher: BM25, an encoder, the encoder of an earlier round
    RandomSource   documents drawn from the corpus
    FileSource     the documents that a file lists for each query

All give one list a request, best first, and none knows of another. What a language model writes is in `synthesis`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from negatron.identity import fingerprint, stream
from negatron.seams import Searcher
from negatron.types import Candidate, Document, NegativeRequest, Origin


def down_to(hits: Iterable[Candidate], known: frozenset[str], per_query: int) -> list[Candidate]:
    """The first hits, down to the one with which `per_query` of them are not known positives."""
    found, others = [], 0
    for candidate in hits:
        if others == per_query:
            break
        others += candidate.document.id not in known
        found.append(candidate)
    return found


def known_ids(request: NegativeRequest) -> frozenset[str]:
    """Ids of the known positives of a request."""
    return frozenset(document.id for document in request.positives)


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
        maker = self.searcher.fingerprint
        for request, hits in zip(requests, found, strict=True):
            candidates = (
                Candidate(request.query.id, self.documents[hit.document_id], (Origin(self.name, maker, self.round, rank, hit.score),))
                for rank, hit in enumerate(hits, 1)
            )
            yield down_to(candidates, known_ids(request), per_query)


@dataclass(frozen=True)
class RandomSource:
    """Documents drawn from the whole corpus, each as likely, without repetition and without known positives.

    A draw depends on the seed, the query's id and the corpus alone. `rank` is the order of drawing; there is no score.
    """

    documents: Mapping[str, Document]
    corpus_fingerprint: str
    seed: int = 0
    round: int = 0
    name: str = "random"

    @cached_property
    def ids(self) -> list[str]:
        """All ids, sorted: the order of the corpus file shall not matter."""
        return sorted(self.documents)

    @cached_property
    def maker(self) -> str:
        """Fingerprint of the corpus and the seed."""
        return fingerprint("random.v1", self.corpus_fingerprint, self.seed)

    def propose(self, requests: Sequence[NegativeRequest], per_query: int) -> Iterator[list[Candidate]]:
        """One list a request, in the order of drawing; fewer where the corpus has fewer."""
        for request in requests:
            known = known_ids(request)
            count = min(per_query + len(known), len(self.ids))
            drawn = stream(self.seed, self.name, request.query.id).sample(self.ids, count)
            free = [id_ for id_ in drawn if id_ not in known][:per_query]
            yield [
                Candidate(request.query.id, self.documents[id_], (Origin(self.name, self.maker, self.round, rank),))
                for rank, id_ in enumerate(free, 1)
            ]


@dataclass(frozen=True)
class FileSource:
    """What a file lists: query id -> (document id, score or None), best first. Queries that it does not know get nothing."""

    name: str
    listed: Mapping[str, Sequence[tuple[str, float | None]]]
    documents: Mapping[str, Document]
    maker: str
    round: int = 0

    def propose(self, requests: Sequence[NegativeRequest], per_query: int) -> Iterator[list[Candidate]]:
        """One list a request, in the order of the file, as deep as a search would be taken."""
        for request in requests:
            candidates = (
                Candidate(request.query.id, self.documents[id_], (Origin(self.name, self.maker, self.round, rank, score),))
                for rank, (id_, score) in enumerate(self.listed.get(request.query.id, ()), 1)
            )
            yield down_to(candidates, known_ids(request), per_query)
