"""Dense top-k over a corpus, and the scores of any (query, document) pair by the same encoder.

Scores are inner products of unit vectors = cosines, each a number that depends on its pair alone (`topk.pair_scores`). Documents of one
text are searched as one and share one score; ties go by document id ascending. So with the exact index a result depends on the query and
the documents alone.

1. `vectors` encodes the distinct texts once, memory-mapped.
2. `search_rows` searches block of queries by block of queries: exactly (`topk`), or by choice in an approximate index (`approximate`).
   Results of finished blocks are on disk when there is more than one block: a killed run continues after the last, the same search is
   found again.
3. `search` gives them as documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from negatron.identity import fingerprint, fingerprint_texts
from negatron.models.approximate import ApproximateIndex
from negatron.models.locks import entry
from negatron.models.topk import Engine, Rows, blocks, engine_for_this_machine, exact_top, scores_of
from negatron.models.vectors import VectorStore, key
from negatron.progress import Meter
from negatron.seams import Encoder, Float32Array
from negatron.settings import Settings
from negatron.store import write_json
from negatron.types import Document, Query, ScoredDocument

QUERIES_AT_A_TIME = 4096
"""Queries searched between two marks of progress on disk: as many as faiss takes into one matrix product."""
QUERIES_IN_MEMORY = 1024
"""Queries searched together where there are too few to store the results."""
PAIRS_WORTH_A_METER = 10**9
"""Comparisons from which on progress is shown: some seconds."""
PAIRS_AT_A_TIME = 8192
"""Pairs scored at a time: bounds the copies of their vectors."""
PROGRESS = "progress.json"


class SearchSettings(Settings):
    """How dense vectors are searched."""

    index: Literal["exact", "ivf", "hnsw"] = "exact"
    """exact compares with every document; ivf and hnsw (faiss) with some, and tell how many of the best they miss."""
    probes: int = Field(default=32, ge=1)
    """Clusters of an ivf index, or candidates of an hnsw index beyond those asked for, that a query is compared with."""


class DenseSearcher:
    """A Searcher over the vectors of all documents; they are encoded on first use, or found in the store."""

    def __init__(
        self,
        encoder: Encoder,
        documents: Sequence[Document],
        store: VectorStore,
        corpus_fingerprint: str,
        label: str = "",
        settings: SearchSettings | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.encoder, self.store, self.label = encoder, store, label
        self.settings = settings or SearchSettings()
        self.documents = sorted(documents, key=lambda d: d.id)
        approximate = [] if self.settings.index == "exact" else [self.settings.as_json()]
        self.fingerprint = fingerprint("dense.v2", encoder.fingerprint, corpus_fingerprint, *approximate)
        self._engine = engine

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Text -> its row in `vectors`; rows in the order of each text's first document."""
        return {text: row for row, text in enumerate(dict.fromkeys(document.content for document in self.documents))}

    @cached_property
    def vectors(self) -> Float32Array:
        """[texts, D], memory-mapped, in the order of `row_of`."""
        return self.store.encode(self.encoder, list(self.row_of), "document", f"encode documents{self.label}")

    @cached_property
    def copies(self) -> Copies:
        """Which documents have which text."""
        return Copies.of([self.row_of[document.content] for document in self.documents])

    @cached_property
    def engine(self) -> Engine:
        """What multiplies vectors."""
        return self._engine or engine_for_this_machine()

    @cached_property
    def approximate(self) -> ApproximateIndex:
        """The index that compares a query with some of the documents."""
        assert self.settings.index != "exact"
        inputs = {"vectors": key(self.encoder, list(self.row_of), "document"), "settings": self.settings.as_json()}
        place = self.store.root / f"index-{fingerprint('index.v1', inputs)}"
        return ApproximateIndex.made(place, inputs, self.vectors, self.settings.index, self.settings.probes)

    def search(self, queries: Sequence[Query], k: int) -> Iterator[Sequence[ScoredDocument]]:
        """At most k documents a query, best first, ties by document id."""
        found = self.search_rows([query.text for query in queries], k)
        for query, (rows, scores) in zip(queries, found, strict=True):
            pairs = zip(rows.tolist(), scores.tolist(), strict=True)
            yield [ScoredDocument(query.id, self.documents[row].id, score) for row, score in pairs]

    def search_rows(self, texts: Sequence[str], k: int) -> Iterator[tuple[NDArray[np.int32], Float32Array]]:
        """The same as arrays: for each text of a query the rows of `documents` [<= k] and their scores."""
        if not texts or not self.documents or k < 1:
            yield from ((np.zeros(0, np.int32), np.zeros(0, np.float32)) for _ in texts)
            return
        asked = self.store.encode(self.encoder, texts, "query", f"encode queries{self.label}")
        width = min(k, len(self.documents))
        found = self.in_memory(asked, width) if len(texts) <= QUERIES_AT_A_TIME else zip(*self.stored(texts, asked, width), strict=True)
        for rows, scores in found:
            yield rows[rows >= 0], scores[rows >= 0]

    def in_memory(self, asked: Float32Array, k: int) -> Iterator[tuple[NDArray[np.int32], Float32Array]]:
        """`found`, query by query."""
        quiet = len(asked) * len(self.documents) < PAIRS_WORTH_A_METER
        with Meter(f"dense search{self.label}", len(asked), "queries", quiet=quiet) as meter:
            for block in blocks(len(asked), QUERIES_IN_MEMORY):
                yield from zip(*self.found(np.ascontiguousarray(asked[block.start : block.stop]), k), strict=True)
                meter.advance(len(block))

    def found(self, queries: Float32Array, k: int) -> tuple[NDArray[np.int32], Float32Array]:
        """(rows of documents [Q, k], scores [Q, k]) of the best k <= len(documents) documents; row -1: an approximate index found fewer."""
        if self.settings.index == "exact":
            return self.copies.expanded(*exact_top(self.engine, queries, self.vectors, k), k)
        rows = self.approximate.rows(queries, min(k, len(self.vectors)))
        scores = np.where(rows < 0, np.float32(-np.inf), scores_of(queries, self.vectors, rows))
        order = np.argsort(-scores, axis=1, kind="stable")
        return self.copies.expanded(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1), k)

    def stored(self, texts: Sequence[str], asked: Float32Array, k: int) -> tuple[NDArray[np.int32], Float32Array]:
        """The same for many queries, by blocks whose results go to disk; memory-mapped."""
        inputs = {
            "documents": fingerprint_texts(document.content for document in self.documents),  # copies where they stand
            "queries": key(self.encoder, texts, "query"),
            "settings": self.settings.as_json(),
            "k": k,
        }
        out = self.store.root / f"search-{fingerprint('search.v1', inputs)}"
        with entry(out, kind="search", inputs=inputs, what=f"the same search for {len(texts):,} queries") as work:
            if work.finished is None:
                self.search_blocks(asked, k, work.path)
                (work.path / PROGRESS).unlink()
                work.finish()
        return np.load(out / "rows.npy", mmap_mode="r"), np.load(out / "scores.npy", mmap_mode="r")

    def search_blocks(self, asked: Float32Array, k: int, folder: Path) -> None:
        """Writes rows.npy and scores.npy [Q, k] into `folder`, continuing after the last whole block of queries."""
        progress = folder / PROGRESS
        done = json.loads(progress.read_text())["done"] if progress.exists() else 0
        files = {name: (folder / f"{name}.npy", kind) for name, kind in (("rows", np.int32), ("scores", np.float32))}
        rows, scores = (
            np.lib.format.open_memmap(path, "r+") if done else np.lib.format.open_memmap(path, "w+", kind, (len(asked), k))
            for path, kind in files.values()
        )
        with Meter(f"dense search{self.label}", len(asked), "queries", skipped=done) as meter:
            for block in blocks(len(asked) - done, QUERIES_AT_A_TIME):
                own = slice(done + block.start, done + block.stop)
                rows[own], scores[own] = self.found(np.ascontiguousarray(asked[own]), k)
                rows.flush()
                scores.flush()
                write_json(progress, {"done": own.stop})
                meter.advance(len(block))


