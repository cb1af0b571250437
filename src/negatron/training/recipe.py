"""The settings of a training, and the learning rate that follows from them at each step. Pure; torch is not needed to read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from negatron.settings import Settings
from negatron.training.adapters import LoraSettings
from negatron.training.curriculum import Defaults, Stage
from negatron.training.remining import RemineRule
from negatron.training.weighting import Number, Weighting, lowest

Direction = Literal["query_to_document", "query_to_query", "document_to_document", "document_to_query"]


class Prompts(Settings):
    """What is put before the texts of one data set in training."""

    query: str | None = None
    """Before each query; "off" = the model's own prompt."""
    document: str | None = None
    """Before each document; "off" = the model's own prompt."""


class TrainingSettings(Settings):
    """How a model is trained. The defaults are those of sentence-transformers' trainer where it has the setting too."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the examples."""
    batch_size: int = Field(default=128, ge=1)
    """Queries in one optimiser step, over all processes; every other query's documents are negatives of a query. The last batch of an
    epoch may be smaller."""
    chunk_tokens: int = Field(default=8192, ge=0)
    """Tokens encoded at a time in one process, padding among them; 0 = no limit. Changes memory and speed, not what is learnt (but for
    dropout's draws)."""
    chunk_size: int = Field(default=0, ge=0)
    """Texts encoded at a time, on top of that limit; 0 = no limit. Where neither has one, all of a batch is encoded in one graph."""
    keep_tokens: int = Field(default=0, ge=0)
    """Tokens whose activations are kept between the two passes: each saves a second forward pass and costs its memory."""
    keep_product_tokens: int = Field(default=0, ge=0)
    """Tokens more of which only the results of matrix products are kept: most of a second forward pass for a third of the memory."""
    keep_graphs: int = Field(default=0, ge=0)
    """As keep_tokens, in chunks; the larger of the two holds."""
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
    temperature: Number = 0.05
    """Cosines are divided by it before the softmax; smaller gives the hardest negatives more weight. A number, or a ramp over all of the
    training."""
    temperature_learning_rate: float = Field(default=0.0, ge=0)
    """Above 0 the temperature is learnt, from `temperature` on: the highest learning rate of its logarithm."""
    false_negative_margin: float | None = None
    """Cosine by which a column may lie above the positive before it no longer counts; "off" = every column counts. Qwen3-Embedding 0.1."""
    guide: str | None = None
    """An encoder (folder or name) by whose opinion columns that look like false negatives do not count; needs one of the two margins."""
    guide_absolute_margin: float | None = None
    """A column does not count if the guide's cosine of it is above the positive's minus this. GISTEmbed 0."""
    guide_relative_margin: float | None = None
    """The same with a margin as a share of the positive's cosine."""
    own_weight: float = Field(default=1.0, gt=0)
    """Factor of exp(logit) of a query's own negatives."""
    in_batch_weight: float = Field(default=1.0, gt=0)
    """Factor of exp(logit) of all other columns."""
    directions: tuple[Direction, ...] = ("query_to_document",)
    """What is compared with what; `query_to_document` is always among them."""
    joint_directions: bool = True
    """True: one softmax over all directions. False: one for each, their losses averaged."""
    in_batch_negatives: bool = True
    """Whether other queries' documents count as negatives. False: only the query's own negatives."""
    weighting: Weighting = Weighting()
    """Which samples weigh more, and how that changes: a table of `focal`, `importance`, `hardness`, `ramp`."""
    stages: tuple[Stage, ...] = ()
    """The curriculum: a table `[[stages]]` for each part of the training, with its `share` and what differs in it."""
    causalneg_weight: float = Field(default=0.0, ge=0)
    """Weight of CausalNeg's regulariser on written negatives; published 0.05."""
    distillation: Literal["kl", "margin_mse"] | None = None
    """What is drawn to the teacher's stored scores: the softmax over a query's documents, or the margins; "off" = neither."""
    distillation_weight: float = Field(default=1.0, gt=0)
    """Its weight beside InfoNCE."""
    teacher_scale: float = Field(default=1.0, gt=0)
    """The teacher's unit: its scores are divided by it for `kl`, cosines multiplied by it for `margin_mse`."""
    info_nce_weight: float = Field(default=1.0, ge=0)
    """InfoNCE's own weight; 0 with distillation or CausalNeg: they alone."""
    dimensions: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Matryoshka: sizes to which vectors may be cut afterwards; the loss is the sum over them and the full size."""
    lora: LoraSettings | None = None
    """Trains small matrices beside the weights and merges them at the end: a table of `rank`, `alpha`, `dropout`, `targets`."""
    remine: RemineRule | None = None
    """Renews negatives that have become easy during the training: a table of `rule`, `every`, `negatives` and others."""
    prompts: dict[str, Prompts] = Field(default={})
    """Data set -> `query` and `document` prompt of its texts in training; the saved model keeps its own."""
    mixing_exponent: float = Field(default=1.0, ge=0, le=1)
    """With several data sets: 1 = each has as many batches as its size warrants, 0 = as many as any other."""
    max_length: int | None = Field(default=None, ge=4)
    """Tokens at which a text is cut; "off" = the model's own limit. It is saved with the model."""
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
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without a new best after which the training ends early; "off" = it never does."""
    trackers: tuple[str, ...] = ()
    """Names of accelerate's trackers that are installed and shall see each line of the log, such as tensorboard."""

    @model_validator(mode="after")
    def every_setting_has_an_effect(self) -> Self:
        """Refuses values out of range, and what would have no effect."""
        if lowest(self.temperature) <= 0:
            raise ValueError(f"temperature = {lowest(self.temperature):g}: it should be greater than 0")
        margins = [self.guide_absolute_margin, self.guide_relative_margin]
        if (self.guide is None) != (margins == [None, None]):
            raise ValueError("guide and a guide margin need each other: give guide and guide_absolute_margin or guide_relative_margin")
        if None not in margins:
            raise ValueError("guide_absolute_margin and guide_relative_margin exclude each other; give one")
        if self.temperature_learning_rate and (
            not isinstance(self.temperature, float) or any(s.temperature is not None for s in self.stages)
        ):
            raise ValueError(
                "a temperature that is learnt has no ramp and no stages of its own; leave them out, or temperature_learning_rate"
            )
        for name in sorted({"distillation_weight", "teacher_scale"} & self.model_fields_set):
            if self.distillation is None:
                raise ValueError(f"{name} = {getattr(self, name):g} has no effect without distillation")
        if not (self.info_nce_weight or self.distillation or self.causalneg_weight):
            raise ValueError("info_nce_weight = 0 and nothing else to learn from; set distillation or causalneg_weight")
        if "in_batch_weight" in self.model_fields_set and not self.in_batch_negatives:
            raise ValueError("in_batch_weight has no effect with in_batch_negatives = false; leave one of them out")
        if "joint_directions" in self.model_fields_set and len(self.directions) == 1:
            raise ValueError("joint_directions has no effect with one direction; add another to directions")
        return self

    def defaults(self) -> Defaults:
        """What holds where a stage says nothing."""
        return Defaults(self.batch_size, self.temperature, self.false_negative_margin)


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
