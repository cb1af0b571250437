"""The dense part of the linear-memory loss on a GPU: its log-sum-exps and its gradients, without ever a matrix of cosines.

    lse_i       = log sum_{j counts for i} exp(slope a_i . b_j)
    p_ij        = exp(slope a_i . b_j - lse_i) where j counts for i, else 0;   factors_i = dL / d lse_i
    drows_i     = factors_i sum_j p_ij b_j
    dcolumns_j  = sum_i factors_i p_ij a_i

j counts for i unless one of up to four rules leaves it out: (i, j) is among the `skipped` pairs; a_i . b_j > limits_i;
guide_rows_i . guide_columns_j > guide_limits_i; row_keys_i = column_keys_j.

1. `Dense.of` checks and prepares: the skipped pairs become one sorted list a row, so that a program reads them as it comes by.
2. `dense_lse` starts a program for each block of rows and each share of the columns; shares are joined at the end.
3. `dense_gradients` writes factors x p for one slab of rows and columns at a time into a bounded scratch buffer, in the dtype of the
   inputs, and leaves both products with it to the vendor's matrix multiplication, which accumulates in fp32.

What stays true: bf16 inputs are multiplied as bf16 and everything after is fp32; the block sizes follow from dtype and device by a pure
function, nothing is timed; memory beyond inputs and results is the scratch buffer and a few numbers a row and share.

Triton is imported on first use. On a CPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1), which is for tests: slow, and
with bf16 widened first, because the interpreter multiplies the bit patterns of bf16 numbers as if they were integers (seen in 3.7.1).

What it does not know: temperatures, weights, positives, autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, overload

import torch
from torch import Tensor

from negatron.errors import NegatronError

Precision = Literal["ieee", "tf32", "tf32x3"]
"""How fp32 inputs are multiplied: exactly, with 10-bit mantissas on tensor cores, or with three such products. bf16 inputs are exact."""
Guide = tuple[Tensor, Tensor, Tensor]
"""[R, G], [C, G], [R]: the guide's vectors of rows and columns, and the score above which a column does not count."""

SCRATCH_BYTES = 2**30
"""What the slab of weights may take; 80,000 rows then see 5,632 columns at a time in bf16."""
MOST_COLUMNS = 2**31 - 2**16
"""Columns are counted in 32 bits inside a tile."""
INTERPRETED_PROCESSORS = 4
"""The interpreter runs one program after the other; a few shares are made all the same, so that joining them is tested."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The size of a tile: rows x columns, multiplied `dimensions` at a time by `warps` warps, with `stages` loads under way."""

    rows: int
    columns: int
    dimensions: int
    warps: int = 8
    stages: int = 3
    bulk: bool = False
    """Whether the copy engine of compute capability 9.0 moves the tiles; needs rows of vectors at multiples of 16 bytes."""


def available(device: torch.device | str) -> bool:
    """Whether the kernels run there: Triton 3.4 and a CUDA device of compute capability 8.0, or Triton's interpreter and a CPU."""
    if find_spec("triton") is None or find_spec("triton.tools.tensor_descriptor") is None:  # which came with 3.4
        return False
    device = torch.device(device)
    if device.type == "cuda":
        return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0) and not interpreted()
    return device.type == "cpu" and interpreted()


def interpreted() -> bool:
    """Whether this process runs the kernels in Triton's interpreter; TRITON_INTERPRET decided it when they were first imported."""
    return not isinstance(tiles().lse_kernel, tiles().triton.runtime.JITFunction)


def tiles() -> Any:
    """The kernels' module; imported late, because importing Triton takes a second and not every machine has it."""
    from negatron.training import triton_tiles

    return triton_tiles


