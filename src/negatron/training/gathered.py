"""Several processes that take one step together, so that each has the columns of all and the gradient is that of one process.

Every process holds the same weights and is given the same batch (texts and Targets). Then:

1. each encodes its share of the distinct texts (`share`), and adds its vectors to zeros; the sum over the processes is the table of all;
2. each scores its own rows (`rows`) against all columns; the gradients at the table are summed, and each takes those of its own texts;
3. each pushes them through its own chunks; the parameters' gradients are summed once a step (`one_gradient`).

The mean is taken once, over the queries of all processes, so no factor of the number of processes stands anywhere; those of five
widely used losses at two processes are 1, 1, 2, 2 and 0.5. Adding up is the only thing that processes do together: shares may be unequal
or empty, and the table is the only thing that grows with the batch: N x D numbers, 0.7 GB at 480,000 documents of 384 dimensions, twice
with its gradient. Sending columns round a ring would spare that and cost as many messages as there are processes; the table is small
beside the activations of a chunk, so it is not done.

What it does not know: texts, towers, losses; how processes are started, and what gives them the same weights and the same batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from negatron.errors import NegatronError
from negatron.identity import fingerprint_texts

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Processes:
    """One process among those of torch.distributed's default group."""

    index: int
    """0..count - 1."""
    count: int
    parameters: tuple[Tensor, ...]
    """All that is learnt, in the same order in every process: the encoder's, and a learnt temperature where there is one."""

    @classmethod
    def now(cls, parameters: Iterable[Tensor]) -> Processes | None:
        """The processes that run, None where this one is alone. The parameters that need no gradient are left out."""
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return None
        learnt = tuple(parameter for parameter in parameters if parameter.requires_grad)
        return cls(distributed.get_rank(), distributed.get_world_size(), learnt)

    def share(self, longest_first: Sequence[T]) -> Sequence[T]:
        """Every `count`-th, from the `index`-th on: of texts sorted by length, no share has more tokens than another and a longest text."""
        return longest_first[self.index :: self.count]

    def rows(self, queries: int) -> tuple[int, int]:
        """First row and end of those that this process scores; empty where there are fewer queries than processes."""
        return queries * self.index // self.count, queries * (self.index + 1) // self.count

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, of the same shape; may be the same tensor."""
        values = values.contiguous()  # measured: with gloo a strided tensor is read as if it were dense, and nobody says so
        distributed.all_reduce(values)
        return values

    def refuse_other_batch(self, texts: Iterable[str]) -> None:
        """Raises NegatronError in every process where their texts differ: the sums would be those of no batch at all."""
        own = int(fingerprint_texts(texts), 16) >> 1  # 63 bits, as int64 holds them
        all_of_them = torch.zeros(self.count, dtype=torch.long, device=self.parameters[0].device)
        all_of_them[self.index] = own
        found = self.sum(all_of_them).tolist()
        if set(found) != {own}:
            others = [index for index, fingerprint in enumerate(found) if fingerprint != found[0]]
            raise NegatronError(
                f"processes {others} have another batch than process 0; every process must be given the whole batch, in the same order"
            )

    @contextmanager
    def one_gradient(self) -> Iterator[None]:
        """Sums up over the processes what is added to the parameters' gradients inside the block; what they held before is kept as it is.

        A parameter that no process has a gradient for stays without one, as it would in a single process.
        """
        before = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        yield
        reached = self.sum(torch.tensor([float(p.grad is not None) for p in self.parameters], device=self.parameters[0].device))
        together = [parameter for parameter, count in zip(self.parameters, reached.tolist(), strict=True) if count]
        for alike in grouped(together):
            flat = self.sum(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in alike]))
            for parameter, part in zip(alike, torch.split(flat, [p.numel() for p in alike]), strict=True):
                parameter.grad = part.view_as(parameter)
        for parameter, old in zip(self.parameters, before, strict=True):
            if old is not None:
                parameter.grad = old if parameter.grad is None else old + parameter.grad


def grouped(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those of one type on one device together, so that their gradients fit into one tensor."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    return list(groups.values())
