"""Negatives that follow the model while it learns: which of them have become easy, and what comes in their place.

In: at every so many steps the examples of the coming steps, and a way to ask the model in training for cosines. Out: for any example,
the negatives it has now.

1. `RemineRule` says when a negative counts as stale, and `replacements` which ranks come in its place: pure functions of scores.
2. `Remine` is what a trainer calls: `renew` looks at the coming examples, `current` gives an example as it stands now.
3. `ConanReplacement` keeps for each query which of its ranked candidates it uses; `Rounds` mines anew with the model in training.

What stays true: `current` is a function of the example and the state alone, and the state is plain JSON, so a training that goes on from
a checkpoint meets the negatives that it would have met. All processes of a training must be handed the same cosines.

What it does not know: encoders, batches, stages. Quotas and bands choose afterwards, among what `current` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

from pydantic import Field, model_validator

from negatron.errors import NegatronError, SettingError
from negatron.identity import fingerprint, same_words
from negatron.settings import Settings
from negatron.training.curriculum import answers, hardest_first
from negatron.training.weighting import changed
from negatron.types import Negative, Query, TrainingExample

Cosines = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""n query texts and n document contents -> n cosines, of the pairs in their order, by the model as it is now, without dropout."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a trainer shows: the coming examples as they stand on file, and the model through two callables."""

    step: int
    """Steps done."""
    examples: Sequence[TrainingExample]
    """Of the coming steps, until the next look, with all their candidates."""
    cosines: Cosines
    save_model: Callable[[Path], None]
    """Writes the model in training into a folder that sentence-transformers loads."""


@runtime_checkable
class Remine(Protocol):
    """A way to renew negatives during a training."""

    @property
    def every(self) -> int:
        """Steps between looks; the first is before step 0."""
        ...

    def renew(self, look: Look) -> int:
        """Renews what the look calls for; returns how many negatives were replaced."""
        ...

    def current(self, example: TrainingExample) -> TrainingExample:
        """The example, as it stands on file, with the negatives that it has now."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `current` depends on, as JSON values, for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over a state. Raises NegatronError when it was made by another rule."""
        ...


def is_due(remine: Remine, step: int) -> bool:
    """Whether a look comes before a step, the first being 0."""
    return step % remine.every == 0


# ---- Conan's rule ----------------------------------------------------------------------------------------------------------------------


class RemineRule(Settings):
    """When a negative is stale, and what comes in its place.

    Sources: conan.v1 Conan-embedding (arXiv 2408.15710), conan.v2 Conan-embedding-v2 (arXiv 2509.12892), both from third-party notes.
    What they leave open is ours: the first negatives are the hardest kept ones, a window of ranks is open at its end, and v2 takes the
    same windows as v1.
    """

    rule: Literal["conan.v1", "conan.v2"] = "conan.v1"
    """conan.v1: stale iff factor × cosine now < cosine at first, and |cosine now| < limit. conan.v2: stale iff cosine now < limit."""
    every: int = Field(default=100, ge=1)
    """Steps between looks."""
    factor: float = Field(default=1.15, gt=0.0, allow_inf_nan=False)
    """How far a cosine must have fallen, of conan.v1."""
    limit: float | None = Field(default=None, allow_inf_nan=False)
    """Cosine under which a negative may be replaced; `off` = the paper's: 0.8 of conan.v1, 0.4 of conan.v2."""
    negatives: int = Field(default=5, ge=1)
    """n, negatives of the source that a query uses at a time."""
    first_rank: int = Field(default=10, ge=1)
    """The i-th replacement takes places (i-1) n + first_rank up to, not including, i n + first_rank."""
    source: str = "dense"
    """Whose negatives are renewed; those of other sources stay."""
    initial: Literal["first look", "mined"] = "first look"
    """The cosine at first: by the model when it first meets the negative, or the source's own score on file (which must be a cosine)."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses what the rule does not read."""
        if self.rule == "conan.v2":
            for name in (name for name in ("factor", "initial") if changed(self, name)):
                raise ValueError(f"{name} has no effect with rule = 'conan.v2', which looks at the cosine now alone; leave it out")
        return self


def fallen(rule: RemineRule, initial: float, now: float) -> bool:
    """conan.v1: the model has pushed it away, and it is not close all the same."""
    return rule.factor * now < initial and abs(now) < (0.8 if rule.limit is None else rule.limit)


def far(rule: RemineRule, initial: float, now: float) -> bool:
    """conan.v2: it is far away."""
    return now < (0.4 if rule.limit is None else rule.limit)


RULES: dict[str, Callable[[RemineRule, float, float], bool]] = {"conan.v1": fallen, "conan.v2": far}


