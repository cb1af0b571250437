"""Doubles and checks for people who write a source, a filter or an encoder of their own.

The doubles stand in for *models* only: `TableEncoder` is a dictionary of vectors, `ScriptedLanguageModel` a queue of replies. The
checks call your implementation and raise AssertionError, with a sentence, where it breaks the contract of `seams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from negatron.identity import fingerprint
from negatron.seams import Encoder, Filter, Float32Array, NegativeSource, Searcher
from negatron.types import Candidate, NegativeRequest, Positive, Query, Reply, Request


class TableEncoder:
    """An Encoder that is a dictionary: text -> vector, brought to unit length. Raises KeyError for a text it does not know.

    >>> TableEncoder({"north": (0.0, 2.0)}).encode_queries(["north"]).tolist()
    [[0.0, 1.0]]
    """

    def __init__(self, table: Mapping[str, Sequence[float]]) -> None:
        self.table = {text: np.asarray(vector, np.float32) / np.linalg.norm(vector) for text, vector in table.items()}
        self.fingerprint = fingerprint("table", {text: vector.tolist() for text, vector in self.table.items()})

    def encode_queries(self, texts: Sequence[str]) -> Float32Array:
        """[n, D], unit length."""
        return np.stack([self.table[text] for text in texts]).astype(np.float32)

    def encode_documents(self, texts: Sequence[str]) -> Float32Array:
        """[n, D], unit length."""
        return self.encode_queries(texts)


class ScriptedLanguageModel:
    """A LanguageModel that gives queued texts, in the order of the requests; after the last one it starts again."""

    def __init__(self, texts: Sequence[str], name: str = "scripted") -> None:
        self.texts, self.name = list(texts), name
        self.asked: list[Request] = []

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """One reply a request."""
        for request in requests:
            text = self.texts[len(self.asked) % len(self.texts)]
            self.asked.append(request)
            yield Reply(request.id, text, self.name, prompt_tokens=len(str(request.messages).split()), completion_tokens=len(text.split()))


def check_encoder(encoder: Encoder, texts: Sequence[str], tolerance: float = 1e-5) -> None:
    """Together = alone, unit length, fp32, one row a text, in order; the fingerprint stays."""
    for encode in (encoder.encode_queries, encoder.encode_documents):
        together = encode(list(texts))
        assert together.dtype == np.float32 and together.shape[0] == len(texts), "expected one fp32 row for each text"
        assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-3), "vectors are not of unit length"
        for row, text in enumerate(texts):
            assert np.abs(encode([text])[0] - together[row]).max() <= tolerance, f"{text!r} alone and in company give different vectors"
    assert encoder.fingerprint == encoder.fingerprint, "the fingerprint changes between two looks"


def check_searcher(searcher: Searcher, queries: Sequence[Query], k: int) -> None:
    """Best first, ties by document id, no document twice, one answer a query; a query alone gets the answer that it gets in company."""
    together = list(searcher.search(queries, k))
    assert len(together) == len(queries), "expected one answer for each query"
    for query, hits in zip(queries, together, strict=True):
        assert len(hits) <= k, f"query {query.id}: more than {k} documents"
        assert all(hit.query_id == query.id for hit in hits), f"query {query.id} got another query's documents"
        keys = [(-hit.score, hit.document_id) for hit in hits]
        assert keys == sorted(keys), f"query {query.id}: not ordered by score, then document id"
        assert len({hit.document_id for hit in hits}) == len(hits), f"query {query.id}: a document occurs twice"
        alone = next(iter(searcher.search([query], k)))
        assert [h.document_id for h in alone] == [h.document_id for h in hits], (
            f"query {query.id} alone gets other documents than in company"
        )


def check_source(source: NegativeSource, requests: Sequence[NegativeRequest], per_query: int) -> None:
    """One answer a request, in order; candidates belong to their query and name this source; asking twice gives the same."""
    first, again = ([list(own) for own in source.propose(requests, per_query)] for _ in range(2))
    assert len(first) == len(requests), "expected one answer for each request"
    assert first == again, "the same request asked twice gives different candidates"
    for request, candidates in zip(requests, first, strict=True):
        for candidate in candidates:
            assert candidate.query_id == request.query.id, f"a candidate of query {request.query.id} carries the id {candidate.query_id}"
            assert source.name in candidate.sources, f"a candidate of {source.name} has no origin of that name"


def check_filter(rule: Filter, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> None:
    """One verdict a candidate under the rule's own name; inputs come back unchanged; no candidates, no verdicts."""
    before = (tuple(positives), tuple(candidates))
    verdicts = rule.judge(query, positives, candidates)
    assert len(verdicts) == len(candidates), "expected one verdict for each candidate"
    assert all(verdict.rule == rule.name for verdict in verdicts), f"a verdict does not carry the rule's name {rule.name!r}"
    assert (tuple(positives), tuple(candidates)) == before, "the filter changed its inputs"
    assert list(rule.judge(query, positives, [])) == [], "expected no verdicts for no candidates"
