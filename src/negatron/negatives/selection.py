"""Which of the candidates that no filter rejects become negatives: five ways to choose, and what happens when there are too few.

Each way is a function that puts the rows of a query's open candidates in an order, the chosen ones first, and one row of `WAYS`:

    top        the best of each source in turn
    hardest    the highest teacher scores
    random     any
    simans     by chance, the likelier the closer the teacher score is to the positive's
    quantiles  one from each of as many equal slices of the teacher's order, so that easy and hard ones are there

Whatever is drawn comes from the query's own random stream and from candidates in the order of their ids, so neither workers nor the
order of queries, files or candidates change it. What is left out stays on file with the verdict "selection".

Candidates that only the source of `when_short = fill:SOURCE` found are a reserve: they stand behind all others, are used for what is
missing only, and get a verdict "reserve" that says so. An unused reserve is no spare negative: no later choice or mixture takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from negatron.negatives.bounds import teacher_score
from negatron.negatives.filters import MinedFilterSettings, reference_score
from negatron.types import Judged, JudgedQuery, Positive, Verdict

SELECTION, RESERVE = "selection", "reserve"
DROPPED = "the query has too few and is dropped"
FILL = "fill:"

Choice = Literal["top", "hardest", "random", "simans", "quantiles"]
BY_SCORE = frozenset({"hardest", "simans", "quantiles"})
"""Ways that look at teacher scores."""
BY_CHANCE = frozenset({"random", "simans", "quantiles"})


class SelectionSettings(MinedFilterSettings):
    """Which candidates become negatives: the filters, and the choice among what they leave."""

    negatives: int = Field(default=5, ge=1)
    """Negatives kept per query; other candidates stay on file."""
    choice: Choice = "top"
    """Which of the candidates no filter rejects: the best of each source in turn (top), the highest teacher scores (hardest), any
    (random), those that score like a positive (simans), or some from each slice of the scores (quantiles)."""
    among: int | None = Field(default=None, ge=1)
    """Draw among this many of the best only, in the order of `top` (NV-Retriever's best sampler: 4 negatives among 10); "off" = all."""
    simans_a: float = Field(default=0.5, ge=0)
    """How sharply `simans` prefers scores near the positive's: p ~ exp(-a z^2), z in standard deviations of the query's candidates."""
    simans_b: float = 0.0
    """Where `simans` looks, in the same unit: above the positive's score when positive, below it when negative."""
    when_short: str = "keep"
    """What happens to a query with too few: keep (it gets fewer), drop (it gets none), or fill:SOURCE (from a source asked for this alone,
    such as fill:random); counted in the report."""

    @field_validator("when_short")
    @classmethod
    def a_known_way(cls, value: str) -> str:
        """Refuses anything but keep, drop and fill:SOURCE."""
        if value not in ("keep", "drop") and not (value.startswith(FILL) and len(value) > len(FILL)):
            raise ValueError(f"{value!r}: expected keep, drop or fill:SOURCE, such as fill:random")
        return value

    @model_validator(mode="after")
    def something_is_left_to_chance(self) -> Self:
        """Refuses a draw of all that it may draw among."""
        if self.among is not None and self.among <= self.negatives:
            raise ValueError(f"among = {self.among} leaves nothing to choose for negatives = {self.negatives}; take more")
        return self

    def without_effect(self) -> dict[str, str]:
        """As in FilterSettings."""
        found = super().without_effect()
        if self.choice != "simans":
            found |= dict.fromkeys(("simans_a", "simans_b"), f"choice = {self.choice!r}")
        if self.choice not in BY_CHANCE:
            found["among"] = f"choice = {self.choice!r} takes the best anyway"
        return found

    @property
    def uses_reference(self) -> bool:
        """True when something is measured from a positive's score."""
        return super().uses_reference or self.choice == "simans"

    @property
    def needs_teacher(self) -> bool:
        """True when a rule or the choice compares teacher scores."""
        return super().needs_teacher or self.choice in BY_SCORE

    @property
    def reserve(self) -> str | None:
        """The source that fills up what is missing."""
        return self.when_short.removeprefix(FILL) if self.when_short.startswith(FILL) else None


@dataclass(frozen=True, slots=True)
class Pool:
    """What a way of choosing sees of a query: its positives and everything judged; `open` are the rows to put in order, by id."""

    positives: tuple[Positive, ...]
    judged: Sequence[Judged]
    open: tuple[int, ...]

    def score(self, row: int) -> float:
        """The candidate's teacher score. Raises SettingError when it has none."""
        return teacher_score(self.judged[row].candidate, SELECTION)

    def by_score(self) -> list[int]:
        """Open rows, highest teacher score first, ties by id."""
        return sorted(self.open, key=lambda row: (-self.score(row), self.judged[row].candidate.document.id))


def interleaved(judged: Sequence[Judged], open_rows: Sequence[int] | None = None) -> list[int]:
    """Rows of the candidates no filter rejects, taken in turn from each source (sources in the order of their names), best first.

    A candidate of several sources counts for whichever comes first to it.
    """
    rows = [row for row, item in enumerate(judged) if item.spare] if open_rows is None else list(open_rows)
    queues: dict[str, list[tuple[int, str, int]]] = {}
    for row in rows:
        candidate = judged[row].candidate
        for origin in {origin.source: origin for origin in reversed(candidate.origins)}.values():
            queues.setdefault(origin.source, []).append((origin.rank or 0, candidate.document.id, row))
    waiting = [iter(sorted(queues[name])) for name in sorted(queues)]
    taken: dict[int, None] = {}
    while waiting:
        still = []
        for queue in waiting:
            found = next((row for _, _, row in queue if row not in taken), None)
            if found is not None:
                taken[found] = None
                still.append(queue)
        waiting = still
    return list(taken)


def top(pool: Pool, settings: SelectionSettings, stream: Random) -> list[int]:
    """The best of each source in turn."""
    return interleaved(pool.judged, pool.open)


def hardest(pool: Pool, settings: SelectionSettings, stream: Random) -> list[int]:
    """The highest teacher scores first: with a margin, positive-aware top-k mining (NV-Retriever, arXiv 2407.15831)."""
    return pool.by_score()


def at_random(pool: Pool, settings: SelectionSettings, stream: Random) -> list[int]:
    """Any, each as likely."""
    order = list(pool.open)
    stream.shuffle(order)
    return order


def simans(pool: Pool, settings: SelectionSettings, stream: Random) -> list[int]:
    """Without replacement, p_i ~ exp(-a z_i^2), z_i = (s_i - s+) / sigma - b (SimANS, arXiv 2210.11773, equation 5).

    s+ is the score of the positive that `margin_against` names. The paper's scores are inner products that differ by whole units, with
    a = 0.5 and b = 0; cosines differ by tenths, where a = 0.5 would be a uniform draw. So scores are measured in sigma, the standard
    deviation of the query's candidates that no filter rejects, and a means the same for any teacher. The authors' code adds b, their paper
    subtracts it, as here. The weighted draw is a sort by log weight plus Gumbel noise.
    """
    reference = reference_score(pool.positives, settings.margin_against, SELECTION)
    scores = [pool.score(row) for row in pool.open]
    unit = spread(scores) or 1.0
    weights = [-settings.simans_a * ((score - reference) / unit - settings.simans_b) ** 2 for score in scores]
    noise = [-math.log(-math.log(stream.random() or 1e-300)) for _ in scores]
    keys = {row: weight + own for row, weight, own in zip(pool.open, weights, noise, strict=True)}
    return sorted(pool.open, key=lambda row: (-keys[row], pool.judged[row].candidate.document.id))


def spread(scores: Sequence[float]) -> float:
    """The standard deviation of all the scores; 0 for fewer than two.

    >>> spread([1.0, 3.0])
    1.0
    """
    if len(scores) < 2:
        return 0.0
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))


