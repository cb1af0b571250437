"""What the examples of a batch say of its pairs, put into the batch's Targets: who wrote a negative, a teacher's scores, weights.

What stays true: the layout of the batch, which `batches.collate` made, is not touched. A tensor that would say nothing is left out.

What it does not know: losses; which teacher it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from negatron.training.batches import Batch
from negatron.training.curriculum import answers
from negatron.training.losses import TeacherScores
from negatron.types import Negative, TrainingExample

WRITTEN = "synthetic"
"""Source of the negatives that a language model wrote, alone or with the name of the prompt behind a colon."""


def with_opinions(batch: Batch, examples: Sequence[TrainingExample]) -> Batch:
    """The batch whose targets say all that its examples do: row n is `examples[n]`."""
    own = negatives_of(batch, examples)
    targets = replace(batch.targets, written=written_of(own), weights=weights_of(examples), teacher=teacher_of(examples, own))
    return replace(batch, targets=targets)


def negatives_of(batch: Batch, examples: Sequence[TrainingExample]) -> list[Negative]:
    """[H]: the negative of each own pair of the batch."""
    of_row = [{negative.document.content: negative for negative in reversed(example.negatives)} for example in examples]
    return [of_row[row][batch.document_texts[column]] for row, column in batch.targets.own.tolist()]


def written_of(own: Sequence[Negative]) -> Tensor | None:
    """[H] bool: which were written, that is, found by no search; None where none was."""
    flags = [bool(negative.origins) and all(answers(origin.source, WRITTEN) for origin in negative.origins) for negative in own]
    return torch.tensor(flags) if any(flags) else None


def weights_of(examples: Sequence[TrainingExample]) -> Tensor | None:
    """[Q] fp32: what each query's loss is multiplied by; None where all are 1."""
    weights = [example.weight for example in examples]
    return torch.tensor(weights, dtype=torch.float32) if any(weight != 1 for weight in weights) else None


def teacher_of(examples: Sequence[TrainingExample], own: Sequence[Negative]) -> TeacherScores | None:
    """The teacher's scores, nan where it has none; None where it has none at all."""
    positive = [example.positive_score for example in examples]
    scores = [negative.teacher_score for negative in own]
    if all(score is None for score in (*positive, *scores)):
        return None
    return TeacherScores(*(torch.tensor([math.nan if s is None else s for s in part], dtype=torch.float32) for part in (positive, scores)))
