"""What a batch asks for: which column is whose positive, what is excluded, who owns which negative, how much a query weighs.

Whoever lays out a batch makes its Targets; a loss never derives from the sizes of tensors which column belongs to whom.

What it does not know: texts, encoders, chunks, how a loss is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class GuideVectors:
    """Another encoder's vectors of the batch's texts: its opinion decides which columns look like false negatives."""

    queries: Tensor
    """[Q, G], unit length."""
    documents: Tensor
    """[N, G], unit length."""


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
        teacher = self.teacher
        lengths: dict[str, tuple[Tensor | None, int]] = {
            "written": (self.written, len(self.own)),
            "weights": (self.weights, len(self.positive)),
            "teacher.positive": (None if teacher is None else teacher.positive, len(self.positive)),
            "teacher.own": (None if teacher is None else teacher.own, len(self.own)),
        }
        for name, (values, expected) in lengths.items():
            if values is not None and tuple(values.shape) != (expected,):
                raise ValueError(f"targets.{name} of shape {tuple(values.shape)}; expected [{expected}]")
        rows, columns = self.excluded.unbind(1)
        if clash := rows[self.positive[rows] == columns].tolist():
            raise ValueError(f"query rows {clash[:5]} exclude their own positive; one text must be one column, see batches.collate")

    def to(self, device: torch.device) -> Targets:
        """The same targets on a device."""
        return replace(
            self,
            positive=self.positive.to(device),
            excluded=self.excluded.to(device),
            own=self.own.to(device),
            written=None if self.written is None else self.written.to(device),
            weights=None if self.weights is None else self.weights.to(device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )

    def excluded_share(self, columns: int) -> float:
        """Excluded pairs as a share, 0..1, of the pairs that could be negative: Q x (columns - 1)."""
        possible = len(self.positive) * (columns - 1)
        return len(self.excluded) / possible if possible else 0.0