class Copies:
    """Which documents have which text: those of text t are documents[starts[t] : starts[t + 1]], ascending."""

    def __init__(self, documents: NDArray[np.int32], starts: NDArray[np.int64]) -> None:
        self.documents, self.starts = documents, starts
        self.any = len(documents) > len(starts) - 1

    @classmethod
    def of(cls, text_of: Sequence[int]) -> Copies:
        """From the text of each document; every text has one.

        >>> copies = Copies.of([0, 1, 0])
        >>> copies.documents.tolist(), copies.starts.tolist()
        ([0, 2, 1], [0, 2, 3])
        """
        texts = np.asarray(text_of, np.int64)
        return cls(np.argsort(texts, kind="stable").astype(np.int32), np.concatenate([[0], np.cumsum(np.bincount(texts))]))

    def expanded(self, texts: Rows, scores: Float32Array, k: int) -> tuple[NDArray[np.int32], Float32Array]:
        """From the best texts [Q, m] of queries, m >= min(k, all), the best k documents: by score, then by row; text -1 is no text.

        Since texts are numbered by their first document, no document of a text beyond the m best can come before the k-th.
        """
        if not self.any:
            return np.where(texts < 0, np.int32(-1), self.documents[self.starts[np.maximum(texts, 0)]]), scores
        rows, own = np.full((len(texts), k), -1, np.int32), np.full((len(texts), k), -np.inf, np.float32)
        for query, (of_query, of_text) in enumerate(zip(texts, scores, strict=True)):
            found = [(-score, row) for text, score in zip(of_query.tolist(), of_text.tolist(), strict=True) for row in self.rows(text)]
            best = sorted(found)[:k]
            rows[query, : len(best)] = [row for _, row in best]
            own[query, : len(best)] = [-score for score, _ in best]
        return rows, own

    def rows(self, text: int) -> list[int]:
        """The documents of a text."""
        documents: list[int] = self.documents[self.starts[text] : self.starts[text + 1]].tolist() if text >= 0 else []
        return documents


