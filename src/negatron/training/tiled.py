"""InfoNCE and its gradient in linear memory: exact, and never more than a few tiles of logits at a time.

For each block of rows:
1. the sparse cosines (`formula.sparse`);
2. each dense part tile by tile, with a running maximum and sum (Inf-CL, arXiv 2410.17243; online softmax, Milakov and Gimelshein 2018,
   arXiv 1805.02867): its log-sum-exps, and sum_j e_ij b_j, half of the gradient. The exponentials of a tile stay where they fit into
   the workspace, so that the logits of few tiles, or none, are multiplied out again in step 4;
3. `formula.row_losses` on these numbers, in autograd: the loss, and what it asks of each log-sum-exp and each sparse cosine;
4. the rest of the gradient: sum_i p_ij a_i into the columns, tile by tile, and the sparse pairs.

So the gradient is there when the loss is; backward only multiplies it by what comes from above. On a GPU with Triton, steps 2 and 4 are
`kernels`' instead, for all rows at once.

What stays true: loss and gradient are those of `formula.plain` to rounding, whatever the tile. Beyond inputs and gradients, memory is the
workspace plus vectors of length Q or N, and some rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from negatron.training import kernels
from negatron.training.formula import (
    LOWEST,
    Batch,
    Block,
    Direction,
    Options,
    Reduced,
    Sparse,
    blocks,
    pairs_at_a_time,
    row_losses,
    sparse,
)
from negatron.training.targets import GuideVectors, Targets

Route = Literal["auto", "tiles", "kernels"]
"""Who multiplies: torch, tile by tile, or the Triton kernels; auto = the kernels where they are `available` on a GPU."""
WORKSPACE_MIB = {"cpu": 24, "cuda": 1024}
TILE_COLUMNS = {"cpu": 2048, "cuda": 16384}
ROWS = {"cpu": (128, 256), "cuda": (2048, 16384)}
"""Fewest and most rows of a block. Measured on 2 cores: docs/notebook.md, "The loss in linear memory"."""


def tile_columns(device: torch.device) -> int:
    """Columns of a tile on a device."""
    return TILE_COLUMNS["cpu" if device.type == "cpu" else "cuda"]


def tiled(
    queries: Tensor,
    documents: Tensor,
    targets: Targets,
    options: Options,
    *,
    guide: GuideVectors | None = None,
    inverse_temperature: Tensor | None = None,
    workspace_mib: float | None = None,
    route: Route = "auto",
) -> Tensor:
    """The loss of `formula.plain`, a scalar in fp32, in linear memory.

    Args:
        queries: [Q, D], unit length.
        documents: [N, D], unit length.
        targets: for the same Q rows and N columns, on the same device.
        options: of the loss.
        guide: vectors of the same texts, where a guide margin is set.
        inverse_temperature: a scalar tensor in place of 1 / options.temperature, for one that is learnt.
        workspace_mib: MiB of exponentials that may be kept; None = 24 on a CPU, 1,024 on a GPU. Changes speed, not results.

        route: through tiles or kernels. Vectors in bf16 are multiplied as such by the kernels, and widened to fp32 by the tiles.

    Its gradient can be taken once: a second backward through the same loss raises RuntimeError.

    """
    inverse = queries.new_tensor(1 / options.temperature, dtype=torch.float32) if inverse_temperature is None else inverse_temperature
    result: Tensor = LinearMemory.apply(queries, documents, inverse, targets, options, guide, workspace_mib, route)  # type: ignore[no-untyped-call]
    return result


class LinearMemory(torch.autograd.Function):
    """Makes the gradients together with the loss, and gives them away in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        inverse_temperature: Tensor,
        targets: Targets,
        options: Options,
        guide: GuideVectors | None,
        workspace_mib: float | None,
        route: Route,
    ) -> Tensor:
        """The loss; the gradients too where one is wanted."""
        by_kernels = route == "kernels" or (route == "auto" and queries.is_cuda and kernels.available(queries.device))
        with torch.autocast(queries.device.type, enabled=False):
            vectors = (queries, documents) if by_kernels else (queries.float(), documents.float())
            batch = Batch.of(*vectors, targets, options, guide)
            wanted = any(ctx.needs_input_grad[:3])
            work = Work.of(batch, options, inverse_temperature.detach(), workspace_mib, wanted=wanted, by_kernels=by_kernels)
            first, end = batch.scored
            loss = torch.zeros((), device=queries.device)
            for start in range(first, end, work.block_rows):
                loss += work.rows(start, min(start + work.block_rows, end))
        ctx.gradients = work.gradients
        ctx.kinds = (queries.dtype, documents.dtype, inverse_temperature.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, asked: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times what is asked of the loss; they are handed over, not copied: at 100,000 documents each copy counts."""
        if ctx.gradients is None:
            raise RuntimeError("this loss has been differentiated before; call it again (its gradients are handed over, not kept)")
        gradients, ctx.gradients = ctx.gradients, None
        wanted = zip(gradients, ctx.kinds, ctx.needs_input_grad[:3], strict=True)
        return (*(part.mul_(asked).to(kind) if needed else None for part, kind, needed in wanted), None, None, None, None, None)


@dataclass(slots=True, eq=False)
class Work:
    """A pass over the rows: what it needs, and the gradients that it adds up."""

    batch: Batch
    options: Options
    inverse_temperature: Tensor
    wanted: bool
    """Whether gradients are."""
    block_rows: int
    workspace: Tensor
    """[n] fp32: room for the exponentials of tiles that are kept."""
    spare: Tensor
    """[n] fp32: room for a tile that is not kept."""
    by_kernels: bool
    gradients: tuple[Tensor, Tensor, Tensor] | None = field(default=None)
    """[Q, D], [N, D], []: of the sum over the rows so far; fp32."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        options: Options,
        inverse_temperature: Tensor,
        workspace_mib: float | None,
        *,
        wanted: bool,
        by_kernels: bool,
    ) -> Work:
        """Chooses the rows of a block so that, where it can be, all its exponentials fit into the workspace."""
        device = batch.queries.device
        kind = "cpu" if device.type == "cpu" else "cuda"
        room = int((WORKSPACE_MIB[kind] if workspace_mib is None else workspace_mib) * 2**20 / 4)
        columns = len(batch.documents) + sum(
            len(batch.queries if direction.endswith("query") else batch.documents) for direction in options.directions[1:]
        )
        fewest, most = ROWS[kind]
        first, end = batch.scored
        rows = max(1, min(end - first, end - first if by_kernels else max(fewest, min(most, room // max(1, columns)))))
        dense = columns if batch.targets.in_batch and not by_kernels else 0
        sizes = (rows * min(dense, room // rows), rows * min(dense, tile_columns(device)))
        workspace, spare = (torch.empty(size, device=device) for size in sizes)
        gradients = None
        if wanted:
            gradients = (zeros(batch.queries), zeros(batch.documents), torch.zeros((), device=device))
        return cls(batch, options, inverse_temperature, wanted, rows, workspace, spare, by_kernels, gradients)

    def rows(self, first: int, end: int) -> Tensor:
        """The loss of rows first..end; adds their gradient."""
        rest = sparse(self.batch, self.options, first, end)
        passes = list(self.passes(rest, first, end))
        weights = self.batch.targets.weights
        of_rows = None if weights is None else weights[first:end]
        dense = {part.block.direction: part.reduced for part in passes}
        if self.gradients is None:
            return row_losses(self.options, rest, dense, self.inverse_temperature, of_rows).sum()
        loss, asked = differentiated(self.options, rest, dense, self.inverse_temperature, of_rows)
        self.add(rest, passes, asked, first, end)
        return loss

    def passes(self, rest: Sparse, first: int, end: int) -> Iterator[Pass]:
        """Step 2 for each direction. They share the workspace; each keeps the tiles that still fit."""
        free = self.workspace
        for block in blocks(self.batch, self.options, rest, first, end):
            if self.by_kernels:
                yield KernelPass.over(block, self.options, float(self.inverse_temperature))
                continue
            done = TilePass.over(block, self.options, float(self.inverse_temperature), free, self.spare, wanted=self.wanted)
            free = free[sum(tile.numel() for tile, _ in done.kept.values()) :]
            yield done

    def add(self, rest: Sparse, passes: list[Pass], asked: Asked, first: int, end: int) -> None:
        """Steps 3 and 4: what the loss of rows first..end asks of the vectors."""
        assert self.gradients is not None
        of_queries, of_documents, of_inverse = self.gradients
        batch, positive = self.batch, self.batch.targets.positive[first:end]
        of_inverse += asked.inverse_temperature
        for part in passes:
            direction, factors = part.block.direction, asked.lse[part.block.direction]
            into = of_queries if direction.endswith("query") else of_documents
            of_rows = part.gradients(factors, self.inverse_temperature, into)
            of_inverse += (of_rows * part.block.rows).sum() / self.inverse_temperature
            if direction.startswith("query"):
                of_queries[first:end] += of_rows
            else:
                of_documents.index_add_(0, positive, of_rows)
        of_these, rows = of_queries[first:end], torch.arange(end - first, device=positive.device)
        add_pairs(of_these, of_documents, batch.queries[first:end], batch.documents, (rows, positive, asked.positive))
        add_pairs(of_these, of_documents, batch.queries[first:end], batch.documents, (rest.own_rows, rest.own_columns, asked.own))


def zeros(like: Tensor) -> Tensor:
    """Of the same shape and device, fp32."""
    return torch.zeros(like.shape, device=like.device)


def add_pairs(of_rows: Tensor, of_columns: Tensor, rows: Tensor, columns: Tensor, pairs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Adds the gradient of sum factor x cosine over (row, column, factor) pairs, a few at a time."""
    for row, column, factor in zip(*(torch.split(part, pairs_at_a_time(rows)) for part in pairs), strict=True):
        of_rows.index_add_(0, row, columns[column].float().mul_(factor[:, None]))
        of_columns.index_add_(0, column, rows[row].float().mul_(factor[:, None]))


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The gradient of the loss of R rows at the numbers that it is made of."""

    positive: Tensor
    """[R]."""
    own: Tensor
    """[h]."""
    lse: Mapping[Direction, Tensor]
    """[R] a direction."""
    inverse_temperature: Tensor
    """[], but for what reaches it through the log-sum-exps."""


def differentiated(
    options: Options, rest: Sparse, dense: Mapping[Direction, Reduced], inverse_temperature: Tensor, weights: Tensor | None
) -> tuple[Tensor, Asked]:
    """The summed loss of the rows, and its gradient at their numbers: autograd over vectors, no matrix."""
    with torch.enable_grad():
        positive, own, inverse = (values.detach().requires_grad_() for values in (rest.positive, rest.own, inverse_temperature))
        lses = {direction: part.lse.detach().requires_grad_() for direction, part in dense.items()}
        given = {direction: replace(part, lse=lses[direction]) for direction, part in dense.items()}
        loss = row_losses(options, replace(rest, positive=positive, own=own), given, inverse, weights).sum()
        of_positive, of_own, of_inverse, *of_lses = torch.autograd.grad(loss, (positive, own, inverse, *lses.values()))
    return loss.detach(), Asked(of_positive, of_own, dict(zip(lses, of_lses, strict=True)), of_inverse)


class Pass(Protocol):
    """The dense part of one direction, for a block of rows, half done: its log-sum-exps are there, its gradient can be asked for."""

    block: Block
    reduced: Reduced

    def gradients(self, factors: Tensor, inverse_temperature: Tensor, of_columns: Tensor) -> Tensor:
        """Adds the columns' gradient to `of_columns` [C, D]; returns the rows' [R, D]. factors [R]: the loss's gradient at the lse."""


@dataclass(slots=True, eq=False)
class KernelPass:
    """Through the Triton kernels."""

    block: Block
    reduced: Reduced
    arguments: dict[str, Any]

    @classmethod
    def over(cls, block: Block, options: Options, inverse_temperature: float) -> KernelPass:
        """Reduces the block."""
        arguments: dict[str, Any] = {"slope": inverse_temperature + block.bonus, "skipped": block.skipped}
        arguments |= {"limits": block.limits, "guide": block.guide, "keys": block.keys}
        if options.importance and block.direction == "query_to_document":
            reduced = Reduced(*kernels.dense_lse(block.rows, block.columns, second_slope=options.importance, **arguments))
        else:
            reduced = Reduced(kernels.dense_lse(block.rows, block.columns, **arguments))
        return cls(block, reduced, arguments)

    def gradients(self, factors: Tensor, inverse_temperature: Tensor, of_columns: Tensor) -> Tensor:
        """Adds the columns' gradient to `of_columns` [C, D]; returns the rows' [R, D]. factors [R]: the loss's gradient at the lse."""
        block, lse = self.block, self.reduced.lse
        factors = torch.where(lse > LOWEST, factors, 0.0) * inverse_temperature
        into = (zeros(block.rows), of_columns)
        return kernels.dense_gradients(block.rows, block.columns, lse=lse, factors=factors, into=into, **self.arguments)[0]


@dataclass(slots=True, eq=False)
class TilePass:
    """One direction's tiles for a block of rows, visited once; those kept need no second multiplication."""

    block: Block
    slope: float
    """Inverse temperature plus bonus."""
    tile_columns: int
    reduced: Reduced
    kept: dict[int, tuple[Tensor, Tensor]]
    """By the tile's number: exponentials [R, c] and the row maxima [R] they were taken at."""
    mixed: Tensor | None
    """[R, D]: sum_j p_ij b_j; None where no gradient is wanted."""
    spare: Tensor
    """Room for one tile that is not kept."""
    skips: Skips

    @classmethod
    def over(cls, block: Block, options: Options, inverse_temperature: float, free: Tensor, spare: Tensor, *, wanted: bool) -> TilePass:
        """Visits all tiles; keeps as many as `free` has room for, where gradients are wanted."""
        width = min(len(block.columns), tile_columns(block.rows.device))
        skips = Skips.of(block.skipped, width, len(block.columns))
        nothing = Reduced(block.rows.new_empty(0))
        mixed = torch.zeros_like(block.rows) if wanted else None
        done = cls(block, inverse_temperature + block.bonus, width, nothing, {}, mixed, spare, skips)
        done.visit(free if wanted else free[:0], options.importance if block.direction == "query_to_document" else 0.0)
        return done

    def visit(self, free: Tensor, importance: float) -> None:
        """The running maximum and sum over the tiles; with importance, those of exp(importance cosine) too."""
        scaled = self.block.rows * self.slope
        running, second = Running.start(scaled), Running.start(scaled) if importance else None
        counted = torch.zeros(len(scaled), dtype=torch.long, device=scaled.device)
        for number in range(self.skips.tiles):
            size = len(scaled) * len(self.columns(number))
            kept = size <= len(free)
            tile = self.logits(number, scaled, free if kept else self.spare)
            if second is not None:
                counted += (tile > -math.inf).sum(1)
                second.exponentiate(tile * (importance / self.slope))
            shrink = running.exponentiate(tile)
            if self.mixed is not None:
                self.mixed.mul_(shrink[:, None]).addmm_(tile, self.columns(number))
            if kept:
                self.kept[number] = (tile, running.peak)
                free = free[size:]
        if self.mixed is not None:
            self.mixed /= running.total.clamp(min=torch.finfo(scaled.dtype).tiny)[:, None]
        self.reduced = Reduced(running.lse(), *((second.lse(), counted) if second is not None else ()))

    def columns(self, number: int) -> Tensor:
        """[c, D]: the columns of a tile."""
        return self.block.columns[number * self.tile_columns : (number + 1) * self.tile_columns]

    def logits(self, number: int, scaled: Tensor, room: Tensor) -> Tensor:
        """[R, c]: the logits of a tile; -inf where a pair does not count."""
        block, columns = self.block, self.columns(number)
        tile = torch.mm(scaled, columns.T, out=room[: len(scaled) * len(columns)].view(len(scaled), len(columns)))
        if block.limits is not None:
            tile.masked_fill_(tile > (block.limits * self.slope)[:, None], -math.inf)
        part = slice(number * self.tile_columns, number * self.tile_columns + len(columns))
        if block.guide is not None:
            rows, guides, limits = block.guide
            tile.masked_fill_(rows @ guides[part].T > limits[:, None], -math.inf)
        if block.keys is not None:
            tile.masked_fill_(block.keys[0][:, None] == block.keys[1][part], -math.inf)
        self.skips.fill(tile, number)
        return tile

    def gradients(self, factors: Tensor, inverse_temperature: Tensor, of_columns: Tensor) -> Tensor:
        """Adds the columns' gradient to `of_columns` [C, D]; returns the rows' [R, D]. factors [R]: the loss's gradient at the lse."""
        assert self.mixed is not None
        factors = torch.where(self.reduced.lse > LOWEST, factors, 0.0) * inverse_temperature
        lse = self.reduced.lse.clamp(min=LOWEST)
        scaled = self.block.rows * self.slope
        for number in range(self.skips.tiles):
            if number in self.kept:
                tile, peak = self.kept[number]
                weights = factors * (peak - lse).exp()
            else:
                tile = self.logits(number, scaled, self.spare).sub_(lse[:, None]).exp_()
                weights = factors
            into = of_columns[number * self.tile_columns : number * self.tile_columns + tile.shape[1]]
            into.addmm_(tile.T, self.block.rows * weights[:, None])
        return self.mixed.mul_(factors[:, None])


@dataclass(slots=True, eq=False)
class Running:
    """A log-sum-exp under way: its sum is total x e^peak, a number a row."""

    peak: Tensor
    """[R]."""
    total: Tensor
    """[R]."""

    @classmethod
    def start(cls, like: Tensor) -> Running:
        """Of nothing yet: maximum lowest, sum 0. (Not 0 and 0, which would add e^0: the paper's start; its code has this one.)"""
        return cls(like.new_full((len(like),), LOWEST), like.new_zeros(len(like)))

    def exponentiate(self, tile: Tensor) -> Tensor:
        """Turns logits [R, c] into exp(logit - peak) in place, takes them in, and returns [R], the factor of what was summed before."""
        peak = torch.maximum(self.peak, tile.amax(1))
        tile.sub_(peak[:, None]).exp_()
        shrink = (self.peak - peak).exp_()
        self.total.mul_(shrink).add_(tile.sum(1))
        self.peak = peak
        return shrink

    def lse(self) -> Tensor:
        """[R]: -inf where nothing counted."""
        nothing = self.peak <= LOWEST
        return (self.total.log() + self.peak).masked_fill_(nothing, -math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Skips:
    """Pairs that do not count, sorted by the tile they are in."""

    rows: Tensor
    columns: Tensor
    """[S]: inside their tile."""
    ends: list[int]
    """Of each tile's pairs; they begin where those of the tile before end."""

    @classmethod
    def of(cls, pairs: Tensor, width: int, columns: int) -> Skips:
        """From [S, 2] (row, column) pairs."""
        by_column = pairs[torch.argsort(pairs[:, 1])]
        edges = torch.arange(width, columns + width, width, device=pairs.device)
        ends = torch.searchsorted(by_column[:, 1].contiguous(), edges).tolist()
        return cls(by_column[:, 0].contiguous(), by_column[:, 1] % width, ends)

    @property
    def tiles(self) -> int:
        """How many there are."""
        return len(self.ends)

    def fill(self, tile: Tensor, number: int) -> None:
        """Puts -inf where a pair of this tile does not count."""
        first, end = self.ends[number - 1] if number else 0, self.ends[number]
        if first < end:
            tile.index_put_((self.rows[first:end], self.columns[first:end]), tile.new_tensor(-math.inf))
