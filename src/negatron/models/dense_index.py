"""Exact dense top-k over a corpus, and the scores of any (query, document) pair by the same encoder.

Scores are inner products of unit vectors in fp32 = cosines. Ties go by document id ascending, as far as faiss returns both documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from negatron.errors import MissingExtra
from negatron.identity import fingerprint
from negatron.models.vectors import VectorStore
from negatron.seams import Encoder, Float32Array
from negatron.types import Document, Query, ScoredDocument

QUERIES_AT_A_TIME = 1024
"""Queries searched between two answers: bounds the [queries, k] result held in memory."""


class DenseSearcher:
    """A Searcher over the vectors of all documents; they are encoded on first use, or found in the store."""

    def __init__(
        self, encoder: Encoder, documents: Sequence[Document], store: VectorStore, corpus_fingerprint: str, label: str = ""
    ) -> None:
        self.encoder, self.store, self.label = encoder, store, label
        self.documents = sorted(documents, key=lambda d: d.id)
        self.fingerprint = fingerprint("dense.v1", encoder.fingerprint, corpus_fingerprint)
        self._vectors: Float32Array | None = None

    @property
    def vectors(self) -> Float32Array:
        """[documents, D], in the order of `documents`."""
        if self._vectors is None:
            texts = [document.content for document in self.documents]
            self._vectors = self.store.encode(self.encoder, texts, "document", f"encode documents{self.label}")
        return self._vectors

    def search(self, queries: Sequence[Query], k: int) -> Iterator[Sequence[ScoredDocument]]:
        """At most k documents a query, best first, ties by document id."""
        try:
            import faiss
        except ImportError as error:
            raise MissingExtra("faiss", "train") from error
        vectors = np.ascontiguousarray(self.vectors)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        asked = self.store.encode(self.encoder, [query.text for query in queries], "query", f"encode queries{self.label}")
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            scores, rows = index.search(np.ascontiguousarray(asked[start : start + QUERIES_AT_A_TIME]), min(k, len(vectors)))
            for query, query_scores, query_rows in zip(queries[start : start + QUERIES_AT_A_TIME], scores, rows, strict=True):
                best = sorted(zip((-query_scores).tolist(), query_rows.tolist(), strict=True))
                yield [ScoredDocument(query.id, self.documents[row].id, -score) for score, row in best]


class EncoderScorer:
    """A CrossScorer made of a bi-encoder: the teacher that margins are measured with.

    Documents of `searcher` are looked up in its vectors; other texts (written negatives) are encoded once.
    """

    def __init__(self, encoder: Encoder, store: VectorStore, searcher: DenseSearcher | None = None) -> None:
        self.encoder, self.store, self.searcher = encoder, store, searcher
        self.fingerprint = fingerprint("encoder scorer.v1", encoder.fingerprint)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Float32Array:
        """[n] cosines of (query text, document content)."""
        if not pairs:
            return np.zeros(0, np.float32)
        queries = list(dict.fromkeys(query for query, _ in pairs))
        contents = list(dict.fromkeys(content for _, content in pairs))
        known = {d.content: n for n, d in enumerate(self.searcher.documents)} if self.searcher is not None else {}
        unknown = [content for content in contents if content not in known]
        asked = self.store.encode(self.encoder, queries, "query", "encode queries (teacher)")
        other = self.store.encode(self.encoder, unknown, "document", "encode texts (teacher)") if unknown else None
        query_row = {text: n for n, text in enumerate(queries)}
        other_row = {text: n for n, text in enumerate(unknown)}
        scores = np.empty(len(pairs), np.float32)
        for n, (query, content) in enumerate(pairs):
            if content in known and self.searcher is not None:
                vector = self.searcher.vectors[known[content]]
            else:
                assert other is not None
                vector = other[other_row[content]]
            scores[n] = asked[query_row[query]] @ vector
        return scores
