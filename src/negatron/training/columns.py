"""A batch given as columns (queries, positives, then hard negatives), row by row, as sentence-transformers lays it out: its Targets.

1. `targets_of_columns` makes Targets out of numbers: which document each row's positive and negatives are, which query each row asks.
2. `Layout.of` does so for distinct rows that were encoded once, of this process or of all that run together.
3. `gather` gives every process the vectors of all, with a gradient.

What stays true: with copies excluded, no copy of a query's positive, and no positive that another row gives the same query, is a negative
of it; a text counts once as a negative, however often it occurs. The mean is over the queries of all processes.

What it does not know: tokens, encoders, the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from negatron.errors import NegatronError
from negatron.training.gathered import Processes
from negatron.training.targets import Targets
from negatron.training.tokenised import Rows


def targets_of_columns(documents: Tensor, queries: Tensor | None = None, *, in_batch: bool = True) -> Targets:
    """Targets of a batch of Q rows, each a query, its positive and K negatives of its own.

    A row's own negatives are without its positive and the other positives of its query; those are excluded.

    Args:
        documents: [1 + K, Q] int64: which column of the loss's documents is each row's positive (first), and its negatives.
        queries: [Q] int64: rows with the same number ask the same query; None: no two do.
        in_batch: False: only a row's own negatives count.

    >>> targets = targets_of_columns(torch.tensor([[0, 1], [2, 2]]), torch.tensor([7, 7]))
    >>> targets.positive.tolist(), targets.excluded.tolist(), targets.own.tolist()
    ([0, 1], [[0, 1], [1, 0]], [[0, 2], [1, 2]])

    """
    positive = documents[0].cpu()
    asked = torch.arange(len(positive)) if queries is None else queries.cpu()
    known: dict[int, set[int]] = {}
    for query, column in zip(asked.tolist(), positive.tolist(), strict=True):
        known.setdefault(query, set()).add(column)
    barred = [
        (row, column)
        for row, (query, mine) in enumerate(zip(asked.tolist(), positive.tolist(), strict=True))
        for column in sorted(known[query] - {mine})
    ]
    excluded = torch.tensor(barred, dtype=torch.long).reshape(-1, 2)
    negatives = documents[1:].cpu()
    own = torch.unique(torch.stack([torch.arange(len(positive)).expand_as(negatives).reshape(-1), negatives.reshape(-1)], 1), dim=0)
    columns = int(documents.max()) + 1
    out = torch.cat([torch.stack([torch.arange(len(positive)), positive], 1), excluded])
    counts = ~torch.isin(own[:, 0] * columns + own[:, 1], out[:, 0] * columns + out[:, 1])
    return Targets(positive, excluded, own[counts], in_batch)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the loss's queries and documents are taken from the tables of distinct rows."""

    queries: Tensor
    """[Q] int64: rows of the table of queries."""
    documents: Tensor
    """[N] int64: rows of the table of documents."""
    targets: Targets
    divisor: float
    """What the sum over the scored rows is divided by: the mean over all queries, times the number of processes that will be averaged."""
    processes: Processes | None
    """Those whose vectors are columns too; None where each is on its own."""

    @classmethod
    def of(cls, asked: Rows, read: Rows, *, exclude_copies: bool, in_batch: bool, processes: Processes | None) -> Layout:
        """The layout of this process's rows, or with `processes` of everybody's, of which this one scores its own.

        exclude_copies: False: each occurrence of a document is a column of its own, and no row knows what another one's query is.
        Raises NegatronError where processes have different numbers of columns.
        """
        queries, documents, scored = asked.numbers[0], read.numbers, None
        if processes is not None:
            queries, documents, scored = of_all(asked, read, processes)
        rows = documents.shape[1]
        if exclude_copies:
            table, numbers = torch.unique(documents, return_inverse=True)
            targets = targets_of_columns(numbers, queries, in_batch=in_batch)
        else:
            table = documents.reshape(-1)
            targets = targets_of_columns(torch.arange(len(table)).view_as(documents), in_batch=in_batch)
        divisor = rows / (1 if processes is None else processes.count)
        return cls(queries, table, replace(targets, rows=scored), divisor, processes)

    def picked(self, queries: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        """[Q, D] and [N, D] from this process's tables of distinct rows, others' among them where they run together."""
        if self.processes is not None:
            queries, documents = gather(queries, self.processes), gather(documents, self.processes)
        return picked(queries, self.queries), picked(documents, self.documents)


def picked(table: Tensor, rows: Tensor) -> Tensor:
    """[len(rows), D]; the table itself where that is what is asked for."""
    if len(rows) == len(table) and bool((rows == torch.arange(len(rows))).all()):
        return table
    return table[rows.to(table.device)]


def of_all(asked: Rows, read: Rows, processes: Processes) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """[Q] and [1 + K, Q]: rows of the tables of all processes, one after the other; and which of the Q are this process's.

    A text that several processes have is the row of the first of them.
    """
    columns, rows = read.numbers.shape
    everybody = concatenated(torch.tensor([[rows, columns]]), processes)
    if len(set(everybody[:, 1].tolist())) > 1:
        raise NegatronError(f"processes have batches of {(everybody[:, 1] + 1).tolist()} columns; every process must have as many")
    queries = firsts(asked, processes)
    documents = firsts(read, processes)
    first = int(everybody[: processes.index, 0].sum())
    asked_by_row = concatenated(queries[asked.numbers[0]], processes)
    read_by_row = concatenated(documents[read.numbers.T], processes)
    return asked_by_row, read_by_row.T.contiguous(), (first, first + rows)


def firsts(rows: Rows, processes: Processes) -> Tensor:
    """[U]: for each distinct row of this process its first occurrence in the tables of all."""
    keys = torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in rows.digests])  # 64 bits: two of 10^6 texts
    everybody = concatenated(keys, processes)  # share one with a probability of 3e-8, and then only count as copies of each other
    _, kind = torch.unique(everybody, return_inverse=True)
    first = torch.full((int(kind.max()) + 1,), len(everybody)).scatter_reduce(0, kind, torch.arange(len(everybody)), "amin")
    before = int(concatenated(torch.tensor([len(keys)]), processes)[: processes.index].sum())
    return first[kind[before : before + len(keys)]]


