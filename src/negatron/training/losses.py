"""What a batch asks for (`Targets`), and the formula of the loss, which stands here once for every route of `gradients`.

Whoever lays out a batch makes its Targets; a loss never derives from the sizes of tensors which column belongs to whom. A loss is the
*sum* over queries: whoever means a mean divides once, by the number of queries it means.

What it does not know: texts, encoders, chunks, processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TeacherScores:
    """A teacher's scores of the pairs that a batch learns from, for distillation; higher is more relevant, the scale is the teacher's."""

    positive: Tensor
    """[Q] fp32: of each query with its own positive."""
    own: Tensor
    """[H] fp32: of the pairs of `Targets.own`, in their order."""

    def to(self, device: torch.device) -> TeacherScores:
        """The same scores on a device."""
        return TeacherScores(self.positive.to(device), self.own.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Which columns count for which query of a batch of Q queries and N documents, a document being one column.

    All pairs are (query row, column), sorted. Their number grows with what is excluded or owned, never with Q x N.
    Raises ValueError when shapes do not fit, or when a query excludes its own positive: its loss would be infinite.
    """

    positive: Tensor
    """[Q] int64: the column of each query's own positive."""
    excluded: Tensor
    """[E, 2] int64: columns that may not count against a query: its other known positives, and copies of any of them."""
    own: Tensor
    """[H, 2] int64: the query's own negatives, without its positive and without what is excluded."""
    in_batch: bool = True
    """False: only the own negatives count, as in the formula of SyNeg (arXiv 2412.17250), not the other queries' documents."""
    written: Tensor | None = None
    """[H] bool: which of the own negatives a language model wrote; None = none of them."""
    weights: Tensor | None = None
    """[Q] fp32: what each query's loss is multiplied by; None = 1 each."""
    teacher: TeacherScores | None = None
    """What a teacher thinks of the positives and the own negatives; None without a teacher."""
    rows: tuple[int, int] | None = None
    """First row and end of those whose loss this process sums up; None = all. The columns are always everybody's."""

    def __post_init__(self) -> None:
        if self.positive.dim() != 1 or any(pairs.dim() != 2 or pairs.shape[1] != 2 for pairs in (self.excluded, self.own)):
            shapes = [tuple(part.shape) for part in (self.positive, self.excluded, self.own)]
            raise ValueError(f"targets of shapes {shapes}; expected [Q], [E, 2], [H, 2]")
        lengths = {
            "written": (self.written, len(self.own)),
            "weights": (self.weights, len(self.positive)),
            "teacher.positive": (self.teacher and self.teacher.positive, len(self.positive)),
            "teacher.own": (self.teacher and self.teacher.own, len(self.own)),
        }
        for name, (values, expected) in lengths.items():
            if values is not None and tuple(values.shape) != (expected,):
                raise ValueError(f"targets.{name} of shape {tuple(values.shape)}; expected [{expected}]")
        rows, columns = self.excluded.unbind(1)
        if clash := rows[self.positive[rows] == columns].tolist():
            raise ValueError(f"query rows {clash[:5]} exclude their own positive; one text must be one column, see batches.collate")

    def to(self, device: torch.device) -> Targets:
        """The same targets on a device."""
        moved = {name: None if (part := getattr(self, name)) is None else part.to(device) for name in MOVABLE}
        return replace(self, **moved)

    def excluded_share(self, columns: int) -> float:
        """Excluded pairs as a share, 0..1, of the pairs that could be negative: Q x (columns - 1)."""
        possible = len(self.positive) * (columns - 1)
        return len(self.excluded) / possible if possible else 0.0


MOVABLE = ("positive", "excluded", "own", "written", "weights", "teacher")


def info_nce(queries: Tensor, documents: Tensor, targets: Targets, *, temperature: float) -> Tensor:
    """Sum over the queries of -log softmax(own positive), over the columns that count; a scalar in fp32.

        loss = sum_i [ log sum_{j counts for i} exp(q_i . d_j / temperature) - q_i . d_positive(i) / temperature ]

    A column counts for a query if it is not excluded, and, where `targets.in_batch` is off, is its positive or one of its own negatives.
    Source: InfoNCE, van den Oord et al. 2018 (arXiv 1807.03748, eq. 4), with cosine / temperature for the score.

    Args:
        queries: [Q, D], unit length.
        documents: [N, D], unit length.
        targets: for the same Q rows and N columns, on the same device.
        temperature: > 0; cosines are divided by it. Its inverse is what sentence-transformers calls scale.

    """
    with torch.autocast(queries.device.type, enabled=False):  # bf16 cosines take some 1,350 values only: measured, scores must be fp32
        logits = queries.float() @ documents.float().T / temperature
        logits = logits.masked_fill(left_out(targets, len(documents)), -math.inf)
        return torch.nn.functional.cross_entropy(logits, targets.positive, reduction="sum")


def left_out(targets: Targets, columns: int) -> Tensor:
    """[Q, N] bool: True where a column does not count for a query."""
    rows = torch.arange(len(targets.positive), device=targets.positive.device)
    out = torch.full((len(rows), columns), not targets.in_batch, device=rows.device)
    out[targets.own.unbind(1)] = False
    out[rows, targets.positive] = False
    out[targets.excluded.unbind(1)] = True
    return out
