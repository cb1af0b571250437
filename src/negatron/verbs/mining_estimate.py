"""`negatron mine --dry-run`: how long a mining takes and how much memory, estimated from a sample, with nothing written.

1. Some documents and queries are drawn by a hash of their ids.
2. Each part of the work that is asked for is done on the sample and timed: words and index, encoding, search, pairs of a cross-encoder.
3. The times are scaled to the whole; judging and writing are taken at what they cost elsewhere.

What is in the cache already (encoded texts, scored pairs) is not counted, so a second run is faster than estimated. A sample on a busy
machine tells of a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from negatron.identity import fingerprint
from negatron.models.bm25 import BM25Searcher
from negatron.negatives.mining import QUERIES_AT_A_TIME
from negatron.negatives.summary import aligned
from negatron.progress import clock
from negatron.types import Document, NegativeRequest
from negatron.verbs.common import CROSS_ENCODER, DEFAULT_MODEL, SOURCES, Data, MiningSettings, Workshop, load
from negatron.verbs.mining import Plan, asked_for, plan_of, workshop_of

ENCODED, INDEXED, ASKED, SCORED = 128, 1000, 64, 64
"""Documents encoded, documents indexed, queries asked and pairs scored in the sample."""
SECONDS_A_CANDIDATE = 8e-5
"""Judging and writing one candidate; measured on nfcorpus, see docs/notebook.md."""
BYTES_A_HIT, BYTES_A_JUDGED = 20, 2_000
"""A candidate held until it is judged, and one with its verdicts, as Python values."""
T = TypeVar("T", Document, NegativeRequest)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the work: what is done, its seconds, and the memory that it needs while it runs."""

    name: str
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class MiningEstimate:
    """What a mining would take. `memory`: the documents and the hungriest part, in bytes, beyond the libraries."""

    documents: int
    queries: int
    candidates: int
    parts: tuple[Part, ...]
    memory: int

    @property
    def seconds(self) -> float:
        """Of all parts, one after the other."""
        return sum(part.seconds for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "seconds": self.seconds}

    def __str__(self) -> str:
        rows = [["part", "time", "memory"], *([part.name, clock(part.seconds), megabytes(part.bytes)] for part in self.parts)]
        return (
            f"{self.queries:,} queries, {self.documents:,} documents, up to {self.candidates:,} candidates; estimated from a sample:\n"
            f"{aligned(rows)}\nabout {clock(self.seconds)} and {megabytes(self.memory)} beyond the libraries; nothing was written"
        )


def estimate_mining(
    data: Data,
    *,
    sources: Sequence[str] = SOURCES,
    model: str | Path = DEFAULT_MODEL,
    cross_encoder: str | Path | None = None,
    split: str = "train",
    settings: MiningSettings | None = None,
) -> MiningEstimate:
    """Time and memory that `mine` would take with the same options. Raises what `mine` would raise for them."""
    settings = settings or MiningSettings()
    collection = load(data)
    collection.split(split)
    planned = plan_of(sources, cross_encoder, settings)
    shop = workshop_of(collection, model, cross_encoder, settings, 0, 0)
    requests, _ = asked_for(collection, split, settings.pairs)
    held = len(requests) * len(planned.proposing) * settings.depth
    candidates = held + sum(len(request.positives) for request in requests)
    parts = tuple(parts_of(planned, shop, requests, candidates))
    texts = sum(len(document.content) for document in collection.documents.values())
    memory = texts + held * BYTES_A_HIT + max(part.bytes for part in parts)
    return MiningEstimate(len(collection.documents), len(requests), candidates, parts, memory)


def parts_of(planned: Plan, shop: Workshop, requests: Sequence[NegativeRequest], candidates: int) -> Iterator[Part]:
    """Each part of the work that is asked for."""
    documents, queries = list(shop.collection.documents.values()), len(requests)
    some = sample(documents, INDEXED, lambda document: document.id)
    asked = sample(requests, ASKED, lambda request: request.query.id)
    if "bm25" in planned.proposing:
        yield lexical(shop, some, asked, len(documents), queries)
    if planned.uses_encoder:
        yield from encoded(planned, shop, some[:ENCODED], asked, len(documents), queries)
    if planned.uses_cross_encoder:
        yield scored(shop, some, asked, candidates)
    bytes_ = min(queries, QUERIES_AT_A_TIME) * candidates // queries * BYTES_A_JUDGED
    yield Part("judge and write", candidates * SECONDS_A_CANDIDATE, bytes_)


def sample(items: Iterable[T], count: int, id_of: Callable[[T], str]) -> list[T]:
    """`count` of the items by a hash of their ids; all where there are fewer."""
    return sorted(items, key=lambda item: fingerprint("sample", id_of(item)))[:count]


def timed(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lexical(shop: Workshop, some: Sequence[Document], asked: Sequence[NegativeRequest], documents: int, queries: int) -> Part:
    """Words, index and search of BM25; both grow with the documents, the search also with the queries."""
    searcher = BM25Searcher(some, "sample", shop.bm25_settings)
    index = timed(lambda: searcher.index) * documents / len(some)  # made when first asked for
    search = timed(lambda: list(searcher.search([request.query for request in asked], 50)))
    words = sum(len(document.content) for document in some) // 6 * documents // len(some)
    return Part("bm25", index + search / len(asked) * queries * documents / len(some), words * 8)


def encoded(
    planned: Plan, shop: Workshop, some: Sequence[Document], asked: Sequence[NegativeRequest], documents: int, queries: int
) -> Iterator[Part]:
    """Encoding, by the time of a sample after a first batch that warms up; and search, by the time of a matrix product."""
    encoder = shop.encoder
    encoder.encode_documents([document.content for document in some[:8]])
    vectors: list[Any] = []
    longest_first = sorted((document.content for document in some), key=len, reverse=True)
    weights = sum(p.numel() * p.element_size() for p in encoder.model.parameters())
    seconds = timed(lambda: vectors.append(encoder.encode_documents(longest_first)))
    dimensions = vectors[0].shape[1]
    yield Part("encode documents", seconds / len(some) * documents, weights + documents * dimensions * 4)
    texts = [request.query.text for request in asked]
    seconds = timed(lambda: encoder.encode_queries(texts))
    yield Part("encode queries", seconds / len(texts) * queries, weights + queries * dimensions * 4)
    if "dense" in planned.proposing:
        tile = np.ones((256, dimensions), np.float32)
        seconds = timed(lambda: tile @ np.ones((dimensions, 4096), np.float32)) / (256 * 4096)
        yield Part("dense search", seconds * queries * documents, weights + documents * dimensions * 4)


def scored(shop: Workshop, some: Sequence[Document], asked: Sequence[NegativeRequest], candidates: int) -> Part:
    """Pairs of a cross-encoder, by the time of a sample; nothing of it is stored."""
    from negatron.models.cross_encoder import CrossEncoderScorer

    scorer = shop.scorer.scorer
    pairs = [(asked[n % len(asked)].query.text, some[n % len(some)].content) for n in range(SCORED)]
    scorer.score(pairs[:8])
    weights = sum(p.numel() * p.element_size() for p in scorer.model.parameters()) if isinstance(scorer, CrossEncoderScorer) else 0
    return Part(CROSS_ENCODER, timed(lambda: scorer.score(pairs)) / len(pairs) * candidates, weights)


def megabytes(count: int) -> str:
    """Bytes in MiB.

    >>> megabytes(3 << 20)
    '3 MiB'
    """
    return f"{count / (1 << 20):,.0f} MiB"