def window(replacement: int, negatives: int, first_rank: int) -> range:
    """Places, the first being 1, from which the i-th replacement of a query's negatives takes.

    >>> window(1, 5, 10), window(2, 5, 10)
    (range(10, 15), range(15, 20))
    """
    return range((replacement - 1) * negatives + first_rank, replacement * negatives + first_rank)


def replacements(
    rule: RemineRule, initial: Sequence[float], now: Sequence[float], places: Sequence[int], replaced: int, candidates: int
) -> dict[int, int | None]:
    """Position of each stale negative among those in use -> the place of the candidate that comes in its stead; empty where none is stale.

    Each takes the next place of the query's next window that is not in use; None where there is none left: then it stays.

    Args:
        rule: which cosines mean stale, and the windows.
        initial: cosines of the negatives in use when they came into use.
        now: their cosines now, in the same order.
        places: their places among the candidates, the hardest being 1.
        replaced: replacements of this query so far.
        candidates: how many it has.

    >>> replacements(RemineRule(negatives=2), [0.9, 0.9], [0.85, 0.6], [1, 2], replaced=0, candidates=20)
    {1: 10}

    """
    stale = [position for position, (first, last) in enumerate(zip(initial, now, strict=True)) if RULES[rule.rule](rule, first, last)]
    free = (place for place in window(replaced + 1, rule.negatives, rule.first_rank) if place <= candidates and place not in places)
    return {position: next(free, None) for position in stale}


@dataclass(slots=True)
class InUse:
    """What a query uses now: places of its negatives among the candidates, their cosines at first, and its replacements so far."""

    places: list[int]
    initial: list[float]
    replaced: int = 0


@dataclass
class ConanReplacement:
    """Replaces a query's negatives that have become easy by others further down its own ranked list; an example holds the whole list.

    Remembers at most `most_queries` queries, those it meets first; the others keep their first negatives, and `untracked` counts them.
    With `initial = "first look"` nothing can be replaced before a query is met a second time, so that takes two epochs.
    """

    rule: RemineRule
    most_queries: int = 100_000
    replaced: int = 0
    """Negatives replaced so far."""
    exhausted: int = 0
    """Stale negatives that stayed since their window had no candidate left, counted at each look."""
    untracked: int = 0
    """Queries that could not be remembered, counted at each look."""
    _queries: dict[str, InUse] = field(default_factory=dict)

    @property
    def every(self) -> int:
        """Steps between looks."""
        return self.rule.every

    def current(self, example: TrainingExample) -> TrainingExample:
        """The example with the negatives in use, in the order in which they replaced each other, then all negatives of other sources."""
        ranked = hardest_first(example.negatives, self.rule.source)
        using = self._queries.get(key_of(example))
        places = self._first_places(ranked) if using is None else using.places
        others = [negative for row, negative in enumerate(example.negatives) if row not in ranked]
        return replace(example, negatives=(*(example.negatives[ranked[place - 1]] for place in places), *others))

    def renew(self, look: Look) -> int:
        """Compares the cosines of the negatives in use with those at first; returns how many were replaced."""
        tracked = self._meet(look.examples)
        now = self._cosines(look, tracked, {key: self._queries[key].places for key in tracked})
        coming: dict[str, dict[int, int]] = {}
        for key, (_, candidates) in tracked.items():
            using = self._queries[key]
            using.initial = using.initial or self._initial(candidates, using.places, now[key])
            wanted = replacements(self.rule, using.initial, now[key], using.places, using.replaced, len(candidates))
            coming[key] = {position: place for position, place in wanted.items() if place is not None}
            self.exhausted += len(wanted) - len(coming[key])
        measured = self.rule.rule == "conan.v1" and self.rule.initial == "first look"
        first = self._cosines(look, tracked, {key: list(places.values()) for key, places in coming.items()}) if measured else {}
        for key, places in coming.items():
            self._replace(self._queries[key], places, self._initial(tracked[key][1], list(places.values()), first.get(key)))
        return sum(map(len, coming.values()))

    def state(self) -> dict[str, Any]:
        """Rule, counts, and what each query uses."""
        queries = {key: [using.places, using.initial, using.replaced] for key, using in self._queries.items()}
        counts = {"replaced": self.replaced, "exhausted": self.exhausted, "untracked": self.untracked}
        return {"rule": self.rule.as_json(), "most_queries": self.most_queries, **counts, "queries": queries}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over a state. Raises NegatronError when it was made by another rule."""
        there, now = (state.get("rule"), state.get("most_queries")), (self.rule.as_json(), self.most_queries)
        if there != now:
            raise NegatronError(f"the checkpoint replaced negatives by another rule ({there} there, {now} now); start the training anew")
        self.replaced, self.exhausted, self.untracked = (int(state[name]) for name in ("replaced", "exhausted", "untracked"))
        self._queries = {key: InUse(list(places), list(initial), replaced) for key, (places, initial, replaced) in state["queries"].items()}

    def _first_places(self, candidates: Sequence[object]) -> list[int]:
        """The hardest, as many as a query uses."""
        return list(range(1, min(self.rule.negatives, len(candidates)) + 1))

    def _meet(self, examples: Sequence[TrainingExample]) -> dict[str, tuple[str, list[Negative]]]:
        """Key -> (query text, candidates, hardest first) of the queries that are remembered, new ones as long as there is room."""
        met: dict[str, tuple[str, list[Negative]]] = {}
        left_out: set[str] = set()
        for example in examples:
            key, ranked = key_of(example), hardest_first(example.negatives, self.rule.source)
            if key in met or not ranked:
                continue
            if key not in self._queries:
                if len(self._queries) >= self.most_queries:
                    left_out.add(key)
                    continue
                self._queries[key] = InUse(self._first_places(ranked), [])
            met[key] = (example.query.text, [example.negatives[row] for row in ranked])
        self.untracked += len(left_out)
        return met

    def _cosines(
        self, look: Look, tracked: Mapping[str, tuple[str, list[Negative]]], places: Mapping[str, Sequence[int]]
    ) -> dict[str, list[float]]:
        """Key -> cosines of the query and its candidates at the places, all asked for at once; none are asked for where there are none."""
        pairs = [(key, tracked[key][0], tracked[key][1][place - 1].document.content) for key in places for place in places[key]]
        found: dict[str, list[float]] = {key: [] for key in places}
        scores = look.cosines([text for _, text, _ in pairs], [content for *_, content in pairs]) if pairs else ()
        for (key, _, _), score in zip(pairs, scores, strict=True):
            found[key].append(float(score))
        return found

    def _initial(self, candidates: Sequence[Negative], places: Sequence[int], measured: Sequence[float] | None) -> list[float]:
        """The cosines at first of the candidates at the places: measured, or the source's own; 0 where the rule does not ask for them."""
        if self.rule.initial == "mined":
            return [mined_score(candidates[place - 1], self.rule.source) for place in places]
        return list(measured) if measured is not None else [0.0] * len(places)

    def _replace(self, using: InUse, places: Mapping[int, int], initial: Sequence[float]) -> None:
        """Puts the candidates at the places into use."""
        for (position, place), cosine in zip(places.items(), initial, strict=True):
            using.places[position], using.initial[position] = place, cosine
        using.replaced += bool(places)
        self.replaced += len(places)


