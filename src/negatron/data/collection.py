"""A corpus with queries and judgements: look-ups, known positives, overlap of training and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from negatron.errors import SettingError, nearest
from negatron.identity import fingerprint, fingerprint_texts, same_words
from negatron.types import Document, Judgement, NegativeRequest, Query

HELD_OUT = ("test", "dev", "validation")
"""Splits whose queries training must not see."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Training pairs, and how many queries were left out because a held-out split asks the same."""

    pairs: tuple[tuple[Query, Document], ...]
    dropped_queries: int


@dataclass(frozen=True)
class Collection:
    """A data set in memory. Mappings keep the order of the files; `judgements` maps a split's name to its rows.

    Every id in a judgement is known: readers refuse or drop what is not.
    """

    name: str
    documents: Mapping[str, Document]
    queries: Mapping[str, Query]
    judgements: Mapping[str, tuple[Judgement, ...]]

    @cached_property
    def fingerprint(self) -> str:
        """Of all texts, ids and judgements; not of the name or the place."""
        documents = fingerprint_texts(x for d in self.documents.values() for x in (d.id, d.title, d.text))
        queries = fingerprint_texts(x for q in self.queries.values() for x in (q.id, q.text))
        rows = {
            split: fingerprint_texts(x for j in rows for x in (j.query_id, j.document_id, str(j.grade)))
            for split, rows in self.judgements.items()
        }
        return fingerprint(documents, queries, rows)

    @cached_property
    def corpus_fingerprint(self) -> str:
        """Of the documents alone."""
        return fingerprint_texts(x for d in self.documents.values() for x in (d.id, d.title, d.text))

    def split(self, name: str) -> tuple[Judgement, ...]:
        """The judgements of a split. Raises SettingError that names the splits there are."""
        if name not in self.judgements:
            raise SettingError(f"{self.name} has no split {name!r}{nearest(name, self.judgements)}")
        return self.judgements[name]

    def graded(self, split: str) -> dict[str, dict[str, int]]:
        """query id -> document id -> grade, of one split."""
        grades: dict[str, dict[str, int]] = {}
        for row in self.split(split):
            grades.setdefault(row.query_id, {})[row.document_id] = row.grade
        return grades

    def positives(self, split: str) -> dict[str, tuple[Document, ...]]:
        """query id -> its known positives (grade > 0), in the order of the judgements; queries without one are left out.

        Queries with the same text share their positives: what answers one answers the other.
        """
        by_text: dict[str, dict[str, None]] = {}
        order: dict[str, None] = {}
        for row in self.split(split):
            if row.grade > 0:
                order[row.query_id] = None
                by_text.setdefault(same_words(self.queries[row.query_id].text), {})[row.document_id] = None
        shared = {text: tuple(self.documents[i] for i in ids) for text, ids in by_text.items()}
        return {query_id: shared[same_words(self.queries[query_id].text)] for query_id in order}

    def query_texts(self, split: str) -> frozenset[str]:
        """The texts of a split's queries, in the form in which two texts count as the same."""
        return frozenset(same_words(self.queries[row.query_id].text) for row in self.split(split))

    def overlapping(self, split: str, others: tuple[str, ...]) -> frozenset[str]:
        """Ids of the queries of `split` whose text is a query of another split: training must not see them."""
        seen = frozenset().union(*(self.query_texts(other) for other in others if other in self.judgements and other != split))
        return frozenset(row.query_id for row in self.split(split) if same_words(self.queries[row.query_id].text) in seen)

    def pairs(self, split: str, *, limit: int | None = None, held_out: tuple[str, ...] = HELD_OUT) -> Pairs:
        """The (query, positive) pairs of a split: one for each judgement with grade > 0.

        Queries that a held-out split asks too are left out and counted. `limit` takes that many pairs by a hash of their ids, so that
        the pairs of a smaller limit are among those of a larger one.
        """
        barred = self.overlapping(split, held_out)
        rows = list(dict.fromkeys((row.query_id, row.document_id) for row in self.split(split) if row.grade > 0))
        kept = [row for row in rows if row[0] not in barred]
        if limit is not None and limit < len(kept):
            kept = sorted(sorted(kept, key=lambda row: hashlib.sha256(f"{row[0]} {row[1]}".encode()).digest())[:limit])
        return Pairs(tuple((self.queries[q], self.documents[d]) for q, d in kept), len({q for q, _ in rows} & barred))

    def requests(self, split: str, *, limit: int | None = None, held_out: tuple[str, ...] = HELD_OUT) -> list[NegativeRequest]:
        """The queries of `pairs`, each once, with *all* their known positives."""
        positives = self.positives(split)
        queries = dict.fromkeys(query for query, _ in self.pairs(split, limit=limit, held_out=held_out).pairs)
        return [NegativeRequest(query, positives[query.id]) for query in queries]
