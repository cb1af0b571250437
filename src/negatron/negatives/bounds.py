"""Rules that keep a number between two bounds: the rank window, the score range, and the thresholds of a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from negatron.errors import SettingError
from negatron.types import Candidate, Positive, Query, Verdict

UNRANKED = frozenset({"random", "synthetic"})
"""Sources whose rank is the order of drawing or writing and says nothing of relevance."""
PSEUDO_POSITIVE = "pseudo-positive"
"""What the detail of a verdict says of a candidate that the teacher takes for a positive."""


def within(value: float, lowest: float | None, highest: float | None, rule: str, unit: str) -> Verdict:
    """Keeps lowest <= value <= highest; the limit in the verdict is the bound that is broken, else the nearest one there is.

    >>> within(3.0, 10, 50, "rank window", "rank")
    Verdict(kept=False, rule='rank window', measured=3.0, limit=10.0, detail='rank from 10 to 50')
    """
    too_low = lowest is not None and value < lowest
    too_high = highest is not None and value > highest
    bounds = [float(bound) for bound in (lowest, highest) if bound is not None]
    limit = bounds[0] if too_low else bounds[-1] if too_high else min(bounds, key=lambda bound: abs(bound - value))
    sides = [f"{word} {bound:g}" for word, bound in (("from", lowest), ("to", highest)) if bound is not None]
    return Verdict(not too_low and not too_high, rule, value, limit, " ".join((unit, *sides)))


@dataclass(frozen=True, slots=True)
class RankWindow:
    """Keeps candidates whose best rank in the list of any source lies in first..last, both included and either left open.

    The rank is the retrieval's: known positives and what other filters reject count. A candidate that one source has at the top is
    suspect however low another one has it, so its best rank decides. "Shifted by N" of NV-Retriever (arXiv 2407.15831, best N = 10) is
    first = N + 1. What only a source without ranks found (random, written) is kept.
    """

    first: int | None
    last: int | None
    name: str = "rank window"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By the ranks of the origins."""
        return [self._verdict(candidate) for candidate in candidates]

    def _verdict(self, candidate: Candidate) -> Verdict:
        ranks = [origin.rank for origin in candidate.origins if origin.rank is not None and origin.source not in UNRANKED]
        return within(float(min(ranks)), self.first, self.last, self.name, "rank") if ranks else Verdict(True, self.name)


def teacher_score(candidate: Candidate, rule: str) -> float:
    """The candidate's teacher score. Raises SettingError when it has none."""
    if candidate.teacher_score is None:
        raise SettingError(
            f"the filter {rule!r} needs teacher scores, and candidate {candidate.document.id} of query {candidate.query_id} has none; "
            "mine with a teacher (--model or --cross-encoder), or turn the filter off"
        )
    return candidate.teacher_score


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """Keeps lowest <= s(q, d-) <= highest, either left open: TopK-Abs of NV-Retriever (arXiv 2407.15831) is highest = 0.7.

    The numbers mean something under one teacher only: unrelated texts have a cosine of about 0.05 in MiniLM and 0.75 in E5.
    """

    lowest: float | None
    highest: float | None
    name: str = "score range"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By teacher scores. Raises SettingError when one is missing."""
        scores = [teacher_score(candidate, self.name) for candidate in candidates]
        return [within(score, self.lowest, self.highest, self.name, "score") for score in scores]


@dataclass(frozen=True, slots=True)
class TeacherThreshold:
    """Keeps what a cross-encoder is sure is irrelevant: probability < negative_below.

    RocketQA (arXiv 2010.08191) takes negatives below 0.1 and *adds* candidates above 0.9 to the positives; here the latter are only
    marked in the verdict and counted. Scores must be probabilities, which those of a bi-encoder are not.
    """

    negative_below: float
    positive_above: float
    name: str = "teacher threshold"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By teacher scores. Raises SettingError when one is missing."""
        scores = [teacher_score(candidate, self.name) for candidate in candidates]
        marks = [PSEUDO_POSITIVE if score > self.positive_above else "" for score in scores]
        return [
            Verdict(score < self.negative_below, self.name, score, self.negative_below, mark)
            for score, mark in zip(scores, marks, strict=True)
        ]