def quantiles(pool: Pool, settings: SelectionSettings, stream: Random) -> list[int]:
    """The teacher's order cut into `negatives` equal slices, one drawn from each, the hardest slice first; then the rest."""
    order, count = pool.by_score(), settings.negatives
    if len(order) <= count:
        return order
    edges = [len(order) * n // count for n in range(count + 1)]
    drawn = dict.fromkeys(order[stream.randrange(start, end)] for start, end in pairwise(edges))
    return [*drawn, *(row for row in order if row not in drawn)]


WAYS: Mapping[str, Callable[[Pool, SelectionSettings, Random], list[int]]] = {
    "top": top,
    "hardest": hardest,
    "random": at_random,
    "simans": simans,
    "quantiles": quantiles,
}
"""Every choice by its name."""


def choose(item: JudgedQuery, settings: SelectionSettings, stream: Random) -> JudgedQuery:
    """Keeps `negatives` of the candidates that no filter rejects, as `choice` says; `when_short` says what if there are fewer.

    Every such candidate gets a verdict "selection" with its place and the limit. Earlier choices are dropped; rejections stay.
    Raises SettingError when a score is needed and missing.
    """
    judged = [Judged(j.candidate, tuple(v for v in j.verdicts if v.rule not in (SELECTION, RESERVE))) for j in item.judged]
    spare = sorted((row for row, one in enumerate(judged) if one.spare), key=lambda row: judged[row].candidate.document.id)
    reserve = [row for row in spare if set(judged[row].candidate.sources) == {settings.reserve}]
    proper = tuple(row for row in spare if set(judged[row].candidate.sources) != {settings.reserve})
    order = in_order(Pool(item.positives, judged, proper), settings, stream)
    missing = max(0, settings.negatives - len(order))
    for place, row in enumerate(interleaved(judged, reserve), 1):
        judged[row] = with_verdict(judged[row], Verdict(place <= missing, RESERVE, float(place), float(missing)))
        if place <= missing:
            order.append(row)
    dropped = settings.when_short == "drop" and missing > 0
    for place, row in enumerate(order, 1):
        kept = place <= settings.negatives and not dropped
        verdict = Verdict(kept, SELECTION, float(place), float(settings.negatives), DROPPED if dropped else "")
        judged[row] = with_verdict(judged[row], verdict)
    return JudgedQuery(item.query, item.positives, tuple(judged))


def in_order(pool: Pool, settings: SelectionSettings, stream: Random) -> list[int]:
    """The open rows in the order of the choice; with `among`, those beyond the best so many come last, in the order of `top`."""
    if settings.among is None:
        return WAYS[settings.choice](pool, settings, stream)
    best = top(pool, settings, stream)
    first, rest = best[: settings.among], best[settings.among :]
    first = sorted(first, key=lambda row: pool.judged[row].candidate.document.id)
    return [*WAYS[settings.choice](replace(pool, open=tuple(first)), settings, stream), *rest]


def with_verdict(judged: Judged, verdict: Verdict) -> Judged:
    """The candidate with one verdict more."""
    return replace(judged, verdicts=(*judged.verdicts, verdict))


def select(item: JudgedQuery, count: int, how: Choice, stream: Random) -> JudgedQuery:
    """`choose` by number and way alone."""
    return choose(item, SelectionSettings(negatives=count, choice=how), stream)
