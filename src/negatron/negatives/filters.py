"""Rules that keep false negatives out, each with the number it judged by. They read values only: scores are on the candidates.

A chain is a tuple of filters, asked in order; a candidate that one rejects is not shown to the next, so its last verdict says why it
went. Moving a limit is judging the stored candidates again: no model is asked. The rules that compare texts are in `copies`.

    known positive, same text, near copy          by ids and texts
    rank window                                   by the rank in the list of the source that found it
    absolute margin, relative margin              by the teacher's scores, against a positive of the query
    score range, teacher threshold                by the teacher's score alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal, Self

from pydantic import Field, model_validator

from negatron.errors import SettingError
from negatron.negatives.copies import NearCopy, SameText
from negatron.seams import Filter
from negatron.settings import Settings
from negatron.types import Candidate, Judged, JudgedQuery, Positive, Query, Verdict

UNRANKED = frozenset({"random", "synthetic"})
"""Sources whose rank is the order of drawing or writing and says nothing of relevance."""
PSEUDO_POSITIVE = "pseudo-positive"
"""What the detail of a verdict says of a candidate that the teacher takes for a positive."""


@dataclass(frozen=True, slots=True)
class KnownPositive:
    """Rejects every document that is judged relevant to the query, whichever positive the example is made of."""

    name: str = "known positive"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By document id."""
        known = {positive.document.id for positive in positives}
        return [Verdict(candidate.document.id not in known, self.name) for candidate in candidates]


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


AGAINST: Mapping[str, Callable[[list[float]], float]] = {"lowest": min, "median": median_low, "highest": max}
"""Which of a query's positives a margin is measured from."""


def reference_score(positives: Sequence[Positive], against: str, rule: str) -> float:
    """The teacher score of the positive that a margin is measured from. Raises SettingError when a positive has none."""
    scores = [positive.teacher_score for positive in positives if positive.teacher_score is not None]
    if len(scores) < len(positives) or not scores:
        raise SettingError(
            f"the filter {rule!r} needs teacher scores, and a positive has none; "
            "mine with a teacher (--model or --cross-encoder), or turn the filter off"
        )
    return AGAINST[against](scores)


def teacher_score(candidate: Candidate, rule: str) -> float:
    """The candidate's teacher score. Raises SettingError when it has none."""
    if candidate.teacher_score is None:
        raise SettingError(
            f"the filter {rule!r} needs teacher scores, and candidate {candidate.document.id} of query {candidate.query_id} has none; "
            "mine with a teacher (--model or --cross-encoder), or turn the filter off"
        )
    return candidate.teacher_score


@dataclass(frozen=True, slots=True)
class RelativeMargin:
    """Keeps s(q, d-) < s+ - margin * |s+|, s+ = the score of the positive that `against` names.

    TopK-PercPos of NV-Retriever (arXiv 2407.15831: best share 0.95 = margin 0.05), subtracted as a share of the *absolute* score:
    `s+ * (1 - margin)` would rise above the positive where scores are negative.
    """

    margin: float
    against: str = "lowest"
    name: str = "relative margin"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By teacher scores. Raises SettingError when one is missing."""
        reference = reference_score(positives, self.against, self.name)
        limit = reference - self.margin * abs(reference)
        scores = [teacher_score(candidate, self.name) for candidate in candidates]
        return [Verdict(score < limit, self.name, score, limit) for score in scores]


@dataclass(frozen=True, slots=True)
class AbsoluteMargin:
    """Keeps s(q, d-) < s+ - margin: TopK-MarginPos of NV-Retriever (arXiv 2407.15831; best margin 0.05)."""

    margin: float
    against: str = "lowest"
    name: str = "absolute margin"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By teacher scores. Raises SettingError when one is missing."""
        limit = reference_score(positives, self.against, self.name) - self.margin
        scores = [teacher_score(candidate, self.name) for candidate in candidates]
        return [Verdict(score < limit, self.name, score, limit) for score in scores]


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