def concatenated(part: Tensor, processes: Processes) -> Tensor:
    """[n, ...] of each process, one after the other; n may differ. On the device of `part` where the processes can speak there."""
    device = processes.parameters[0].device if processes.parameters else part.device
    lengths = torch.zeros(processes.count, dtype=torch.long, device=device)
    lengths[processes.index] = len(part)
    sizes: Sequence[int] = processes.sum(lengths).tolist()
    first = sum(sizes[: processes.index])
    whole = torch.zeros(sum(sizes), *part.shape[1:], dtype=part.dtype, device=device)
    whole[first : first + len(part)] = part.to(device)
    return processes.sum(whole).to(part.device)


def gather(rows: Tensor, processes: Processes) -> Tensor:
    """[n, D] of each process -> [sum of n, D] in all; the gradient of a row is the sum of what all processes ask of it."""
    everybody: Tensor = GatheredRows.apply(rows, processes)  # type: ignore[no-untyped-call]
    return everybody


class GatheredRows(torch.autograd.Function):
    """See `gather`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        """Adds this process's rows to zeros."""
        before = concatenated(torch.tensor([len(rows)]), processes)[: processes.index].sum()
        ctx.processes, ctx.first, ctx.count = processes, int(before), len(rows)
        return concatenated(rows, processes)

    @staticmethod
    def backward(ctx: Any, asked: Tensor) -> tuple[Tensor, None]:
        """What everybody asks of this process's rows."""
        return ctx.processes.sum(asked.contiguous().clone())[ctx.first : ctx.first + ctx.count], None
