"""The protocols, on one page. Rooms meet here and nowhere else.

All sequences keep their order: answer i belongs to question i, unless a line says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from negatron.types import (
    Candidate,
    NegativeRequest,
    Positive,
    Query,
    Reply,
    Request,
    ScoredDocument,
    Verdict,
)

Float32Array = NDArray[np.float32]
"""fp32, C order."""


@runtime_checkable
class Encoder(Protocol):
    """Two towers. Vectors have unit length, so that a dot product is a cosine."""

    @property
    def fingerprint(self) -> str:
        """Of weights, pooling, prompts, length and precision: all that a vector depends on but the text."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> Float32Array:
        """[n, D], unit length, fp32."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> Float32Array:
        """[n, D], unit length, fp32."""
        ...


@runtime_checkable
class CrossScorer(Protocol):
    """One tower over a (query, document) pair."""

    @property
    def fingerprint(self) -> str:
        """Of all that a score depends on but the pair."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> Float32Array:
        """[n]; higher is more relevant; each pair is (query text, document content)."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """Any writer or judge."""

    @property
    def name(self) -> str:
        """The model's name, as recorded with each reply."""
        ...

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """One Reply a Request, in any order, matched by request id; a failure is a Reply with `error`, never a missing one."""
        ...


@runtime_checkable
class Searcher(Protocol):
    """Top-k over a corpus."""

    @property
    def fingerprint(self) -> str:
        """Of corpus, model and settings: all that a result depends on but the query."""
        ...

    def search(self, queries: Sequence[Query], k: int) -> Iterator[Sequence[ScoredDocument]]:
        """At most k documents a query, best first, ties by document id ascending; one answer a query, in order."""
        ...


@runtime_checkable
class NegativeSource(Protocol):
    """BM25, a dense checkpoint, a language model, a plug-in: whoever can propose negatives. A combination of sources is a source."""

    @property
    def name(self) -> str:
        """The name that quotas, origins and reports use."""
        ...

    def propose(self, requests: Sequence[NegativeRequest], per_query: int) -> Iterator[Sequence[Candidate]]:
        """At most per_query candidates a request, best first; one answer a request, in order; empty where nothing was found."""
        ...


@runtime_checkable
class Filter(Protocol):
    """One rule with its number."""

    @property
    def name(self) -> str:
        """The rule's name, as written in its verdicts."""
        ...

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> Sequence[Verdict]:
        """One Verdict a candidate, in order, decided from what the values carry: no model is asked, no file is read."""
        ...
