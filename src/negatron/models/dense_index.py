"""Exact dense top-k over a corpus, and the scores of any (query, document) pair by the same encoder.

Scores are inner products of unit vectors = cosines. faiss finds the best texts in fp32; those found are scored once more in fp64 and
rounded to fp32, because a matrix product rounds a pair's score differently in different company: a query alone would get other ties,
and other neighbours at the end of its list, than the same query among others. Documents of one text are searched as one and share one
score; ties go by document id ascending. So a result depends on the query and the documents alone (but for ties of more than `SPARE`
different texts at the end of a list).
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
SPARE = 16
"""Texts found beyond the k asked for, so that exact scores, and ids among equal ones, decide who is the k-th."""
PAIRS_AT_A_TIME = 8192
"""Pairs scored at a time: bounds the fp64 copies of their vectors."""


def pair_scores(queries: Float32Array, documents: Float32Array) -> Float32Array:
    """[n] inner products of the rows of two [n, D] arrays, summed in fp64, rounded once to fp32: the same for a pair in any company."""
    scores: Float32Array = np.einsum("nd,nd->n", queries.astype(np.float64), documents.astype(np.float64)).astype(np.float32)
    return scores


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
        if not queries:
            return
        copies = self.copies()
        vectors = np.ascontiguousarray(self.vectors if len(copies) == len(self.documents) else self.vectors[[own[0] for own in copies]])
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        asked = self.store.encode(self.encoder, [query.text for query in queries], "query", f"encode queries{self.label}")
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            block = np.ascontiguousarray(asked[start : start + QUERIES_AT_A_TIME])
            _, found = index.search(block, min(k + SPARE, len(vectors)))
            for query, vector, texts in zip(queries[start : start + QUERIES_AT_A_TIME], block, found, strict=True):
                scores = pair_scores(np.broadcast_to(vector, (len(texts), len(vector))), vectors[texts]).tolist()
                best = sorted((-score, row) for score, text in zip(scores, texts.tolist(), strict=True) for row in copies[text])
                yield [ScoredDocument(query.id, self.documents[row].id, -score) for score, row in best[:k]]

    def copies(self) -> list[list[int]]:
        """For each distinct text the rows of its documents, ascending; texts in the order of their first document."""
        rows: dict[str, list[int]] = {}
        for row, document in enumerate(self.documents):
            rows.setdefault(document.content, []).append(row)
        return list(rows.values())


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
        for start in range(0, len(pairs), PAIRS_AT_A_TIME):
            block = pairs[start : start + PAIRS_AT_A_TIME]
            documents = np.empty((len(block), asked.shape[1]), np.float32)
            for n, (_, content) in enumerate(block):
                if content in known and self.searcher is not None:
                    documents[n] = self.searcher.vectors[known[content]]
                else:
                    assert other is not None
                    documents[n] = other[other_row[content]]
            scores[start : start + len(block)] = pair_scores(asked[[query_row[query] for query, _ in block]], documents)
        return scores