class FilterSettings(Settings):
    """Known positives and copies are always rejected; the rest is a choice."""

    near_copy: float | None = Field(default=0.9, gt=0, le=1)
    """Overlap of shingles, 0..1, from which a candidate counts as a near copy; "off" for none."""
    relative_margin: float | None = Field(default=0.05, ge=0, le=1)
    """Share of the positive's absolute teacher score by which a negative must stay below it; "off" for none."""
    absolute_margin: float | None = Field(default=None, ge=0)
    """Teacher score by which a negative must stay below the positive; "off" for none."""
    margin_against: Literal["lowest", "median", "highest"] = "median"
    """Which of a query's positives margins (and `simans`) are measured from. "lowest" is the choice of sentence-transformers and NeMo;
    where queries have dozens of positives the weakest is so weak that it leaves no negatives (nfcorpus: docs/notebook.md)."""
    min_score: float | None = None
    """Lowest teacher score of a negative; "off" for none."""
    max_score: float | None = None
    """Highest teacher score of a negative; "off" for none."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses ranges that are empty, and what was given though nothing would read it."""
        refuse_empty_range(self.min_score, self.max_score, "min_score", "max_score")
        for name, reason in self.without_effect().items():
            if name in self.model_fields_set:
                raise ValueError(f"{name} = {getattr(self, name)!r} has no effect here: {reason}; leave it out")
        return self

    def without_effect(self) -> dict[str, str]:
        """name -> why, of the settings that nothing reads as the others stand."""
        return {} if self.uses_reference else {"margin_against": "both margins are off"}

    @property
    def uses_reference(self) -> bool:
        """True when something is measured from a positive's score."""
        return self.relative_margin is not None or self.absolute_margin is not None

    @property
    def needs_teacher(self) -> bool:
        """True when a rule compares teacher scores."""
        return self.uses_reference or self.min_score is not None or self.max_score is not None


class MinedFilterSettings(FilterSettings):
    """With the rules that only make sense for what a search found."""

    rank_from: int | None = Field(default=None, ge=1)
    """Rank: negatives start at it, in the list of whichever source ranks them best; known positives count. "off" for 1."""
    rank_to: int | None = Field(default=None, ge=1)
    """Rank: negatives end at it, likewise; "off" for the depth of the search."""
    negative_below: float | None = Field(default=None, gt=0, le=1)
    """Probability, by a cross-encoder as the teacher, that a negative must stay below (RocketQA: 0.1); "off" for none."""
    positive_above: float = Field(default=0.9, ge=0, le=1)
    """Probability from which a candidate is marked and counted as a pseudo-positive; with `negative_below` only."""

    @model_validator(mode="after")
    def ranges_hold_something(self) -> Self:
        """Refuses ranges that are empty."""
        refuse_empty_range(self.rank_from, self.rank_to, "rank_from", "rank_to")
        if self.negative_below is not None and self.positive_above < self.negative_below:
            raise ValueError(f"positive_above = {self.positive_above} lies below negative_below = {self.negative_below}")
        return self

    def without_effect(self) -> dict[str, str]:
        """As in FilterSettings."""
        more = {"positive_above": "negative_below is off"} if self.negative_below is None else {}
        return super().without_effect() | more

    @property
    def needs_teacher(self) -> bool:
        """True when something compares teacher scores."""
        return super().needs_teacher or self.negative_below is not None


def refuse_empty_range(lowest: float | None, highest: float | None, low_name: str, high_name: str) -> None:
    """Raises ValueError where no value lies between two bounds."""
    if lowest is not None and highest is not None and lowest > highest:
        raise ValueError(f"{low_name} = {lowest} lies above {high_name} = {highest}: nothing is between them")


def chain(settings: FilterSettings) -> tuple[Filter, ...]:
    """The filters that the settings ask for, cheap ones first."""
    filters: list[Filter] = [KnownPositive(), SameText()]
    if settings.near_copy is not None:
        filters.append(NearCopy(settings.near_copy))
    if isinstance(settings, MinedFilterSettings) and (settings.rank_from, settings.rank_to) != (None, None):
        filters.append(RankWindow(settings.rank_from, settings.rank_to))
    if settings.relative_margin is not None:
        filters.append(RelativeMargin(settings.relative_margin, settings.margin_against))
    if settings.absolute_margin is not None:
        filters.append(AbsoluteMargin(settings.absolute_margin, settings.margin_against))
    if (settings.min_score, settings.max_score) != (None, None):
        filters.append(ScoreRange(settings.min_score, settings.max_score))
    if isinstance(settings, MinedFilterSettings) and settings.negative_below is not None:
        filters.append(TeacherThreshold(settings.negative_below, settings.positive_above))
    return tuple(filters)


def judge(filters: Sequence[Filter], query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> tuple[Judged, ...]:
    """Every candidate with its verdicts, in the order given; a rejected one is not shown to later filters."""
    verdicts: list[list[Verdict]] = [[] for _ in candidates]
    open_rows = list(range(len(candidates)))
    for rule in filters:
        made = rule.judge(query, positives, [candidates[row] for row in open_rows])
        for row, verdict in zip(open_rows, made, strict=True):
            verdicts[row].append(verdict)
        open_rows = [row for row, verdict in zip(open_rows, made, strict=True) if verdict.kept]
    return tuple(Judged(candidate, tuple(own)) for candidate, own in zip(candidates, verdicts, strict=True))


def judge_again(items: Iterable[JudgedQuery], filters: Sequence[Filter]) -> Iterable[JudgedQuery]:
    """Stored queries judged anew from their stored scores; earlier verdicts are dropped."""
    for item in items:
        yield JudgedQuery(item.query, item.positives, judge(filters, item.query, item.positives, [j.candidate for j in item.judged]))
