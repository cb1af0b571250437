"""The settings of a training, and the learning rate that follows from them at each step. Pure; torch is not needed to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from negatron.settings import Settings


class TrainingSettings(Settings):
    """How a model is trained. The defaults are those of sentence-transformers' trainer where it has the setting too."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the examples."""
    batch_size: int = Field(default=128, ge=1)
    """Queries in one optimiser step; every other query's documents are negatives of a query. The last batch of an epoch may be smaller."""
    chunk_size: int = Field(default=64, ge=0)
    """Texts encoded at a time; 0 = all of a batch in one graph. Changes memory and speed, not what is learnt (but for dropout's draws)."""
    keep_graphs: int = Field(default=0, ge=0)
    """Chunks whose activations are kept between the two passes: each saves one forward pass of a chunk and costs its memory."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Highest learning rate, reached after the warm-up."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: `linear` falls to 0 at the last step, `constant` stays."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps, rounded up, over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay a step, times the learning rate; biases and layer norms are spared."""
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest length of the whole gradient; longer ones are shortened to it. 0 = no limit."""
    temperature: float = Field(default=0.05, gt=0)
    """Cosines are divided by it before the softmax; smaller gives the hardest negatives more weight."""
    max_length: int | None = Field(default=None, ge=4)
    """Tokens at which a text is cut; "off" = the model's own limit. It is saved with the model."""
    in_batch_negatives: bool = True
    """Whether other queries' documents count as negatives. False: only the query's own negatives."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic inside the encoder; auto = bf16 where the device is faster in it. Weights and losses are fp32."""
    seed: int = Field(default=13, ge=0)
    """Of the order of the examples and of dropout."""
    checkpoint_seconds: float = Field(default=120.0, ge=0)
    """Seconds between checkpoints; 0 = one after every step. Changes how much a stopped run repeats, not what is learnt."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations, where there is something to evaluate on; 0 = one epoch. The last step is always evaluated."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the model: those after the last step, or those of the best evaluation."""


def linear(step: int, warmup: int, total: int) -> float:
    """Rises to 1 over `warmup` steps, falls to 0 at step `total`: `get_linear_schedule_with_warmup` of transformers.

    >>> [linear(step, 2, 6) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return step / warmup if step < warmup else (total - step) / max(1, total - warmup)


def constant(step: int, warmup: int, total: int) -> float:
    """Rises to 1 over `warmup` steps and stays: `get_constant_schedule_with_warmup` of transformers."""
    return step / warmup if step < warmup else 1.0


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"linear": linear, "constant": constant}


def learning_rate_at(step: int, total: int, settings: TrainingSettings) -> float:
    """The learning rate of step `step` (the first is 0, and has rate 0 where there is a warm-up) of `total` steps."""
    warmup = min(math.ceil(settings.warmup_share * total), total - 1)  # a training of one step would have the rate 0 and learn nothing
    return settings.learning_rate * SCHEDULES[settings.schedule](step, warmup, total)
