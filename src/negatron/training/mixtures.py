"""Which examples each step learns from: the examples of one data set or of several, one data set a batch.

1. `places_of_steps` gives each step to a set, so that after any number of examples each has had its share, as nearly as whole batches
   allow. The share follows from the set's size and the exponent.
2. A set is an endless row of passes over its examples, each pass in an order of its own. A span of the curriculum takes the next stretch
   of it, in `pieces` that `planning` deals into batches.
3. `Feed.at` gives the examples of a step.

What stays true: all of it follows from sets, curriculum, exponent and seed, so a stopped training meets the same batches again. No
example of a set is seen a second time before all of that set were seen once. Drawing the sets by chance, as others do, comes near the
shares on average only.

What it does not know: what a batch is laid out like, models, prompts' meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from negatron.errors import NegatronError, SettingError, nearest
from negatron.identity import stream
from negatron.training.curriculum import Curriculum, Span
from negatron.training.example_store import ExampleStore
from negatron.training.planning import Plan, plan_epoch
from negatron.training.text_hashes import TextHashes
from negatron.training.workers import Workers
from negatron.types import TrainingExample


@dataclass(frozen=True, slots=True, eq=False)
class ExampleSet:
    """The training examples of one data set. Its name stands in the log, and the settings give it prompts by it."""

    name: str
    examples: Sequence[TrainingExample]


def as_sets(examples: Sequence[TrainingExample] | Sequence[ExampleSet]) -> tuple[ExampleSet, ...]:
    """Sets as they are; plain examples as the only set."""
    if len(examples) and isinstance(examples[0], ExampleSet):
        return tuple(cast(Sequence[ExampleSet], examples))
    return (ExampleSet("examples", cast(Sequence[TrainingExample], examples)),)


def refuse_bad_sets(sets: Sequence[ExampleSet], prompted: Iterable[str]) -> None:
    """Raises NegatronError when a set has no example, or two sets have one name, SettingError for prompts of a set that is not there."""
    names = [one.name for one in sets]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise NegatronError(f"two sets of training examples are called {doubled[0]!r}; give each a name of its own")
    for name in prompted:
        if name not in names:
            raise SettingError(f"prompts: there is no data set {name!r}{nearest(name, names)}")
    for one in sets:
        if not len(one.examples):
            which = f" in {one.name}" if len(sets) > 1 else ""
            raise NegatronError(
                f"there are no training examples{which}; the split has no judged query, or each was left out as a query of the test"
            )


def shares(sizes: Sequence[int], exponent: float) -> list[float]:
    """p_d = n_d ** exponent / sum of them: the share of the batches that set d of n_d examples gives.

    Source: sampling by temperature, Arivazhagan et al. 2019 (arXiv 1907.05019), with exponent = 1 / T.

    >>> shares([900, 100], 1.0), shares([900, 100], 0.5), shares([900, 100], 0.0)
    ([0.9, 0.1], [0.75, 0.25], [0.5, 0.5])
    """
    weights = [size**exponent for size in sizes]
    return [weight / sum(weights) for weight in weights]


def places_of_steps(batch_sizes: Sequence[int], share: Sequence[float], *, seed: int) -> list[int]:
    """Which set each step takes its batch from: the one that is furthest behind its share of the examples seen by then.

    Args:
        batch_sizes: examples of each step.
        share: of each set, sum 1.
        seed: of where the row begins; else sets of equal shares would always come in the same order.

    """
    draw = stream(seed, "sets")
    behind = [draw.random() * max(batch_sizes) for _ in share]
    places = []
    for size in batch_sizes:
        behind = [one + part * size for one, part in zip(behind, share, strict=True)]
        place = max(range(len(share)), key=lambda n: (behind[n], -n))
        behind[place] -= size
        places.append(place)
    return places


@dataclass(frozen=True, slots=True)
class Piece:
    """Examples first .. first + count - 1 of the order of one pass over a set."""

    number: int
    """Of the pass, from 0."""
    first: int
    count: int


def pieces(size: int, first: int, end: int, batch_size: int) -> list[Piece]:
    """Examples first .. end-1 of a set's endless row of passes over its `size` examples, cut where a pass ends and where the batch ends
    in which it does: the batches of a piece are planned together, and one that begins in a pass and ends in the next is two pieces.

    >>> pieces(5, 0, 8, 2)
    [Piece(number=0, first=0, count=5), Piece(number=1, first=0, count=1), Piece(number=1, first=1, count=2)]
    """
    ends_of_passes = range(first // size * size + size, end, size)
    ends_of_batches = (first - (first - place) // batch_size * batch_size for place in ends_of_passes)
    cuts = sorted({first, *ends_of_passes, *(place for place in ends_of_batches if place < end), end})
    return [Piece(low // size, low % size, high - low) for low, high in pairwise(cuts)]


class Feed:
    """The examples of each step, from `at`; the plans of the latest span are remembered."""

    def __init__(
        self, sets: Sequence[ExampleSet], curriculum: Curriculum, *, exponent: float, seed: int, folder: Path, workers: Workers
    ) -> None:
        self.sets, self._curriculum = tuple(sets), curriculum
        self._folder, self._workers = folder, workers
        self._seeds = [seed if len(sets) == 1 else stream(seed, "set", one.name).getrandbits(63) for one in sets]
        self._sizes = [size for span in curriculum.spans for size in sizes_of(span)]
        share = shares([len(one.examples) for one in self.sets], exponent)
        self._places = places_of_steps(self._sizes, share, seed=seed) if len(self.sets) > 1 else [0] * len(self._sizes)
        self._hashes = [self._hashed(place, one) for place, one in enumerate(self.sets)]
        self._span: Span | None = None
        self._rows: dict[int, Rows] = {}

    def at(self, step: int) -> tuple[ExampleSet, list[TrainingExample]]:
        """The set and the examples of a step, the first being 0."""
        span = self._curriculum.span_at(step)
        if span is not self._span:
            self._span, self._rows = span, self._planned(span)
        chosen = self.sets[self._places[step]]
        return chosen, taken(chosen.examples, self._rows[step])

    def _planned(self, span: Span) -> dict[int, Rows]:
        """Step -> rows of its set, for all steps of a span."""
        rows: dict[int, Rows] = {}
        here = range(span.first_step, span.first_step + span.steps)
        for place, chosen in enumerate(self.sets):
            steps = [step for step in here if self._places[step] == place]
            first = sum(size for size, other in zip(self._sizes[: span.first_step], self._places, strict=False) if other == place)
            end = first + sum(self._sizes[step] for step in steps)
            plans = [self._plan(place, piece, span.batch_size) for piece in pieces(len(chosen.examples), first, end, span.batch_size)]
            rows |= dict(zip(steps, batches_of(plans, span.batch_size), strict=True))
        return rows

    def _plan(self, place: int, piece: Piece, batch_size: int) -> Plan:
        """The plan of a piece; of a store's on disk, where a process that goes on finds it again."""
        make = partial(
            plan_epoch,
            self._hashes[place],
            batch_size,
            seed=self._seeds[place],
            epoch=piece.number,
            first=piece.first,
            count=piece.count,
        )
        if not isinstance(self.sets[place].examples, ExampleStore):
            return make()
        folder = self._folder / f"plan-{place}-{piece.number}-{piece.first}-{batch_size}"
        return self._workers.in_turn(partial(make, folder=folder))

    def _hashed(self, place: int, one: ExampleSet) -> TextHashes:
        """The numbers of a set's texts; of a store's on disk."""
        if not isinstance(one.examples, ExampleStore):
            return TextHashes.of(one.examples)
        store, folder = one.examples, self._folder / f"hashes-{place}"
        return self._workers.in_turn(lambda: TextHashes.write(folder, store, fingerprint=store.fingerprint))


def sizes_of(span: Span) -> list[int]:
    """Examples of each step of a span."""
    return [span.batch_at(step)[1] for step in range(span.first_step, span.first_step + span.steps)]


Rows = list[tuple[Plan, int]]
"""Of one batch: (plan, number of the batch in it); two where one pass ends in it and the next begins."""


def batches_of(plans: Sequence[Plan], batch_size: int) -> Iterator[Rows]:
    """The batches of a stretch: those of its pieces' plans, where the last of one plan and the only one of the next may be one."""
    batch: Rows = []
    room = batch_size
    for plan in plans:
        for number in range(len(plan)):
            batch.append((plan, number))
            room -= min(plan.batch_size, len(plan.positions) - number * plan.batch_size)
            if not room:
                yield batch
                batch, room = [], batch_size
    if batch:
        yield batch


def taken(examples: Sequence[TrainingExample], rows: Rows) -> list[TrainingExample]:
    """The examples of a batch."""
    positions = np.concatenate([plan[number] for plan, number in rows]).tolist()
    return examples.take(positions) if isinstance(examples, ExampleStore) else [examples[position] for position in positions]
