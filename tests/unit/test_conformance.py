"""The checks for other people's sources, filters and encoders pass the right ones, and tell the wrong ones what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from negatron.conformance import ScriptedLanguageModel, TableEncoder, check_encoder, check_filter, check_searcher, check_source
from negatron.seams import CrossScorer, Encoder, Filter, LanguageModel, NegativeSource, Searcher
from negatron.types import Candidate, Document, Message, NegativeRequest, Origin, Positive, Query, Request, ScoredDocument, Verdict

TABLE = {"north": (0.0, 2.0), "east": (3.0, 0.0), "north-east": (1.0, 1.0)}
QUERIES = [Query("q", "north"), Query("r", "east")]


class Wrong(TableEncoder):
    """An encoder that does one thing wrong."""

    def __init__(self, wrong: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(TABLE)
        self.wrong = wrong

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.wrong(super().encode_queries(texts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda vectors: vectors * 2, "not of unit length"),
        (lambda vectors: vectors.astype(np.float64), "one fp32 row"),
        (lambda vectors: vectors[:1], "one fp32 row"),
        (lambda vectors: np.roll(vectors, 1, axis=0), "alone and in company give different vectors"),
    ],
)
def test_an_encoder_that_breaks_the_contract_is_told_how(wrong: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    check_encoder(Wrong(lambda vectors: vectors), list(TABLE))
    with pytest.raises(AssertionError, match=message):
        check_encoder(Wrong(wrong), list(TABLE))


@dataclass
class Answers:
    """A Searcher that gives `hits`, as a function of the query and of how many are asked together."""

    hits: Callable[[Query, int], list[ScoredDocument]]
    fingerprint: str = "answers"

    def search(self, queries: Sequence[Query], k: int) -> Iterator[list[ScoredDocument]]:
        for query in queries:
            yield self.hits(query, len(queries))[:k]


def hit(query: Query, id_: str, score: float) -> ScoredDocument:
    return ScoredDocument(query.id, id_, score)


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        (lambda q, n: [hit(q, "b", 1.0), hit(q, "a", 1.0)], "not ordered by score, then document id"),
        (lambda q, n: [hit(q, "a", 0.5), hit(q, "b", 1.0)], "not ordered by score, then document id"),
        (lambda q, n: [hit(q, "a", 1.0), hit(q, "a", 0.5)], "occurs twice"),
        (lambda q, n: [hit(QUERIES[0], "a", 1.0)], "got another query's documents"),
        (lambda q, n: [hit(q, "a" if n > 1 else "b", 1.0)], "other documents than in company"),
    ],
)
def test_a_searcher_that_breaks_the_contract_is_told_how(hits: Callable[[Query, int], list[ScoredDocument]], message: str) -> None:
    check_searcher(Answers(lambda q, n: [hit(q, "a", 1.0), hit(q, "b", 1.0)]), QUERIES, 2)
    with pytest.raises(AssertionError, match=message):
        check_searcher(Answers(hits), QUERIES, 2)


@dataclass
class Proposes:
    """A NegativeSource that gives the candidates of `own`, changed by `wrong` at the n-th call."""

    wrong: Callable[[list[list[Candidate]], int], list[list[Candidate]]]
    name: str = "mine"
    calls: int = 0

    def propose(self, requests: Sequence[NegativeRequest], per_query: int) -> Iterator[list[Candidate]]:
        self.calls += 1
        own = [[Candidate(r.query.id, Document("d", "text"), (Origin("mine", "m", rank=1),))] for r in requests]
        yield from self.wrong(own, self.calls)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda own, n: own[:1], "one answer for each request"),
        (lambda own, n: own if n == 1 else [[], []], "asked twice"),
        (lambda own, n: own[::-1], "carries the id"),
        (lambda own, n: [[replace(c, origins=(Origin("other", "m"),)) for c in some] for some in own], "no origin of that name"),
    ],
)
def test_a_source_that_breaks_the_contract_is_told_how(
    wrong: Callable[[list[list[Candidate]], int], list[list[Candidate]]], message: str
) -> None:
    requests = [NegativeRequest(query, ()) for query in QUERIES]
    check_source(Proposes(lambda own, n: own), requests, 1)
    with pytest.raises(AssertionError, match=message):
        check_source(Proposes(wrong), requests, 1)


@dataclass
class Rule:
    """A Filter that gives what `verdicts` makes of the candidates."""

    verdicts: Callable[[list[Candidate]], list[Verdict]]
    name: str = "rule"

    def judge(self, query: Query, positives: list[Positive], candidates: list[Candidate]) -> list[Verdict]:
        return self.verdicts(candidates)


def sorting(candidates: list[Candidate]) -> list[Verdict]:
    """Verdicts of a filter that sorts what it was given in place."""
    candidates.sort(key=lambda candidate: candidate.document.id)
    return [Verdict(True, "rule") for _ in candidates]


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        (lambda candidates: [Verdict(True, "rule")], "expected one verdict for each candidate"),
        (lambda candidates: [Verdict(True, "other") for _ in candidates], "does not carry the rule's name"),
        (lambda candidates: [Verdict(True, "rule") for _ in range(max(1, len(candidates)))], "no verdicts for no candidates"),
        (sorting, "the filter changed its inputs"),
    ],
)
def test_a_filter_that_breaks_the_contract_is_told_how(verdicts: Callable[[list[Candidate]], list[Verdict]], message: str) -> None:
    candidates = [Candidate("q", Document(id_, id_), (Origin("mine", "m"),)) for id_ in ("b", "a")]
    check_filter(Rule(lambda some: [Verdict(True, "rule") for _ in some]), QUERIES[0], [], list(candidates))
    with pytest.raises(AssertionError, match=message):
        check_filter(Rule(verdicts), QUERIES[0], [], list(candidates))


def test_the_doubles_fit_the_seams() -> None:
    assert isinstance(TableEncoder(TABLE), Encoder) and not isinstance(TableEncoder(TABLE), CrossScorer)
    assert isinstance(ScriptedLanguageModel([]), LanguageModel)
    assert isinstance(Answers(lambda q, n: []), Searcher) and isinstance(Proposes(lambda own, n: own), NegativeSource)
    assert isinstance(Rule(lambda some: []), Filter)


def test_a_table_knows_its_texts_alone_and_its_name_depends_on_its_vectors() -> None:
    with pytest.raises(KeyError):
        TableEncoder(TABLE).encode_queries(["south"])
    assert TableEncoder(TABLE).fingerprint == TableEncoder(dict(reversed(TABLE.items()))).fingerprint
    assert TableEncoder(TABLE).fingerprint != TableEncoder(TABLE | {"north": (0.1, 2.0)}).fingerprint


def test_a_scripted_model_starts_again_after_its_last_text() -> None:
    model = ScriptedLanguageModel(["one", "two"])
    requests = [Request(str(n), (Message("user", "a b"),)) for n in range(3)]
    assert [(reply.request_id, reply.text) for reply in model.complete(requests)] == [("0", "one"), ("1", "two"), ("2", "one")]
    assert model.asked == requests
