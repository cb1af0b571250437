"""Times the kernels in several tiles, to choose those of `kernels.blocks_for` for a card.

    python benchmarks/gpu/blocks.py [--rows 16384] [--columns 65536] [--width 768] [--json]

For each tile: TFLOP/s of the log-sum-exps (2 R C D operations) and of the gradients (6 R C D), beside the card's own bf16 rate. A tile
that does not fit into the card is said to. The one in use is marked.
"""

from __future__ import annotations

import argparse
import json

import torch
from loss import matmul_rate, seconds_of, unit

from negatron.training import kernels
from negatron.training.kernels import Blocks

BF16 = (
    *(Blocks(128, 256, 64, warps=8, stages=stages, bulk=True) for stages in (2, 3, 4)),
    Blocks(128, 128, 64, warps=4, stages=3, bulk=True),
    *(Blocks(128, 128, 64, warps=8, stages=stages, bulk=True) for stages in (3, 4)),
    Blocks(256, 128, 64, warps=8, stages=3, bulk=True),
    Blocks(128, 256, 64, warps=8, stages=3),
    Blocks(128, 128, 64, warps=8, stages=3),
    Blocks(128, 128, 32, warps=4, stages=4),
    Blocks(128, 64, 64, warps=4, stages=4),
)
FP32 = (Blocks(128, 64, 16), Blocks(64, 64, 16), Blocks(64, 64, 32, warps=4), Blocks(128, 128, 8))


def rates(rows: torch.Tensor, columns: torch.Tensor, blocks: Blocks, precision: kernels.Precision) -> dict[str, float | str]:
    """TFLOP/s of both functions; what the card refused, where it did."""
    given = {"slope": 20.0, "skipped": torch.empty(0, 2, dtype=torch.long, device="cuda"), "blocks": blocks, "precision": precision}
    operations = 2 * len(rows) * len(columns) * rows.shape[1] / 1e12
    try:
        lse = kernels.dense_lse(rows, columns, **given)
        factors = torch.ones_like(lse)
        kernels.dense_gradients(rows, columns, lse=lse, factors=factors, **given)
        forward = min(seconds_of(lambda: kernels.dense_lse(rows, columns, **given)) for _ in range(3))
        backward = min(seconds_of(lambda: kernels.dense_gradients(rows, columns, lse=lse, factors=factors, **given)) for _ in range(3))
    except kernels.tiles().triton.runtime.errors.OutOfResources as refused:
        return {"does_not_fit": str(refused).splitlines()[0]}
    return {"lse_tflops": operations / forward, "gradients_tflops": 3 * operations / backward, "both_seconds": forward + backward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 16_384), ("columns", 65_536), ("width", 768)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not (torch.cuda.is_available() and kernels.available("cuda")):
        return print("skipped: needs Triton and a CUDA device of compute capability 8.0 or more")
    figures: dict[str, object] = {"device": torch.cuda.get_device_name(), "matmul_tflops": matmul_rate() / 1e12}
    print(figures, flush=True)
    capability = torch.cuda.get_device_capability()
    for dtype, precision, tiles in ((torch.bfloat16, "ieee", BF16), (torch.float32, "ieee", FP32), (torch.float32, "tf32x3", BF16[4:5])):
        few = 1 if dtype == torch.bfloat16 else 4  # fp32 is an order slower
        rows, columns = unit(given.rows // few, given.width, 1, dtype), unit(given.columns // few, given.width, 2, dtype)
        used = kernels.blocks_for(dtype == torch.float32, False, True, capability, precision)
        for blocks in dict.fromkeys((used, *tiles)):
            name = f"{str(dtype)[6:]} {precision} {blocks}" + (" (in use)" if blocks == used else "")
            figures[name] = rates(rows, columns, blocks, precision)
            print(f"{name}: {figures[name]}", flush=True)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