@overload
def dense_lse(
    rows: Tensor,
    columns: Tensor,
    *,
    slope: float,
    skipped: Tensor,
    limits: Tensor | None = None,
    guide: Guide | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    second_slope: None = None,
    precision: Precision = "ieee",
    blocks: Blocks | None = None,
) -> Tensor: ...
@overload
def dense_lse(
    rows: Tensor,
    columns: Tensor,
    *,
    slope: float,
    skipped: Tensor,
    limits: Tensor | None = None,
    guide: Guide | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    second_slope: float,
    precision: Precision = "ieee",
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def dense_lse(
    rows: Tensor,
    columns: Tensor,
    *,
    slope: float,
    skipped: Tensor,
    limits: Tensor | None = None,
    guide: Guide | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    second_slope: float | None = None,
    precision: Precision = "ieee",
    blocks: Blocks | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """[R] fp32: log of the sum of exp(slope a_i . b_j) over the columns that count for row i; -inf where none does.

    Args:
        rows: [R, D], fp32 or bf16; other dtypes are widened to fp32.
        columns: [C, D].
        slope: > 0.
        skipped: [S, 2] int64 (row, column) pairs that do not count; in any order, repeated or not.
        limits: [R]; a column of a greater inner product does not count.
        guide: the same with another model's vectors and limits.
        keys: [R] and [C] int64; a column whose key is the row's does not count.
        second_slope: any number; then the result is (lse, the same with this slope [R], how many columns count [R] int64).
        precision: of the products of fp32 inputs.
        blocks: the size of a tile; None = what suits dtype and device.

    Raises ValueError for shapes that do not fit, a slope that is not > 0 and more than 2^31 - 2^16 columns, and NegatronError where the
    kernels are not `available`.

    """
    dense = Dense.of(rows, columns, slope, skipped, limits, guide, keys, precision, blocks)
    shares = dense.shares(len(rows), len(columns))
    lse, second, counts = (rows.new_empty(shares.count, len(rows), dtype=kind) for kind in (torch.float32, torch.float32, torch.int32))
    wanted = (None, None, 0.0) if second_slope is None else (second, counts, float(second_slope))
    dense.launch(tiles().lse_kernel, slice(0, len(rows)), slice(0, len(columns)), shares, lse, *wanted)
    if second_slope is None:
        return joined(lse)
    return joined(lse), joined(second), counts.sum(0)


def joined(shares: Tensor) -> Tensor:
    """[R]: the log-sum-exp of [shares, R] log-sum-exps; -inf where all are."""
    return shares[0] if len(shares) == 1 else shares.logsumexp(0)


def dense_gradients(
    rows: Tensor,
    columns: Tensor,
    *,
    slope: float,
    skipped: Tensor,
    lse: Tensor,
    factors: Tensor,
    limits: Tensor | None = None,
    guide: Guide | None = None,
    keys: tuple[Tensor, Tensor] | None = None,
    precision: Precision = "ieee",
    blocks: Blocks | None = None,
    into: tuple[Tensor, Tensor] | None = None,
    scratch_bytes: int = SCRATCH_BYTES,
) -> tuple[Tensor, Tensor]:
    """(drows [R, D], dcolumns [C, D]), fp32: what a loss asks of the vectors through `lse`, over d logit / d cosine: the caller multiplies.

    `lse` [R] is what `dense_lse` returned for the same arguments, `factors` [R] the loss's gradient at it. With `into`, fp32 tensors of
    these shapes, the gradients are added to those. `scratch_bytes` is what the slab of weights may take; one tile is made in any case.
    Weights of bf16 inputs are rounded to bf16, relative 2^-9, before they are multiplied.

    Raises what `dense_lse` raises.
    """
    dense = Dense.of(rows, columns, slope, skipped, limits, guide, keys, precision, blocks)
    lse, factors = dense.numbers("lse", lse, len(rows)), dense.numbers("factors", factors, len(rows))
    of_rows, of_columns = into or (rows.new_zeros(rows.shape, dtype=torch.float32), columns.new_zeros(columns.shape, dtype=torch.float32))
    height, width = slab_shape(
        len(rows), len(columns), rows.shape[1], dense.rows.element_size(), scratch_bytes, dense.blocks, dense.processors
    )
    scratch = dense.rows.new_empty(height * width)
    with torch.autocast(dense.rows.device.type, enabled=False):  # the products below choose their dtypes themselves
        for top in range(0, len(rows), height):
            part = slice(top, min(top + height, len(rows)))
            for left in range(0, len(columns), width):
                across = slice(left, min(left + width, len(columns)))
                weights = dense.weights(part, across, lse, factors, scratch, width)
                add_product(of_rows[part], weights, dense.columns[across])
                add_product(of_columns[across], weights.T, dense.rows[part])
    return of_rows, of_columns


@dataclass(frozen=True, slots=True)
class Shares:
    """How the columns are divided among programs: `count` shares of `blocks` tiles each; the last may be shorter."""

    count: int
    blocks: int


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """The arguments of a call, checked, in the form that the kernels read."""

    rows: Tensor
    columns: Tensor
    slope: float
    limits: Tensor | None
    guide: Guide | None
    keys: tuple[Tensor, Tensor] | None
    skipped: Tensor | None
    """[S] int64, sorted: row x C + column; None where nothing is skipped."""
    skip_columns: Tensor | None
    """[S] int32: their columns."""
    precision: Precision
    blocks: Blocks
    processors: int
    """How many programs run at a time, at least."""

    @classmethod
    def of(
        cls,
        rows: Tensor,
        columns: Tensor,
        slope: float,
        skipped: Tensor,
        limits: Tensor | None,
        guide: Guide | None,
        keys: tuple[Tensor, Tensor] | None,
        precision: Precision,
        blocks: Blocks | None,
    ) -> Dense:
        """Checks shapes, converts dtypes, sorts the skipped pairs."""
        if not available(rows.device):
            raise NegatronError(
                f"the kernels do not run on {rows.device}: they need the Python package triton (3.4 or newer) and a CUDA device of compute "
                "capability 8.0 or more; `tiled` computes the same anywhere"
            )
        if rows.dim() != 2 or columns.dim() != 2 or rows.shape[1] != columns.shape[1] or not (len(rows) and len(columns)):
            raise ValueError(f"rows {tuple(rows.shape)} and columns {tuple(columns.shape)}; expected [R, D] and [C, D], none of them empty")
        if not slope > 0:
            raise ValueError(f"slope = {slope}; expected more than 0")
        if len(columns) > MOST_COLUMNS:
            raise ValueError(f"{len(columns)} columns; expected at most {MOST_COLUMNS}")
        if skipped.dim() != 2 or skipped.shape[1] != 2:
            raise ValueError(f"skipped of shape {tuple(skipped.shape)}; expected [S, 2]")
        pair_keys = skip_columns = None
        if len(skipped):
            pair_keys = (skipped[:, 0] * len(columns) + skipped[:, 1]).sort().values  # a program must meet them in this order
            skip_columns = (pair_keys % len(columns)).int()
        rows, columns = matrices(rows, columns)
        if guide is not None:
            guide = (*matrices(guide[0], guide[1]), cls.numbers("guide limits", guide[2], len(rows)))
            if (len(guide[0]), len(guide[1])) != (len(rows), len(columns)) or guide[0].shape[1] != guide[1].shape[1]:
                raise ValueError(f"guide {tuple(guide[0].shape)}, {tuple(guide[1].shape)} for {len(rows)} rows, {len(columns)} columns")
        if keys is not None:
            keys = (cls.numbers("row keys", keys[0], len(rows)), cls.numbers("column keys", keys[1], len(columns)))
        limits = None if limits is None else cls.numbers("limits", limits, len(rows))
        capability, processors = device_facts(rows.device)
        if blocks is None:
            every = (rows, columns, *(guide or ())[:2])
            wide = any(matrix.dtype == torch.float32 for matrix in every)
            blocks = blocks_for(wide, guide is not None, all(map(even, every)), capability, precision)
        return cls(rows, columns, float(slope), limits, guide, keys, pair_keys, skip_columns, precision, blocks, processors)

    @staticmethod
    def numbers(name: str, values: Tensor, length: int) -> Tensor:
        """[length], contiguous: fp32, or int64 for integers. Raises ValueError for another shape."""
        if tuple(values.shape) != (length,):
            raise ValueError(f"{name} of shape {tuple(values.shape)}; expected [{length}]")
        return values.detach().to(torch.float32 if values.is_floating_point() else torch.int64).contiguous()

    def shares(self, row_count: int, column_count: int) -> Shares:
        """How these many columns are divided, for these many rows."""
        return share_columns(math.ceil(row_count / self.blocks.rows), math.ceil(column_count / self.blocks.columns), self.processors)

    def weights(self, part: slice, across: slice, lse: Tensor, factors: Tensor, scratch: Tensor, width: int) -> Tensor:
        """[rows of the part, columns across]: factors x p, written into the scratch buffer."""
        height = part.stop - part.start
        slab = scratch[: height * width].view(height, width)
        shares = self.shares(height, across.stop - across.start)
        into = self.matrix(slab, self.blocks.rows, self.blocks.columns)
        self.launch(tiles().weights_kernel, part, across, shares, lse[part], factors[part], *into)
        return slab[:, : across.stop - across.start]

    def launch(self, kernel: Any, part: slice, across: slice, shares: Shares, *results: Any) -> None:
        """Runs a kernel over some rows and columns. Columns keep their numbers; rows are counted from the part's first."""
        blocks = self.blocks
        limits = None if self.limits is None else self.limits[part]
        guide = self.guide or (None, None, None)
        row_keys, column_keys = self.keys or (None, None)
        call: Callable[..., None] = kernel[(math.ceil((part.stop - part.start) / blocks.rows), shares.count)]
        with torch.cuda.device(self.rows.device if self.rows.is_cuda else -1):  # Triton starts programs on the current device
            call(
                *self.matrix(self.rows[part], blocks.rows),
                part.stop - part.start,
                *self.matrix(self.columns, blocks.columns),
                *(len(self.columns), self.slope, limits),
                *self.matrix(guide[0] if guide[0] is None else guide[0][part], blocks.rows),
                *self.matrix(guide[1], blocks.columns),
                guide[2] if guide[2] is None else guide[2][part],
                *(row_keys if row_keys is None else row_keys[part], column_keys),
                *(self.skip_columns, *self.skip_lists(part, across, shares)),
                *(across.start, across.stop, shares.blocks),
                *results,
                DIMENSIONS=self.rows.shape[1],
                GUIDE_DIMENSIONS=0 if guide[0] is None else guide[0].shape[1],
                M=blocks.rows,
                N=blocks.columns,
                K=blocks.dimensions,
                BULK=blocks.bulk,
                PRECISION=self.precision,
                num_warps=blocks.warps,
                num_stages=blocks.stages,
            )

    def matrix(self, values: Tensor | None, block_rows: int, block_columns: int | None = None) -> tuple[Any, int]:
        """A matrix as a kernel reads it, in blocks of these sizes: (pointer or descriptor, stride of its rows)."""
        if values is None:
            return None, 0
        if not self.blocks.bulk:
            return values, values.stride(0)
        return tiles().descriptor(values, [block_rows, block_columns or self.blocks.dimensions]), values.stride(0)

    def skip_lists(self, part: slice, across: slice, shares: Shares) -> tuple[Tensor | None, Tensor | None]:
        """[shares, rows] and [rows] int32: where each row's skipped columns begin for each share, and where the row's end."""
        if self.skipped is None:
            return None, None
        column_count = len(self.columns)
        before = torch.arange(part.start, part.stop, device=self.skipped.device) * column_count
        firsts = across.start + torch.arange(shares.count, device=before.device) * (shares.blocks * self.blocks.columns)
        starts = torch.searchsorted(self.skipped, firsts[:, None] + before, out_int32=True)
        return starts, torch.searchsorted(self.skipped, before + column_count, out_int32=True)


def matrices(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype that the kernels multiply, each row in one piece of memory."""
    kind = left.dtype if left.dtype == right.dtype == torch.bfloat16 and left.is_cuda else torch.float32
    left, right = (side.detach().to(kind) for side in (left, right))
    return tuple(side if side.stride(1) == 1 and side.stride(0) >= side.shape[1] else side.contiguous() for side in (left, right))  # type: ignore[return-value]


def device_facts(device: torch.device) -> tuple[tuple[int, int], int]:
    """(compute capability, multiprocessors); (0, 0) on a CPU, where the interpreter runs."""
    if device.type != "cuda":
        return (0, 0), INTERPRETED_PROCESSORS
    return torch.cuda.get_device_capability(device), torch.cuda.get_device_properties(device).multi_processor_count


def even(matrix: Tensor) -> bool:
    """Whether the copy engine can move tiles of it: its rows begin at multiples of 16 bytes."""
    return matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.element_size() % 16 == 0


def blocks_for(wide: bool, guided: bool, evenly: bool, capability: tuple[int, int], precision: Precision) -> Blocks:
    """The tile for fp32 (`wide`) or bf16 inputs. A guided tile holds two products at a time, so it is smaller.

    Chosen by what the compiler reports for compute capability 8.0 and 9.0: the loads fit into shared memory (99 kB, but for 9 and 10)
    and the registers do not overflow, but for 300 bytes where 8.0 writes the weights of bf16 inputs. benchmarks/gpu/blocks.py times others.
    """
    if capability == (0, 0):
        return Blocks(32, 32, 32)
    roomy = evenly and capability[0] in (9, 10)
    if wide and precision == "ieee":
        return Blocks(64 if guided else 128, 64, 16)  # no tensor core does this
    if wide:
        return Blocks(128, 128, 32, bulk=True) if roomy else Blocks(64 if guided else 128, 64, 32)
    return Blocks(128, 128 if guided else 256, 64, bulk=True) if roomy else Blocks(128, 64 if guided else 128, 64)


def share_columns(row_blocks: int, column_blocks: int, processors: int) -> Shares:
    """The fewest shares that keep the processors busy: within 5 % of the least number of tiles that one of them visits.

    >>> share_columns(row_blocks=625, column_blocks=1875, processors=132)  # 80,000 x 480,000 in tiles of 128 x 256, on an H200
    Shares(count=4, blocks=469)
    >>> share_columns(row_blocks=1, column_blocks=10, processors=4)
    Shares(count=4, blocks=3)
    """
    lengths = {count: math.ceil(column_blocks / count) for count in range(1, min(column_blocks, 4 * processors) + 1)}
    visits = {count: math.ceil(row_blocks * count / processors) * length for count, length in lengths.items()}
    least = min(visits.values())
    count = next(count for count in visits if visits[count] <= 1.05 * least)
    return Shares(math.ceil(column_blocks / lengths[count]), lengths[count])


def slab_shape(
    rows: int, columns: int, dimensions: int, itemsize: int, scratch_bytes: int, blocks: Blocks, processors: int
) -> tuple[int, int]:
    """(rows, columns) of a slab within scratch_bytes; columns in whole tiles, as many as fill the processors with products of 128 x 256.

    All rows, where at least 16 tiles of columns fit beside them: then each column's gradient is written once.

    >>> slab_shape(80_000, 480_000, 768, 2, 2**30, Blocks(128, 256, 64), 132)
    (80000, 5632)
    """
    room = max(blocks.columns * blocks.rows, scratch_bytes // itemsize)
    every = math.ceil(columns / blocks.columns) * blocks.columns
    width = min(every, max(room // rows, min(room // blocks.rows, 16 * blocks.columns)) // blocks.columns * blocks.columns)
    even = processors * 128 * 256 // dimensions // blocks.columns * blocks.columns
    if even and width > even and width < every:
        width -= width % even
    return min(rows, room // width), width


def add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into [M, D] fp32 += left [M, K] @ right [K, D], accumulated in fp32 also for bf16 factors."""
    if left.dtype == torch.float32:
        into.addmm_(left, right)
    elif torch_version() >= (2, 10):  # the first that takes fp32 to add bf16 products to
        torch.addmm(into, left, right, out_dtype=torch.float32, out=into)
    elif torch_version() >= (2, 8):  # the first with out_dtype
        into.add_(torch.mm(left, right, out_dtype=torch.float32))
    else:
        into.add_(left @ right)  # a slab's sum is rounded to bf16, the sum over slabs is not


def torch_version() -> tuple[int, int]:
    """(2, 13) for 2.13.0+cu130."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