def key_of(example: TrainingExample) -> str:
    """What a query is remembered by: two data sets may use the same id."""
    return fingerprint(example.query.id, example.query.text)


def mined_score(negative: Negative, source: str) -> float:
    """A source's own score of a negative. Raises SettingError where it has none."""
    scores = [origin.score for origin in negative.origins if answers(origin.source, source) and origin.score is not None]
    if not scores:
        raise SettingError(f"initial = 'mined', but {negative.document.id} has no score of {source!r}; use initial = 'first look'")
    return max(scores)


# ---- rounds ----------------------------------------------------------------------------------------------------------------------------

Mined = Mapping[Query, Sequence[Negative]]
"""The new negatives of each query; one that is missing keeps those on file."""


@dataclass
class Rounds:
    """Mines anew with the model in training, every so many steps: round i before step i × every, round 0 being what is on file.

    `mine` saves the model, searches with it, filters, and keeps what it found where `reread` finds it by the round's number after a stop.
    """

    every: int
    mine: Callable[[int, Look], Mined]
    """(round, look) -> new negatives; the same again for the same weights."""
    reread: Callable[[int], Mined]
    """round -> what `mine` gave in that round."""
    round: int = 0
    _negatives: Mined = field(default_factory=dict)

    def current(self, example: TrainingExample) -> TrainingExample:
        """The example with the negatives of the last round, but copies of known positives of its query."""
        if example.query not in self._negatives:
            return example
        known = {same_words(content) for content in (example.positive.content, *example.known_positives)}
        found = tuple(n for n in self._negatives[example.query] if same_words(n.document.content) not in known)
        return replace(example, negatives=found)

    def renew(self, look: Look) -> int:
        """Mines; returns how many negatives were found. Nothing before the first step, when the negatives on file are new."""
        if look.step == 0:
            return 0
        self.round = look.step // self.every
        self._negatives = self.mine(self.round, look)
        return sum(map(len, self._negatives.values()))

    def state(self) -> dict[str, Any]:
        """The number of the round; what was mined in it is on file."""
        return {"every": self.every, "round": self.round}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Reads the round's negatives again. Raises NegatronError when the state has another rhythm."""
        if state.get("every") != self.every:
            raise NegatronError(f"the checkpoint mined every {state.get('every')} steps, now every {self.every}; start the training anew")
        self.round = int(state["round"])
        self._negatives = self.reread(self.round) if self.round else {}
