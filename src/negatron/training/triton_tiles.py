"""The Triton programs behind `kernels`: each visits a block of rows and a share of the columns, one tile of inner products at a time.

1. `products` makes the tile; `ruled` and `skip` put -inf where a pair does not count.
2. `lse_kernel` keeps a running maximum and a running sum a row and writes one or three numbers a row.
3. `weights_kernel` writes factor x softmax weight of every pair; 0 where a pair does not count.

Matrices come as tensor descriptors where BULK is on (the copy engine of compute capability 9.0 moves whole tiles, and no register holds
an address), else as pointers with a stride. A pointer that is None drops its rule when the kernel is compiled.

What stays true: arithmetic after the product is fp32; not-a-number stays not-a-number, so that a broken vector is seen in the loss.

What it does not know: how many programs there are and why, slabs, gradients. Nothing here measures or chooses a size.
"""
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, N803 - Triton gives these arguments their types when it compiles, and writes its constants like this

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # for tools that read every module; `kernels.available` says no before anybody calls these
    triton = tl = None

SIZES = ("row_count", "column_count", "first_column", "share_blocks", "last_column")
"""Arguments that differ from batch to batch: no kernel is compiled anew for their value."""


def jit(function):
    """triton.jit, where there is Triton."""
    if triton is None:
        return function
    return triton.jit(function, do_not_specialize=[name for name in SIZES if name in function.__code__.co_varnames])


def descriptor(values, block):
    """A matrix for the copy engine, which moves it in blocks of these sizes; rows begin at multiples of 16 bytes."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(values, block)


@jit
def products(
    left, left_stride, left_count, first_row, right, right_stride, right_count, first_column,
    DIMENSIONS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BULK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[M, N] fp32: inner products of M rows of left and N of right, from the given ones on. What is past an end is of no meaning."""
    total = tl.zeros([M, N], tl.float32)
    if BULK:
        for start in range(0, DIMENSIONS, K):
            total = tl.dot(left.load([first_row, start]), right.load([first_column, start]).T, total, input_precision=PRECISION)
    else:
        row = tl.minimum(first_row + tl.arange(0, M), left_count - 1)
        column = tl.minimum(first_column + tl.arange(0, N), right_count - 1)
        k = tl.arange(0, K)
        left_at = left + row.to(tl.int64)[:, None] * left_stride + k[None, :]
        right_at = right + column.to(tl.int64)[None, :] * right_stride + k[:, None]
        for start in range(0, DIMENSIONS, K):
            if DIMENSIONS % K == 0:
                left_tile = tl.load(left_at)
                right_tile = tl.load(right_at)
            else:
                left_tile = tl.load(left_at, mask=k[None, :] < DIMENSIONS - start, other=0.0)
                right_tile = tl.load(right_at, mask=k[:, None] < DIMENSIONS - start, other=0.0)
            total = tl.dot(left_tile, right_tile, total, input_precision=PRECISION)
            left_at += K
            right_at += K
    return total


