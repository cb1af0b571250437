"""Which negatives a query trains with: so many written ones to so many retrieved ones.

Three modes, after SyNeg (arXiv 2412.17250v1, section on mixing and Table 3):

- instance ("hybrid"): every query carries both kinds, in the ratio R = synthetic : retrieved;
- pool ("direct mixing"): a share R / (1 + R) of the queries carries only synthetic negatives, the others only retrieved ones;
- pure ("pure synthetic"): every query carries only synthetic ones.

How the paper defines R is not known; this is the natural reading, since it tests values above 1.

1. `together` reads several folders side by side and `merged` makes one record of a query that stands in several.
2. `quota` says how many of each kind; a fraction is decided by the query's own random stream, so that R holds in expectation.
3. `choose` takes the best first, in turn from each source of a kind.
4. `mix` writes the choice down as a verdict "mix" on every candidate that no filter rejects: nothing leaves the file.

What stays true: a query's choice depends on its own record, the settings and the seed alone: not on other queries, on the order of queries,
candidates or folders, nor on the number of workers. What it does not know: files, and where candidates come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from negatron.errors import NegatronError
from negatron.identity import same_words, stream
from negatron.settings import Settings
from negatron.types import CHOICES, Candidate, Judged, JudgedQuery, Positive, Verdict

RULE = "mix"
SYNTHETIC, RETRIEVED = "synthetic", "retrieved"
KINDS = (SYNTHETIC, RETRIEVED)
Mode = Literal["instance", "pool", "pure"]


class MixSettings(Settings):
    """How many negatives of which kind a query gets."""

    mode: Mode = "instance"
    """instance: both kinds in every query; pool: some queries synthetic, the others retrieved; pure: synthetic only."""
    ratio: float = Field(default=0.7, ge=0.0, allow_inf_nan=False)  # SyNeg's best, read off its chart of R
    """R, synthetic to retrieved negatives: 0.7 is seven to ten; 0 none synthetic; above 1 more synthetic than retrieved."""
    negatives: int = Field(default=5, ge=1)
    """Negatives per query, of both kinds together."""
    when_short: Literal["fill", "keep"] = "fill"
    """Where a query has too few of a kind: fill up with the other kind, or keep fewer. Only instance mode can fill."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses what the mode cannot honour."""
        if self.mode == "pure" and "ratio" in self.model_fields_set:
            raise ValueError(
                f"ratio = {self.ratio:g} has no effect in pure mode, which takes synthetic negatives only; leave one of them out"
            )
        if self.mode != "instance" and "when_short" in self.model_fields_set and self.when_short == "fill":
            raise ValueError(f"when_short = 'fill' would put the other kind into a query, which {self.mode} mode excludes; use 'keep'")
        return self

    @property
    def fills(self) -> bool:
        """Whether the other kind may fill a gap."""
        return self.mode == "instance" and self.when_short == "fill"

    @property
    def synthetic_share(self) -> float:
        """Of all negatives, 0..1: R / (1 + R)."""
        return 1.0 if self.mode == "pure" else self.ratio / (1.0 + self.ratio)


@dataclass
class MixReport:
    """What a mixture came to. `wanted_ratio` is None where only synthetic negatives are asked for."""

    wanted_ratio: float | None = None
    queries: int = 0
    chosen: Counter[str] = field(default_factory=Counter)
    """Kind -> negatives."""
    sources: Counter[str] = field(default_factory=Counter)
    """Source -> negatives; one that two sources found counts for both."""
    short: Counter[str] = field(default_factory=Counter)
    """Kind -> negatives that the quotas asked for and the queries did not have."""
    queries_short: int = 0
    """Queries with fewer negatives than asked for, of both kinds together."""
    queries_without: int = 0
    """Queries with no negative at all."""

    @property
    def ratio(self) -> float | None:
        """The R that came out, None without retrieved negatives."""
        return self.chosen[SYNTHETIC] / self.chosen[RETRIEVED] if self.chosen[RETRIEVED] else None

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a manifest or `--json`."""
        values = {name: dict(sorted(value.items())) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        return {**values, "ratio": self.ratio}

    def __str__(self) -> str:
        def shown(ratio: float | None) -> str:
            return "synthetic only" if ratio is None else f"{ratio:.3f}"

        lines = [
            f"{self.chosen[SYNTHETIC]:,} synthetic and {self.chosen[RETRIEVED]:,} retrieved negatives for {self.queries:,} queries",
            f"ratio synthetic : retrieved {shown(self.ratio)}, wanted {shown(self.wanted_ratio)}",
            "by source: " + (", ".join(f"{count:,} {source}" for source, count in sorted(self.sources.items())) or "none"),
        ]
        if missing := ", ".join(f"{self.short[kind]:,} {kind}" for kind in KINDS if self.short[kind]):
            lines.append(f"not there: {missing}; {self.queries_short:,} queries have fewer than asked for, {self.queries_without:,} none")
        return "\n".join(lines)


def kind_of(candidate: Candidate) -> str:
    """The kind "synthetic" when a language model wrote it, even if a search found the same text too; else "retrieved"."""
    written = any(source == SYNTHETIC or source.startswith(SYNTHETIC + ":") for source in candidate.sources)
    return SYNTHETIC if written else RETRIEVED


def quota(negatives: int, ratio: float, stream: Random) -> tuple[int, int]:
    """(synthetic, retrieved), `negatives` in all, with E[synthetic] = negatives * R / (1 + R): the fraction is decided by the stream.

    >>> quota(6, 0.5, Random(0)), quota(4, 0.0, Random(0))
    ((2, 4), (0, 4))
    """
    exact = negatives * ratio / (1.0 + ratio)
    whole = int(exact + 1e-9)  # 6 * 0.5 / 1.5 may come out a hair below 2
    synthetic = min(negatives, whole + (stream.random() < exact - whole))
    return synthetic, negatives - synthetic


def quota_of_query(query_id: str, settings: MixSettings, seed: int) -> dict[str, int]:
    """Kind -> number of negatives of this query, by the mode; the draw is the query's own."""
    draws = stream(seed, RULE, "quota", query_id)
    count = settings.negatives
    if settings.mode == "instance":
        synthetic, retrieved = quota(count, settings.ratio, draws)
        return {SYNTHETIC: synthetic, RETRIEVED: retrieved}
    synthetic_query = draws.random() < settings.synthetic_share
    return {SYNTHETIC: count if synthetic_query else 0, RETRIEVED: 0 if synthetic_query else count}


