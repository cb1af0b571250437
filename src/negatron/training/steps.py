"""One optimiser step: its examples, its batch, its loss, its gradient; and its line in the log.

1. `batch_of` gives the step's examples the negatives that they have now: `remining` first, then what the stage chooses.
2. `objective_of` makes the step's loss out of settings, the step's plan and, where there is one, the guide's opinion.
3. `take_step` adds up the gradient, shortens it, steps, and tells what happened.

What stays true: all that a step draws comes from (seed, step), whatever was done before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from negatron.errors import NegatronError
from negatron.seams import Encoder
from negatron.training import gradients
from negatron.training.batches import Batch, collate
from negatron.training.curriculum import ChoiceReport, StepPlan, choose_negatives, draw_of
from negatron.training.learner import Learner, drawn_seed
from negatron.training.losses import GuideVectors, InfoNCE, Targets
from negatron.training.mixtures import ExampleSet
from negatron.training.objectives import CausalNegRegulariser, KLDistillation, Loss, MarginMSE, Matryoshka, Objective
from negatron.training.recipe import TrainingSettings, learning_rate_at

SHARPEST = 100.0
"""Largest inverse of a learnt temperature, as in CLIP (Radford et al. 2021, arXiv 2103.00020)."""


@dataclass(slots=True)
class Terms:
    """The objective's terms, called together; the values of the last call are kept for the log."""

    objective: Objective
    latest: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        """The weighted sum of the terms' sums over the scored rows."""
        values = self.objective.values(queries, documents, targets)
        self.latest = {name: value.detach() for name, value in values.items()}
        return self.objective.total(values)


def take_step(learner: Learner, plan: StepPlan) -> dict[str, Any]:
    """One optimiser step; returns its line for the log. Raises NegatronError where loss or gradient is not finite."""
    settings, optimiser = learner.settings, learner.optimiser
    chosen, batch, report = batch_of(learner, plan)
    learning_rate = learning_rate_at(plan.step, learner.steps, settings)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group["peak"] / settings.learning_rate
    torch.manual_seed(drawn_seed(settings.seed, "dropout", plan.step))
    terms = Terms(objective_of(learner, plan, batch))
    optimiser.zero_grad()
    outcome = add_gradient(learner, chosen, batch, terms)
    length = learner.workers.accelerator.clip_grad_norm_(learner.model.parameters(), settings.gradient_clip or math.inf).item()
    if not (math.isfinite(outcome.loss) and math.isfinite(length)):
        raise NegatronError(
            f"step {plan.step + 1}: the loss is {outcome.loss}, the gradient's length {length}; try a lower learning_rate "
            f"({settings.learning_rate:g} now), precision = 'fp32', or a higher temperature ({temperature_now(learner, plan):g} now)"
        )
    temperature = temperature_now(learner, plan)
    optimiser.step()
    keep_temperature_sane(learner)
    return {
        "step": plan.step + 1,
        "loss": outcome.loss,
        **shares_of(learner, batch, terms),
        "learning_rate": learning_rate,
        "temperature": temperature,
        **scheduled(settings, plan, report),
        **({"set": chosen.name} if len(learner.feed.sets) > 1 else {}),
        "gradient_length": length,
        "excluded_share": batch.targets.excluded_share(len(batch.document_texts)),
        "examples": len(batch.query_texts),
        "texts": outcome.texts,
        "tokens": outcome.tokens,
    }


def batch_of(learner: Learner, plan: StepPlan) -> tuple[ExampleSet, Batch, ChoiceReport]:
    """The set and the batch of a step, and what the choice of negatives came to."""
    chosen, examples = learner.feed.at(plan.step)
    if learner.remine is not None:
        examples = [learner.remine.current(example) for example in examples]
    report, seed = ChoiceReport(), learner.settings.seed
    examples = [choose_negatives(example, plan, draw_of(example, seed=seed, epoch=plan.epoch), report) for example in examples]
    return chosen, collate(examples, in_batch=learner.settings.in_batch_negatives), report


def add_gradient(learner: Learner, chosen: ExampleSet, batch: Batch, loss: Loss) -> gradients.Step:
    """Adds the gradient of the batch's mean loss, over all processes."""
    settings = learner.settings
    towers = learner.towers[chosen.name]
    towers.of_queries.ahead(batch.query_texts)
    towers.of_documents.ahead(batch.document_texts)
    return gradients.step(
        towers.queries,
        towers.documents,
        batch,
        loss,
        chunk_size=settings.chunk_size or None,
        chunk_tokens=settings.chunk_tokens or None,
        keep_graphs=settings.keep_graphs,
        keep_tokens=settings.keep_tokens,
        keep_product_tokens=settings.keep_product_tokens,
        processes=learner.processes,
    )