@jit
def ruled(
    rows, row_stride, row_count, first_row, columns, column_stride, column_count, start,
    limits, guide_rows, guide_row_stride, guide_columns, guide_column_stride, guide_limits, row_keys, column_keys,
    DIMENSIONS: tl.constexpr, GUIDE_DIMENSIONS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BULK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[M, N]: the inner products; -inf where a rule on the pair leaves it out, and past the last column."""
    tile = products(
        rows, row_stride, row_count, first_row, columns, column_stride, column_count, start, DIMENSIONS, M, N, K, BULK, PRECISION
    )
    row = tl.minimum(first_row + tl.arange(0, M), row_count - 1)
    column = start + tl.arange(0, N)
    if limits is not None:
        tile = tl.where(tile > tl.load(limits + row)[:, None], float("-inf"), tile)
    if guide_limits is not None:
        guide = products(
            guide_rows, guide_row_stride, row_count, first_row, guide_columns, guide_column_stride, column_count, start,
            GUIDE_DIMENSIONS, M, N, K, BULK, PRECISION,
        )  # fmt: skip
        tile = tl.where(guide > tl.load(guide_limits + row)[:, None], float("-inf"), tile)
    if row_keys is not None:
        column_key = tl.load(column_keys + tl.minimum(column, column_count - 1))
        tile = tl.where(tl.load(row_keys + row)[:, None] == column_key[None, :], float("-inf"), tile)
    return tl.where(column[None, :] < column_count, tile, float("-inf"))


@jit
def skip(tile, start, skip_columns, cursor, cursor_end, upcoming, N: tl.constexpr):
    """The tile without the skipped pairs in it; where each row's list of skipped columns stands then, and the next one on it.

    A row's list is sorted. Each round takes at most one column off every row's list: as many rounds as the fullest row has pairs here.
    """
    column = start + tl.arange(0, N)
    while tl.min(upcoming, 0) < start + N:
        tile = tl.where(column[None, :] == upcoming[:, None], float("-inf"), tile)
        cursor = tl.where(upcoming < start + N, cursor + 1, cursor)
        upcoming = following(skip_columns, cursor, cursor_end)
    return tile, cursor, upcoming


@jit
def following(skip_columns, cursor, cursor_end):
    """[M]: the column at which each row's list stands; one that no tile has, where the list has ended."""
    return tl.load(skip_columns + cursor, mask=cursor < cursor_end, other=2147483647)


@jit
def running(logits, top, total):
    """Takes logits [M, N] into a running maximum [M] and a running sum [M] of exp(logit - maximum). -inf adds nothing, also all -inf."""
    new_top = tl.maximum(top, tl.max(logits, 1))
    reference = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf - -inf would be not-a-number
    total = total * tl.exp(top - reference) + tl.sum(tl.exp(logits - reference[:, None]), 1)
    return new_top, total


@jit
def finished(top, total):
    """[M]: the log-sum-exp; -inf where nothing counted. (Asked by == 0, not by > 0: not-a-number must not become -inf.)"""
    return tl.where(total == 0.0, float("-inf"), top + tl.log(tl.where(total == 0.0, 1.0, total)))


@jit
def lse_kernel(
    rows, row_stride, row_count, columns, column_stride, column_count, slope,
    limits, guide_rows, guide_row_stride, guide_columns, guide_column_stride, guide_limits, row_keys, column_keys,
    skip_columns, skip_starts, skip_ends, first_column, last_column, share_blocks,
    lse, second_lse, counts, second_slope,
    DIMENSIONS: tl.constexpr, GUIDE_DIMENSIONS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BULK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes log sum exp(slope x) over the counted pairs of program 0's rows and program 1's share to lse [shares, rows].

    Where second_lse is given: that of second_slope, and how many pairs count, to counts.
    """
    first_row = tl.program_id(0) * M
    share = tl.program_id(1)
    own_row = first_row + tl.arange(0, M)
    out = share.to(tl.int64) * row_count + own_row
    begin = first_column + share * share_blocks * N
    if skip_columns is not None:
        row = tl.minimum(own_row, row_count - 1)
        cursor = tl.load(skip_starts + share.to(tl.int64) * row_count + row)
        cursor_end = tl.load(skip_ends + row)
        upcoming = following(skip_columns, cursor, cursor_end)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    second_top = tl.full([M], float("-inf"), tl.float32)
    second_total = tl.zeros([M], tl.float32)
    count = tl.zeros([M], tl.int32)
    for start in range(begin, tl.minimum(begin + share_blocks * N, last_column), N):
        tile = ruled(
            rows, row_stride, row_count, first_row, columns, column_stride, column_count, start,
            limits, guide_rows, guide_row_stride, guide_columns, guide_column_stride, guide_limits, row_keys, column_keys,
            DIMENSIONS, GUIDE_DIMENSIONS, M, N, K, BULK, PRECISION,
        )  # fmt: skip
        if skip_columns is not None:
            tile, cursor, upcoming = skip(tile, start, skip_columns, cursor, cursor_end, upcoming, N)
        top, total = running(tile * slope, top, total)
        if second_lse is not None:
            counts_here = tile != float("-inf")
            scaled = tl.where(counts_here, tile, 0.0) * second_slope  # -inf x 0 would be not-a-number
            second_top, second_total = running(tl.where(counts_here, scaled, tile), second_top, second_total)
            count += tl.sum(counts_here.to(tl.int32), 1)
    tl.store(lse + out, finished(top, total), mask=own_row < row_count)
    if second_lse is not None:
        tl.store(second_lse + out, finished(second_top, second_total), mask=own_row < row_count)
        tl.store(counts + out, count, mask=own_row < row_count)


@jit
def weights_kernel(
    rows, row_stride, row_count, columns, column_stride, column_count, slope,
    limits, guide_rows, guide_row_stride, guide_columns, guide_column_stride, guide_limits, row_keys, column_keys,
    skip_columns, skip_starts, skip_ends, first_column, last_column, share_blocks,
    lse, factors, slab, slab_stride,
    DIMENSIONS: tl.constexpr, GUIDE_DIMENSIONS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BULK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes factor exp(slope x - lse) of program 0's rows and program 1's share to slab [rows, columns from first_column on].

    The slab's columns are whole tiles: those past the last column get 0.
    """
    first_row = tl.program_id(0) * M
    share = tl.program_id(1)
    own_row = first_row + tl.arange(0, M)
    row = tl.minimum(own_row, row_count - 1)
    begin = first_column + share * share_blocks * N
    reference = tl.load(lse + row)
    reference = tl.where(reference == float("-inf"), 0.0, reference)  # nothing counts: its weights are exp(-inf - 0)
    factor = tl.load(factors + row)
    if skip_columns is not None:
        cursor = tl.load(skip_starts + share.to(tl.int64) * row_count + row)
        cursor_end = tl.load(skip_ends + row)
        upcoming = following(skip_columns, cursor, cursor_end)
    for start in range(begin, tl.minimum(begin + share_blocks * N, last_column), N):
        tile = ruled(
            rows, row_stride, row_count, first_row, columns, column_stride, column_count, start,
            limits, guide_rows, guide_row_stride, guide_columns, guide_column_stride, guide_limits, row_keys, column_keys,
            DIMENSIONS, GUIDE_DIMENSIONS, M, N, K, BULK, PRECISION,
        )  # fmt: skip
        if skip_columns is not None:
            tile, cursor, upcoming = skip(tile, start, skip_columns, cursor, cursor_end, upcoming, N)
        weights = tl.exp(tile * slope - reference[:, None]) * factor[:, None]
        if BULK:
            slab.store([first_row, start - first_column], weights.to(slab.dtype))
        else:
            into = slab + own_row.to(tl.int64)[:, None] * slab_stride + (start - first_column + tl.arange(0, N))[None, :]
            tl.store(into, weights.to(slab.dtype.element_ty), mask=own_row[:, None] < row_count)