def choose(judged: Sequence[Judged], quota: Mapping[str, int], stream: Random, *, fill: bool = False) -> dict[str, tuple[int, ...]]:
    """Kind -> the rows of `judged` chosen, best first, of those that no filter rejects; fewer where there are fewer.

    fill: what one kind lacks, the other gives, as far as it goes. The stream decides only which source of a kind comes first.
    """
    by_kind = {kind: [row for row, item in enumerate(judged) if item.spare and kind_of(item.candidate) == kind] for kind in KINDS}
    queues = {kind: in_turn(judged, by_kind[kind], stream) for kind in KINDS}  # both always drawn: a quota moves no other draw
    counts = {kind: min(quota.get(kind, 0), len(queues[kind])) for kind in KINDS}
    if fill:
        for kind, other in (KINDS, KINDS[::-1]):
            lacking = quota.get(other, 0) - counts[other]
            counts[kind] = min(len(queues[kind]), max(counts[kind], quota.get(kind, 0) + lacking))
    return {kind: tuple(queues[kind][: counts[kind]]) for kind in KINDS}


def in_turn(judged: Sequence[Judged], rows: Sequence[int], stream: Random) -> list[int]:
    """The rows, the first of each source, then the second of each, and so on; which source comes first is drawn.

    A candidate of several sources stands where it comes first. Ties of rank go by document id, so the order of `judged` does not matter.
    """
    sources = sorted({source for row in rows for source in judged[row].candidate.sources})
    stream.shuffle(sources)
    place: dict[int, tuple[int, int]] = {}
    for turn, source in enumerate(sources):
        own = sorted((rank_in(judged[row].candidate, source), judged[row].candidate.document.id, row) for row in rows
                     if source in judged[row].candidate.sources)  # fmt: skip
        for position, (_, _, row) in enumerate(own):
            place[row] = min(place.get(row, (position, turn)), (position, turn))
    return sorted(rows, key=lambda row: (place.get(row, (0, 0)), judged[row].candidate.document.id))


def rank_in(candidate: Candidate, source: str) -> int:
    """The candidate's best rank in a source's list; one without a rank counts as first."""
    return min(origin.rank or 1 for origin in candidate.origins if origin.source == source)


def mix(queries: Iterable[JudgedQuery], settings: MixSettings, seed: int, report: MixReport | None = None) -> Iterator[JudgedQuery]:
    """The queries with a verdict "mix" on each candidate that no filter rejects, in place of any earlier choice; counted in `report`.

    The verdict's `measured` is the candidate's place in its kind (1 is best; None when it was not reached), its `limit` the number chosen.
    """
    if report is not None:
        report.wanted_ratio = None if settings.mode == "pure" else settings.ratio
    for item in queries:
        judged = [without_choices(one) for one in item.judged]
        wanted = quota_of_query(item.query.id, settings, seed)
        chosen = choose(judged, wanted, stream(seed, RULE, "order", item.query.id), fill=settings.fills)
        if report is not None:
            count(report, judged, wanted, chosen)
        places = {row: place for rows in chosen.values() for place, row in enumerate(rows, 1)}
        decided = tuple(with_verdict(one, places.get(row), chosen) if one.spare else one for row, one in enumerate(judged))
        yield JudgedQuery(item.query, item.positives, decided)


