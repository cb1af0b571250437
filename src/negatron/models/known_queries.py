"""Vectors of queries that are asked for again and again, some at a time: encoded once, all together, as the search encodes them.

A teacher that scores some queries at a time would otherwise encode each such part by itself, though the search has encoded all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from negatron.models.vectors import Role, VectorStore
from negatron.seams import Encoder, Float32Array


class KnownQueries(VectorStore):
    """A store that has the vectors of the queries in `texts` at hand, and asks `store` for all else."""

    def __init__(self, store: VectorStore, encoder: Encoder, texts: Sequence[str]) -> None:
        super().__init__(store.root)
        self.store, self.encoder = store, encoder
        self._row = {text: row for row, text in enumerate(texts)}
        self._vectors = store.encode(encoder, texts, "query", "encode queries")

    def encode(self, encoder: Encoder, texts: Sequence[str], role: Role, label: str = "encode") -> Float32Array:
        """[n, D] vectors, as VectorStore.encode gives them."""
        rows = [self._row.get(text) for text in texts] if role == "query" and encoder is self.encoder else [None]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            return self.store.encode(encoder, texts, role, label)
        vectors: Float32Array = self._vectors[known]
        return vectors
