"""The losses, by name. Each is called with (queries [Q, D], documents [N, D], targets) and gives the *sum* over the scored rows, in fp32.

Whoever means a mean divides once, by the number of queries that it means.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from negatron.training.formula import Direction, HardnessOf, Options, plain
from negatron.training.targets import GuideVectors, Targets, TeacherScores
from negatron.training.tiled import tiled

__all__ = ["Direction", "GuideVectors", "HardnessOf", "InfoNCE", "Options", "Targets", "TeacherScores", "info_nce"]


@dataclass(frozen=True, slots=True)
class InfoNCE(Options):
    """InfoNCE with its options, as a loss; exact, in linear memory.

    >>> import torch
    >>> vectors = torch.eye(2)
    >>> targets = Targets(torch.tensor([0, 1]), torch.empty(0, 2).long(), torch.empty(0, 2).long())
    >>> round(InfoNCE(temperature=1.0)(vectors, vectors, targets).item(), 4)  # 2 log(e + 1) - 2
    0.6265
    """

    def __call__(
        self,
        queries: Tensor,
        documents: Tensor,
        targets: Targets,
        *,
        guide: GuideVectors | None = None,
        log_inverse_temperature: Tensor | None = None,
    ) -> Tensor:
        """The sum over the scored rows; a scalar in fp32, which can be differentiated once.

        Args:
            queries: [Q, D], unit length.
            documents: [N, D], unit length.
            targets: for the same Q rows and N columns, on the same device.
            guide: vectors of the same texts, where a guide margin is set.
            log_inverse_temperature: a scalar, log(1 / temperature), in place of `temperature`; it gets a gradient if it wants one.

        """
        inverse = None if log_inverse_temperature is None else log_inverse_temperature.float().exp()
        return tiled(queries, documents, targets, self, guide=guide, inverse_temperature=inverse)


def info_nce(queries: Tensor, documents: Tensor, targets: Targets, *, temperature: float) -> Tensor:
    """Sum over the queries of -log softmax(own positive), over the columns that count; a scalar in fp32, from the whole matrix.

        loss = sum_i [ log sum_{j counts for i} exp(q_i . d_j / temperature) - q_i . d_positive(i) / temperature ]

    Source: InfoNCE, van den Oord et al. 2018 (arXiv 1807.03748, eq. 4), with cosine / temperature for the score. `InfoNCE` is the same
    in linear memory and with options.
    """
    return plain(queries, documents, targets, Options(temperature=temperature))