def without_choices(judged: Judged) -> Judged:
    """The candidate with its filters' verdicts alone."""
    return Judged(judged.candidate, tuple(verdict for verdict in judged.verdicts if verdict.rule not in CHOICES))


def with_verdict(judged: Judged, place: int | None, chosen: Mapping[str, Sequence[int]]) -> Judged:
    """The candidate with the mixture's verdict added."""
    kind = kind_of(judged.candidate)
    verdict = Verdict(place is not None, RULE, None if place is None else float(place), float(len(chosen[kind])), kind)
    return replace(judged, verdicts=(*judged.verdicts, verdict))


def count(report: MixReport, judged: Sequence[Judged], wanted: Mapping[str, int], chosen: Mapping[str, Sequence[int]]) -> None:
    """Adds one query to the report."""
    total = sum(map(len, chosen.values()))
    report.queries += 1
    report.queries_short += total < sum(wanted.values())
    report.queries_without += total == 0
    for kind, rows in chosen.items():
        report.chosen[kind] += len(rows)
        report.short[kind] += max(0, wanted[kind] - len(rows))
        report.sources.update(source for row in rows for source in dict.fromkeys(judged[row].candidate.sources))


def merged(items: Sequence[JudgedQuery]) -> JudgedQuery:
    """One record of the same query from several folders.

    The same content found in several is one candidate with all origins and verdicts: rejected where any filter rejected it. A candidate
    that is a known positive in any of the folders is rejected. Raises NegatronError when the query's texts differ.
    """
    if len(items) == 1:
        return items[0]
    query = items[0].query
    if other := next((item.query for item in items if same_words(item.query.text) != same_words(query.text)), None):
        raise NegatronError(
            f"query {query.id} reads {query.text[:80]!r} in one folder and {other.text[:80]!r} in another; mix folders of one data set"
        )
    positives: dict[str, Positive] = {}
    for positive in (positive for item in items for positive in item.positives):
        known = positives.setdefault(same_words(positive.document.content), positive)
        if known.teacher_score is None and positive.teacher_score is not None:
            positives[same_words(positive.document.content)] = positive
    barred = {positive.document.id for item in items for positive in item.positives}
    candidates: dict[str, Judged] = {}
    for judged in (judged for item in items for judged in item.judged):
        key = same_words(judged.candidate.document.content)
        candidates[key] = joined(candidates[key], judged) if key in candidates else judged
    decided = tuple(
        barring(judged) if key in positives or judged.candidate.document.id in barred else judged for key, judged in candidates.items()
    )
    return JudgedQuery(query, tuple(positives.values()), decided)


def joined(one: Judged, other: Judged) -> Judged:
    """One candidate from two of the same content; nothing is taken over twice."""
    first, second = one.candidate, other.candidate
    score = second.teacher_score if first.teacher_score is None else first.teacher_score
    candidate = replace(first, origins=tuple(dict.fromkeys(first.origins + second.origins)), teacher_score=score)
    return Judged(candidate, tuple(dict.fromkeys(one.verdicts + other.verdicts)))


def barring(judged: Judged) -> Judged:
    """The candidate rejected as a known positive, unless some rule has rejected it already."""
    if not judged.spare:
        return judged
    return replace(judged, verdicts=(*judged.verdicts, Verdict(False, "known positive", detail="a positive in another folder")))


def together(*folders: Iterable[JudgedQuery]) -> Iterator[JudgedQuery]:
    """The queries of several folders, each once, in the order of the first folder that has it; merged where several have it.

    Folders in the same order are read side by side. Where orders differ, or the first lacks queries of another, memory holds what is
    waited for, at most the later folders. Raises NegatronError for a query that comes twice in one folder.
    """
    readers = [iter(folder) for folder in folders]
    waiting: list[dict[str, JudgedQuery]] = [{} for _ in folders]
    done: set[str] = set()

    def find(number: int, query_id: str) -> JudgedQuery | None:
        """The query in a folder, reading on until it comes."""
        if query_id in waiting[number]:
            return waiting[number].pop(query_id)
        for item in readers[number]:
            if item.query.id == query_id:
                return item
            if item.query.id in waiting[number]:
                raise NegatronError(f"query {item.query.id} comes twice in one negatives folder")
            waiting[number][item.query.id] = item
        return None

    for number in range(len(folders)):
        rest = list(waiting[number].values())
        waiting[number].clear()
        for item in (*rest, *readers[number]) if number else readers[number]:
            if item.query.id in done:
                raise NegatronError(f"query {item.query.id} comes twice in one negatives folder")
            done.add(item.query.id)
            others = (find(later, item.query.id) for later in range(number + 1, len(folders)))
            yield merged([item, *(other for other in others if other is not None)])
