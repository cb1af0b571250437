"""What a training does at which step: stages as values, and the choice of each example's own negatives.

In: stages and a weighting (settings), what holds where a stage says nothing, the number of examples and epochs. Out: a `StepPlan` for
each step, plain numbers all; and for an example and a plan, the example with the negatives it has at that step.

1. `timeline` cuts the examples of all epochs into spans: one stage and one epoch each, with one batch size, so that no example is lost.
2. `Curriculum.at` says what holds at a step.
3. `choose_negatives` takes so many negatives of each source, out of a band of places in the order of their hardness.
4. `Curriculum.state` and `resume` tie a checkpoint to its curriculum.

What stays true: all of it is pure. A plan depends on the curriculum and the step alone, so a training that was stopped meets the same
plans again; an example's choice depends on the example, its plan and its own random stream, not on other examples or their order. With
no stages and no weighting a training does what its own settings say, at every step.

What it does not know: tensors, models, losses, batches' contents. Negatives that change with the model: `remining`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from negatron.errors import NegatronError, SettingError, nearest
from negatron.identity import fingerprint, stream
from negatron.settings import Settings
from negatron.training.weighting import HardnessOf, Number, Ramp, Weighting, lowest, value_at
from negatron.types import Negative, TrainingExample

Band = tuple[int, int]
"""First and last place, both counted: (1, 5) are the five hardest."""
MarginOrOff = Annotated[
    Annotated[float, Field(allow_inf_nan=False), Tag("<number>")] | Annotated[Literal["off"], Tag("<off>")],
    Discriminator(lambda value: "<off>" if isinstance(value, str) else "<number>"),
]


class Stage(Settings):
    """A part of the training, by its share of the examples seen. What it leaves out is as the training's own settings say."""

    name: str = ""
    """For logs and messages."""
    share: float = Field(gt=0.0, le=1.0)
    """Of the examples seen in all epochs, 0..1; the shares of all stages add up to 1."""
    quotas: dict[str, Annotated[int, Field(ge=0)]] | None = None
    """Source -> negatives of it a query; a source left out gives none. `synthetic` stands for every `synthetic:...` too."""
    bands: dict[str, Band] | None = None
    """Source -> first and last place, 1 the hardest, among the query's negatives of that source; only these are taken."""
    false_negative_margin: MarginOrOff | None = None
    """Cosine by which a column may lie above the positive before it no longer counts; "off" = every column counts."""
    batch_size: int | None = Field(default=None, ge=1)
    """Queries in one optimiser step."""
    temperature: Number | None = None
    """Cosines are divided by it; a number, or a ramp over this stage's own progress."""

    @classmethod
    def _as_python(cls, key: str, value: Any) -> Any:
        """None is silence here, not "off": only the margin can be off, and what cannot is refused."""
        return value if value == "off" else super()._as_python(key, value)

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses values out of range and quotas or bands that could never be met."""
        if self.temperature is not None and lowest(self.temperature) <= 0:
            raise ValueError(f"temperature goes down to {lowest(self.temperature):g}: expected more than 0")
        for source, (first, last) in (self.bands or {}).items():
            if not 1 <= first <= last:
                raise ValueError(f"bands.{source} = [{first}, {last}]: expected first and last place, 1 the hardest, such as [1, 5]")
            if self.quotas is None:
                continue
            if not self.quotas.get(source):
                raise ValueError(f"bands.{source} has no effect: quotas ask for no negative of {source}; add one, or leave the band out")
            if self.quotas[source] > last - first + 1:
                raise ValueError(f"quotas.{source} = {self.quotas[source]}, but bands.{source} = [{first}, {last}] has fewer places")
        return self


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a stage says nothing: the training's own settings. A ramp here runs over the whole training."""

    batch_size: int
    temperature: float | Ramp = 0.05
    false_negative_margin: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """Examples of one stage in one epoch, seen one after the other in batches of one size; the last batch may be smaller."""

    stage: int
    """Number of the stage, the first is 1; 0 where the training has none."""
    epoch: int
    """The first is 0."""
    first_example: int
    """Examples that the training has seen before it, of all epochs."""
    first_of_epoch: int
    """Examples of its epoch that were seen before it."""
    examples: int
    batch_size: int
    first_step: int
    """Steps that the training has done before it."""

    @property
    def steps(self) -> int:
        """Batches in it."""
        return -(-self.examples // self.batch_size)

    def batch_at(self, step: int) -> tuple[int, int]:
        """(examples of this span before the batch of a step of the training, examples in it)."""
        before = (step - self.first_step) * self.batch_size
        return before, min(self.batch_size, self.examples - before)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """All that holds at one step, as plain values."""

    step: int
    """The first is 0."""
    epoch: int
    stage: int
    """The first is 1; 0 where the training has no stages."""
    name: str
    """Of the stage."""
    first_of_epoch: int
    """Examples of this epoch seen before this step."""
    examples: int
    """Queries in this step's batch."""
    batch_size: int
    """Queries in a whole batch of this stage."""
    progress: float
    """Examples seen before this step, as a share of all, 0..1."""
    stage_progress: float
    """The same within the stage."""
    temperature: float
    false_negative_margin: float | None
    focal: float
    importance: float
    hardness: float
    hardness_of: HardnessOf
    quotas: Mapping[str, int] | None = None
    """Source -> negatives a query; None = all."""
    bands: Mapping[str, Band] | None = None

    def loss_options(self) -> dict[str, Any]:
        """The options of `losses.InfoNCE` that this step sets, by their names there."""
        names = ("temperature", "false_negative_margin", "focal", "importance", "hardness", "hardness_of")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Curriculum:
    """The stages and the weighting of a training of so many examples and epochs; every step's plan follows from it.

    Raises SettingError where the shares do not add up to 1, or a stage would get none of the examples.
    """

    defaults: Defaults
    examples: int
    """In one epoch."""
    epochs: int = 1
    stages: tuple[Stage, ...] = ()
    weighting: Weighting = field(default_factory=Weighting)
    spans: tuple[Span, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", timeline(self.stages, self.defaults, self.examples, self.epochs))

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.spans[-1].first_step + self.spans[-1].steps

    @property
    def fingerprint(self) -> str:
        """Of all that the plans depend on."""
        defaults = self.defaults
        temperature = defaults.temperature.as_json() if isinstance(defaults.temperature, Ramp) else defaults.temperature
        stages = [stage.as_json() for stage in self.stages]
        own = (defaults.batch_size, temperature, defaults.false_negative_margin)
        return fingerprint("curriculum", own, self.examples, self.epochs, stages, self.weighting.as_json())

    def span_at(self, step: int) -> Span:
        """The span of a step, the first being 0. Raises IndexError outside the training."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a training of {self.steps} steps, the first being 0")
        return self.spans[bisect_right(self.spans, step, key=lambda span: span.first_step) - 1]

    def at(self, step: int) -> StepPlan:
        """What holds at a step, the first being 0. Raises IndexError outside the training."""
        span = self.span_at(step)
        stage = self.stages[span.stage - 1] if span.stage else Stage(share=1.0)
        before, examples = span.batch_at(step)
        seen = span.first_example + before
        begin, end = stage_bounds(self.stages, self.examples * self.epochs)[max(0, span.stage - 1)]
        progress, stage_progress = seen / (self.examples * self.epochs), (seen - begin) / (end - begin)
        own_temperature = value_at(self.defaults.temperature, progress)
        temperature = own_temperature if stage.temperature is None else value_at(stage.temperature, stage_progress)
        margin = self.defaults.false_negative_margin if stage.false_negative_margin is None else stage.false_negative_margin
        weights = self.weighting.at(progress, temperature)
        return StepPlan(
            step=step,
            epoch=span.epoch,
            stage=span.stage,
            name=stage.name,
            first_of_epoch=span.first_of_epoch + before,
            examples=examples,
            batch_size=span.batch_size,
            progress=progress,
            stage_progress=stage_progress,
            temperature=temperature,
            false_negative_margin=None if margin == "off" else margin,
            focal=weights.focal,
            importance=weights.importance,
            hardness=weights.hardness,
            hardness_of=weights.hardness_of,
            quotas=stage.quotas,
            bands=stage.bands,
        )

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps after `step` steps, as JSON values. Negatives that follow the model: see `remining.Remine.state`."""
        return {"step": step, "curriculum": self.fingerprint}

    def resume(self, state: Mapping[str, Any]) -> int:
        """The step at which a stopped training goes on. Raises NegatronError when the state is another curriculum's."""
        if state.get("curriculum") != self.fingerprint:
            raise NegatronError(
                f"the checkpoint belongs to another curriculum ({state.get('curriculum')} there, {self.fingerprint} now): stages, "
                "weighting, batch size, temperature, margin, examples or epochs have changed; choose another folder, or remove this one"
            )
        return int(state["step"])


# ---- when: the timeline ----------------------------------------------------------------------------------------------------------------


def stage_bounds(stages: Sequence[Stage], examples: int) -> list[tuple[int, int]]:
    """(first example, end) of each stage among all examples seen; one pair for a training without stages.

    >>> stage_bounds([Stage(share=0.5), Stage(share=0.25), Stage(share=0.25)], 10)
    [(0, 5), (5, 8), (8, 10)]
    """
    shares = [stage.share for stage in stages] or [1.0]
    ends = [int(examples * reached / sum(shares) + 0.5) for reached in accumulate(shares)]
    return list(zip([0, *ends[:-1]], [*ends[:-1], examples], strict=True))


def timeline(stages: Sequence[Stage], defaults: Defaults, examples: int, epochs: int = 1) -> tuple[Span, ...]:
    """The spans of a training, in order: cut where a stage ends and where an epoch ends, so that batches never reach over either.

    Args:
        stages: in their order; none = one span an epoch, with the training's own settings.
        defaults: the training's own settings.
        examples: in one epoch, > 0.
        epochs: > 0.

    Raises SettingError where the shares do not add up to 1 (by more than 0.001), or a stage would get none of the examples.

    """
    refuse_bad_shares(stages, examples * epochs)
    spans: list[Span] = []
    step = 0
    for number, (begin, end) in enumerate(stage_bounds(stages, examples * epochs), 1 if stages else 0):
        batch_size = (stages[number - 1].batch_size if stages else None) or defaults.batch_size
        while begin < end:
            epoch, before = divmod(begin, examples)
            count = min(end - begin, examples - before)
            spans.append(Span(number, epoch, begin, before, count, batch_size, step))
            begin, step = begin + count, step + spans[-1].steps
    return tuple(spans)


def refuse_bad_shares(stages: Sequence[Stage], examples: int) -> None:
    """Raises SettingError where shares do not add up to 1, or a stage would get none of the examples."""
    total = sum(stage.share for stage in stages)
    if stages and abs(total - 1.0) > 1e-3:  # three thirds may be written 0.333
        raise SettingError(f"the shares of the {len(stages)} stages add up to {total:g}, expected 1: {[stage.share for stage in stages]}")
    if examples < 1:
        raise SettingError("there are no examples to train on")
    for number, (begin, end) in enumerate(stage_bounds(stages, examples), 1):
        if begin == end:
            raise SettingError(f"{label(number, stages[number - 1])} gets none of the {examples:,} examples; give it a larger share")


def label(number: int, stage: Stage) -> str:
    """What messages call a stage.

    >>> label(2, Stage(share=1.0, name="hard"))
    "stage 2 ('hard')"
    """
    return f"stage {number}" + (f" ({stage.name!r})" if stage.name else "")


# ---- which: the negatives of an example ------------------------------------------------------------------------------------------------


@dataclass
class ChoiceReport:
    """What the choices came to, counted over examples; said aloud, since a quota that is not met changes what is learnt."""

    examples: int = 0
    chosen: Counter[str] = field(default_factory=Counter)
    """Source, as the quotas name it -> negatives."""
    short: Counter[str] = field(default_factory=Counter)
    """Source, as the quotas name it -> negatives asked for that the example did not have in the band."""
    examples_short: int = 0
    """Examples with fewer negatives than asked for."""
    examples_without: int = 0
    """Examples left with no negative of their own, though some were asked for or there."""

    def __str__(self) -> str:
        missing = ", ".join(f"{count:,} {source}" for source, count in sorted(self.short.items())) or "none"
        return (
            f"{sum(self.chosen.values()):,} negatives chosen for {self.examples:,} examples; not there: {missing}; "
            f"{self.examples_short:,} examples have fewer than asked for, {self.examples_without:,} none"
        )


def choose_negatives(example: TrainingExample, plan: StepPlan, draw: Random, report: ChoiceReport | None = None) -> TrainingExample:
    """The example with the negatives it has under a plan, in their old order, and with the plan's stage; counted in `report`.

    Without quotas every negative inside its source's band is kept. With quotas, so many of each source named and none of others; where
    the band holds more, they are drawn. A negative that two sources found is taken once, for the one that needs it. One number is drawn
    for each negative and the lowest win, so that a larger quota keeps what a smaller one took, and a source's quota moves no other's draw.

    Args:
        example: with all the negatives that may be used.
        plan: of the step.
        draw: the example's own stream, see `draw_of`.
        report: counts; None = nobody asks.

    Raises SettingError where a band is asked of negatives that have neither rank nor score.

    """
    if plan.quotas is None and plan.bands is None:
        return replace(example, stage=plan.stage) if example.stage != plan.stage else example
    pools = pools_of(example.negatives, plan)
    taken = drawn(example.negatives, plan.quotas, pools, draw) if plan.quotas is not None else pools
    rows = sorted({row for own in taken.values() for row in own})
    if report is not None:
        count(report, plan, taken, len(example.negatives))
    return replace(example, negatives=tuple(example.negatives[row] for row in rows), stage=plan.stage)


def draw_of(example: TrainingExample, *, seed: int, epoch: int) -> Random:
    """The random stream of an example's choice in an epoch: the query's own, whatever stands beside it."""
    return stream(seed, "curriculum", epoch, example.query.id)


def pools_of(negatives: Sequence[Negative], plan: StepPlan) -> dict[str, list[int]]:
    """Source, as the plan names it -> rows of its negatives inside its band, hardest first.

    Without quotas also every other source, and under "" the negatives of which nobody knows the source.
    """
    bands = plan.bands or {}
    free = () if plan.quotas is not None else sources_of_negatives(negatives, but=bands)
    pools = {"": [row for row, negative in enumerate(negatives) if not negative.origins]} if plan.quotas is None else {}
    for source in sorted({*(plan.quotas if plan.quotas is not None else bands), *free}):
        if source not in bands:
            pools[source] = [row for row, negative in enumerate(negatives) if any(answers(o.source, source) for o in negative.origins)]
            continue
        first, last = bands[source]
        pools[source] = hardest_first(negatives, source)[first - 1 : last]
    return pools


def drawn(
    negatives: Sequence[Negative], quotas: Mapping[str, int], pools: Mapping[str, Sequence[int]], draw: Random
) -> dict[str, list[int]]:
    """Source -> rows taken, at most its quota and as many in all as the pools allow; the rows of the lowest numbers drawn."""
    in_order = sorted(range(len(negatives)), key=lambda row: (negatives[row].document.id, negatives[row].document.content))
    lot = {row: draw.random() for row in in_order}
    sources = {row: [source for source in sorted(pools) if row in pools[source]] for row in in_order}
    taken: dict[str, list[int]] = {source: [] for source in sorted(quotas)}
    for row in sorted(in_order, key=lot.__getitem__):
        seat(row, sources, quotas, taken, set())
    return taken


def seat(row: int, sources: Mapping[int, Sequence[str]], quotas: Mapping[str, int], taken: dict[str, list[int]], tried: set[str]) -> bool:
    """Counts a row for one of its sources, if need be by counting rows taken before for another of theirs; False where that cannot be.

    That is an augmenting path (Kuhn 1955), so a quota is short only where no choice could meet it.
    """
    for source in sources[row]:
        if source in tried:
            continue
        tried.add(source)
        if len(taken[source]) < quotas[source]:
            taken[source].append(row)
            return True
        for place, other in enumerate(taken[source]):
            if seat(other, sources, quotas, taken, tried):
                taken[source][place] = row
                return True
    return False


def hardest_first(negatives: Sequence[Negative], source: str) -> list[int]:
    """Rows of a source's negatives by its rank, 1 the hardest; those without a rank after them by its score, highest first; then by id.

    The order is that of the negatives at hand: place 3 is the third hardest of those that the filters kept, whatever its rank in the
    source's own list. Raises SettingError for a negative with neither rank nor score.
    """
    keys: dict[int, tuple[int, float, str]] = {}
    for row, negative in enumerate(negatives):
        own = [origin for origin in negative.origins if answers(origin.source, source)]
        ranks = [origin.rank for origin in own if origin.rank is not None]
        scores = [origin.score for origin in own if origin.score is not None]
        if ranks or scores:
            keys[row] = (0, float(min(ranks)), negative.document.id) if ranks else (1, -max(scores), negative.document.id)
        elif own:
            raise SettingError(
                f"{negative.document.id} has neither a rank nor a score in {source!r}, so it has no place among its negatives"
            )
    return sorted(keys, key=keys.__getitem__)


def answers(source: str, name: str) -> bool:
    """Whether a source is meant by a name: its own, or the part of its own before a colon.

    >>> answers("synthetic:mgh", "synthetic"), answers("dense", "dense"), answers("dense2", "dense")
    (True, True, False)
    """
    return source == name or source.startswith(name + ":")


def sources_of_negatives(negatives: Iterable[Negative], but: Iterable[str] = ()) -> set[str]:
    """Names of the sources of the negatives, but those that a name in `but` means."""
    names = tuple(but)
    found = {origin.source for negative in negatives for origin in negative.origins}
    return {source for source in found if not any(answers(source, name) for name in names)}


def sources_of(examples: Iterable[TrainingExample]) -> set[str]:
    """Names of all sources of the examples' negatives."""
    return sources_of_negatives(negative for example in examples for negative in example.negatives)


def refuse_unknown_sources(stages: Sequence[Stage], sources: Collection[str]) -> None:
    """Raises SettingError for a quota above 0 or a band of a source that no example has a negative of: it would teach without, unsaid."""
    known = {*sources, *(source.partition(":")[0] for source in sources)}
    for number, stage in enumerate(stages, 1):
        asked = {**{source: wanted for source, wanted in (stage.quotas or {}).items() if wanted}, **(stage.bands or {})}
        for source in asked:
            if source not in known:
                raise SettingError(
                    f"{label(number, stage)} asks for negatives of {source!r}, but no example has one"
                    + (nearest(source, known) if known else "; mine some first")
                )


def count(report: ChoiceReport, plan: StepPlan, taken: Mapping[str, Sequence[int]], there: int) -> None:
    """Adds one example to the report. A negative inside the bands of two sources counts for both where no quota chooses."""
    missing = {source: wanted - len(taken[source]) for source, wanted in (plan.quotas or {}).items() if wanted > len(taken[source])}
    report.examples += 1
    report.chosen.update({source: len(rows) for source, rows in taken.items() if rows})
    report.short.update(missing)
    report.examples_short += bool(missing)
    report.examples_without += bool(there or missing) and not any(taken.values())