def objective_of(learner: Learner, plan: StepPlan, batch: Batch) -> Objective:
    """The step's loss, term by term."""
    settings = learner.settings
    info_nce = InfoNCE(
        **plan.loss_options(),
        guide_absolute_margin=settings.guide_absolute_margin,
        guide_relative_margin=settings.guide_relative_margin,
        own_weight=settings.own_weight,
        in_batch_weight=settings.in_batch_weight,
        directions=settings.directions,
        joint=settings.joint_directions,
    )
    guide = guide_vectors(learner, learner.guide, batch) if learner.guide is not None else None

    def main(queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        return info_nce(queries, documents, targets, guide=guide, log_inverse_temperature=learner.log_inverse_temperature)

    terms: dict[str, tuple[float, Loss]] = {"info_nce": (settings.info_nce_weight, main)} if settings.info_nce_weight else {}
    terms |= others_of(settings, plan.temperature)
    if not settings.dimensions:
        return Objective(terms)
    size = learner.model.get_sentence_embedding_dimension()
    sizes = settings.dimensions if size in settings.dimensions else (*settings.dimensions, size)
    return Objective({name: (weight, Matryoshka(loss, sizes)) for name, (weight, loss) in terms.items()})


def others_of(settings: TrainingSettings, temperature: float) -> dict[str, tuple[float, Loss]]:
    """The terms beside InfoNCE, each with its weight."""
    terms: dict[str, tuple[float, Loss]] = {}
    if settings.causalneg_weight:
        terms["causalneg"] = (settings.causalneg_weight, CausalNegRegulariser(weight=1.0))
    if settings.distillation == "kl":
        kl = KLDistillation(teacher_temperature=settings.teacher_scale, student_temperature=temperature)
        terms["kl"] = (settings.distillation_weight, kl)
    if settings.distillation == "margin_mse":
        terms["margin_mse"] = (settings.distillation_weight, MarginMSE(scale=settings.teacher_scale))
    return terms


def guide_vectors(learner: Learner, guide: Encoder, batch: Batch) -> GuideVectors:
    """The guide's vectors of the batch's texts; each process has encoded a share of them."""
    sides = []
    for encode, texts in ((guide.encode_queries, batch.query_texts), (guide.encode_documents, batch.document_texts)):
        if learner.processes is None:
            vectors = torch.from_numpy(encode(texts)).to(learner.workers.device)
        else:
            mine = range(learner.processes.index, len(texts), learner.processes.count)
            some = torch.from_numpy(encode([texts[n] for n in mine] or texts[:1])).to(learner.workers.device)
            vectors = some.new_zeros(len(texts), some.shape[1])
            vectors[list(mine)] = some[: len(mine)]
            vectors = learner.processes.sum(vectors)
        sides.append(vectors)
    return GuideVectors(*sides)


def temperature_now(learner: Learner, plan: StepPlan) -> float:
    """The temperature of this step: the learnt one, or the plan's."""
    if learner.log_inverse_temperature is None:
        return plan.temperature
    return math.exp(-learner.log_inverse_temperature.item())


def keep_temperature_sane(learner: Learner) -> None:
    """A learnt temperature does not fall below 1 / SHARPEST, nor below where it began."""
    if learner.log_inverse_temperature is not None:
        first = 1 / learner.curriculum.at(0).temperature
        learner.log_inverse_temperature.data.clamp_(max=math.log(max(SHARPEST, first)))


def shares_of(learner: Learner, batch: Batch, terms: Terms) -> dict[str, Any]:
    """Each term's own mean over the queries, before its weight, where there is more than one."""
    names = list(terms.objective.terms)
    if len(names) == 1:
        return {}
    nothing = torch.zeros((), device=learner.workers.device)  # a process without a row to score has asked for none
    values = torch.stack([terms.latest.get(name, nothing).float() for name in names]) / len(batch.query_texts)
    together = values if learner.processes is None else learner.processes.sum(values)
    return {"terms": dict(zip(names, together.tolist(), strict=True))}


def scheduled(settings: TrainingSettings, plan: StepPlan, report: ChoiceReport) -> dict[str, Any]:
    """What a curriculum or a weighting has set for this step, where there is one."""
    line: dict[str, Any] = {}
    if settings.weighting.model_fields_set:
        line |= {"focal": plan.focal, "importance": plan.importance, "hardness": plan.hardness}
    if plan.stage:
        line |= {"stage": plan.stage, "false_negative_margin": plan.false_negative_margin}
    if plan.quotas is not None or plan.bands is not None:
        quotas = {} if plan.quotas is None else {"quotas": dict(sorted(plan.quotas.items()))}
        line |= {**quotas, "chosen": dict(sorted(report.chosen.items())), "short": sum(report.short.values())}
    return line
