"""Evaluation during a training: when, how the best weights are kept, and when it is time to stop.

What it does not know: what the score is made of; higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sentence_transformers import SentenceTransformer

from negatron.training import checkpoints
from negatron.training.checkpoints import Progress
from negatron.training.learner import Learner

Evaluate = Callable[[SentenceTransformer], float]
"""The model, in evaluation mode -> its score on queries that training does not see; higher is better."""


def is_due(learner: Learner, steps: int) -> bool:
    """True after every `evaluate_every` steps, or every epoch, and after the last step."""
    every = learner.settings.evaluate_every
    return steps == learner.steps or (steps % every == 0 if every else steps in learner.epoch_ends)


def judged(learner: Learner, evaluate: Evaluate, done: Progress, place: Path) -> tuple[float, Progress]:
    """The score after `done.steps` steps, and the progress with it; a new best's weights are kept where they may be asked for."""
    score = learner.workers.agree(evaluated(learner.model, evaluate) if learner.workers.first else math.nan)
    if done.best is not None and not score > done.best[1]:  # so that what is no number is never the best
        return score, replace(done, without_best=done.without_best + 1)
    if learner.settings.keep == "best" and learner.workers.first:
        checkpoints.save_best(place, learner.model)
    return score, replace(done, best=(done.steps, score), without_best=0)


def evaluated(model: SentenceTransformer, evaluate: Evaluate) -> float:
    """The model's score, without dropout; training mode is on again afterwards."""
    model.eval()
    score = float(evaluate(model))
    model.train()
    return score


def is_enough(learner: Learner, done: Progress) -> bool:
    """Whether so many evaluations in a row brought nothing that the training ends early."""
    patience = learner.settings.patience
    return patience is not None and done.without_best >= patience
