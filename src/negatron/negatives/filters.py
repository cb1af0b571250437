"""Rules that keep false negatives out, each with the number it judged by. They read values only: scores are on the candidates.

A chain is a tuple of filters, asked in order; a candidate that one rejects is not shown to the next, so its last verdict says why it
went. Moving a limit is judging the stored candidates again: no model is asked.

    known positive, same text, near copy          by ids and texts (the last two in `copies`)
    absolute margin, relative margin              by the teacher's scores, against a positive of the query
    rank window, score range, teacher threshold   by one number between two (in `bounds`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median_low
from typing import Literal, Self

from pydantic import Field, model_validator

from negatron.errors import SettingError
from negatron.negatives.bounds import RankWindow, ScoreRange, TeacherThreshold, teacher_score
from negatron.negatives.copies import NearCopy, SameText
from negatron.seams import Filter
from negatron.settings import Settings
from negatron.types import Candidate, Judged, JudgedQuery, Positive, Query, Verdict


@dataclass(frozen=True, slots=True)
class KnownPositive:
    """Rejects every document that is judged relevant to the query, whichever positive the example is made of."""

    name: str = "known positive"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By document id."""
        known = {positive.document.id for positive in positives}
        return [Verdict(candidate.document.id not in known, self.name) for candidate in candidates]


BY_TEXT = (KnownPositive, SameText, NearCopy)
"""Rules that decide by ids and texts alone."""
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


def judge(
    filters: Sequence[Filter],
    query: Query,
    positives: Sequence[Positive],
    candidates: Sequence[Candidate],
    so_far: Sequence[Sequence[Verdict]] | None = None,
) -> tuple[Judged, ...]:
    """Every candidate with its verdicts, in the order given; a rejected one is not shown to later filters.

    `so_far`: the verdicts that each has already; those of the filters are put behind them.
    """
    verdicts: list[list[Verdict]] = [[] for _ in candidates] if so_far is None else [list(own) for own in so_far]
    open_rows = [row for row, own in enumerate(verdicts) if all(verdict.kept for verdict in own)]
    for rule in filters:
        made = rule.judge(query, positives, [candidates[row] for row in open_rows])
        for row, verdict in zip(open_rows, made, strict=True):
            verdicts[row].append(verdict)
        open_rows = [row for row, verdict in zip(open_rows, made, strict=True) if verdict.kept]
    return tuple(Judged(candidate, tuple(own)) for candidate, own in zip(candidates, verdicts, strict=True))


def judge_again(items: Iterable[JudgedQuery], filters: Sequence[Filter], *, trust_texts: bool = False) -> Iterable[JudgedQuery]:
    """Stored queries judged anew from their stored scores; earlier verdicts are dropped.

    `trust_texts`: what the leading rules that compare ids and texts decided stays where it was decided under the same limits, since texts
    do not change; it is most of the work. Not for a mixture: its parts were never compared with each other.
    """
    leading = list(takewhile(lambda rule: isinstance(rule, BY_TEXT), filters)) if trust_texts else []
    for item in items:
        stored = [verdicts_of(leading, judged.verdicts) for judged in item.judged]
        so_far = [own for own in stored if own is not None]
        known = len(so_far) == len(stored)
        rules = filters[len(leading) :] if known else filters
        candidates = [judged.candidate for judged in item.judged]
        yield JudgedQuery(item.query, item.positives, judge(rules, item.query, item.positives, candidates, so_far if known else None))


def verdicts_of(rules: Sequence[Filter], verdicts: Sequence[Verdict]) -> list[Verdict] | None:
    """A candidate's stored verdicts under these rules, up to the first rejection; None where it was judged otherwise.

    >>> stored = [Verdict(True, "same text"), Verdict(False, "near copy", 0.95, 0.9), Verdict(True, "mix")]
    >>> [verdict.rule for verdict in verdicts_of([SameText(), NearCopy(0.9)], stored)]
    ['same text', 'near copy']
    >>> verdicts_of([SameText(), NearCopy(0.8)], stored) is None
    True
    """
    found: list[Verdict] = []
    for number, rule in enumerate(rules):
        verdict = verdicts[number] if number < len(verdicts) else None
        if verdict is None or (verdict.rule, verdict.limit) != (rule.name, getattr(rule, "limit", None)):
            return None
        found.append(verdict)
        if not verdict.kept:
            break
    return found