class EncoderScorer:
    """A CrossScorer made of a bi-encoder: the teacher that margins are measured with.

    Documents of `searcher` are looked up in its vectors; other texts (written negatives) are encoded once.
    """

    def __init__(self, encoder: Encoder, store: VectorStore, searcher: DenseSearcher | None = None) -> None:
        self.encoder, self.store, self.searcher = encoder, store, searcher
        self.fingerprint = fingerprint("encoder scorer.v1", encoder.fingerprint)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Float32Array:
        """[n] cosines of (query text, document content)."""
        known = self.searcher.row_of if self.searcher is not None else {}
        query_row = {query: row for row, query in enumerate(dict.fromkeys(query for query, _ in pairs))}
        unknown = list(dict.fromkeys(content for _, content in pairs if content not in known))
        other_row = {content: len(known) + row for row, content in enumerate(unknown)}
        scores = np.empty(len(pairs), np.float32)
        if not pairs:
            return scores
        asked = self.store.encode(self.encoder, list(query_row), "query", "encode queries (teacher)")
        other = self.store.encode(self.encoder, unknown, "document", "encode texts (teacher)") if unknown else asked[:0]
        vectors = self.searcher.vectors if self.searcher is not None else asked[:0]
        for block in blocks(len(pairs), PAIRS_AT_A_TIME):
            own = pairs[block.start : block.stop]
            rows = np.fromiter((known[content] if content in known else other_row[content] for _, content in own), np.int64, len(own))
            queries = asked[[query_row[query] for query, _ in own]]
            documents = np.empty(queries.shape, np.float32)
            inside = rows < len(known)
            documents[inside] = vectors[rows[inside]]
            documents[~inside] = other[rows[~inside] - len(known)]
            scores[block.start : block.stop] = scores_of(queries, documents, np.arange(len(own))[:, None])[:, 0]
        return scores
