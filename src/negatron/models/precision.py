"""fp32 or bf16: which one a device is fast in, and the autocast context for it. Weights stay fp32; whoever scores does so in fp32.

Measured for encoding MiniLM-sized models: CPUs with AMX are 3.6-3.8 times as fast in bf16 as in fp32, those with AVX512-BF16 alone
1.3-1.8 times, all others slower than in fp32. Known by what the device says of itself, not by timing it, so that the same machine always
chooses the same.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from negatron.errors import SettingError, nearest

PRECISIONS = ("auto", "fp32", "bf16")


def choose_precision(setting: str, device: str) -> str:
    """The setting itself, or for "auto" whichever of "fp32" and "bf16" `device` ("cpu", "cuda", "cuda:1" ...) is faster in.

    Raises SettingError for any other setting.
    """
    if setting not in PRECISIONS:
        raise SettingError(f"precision = {setting!r}{nearest(setting, PRECISIONS)}")
    if setting != "auto":
        return setting
    return "bf16" if fast_in_bf16(device) else "fp32"


def fast_in_bf16(device: str) -> bool:
    """True where bf16 arithmetic has its own instructions."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        # private names of torch, which may go away: then fp32, which is right everywhere
        checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(check() for check in checks if check is not None)
    return kind == "cuda" and torch.cuda.is_bf16_supported()


def autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    """The context in which a model on `device` computes in `precision` ("auto" is chosen for the device); fp32 is no autocast at all."""
    import torch

    if choose_precision(precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
