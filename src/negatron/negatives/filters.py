"""Rules that keep false negatives out, each with the number it judged by. They read values only: scores are on the candidates.

A chain is a tuple of filters, asked in order; a candidate that one rejects is not shown to the next, so its last verdict says why it
went. Moving a limit is judging the stored candidates again: no model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median_low
from typing import Literal, Self

from pydantic import Field, model_validator

from negatron.errors import SettingError
from negatron.identity import same_words
from negatron.seams import Filter
from negatron.settings import Settings
from negatron.types import Candidate, Judged, JudgedQuery, Positive, Query, Verdict

WORDS_IN_SHINGLE, CHARACTERS_IN_SHINGLE = 3, 4
FEWEST_WORDS = 8
"""Texts of fewer words (short ones, Chinese ones) are compared by runs of characters."""


@lru_cache(maxsize=50_000)
def shingles(text: str) -> frozenset[str]:
    """The runs of three words of a text, or of four characters where it has fewer than eight words.

    >>> sorted(shingles("ls -la"))
    [' -la', 'ls -', 's -l']
    """
    folded = same_words(text)
    words = folded.split(" ")
    if len(words) < FEWEST_WORDS:
        return frozenset(folded[i : i + CHARACTERS_IN_SHINGLE] for i in range(max(1, len(folded) - CHARACTERS_IN_SHINGLE + 1)))
    return frozenset(" ".join(words[i : i + WORDS_IN_SHINGLE]) for i in range(len(words) - WORDS_IN_SHINGLE + 1))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard overlap of two sets, 0..1."""
    if not a or not b:
        return 0.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


@dataclass(frozen=True, slots=True)
class KnownPositive:
    """Rejects every document that is judged relevant to the query, whichever positive the example is made of."""

    name: str = "known positive"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By document id."""
        known = {positive.document.id for positive in positives}
        return [Verdict(candidate.document.id not in known, self.name) for candidate in candidates]


@dataclass(frozen=True, slots=True)
class SameText:
    """Rejects copies: of a positive, of the query, or of an earlier candidate, up to case and white space."""

    name: str = "same text"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By the text, with or without its title."""
        seen = {same_words(query.text): "the query"}
        for positive in positives:
            seen |= dict.fromkeys(
                (same_words(positive.document.content), same_words(positive.document.text)), f"positive {positive.document.id}"
            )
        verdicts = []
        for candidate in candidates:
            content = same_words(candidate.document.content)
            copied = seen.get(content) or seen.get(same_words(candidate.document.text))
            verdicts.append(Verdict(copied is None, self.name, detail=f"copy of {copied}" if copied else ""))
            seen.setdefault(content, candidate.document.id)
        return verdicts


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Rejects near copies of a positive or of an earlier candidate: measured = largest Jaccard overlap of shingles, 0..1."""

    limit: float
    name: str = "near copy"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """Candidates are compared with the positives and with the candidates before them that this rule keeps."""
        seen = [(positive.document.id, shingles(positive.document.content)) for positive in positives]
        verdicts = []
        for candidate in candidates:
            own = shingles(candidate.document.content)
            measured, copied = max(((self._overlap(own, other), name) for name, other in seen), default=(0.0, ""))
            kept = measured < self.limit
            verdicts.append(Verdict(kept, self.name, measured, self.limit, "" if kept else f"near copy of {copied}"))
            if kept:
                seen.append((candidate.document.id, own))
        return verdicts

    def _overlap(self, a: frozenset[str], b: frozenset[str]) -> float:
        """The overlap, or 0 at once where the sizes alone forbid that it reaches the limit."""
        small, large = sorted((len(a), len(b)))
        return overlap(a, b) if small >= self.limit * large else 0.0


AGAINST: Mapping[str, Callable[[list[float]], float]] = {"lowest": min, "median": median_low, "highest": max}
"""Which of a query's positives a margin is measured from."""


def reference_score(positives: Sequence[Positive], against: str, rule: str) -> float:
    """The teacher score of the positive that a margin is measured from. Raises SettingError when a positive has none."""
    scores = [positive.teacher_score for positive in positives if positive.teacher_score is not None]
    if len(scores) < len(positives) or not scores:
        raise SettingError(
            f"the filter {rule!r} needs teacher scores, and a positive has none; mine with a teacher (--model), or turn the filter off"
        )
    return AGAINST[against](scores)


def teacher_score(candidate: Candidate, rule: str) -> float:
    """The candidate's teacher score. Raises SettingError when it has none."""
    if candidate.teacher_score is None:
        raise SettingError(
            f"the filter {rule!r} needs teacher scores, and candidate {candidate.document.id} of query {candidate.query_id} has none; "
            "mine with a teacher (--model), or turn the filter off"
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


class FilterSettings(Settings):
    """Known positives and copies are always rejected; the rest is a choice."""

    near_copy: float | None = Field(default=0.9, gt=0, le=1)
    """Overlap of shingles, 0..1, from which a candidate counts as a near copy; "off" for none."""
    relative_margin: float | None = Field(default=0.05, ge=0, le=1)
    """Share of the positive's absolute teacher score by which a negative must stay below it; "off" for none."""
    absolute_margin: float | None = Field(default=None, ge=0)
    """Teacher score by which a negative must stay below the positive; "off" for none."""
    margin_against: Literal["lowest", "median", "highest"] = "median"
    """Which of a query's positives margins are measured from. "lowest" is the choice of sentence-transformers and NeMo; where queries have
    dozens of positives the weakest is so weak that it leaves no negatives (nfcorpus: docs/notebook.md)."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses to be told from which positive to measure a margin that is not asked for."""
        if "margin_against" in self.model_fields_set and not self.needs_teacher:
            raise ValueError(f"margin_against = {self.margin_against!r} has no effect here: both margins are off; leave it out")
        return self

    @property
    def needs_teacher(self) -> bool:
        """True when a rule compares teacher scores."""
        return self.relative_margin is not None or self.absolute_margin is not None


def chain(settings: FilterSettings) -> tuple[Filter, ...]:
    """The filters that the settings ask for, cheap ones first."""
    filters: list[Filter] = [KnownPositive(), SameText()]
    if settings.near_copy is not None:
        filters.append(NearCopy(settings.near_copy))
    if settings.relative_margin is not None:
        filters.append(RelativeMargin(settings.relative_margin, settings.margin_against))
    if settings.absolute_margin is not None:
        filters.append(AbsoluteMargin(settings.absolute_margin, settings.margin_against))
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
