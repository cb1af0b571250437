"""Compiles the kernels for compute capability 8.0 and 9.0, in the tiles that `blocks_for` chooses; needs no card. Run by test_kernels.

Prints for each: kernel, capability, bytes of shared memory, the matrix instruction in it.
"""

from __future__ import annotations

from typing import Any

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from negatron.training import triton_tiles
from negatron.training.kernels import Blocks, blocks_for

TYPES = {"limits": "*fp32", "guide_limits": "*fp32", "row_keys": "*i64", "column_keys": "*i64", "lse": "*fp32", "factors": "*fp32"}
TYPES |= {"skip_columns": "*i32", "skip_starts": "*i32", "skip_ends": "*i32", "slope": "fp32", "second_slope": "fp32"}
TYPES |= {"second_lse": "*fp32", "counts": "*i32"}


def source(kernel: Any, blocks: Blocks, guided: bool) -> ASTSource:
    """A kernel with all rules on, for bf16 vectors of 768 dimensions that begin at multiples of 16 bytes."""

    def matrix(rows: int, columns: int) -> str:
        return f"tensordesc<bf16[{rows},{columns}]>" if blocks.bulk else "*bf16"

    left, right = matrix(blocks.rows, blocks.dimensions), matrix(blocks.columns, blocks.dimensions)
    types = TYPES | {
        "rows": left,
        "guide_rows": left,
        "columns": right,
        "guide_columns": right,
        "slab": matrix(blocks.rows, blocks.columns),
    }
    constants = {"DIMENSIONS": 768, "GUIDE_DIMENSIONS": 384 if guided else 0, "M": blocks.rows, "N": blocks.columns}
    constants |= {"K": blocks.dimensions, "BULK": blocks.bulk, "PRECISION": "ieee"}
    if not guided:
        constants |= dict.fromkeys(("guide_rows", "guide_columns", "guide_limits"))
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    even = [n for n, name in enumerate(names) if signature[name].startswith("*") or name.endswith("_stride")]
    return ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(n,): [["tt.divisibility", 16]] for n in even},
    )


def main() -> None:
    for kernel, guided in ((triton_tiles.lse_kernel, True), (triton_tiles.weights_kernel, False)):
        for capability in ((8, 0), (9, 0)):
            blocks = blocks_for(False, guided, True, capability, "ieee")
            number = capability[0] * 10 + capability[1]
            options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
            made = compile_kernel(source(kernel, blocks, guided), target=GPUTarget("cuda", number, 32), options=options)
            instruction = "wgmma" if "wgmma.mma_async" in made.asm["ptx"] else "mma" if "mma.sync" in made.asm["ptx"] else "none"
            print(kernel.__name__, number, made.metadata.shared, instruction)


if __name__ == "__main__":
    main()
