"""Numbers that change while a model learns: ramps, and the weights that move the attention from easy to difficult samples.

In: settings (a plain number, or a ramp) and the progress of a training, 0..1. Out: plain numbers for one step, which `losses.InfoNCE`
takes under the same names.

1. `Ramp` is a number as a function of progress; `value_at` reads a number or a ramp.
2. `Weighting` says which samples weigh more, by which published or own formula, and how strongly at which progress.
3. `Weighting.at` gives the `Weights` of a step.

What stays true: all of it is pure; the same settings and progress give the same numbers in any process, before and after a stop.

None of the formulas is PEG's (arXiv 2311.11691): its loss and its schedule are not public in what we hold. They fit its description,
"progressive weighting in the spirit of PEG", and each goes by its own name.

What it does not know: tensors, losses, how progress is counted (see `curriculum`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from negatron.settings import Settings

HardnessOf = Literal["all", "own", "in_batch"]


def changed(settings: Settings, name: str) -> bool:
    """Whether a setting differs from its default. One that was merely read back from a manifest asks for nothing."""
    return bool(getattr(settings, name) != type(settings).model_fields[name].default)


def linear(share: float, levels: int) -> float:
    """Evenly: u."""
    return share


def cosine(share: float, levels: int) -> float:
    """Slowly at both ends: (1 - cos(pi u)) / 2."""
    return (1.0 - math.cos(math.pi * share)) / 2.0


def steps(share: float, levels: int) -> float:
    """`levels` values, equally far apart and equally long: min(floor(n u), n - 1) / (n - 1); the values of numpy.linspace.

    >>> [steps(share, 3) for share in (0.0, 0.3, 0.4, 0.7, 1.0)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return min(math.floor(levels * share + 1e-9), levels - 1) / (levels - 1)  # 9 * (1 / 9 + ...) may come out a hair below a whole number


SHAPES: dict[str, Callable[[float, int], float]] = {"linear": linear, "cosine": cosine, "steps": steps}
"""How a ramp goes: share u of its way, 0..1, and number of levels -> share of the change, 0..1."""


class Ramp(Settings):
    """A number that changes with progress t: `from` until `begin`, `to` after `end`, in between by its shape.

        value(t) = (1 - r) from + r to,   r = shape(u),   u = (t - begin) / (end - begin), kept within 0..1

    >>> ramp = Ramp(start=0.05, to=0.01, begin=0.5)
    >>> [round(ramp.at(t), 3) for t in (0.0, 0.5, 0.75, 1.0)]
    [0.05, 0.05, 0.03, 0.01]
    """

    model_config = ConfigDict(populate_by_name=True)

    start: float = Field(validation_alias="from", serialization_alias="from", allow_inf_nan=False)  # `from` is a word of Python's own
    """The first value; `from` in a settings file."""
    to: float = Field(allow_inf_nan=False)
    """The last value."""
    shape: Literal["linear", "cosine", "steps"] = "linear"
    """How it goes from one to the other: evenly, slowly at both ends, or in equal steps."""
    begin: float = Field(default=0.0, ge=0.0, le=1.0)
    """Progress, 0..1, until which it keeps its first value."""
    end: float = Field(default=1.0, ge=0.0, le=1.0)
    """Progress, 0..1, from which on it keeps its last value."""
    levels: int = Field(default=9, ge=2)  # joshr17/HCL image/main.py: np.linspace(beta, 0, 9)
    """Values that the shape `steps` takes one after the other, first and last among them."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses what the shape cannot honour."""
        if self.begin >= self.end:
            raise ValueError(f"begin = {self.begin:g} is not before end = {self.end:g}")
        if self.shape != "steps" and changed(self, "levels"):
            raise ValueError(f"levels = {self.levels} has no effect with shape = {self.shape!r}; use shape = 'steps', or leave levels out")
        return self

    def at(self, progress: float) -> float:
        """The value at a progress, 0..1; exactly `from` at its begin and `to` at its end."""
        share = min(1.0, max(0.0, (progress - self.begin) / (self.end - self.begin)))
        reached = SHAPES[self.shape](share, self.levels)
        return (1.0 - reached) * self.start + reached * self.to


def number_or_ramp(value: Any) -> str:
    """Which of the two a value is meant to be."""
    return "<ramp>" if isinstance(value, dict | Ramp) else "<number>"


Number = Annotated[
    Annotated[float, Field(allow_inf_nan=False), Tag("<number>")] | Annotated[Ramp, Tag("<ramp>")], Discriminator(number_or_ramp)
]
"""A setting that is a plain number or a Ramp: `temperature = 0.05`, or `temperature = {from = 0.05, to = 0.02, shape = "cosine"}`."""


def value_at(number: float | Ramp, progress: float) -> float:
    """The number itself, or the ramp's value at a progress, 0..1."""
    return number.at(progress) if isinstance(number, Ramp) else number


def lowest(number: float | Ramp) -> float:
    """The least value it ever has; every shape stays between its ends."""
    return min(number.start, number.to) if isinstance(number, Ramp) else number


@dataclass(frozen=True, slots=True)
class Weights:
    """The weighting of one step, in the units and under the names of `losses.InfoNCE`; all 0 = every sample weighs the same."""

    focal: float = 0.0
    """gamma: a query's loss is multiplied by (1 - p)^gamma, p being the softmax share of its positive."""
    importance: float = 0.0
    """Coefficient of the cosine: a negative's share is multiplied by w proportional to exp(importance cos), mean 1 over the query's."""
    hardness: float = 0.0
    """alpha: alpha cos is added to the logit of a negative."""
    hardness_of: HardnessOf = "all"
    """Which negatives `hardness` is for."""


class Weighting(Settings):
    """Which samples weigh more, as numbers or ramps over the whole training. Nothing set = all weigh the same.

    p_i is the softmax share of query i's positive, s_ij the cosine of query i and its negative j, tau the temperature, t the progress
    0..1; no gradient flows through a weight.

        focal       L_i is multiplied by (1 - p_i)^gamma(t)
        importance  exp(s_ij / tau) is multiplied by w_ij ~ exp(beta(t) s_ij / tau), mean 1 over j
        hardness    alpha(t) s_ij is added to the logit s_ij / tau
        ramp        exp(s_ij / tau) is multiplied by w_ij ~ exp(lambda(t) beta s_ij), mean 1 over j; lambda(t) = min(1, t / rho)

    Sources: `focal` KaLM-Embedding-V2 (arXiv 2506.20923; the formula is that of an independent implementation). `importance` HCL,
    Robinson et al. 2021, with tau_plus = 0, that is, without its debiasing; their image code lets beta fall to 0, the other direction
    is as easily said. `hardness` LLaVE (arXiv 2503.04812), EmbeddingGemma (arXiv 2509.20354). `ramp` our own proposal, unpublished.
    """

    focal: Number | None = None
    """gamma ≥ 0, number or ramp: the larger, the less a query counts whose positive is already well ahead. `off` = 0."""
    importance: Number | None = None
    """beta ≥ 0, number or ramp: the larger, the more weight lies on the negatives close to the query. In units of cosine / temperature."""
    hardness: Number | None = None
    """alpha ≥ 0, number or ramp: bonus of alpha × cosine on the logits of negatives. LLaVE 9, EmbeddingGemma 5."""
    hardness_of: HardnessOf = "all"
    """Which negatives get the bonus: all, the query's own (EmbeddingGemma), or the other queries' documents (LLaVE)."""
    ramp: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """beta > 0 of the weights that grow from none (uniform) to exp(beta × cosine). In units of the cosine."""
    ramp_share: float = Field(default=0.5, gt=0.0, le=1.0)  # our own choice, not tuned
    """rho, share of the training after which `ramp` has reached its full strength."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses values out of range, and what would have no effect or two meanings."""
        for name in ("focal", "importance", "hardness"):
            number: float | Ramp | None = getattr(self, name)
            if number is not None and lowest(number) < 0:
                raise ValueError(f"{name} goes down to {lowest(number):g}: expected 0 or more")
        if self.importance is not None and self.ramp is not None:
            raise ValueError("importance and ramp are two schedules of the same weights; leave one of them out")
        if self.hardness is None and changed(self, "hardness_of"):
            raise ValueError(f"hardness_of = {self.hardness_of!r} has no effect without hardness; set it too")
        if self.ramp is None and changed(self, "ramp_share"):
            raise ValueError(f"ramp_share = {self.ramp_share:g} has no effect without ramp; set it too")
        return self

    def at(self, progress: float, temperature: float) -> Weights:
        """The weights at a progress, 0..1, under the temperature of that step, > 0.

        >>> Weighting(importance=Ramp(start=0.0, to=1.0), focal=2.0).at(0.5, temperature=0.05)
        Weights(focal=2.0, importance=10.0, hardness=0.0, hardness_of='all')
        """
        importance = value_at(self.importance or 0.0, progress) / temperature  # HCL's beta stands before s / tau, ours before s
        if self.ramp is not None:
            importance = min(1.0, progress / self.ramp_share) * self.ramp
        return Weights(value_at(self.focal or 0.0, progress), importance, value_at(self.hardness or 0.0, progress), self.hardness_of)
