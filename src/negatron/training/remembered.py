"""What a chunk's second pass need not compute again: the results of its matrix products, and what was drawn at random on a CPU.

A kept graph spares the whole second pass and costs all activations. These results alone spare most of it (measured on a CPU, MiniLM at
128 tokens: matrix products are 57 % of a forward pass and dropout's draws 23 %) for less than a third of the memory (85 kB a token
instead of 281). What lies between them, norms and activations and attention, is computed again, which is cheap.

1. `Remembering`, in the first pass, below autograd: notes the result of each such operation, in order; draws of zeros and ones as bits.
2. `Recalling`, in the second pass: gives the noted result instead of computing it; autograd, above, builds the same graph.

What stays true: values and gradients are those of an ordinary second pass, bit for bit. A second pass that asks for other operations
than the first one did, or a model that overwrites a noted result, is an error, never another gradient.

What it does not know: chunks, towers. Draws on a GPU are not noted: there they are cheap, and the random state is replayed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from negatron.errors import SettingError

PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})
ZEROS_AND_ONES = torch.ops.aten.bernoulli_


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What one operation gave."""

    operation: Any
    value: Any
    """A tensor or several; of zeros and ones their bits, packed."""
    version: int | None
    """Of a tensor that is noted without a copy: how often it had been written to."""

    def unchanged(self) -> bool:
        """False where a later operation wrote into the tensor."""
        return self.version is None or self.value._version == self.version


class Remembering(TorchDispatchMode):
    """Notes the results inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[Result] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Runs the operation, and notes its result if it is of one of the two kinds."""
        value = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.results.append(Result(func, value, value._version))
        elif drawn_on_cpu(func, args, kwargs or {}):
            self.results.append(Result(func, packed(value) if func.overloadpacket is ZEROS_AND_ONES else copied(value), None))
        return value

    def complete(self) -> tuple[Result, ...]:
        """All results, after the block. Raises SettingError where the model has overwritten one."""
        if not all(result.unchanged() for result in self.results):
            raise SettingError("keep_product_tokens: this model overwrites the results of its matrix products; set keep_product_tokens = 0")
        return tuple(self.results)


class Recalling(TorchDispatchMode):
    """Gives the noted results inside the block, each once. Raises RuntimeError where another operation is asked for than was noted."""

    def __init__(self, results: Sequence[Result]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = deque(results)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """The noted result of an operation of one of the two kinds; runs any other."""
        if func not in PRODUCTS and not drawn_on_cpu(func, args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        noted = self.left.popleft() if self.left else None
        if noted is None or noted.operation is not func or not fits(noted, args):
            first = described(noted, func)
            raise RuntimeError(f"the second pass over a chunk asks for {func} where the first gave {first}; set keep_product_tokens = 0")
        value = noted.value
        if func.overloadpacket is ZEROS_AND_ONES:
            value = torch.from_numpy(np.unpackbits(value, count=args[0].numel())).view(args[0].shape)
        return args[0].copy_(value) if in_place(func) else value


def drawn_on_cpu(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True for an operation that draws from the CPU's generator."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return False
    devices = (argument.device for argument in args if isinstance(argument, Tensor))
    return torch.device(next(devices, kwargs.get("device") or "cpu")).type == "cpu"


def in_place(operation: Any) -> bool:
    """True for an operation that writes its result into its first argument and returns that."""
    alias = operation._schema.arguments[0].alias_info if operation._schema.arguments else None
    return alias is not None and alias.is_write


def fits(noted: Result, args: Sequence[Any]) -> bool:
    """False where the operands would give a result of another shape than the noted one; of a draw, as far as it can be seen."""
    if noted.operation in PRODUCTS:
        left, right = args[-2:]
        return bool(noted.value.shape == (left.shape[0], right.shape[1]))
    return noted.operation.overloadpacket is not ZEROS_AND_ONES or len(noted.value) == (args[0].numel() + 7) // 8


def described(noted: Result | None, asked: Any) -> str:
    """What was noted, for a message."""
    if noted is None:
        return "nothing more"
    return f"{noted.operation} of another shape" if noted.operation is asked else str(noted.operation)


def packed(drawn: Tensor) -> NDArray[np.uint8]:
    """Zeros and ones as bits."""
    return np.packbits((drawn != 0).numpy().reshape(-1))


def copied(value: Any) -> Any:
    """The same values, in tensors of their own."""
    return value.clone() if isinstance(value, Tensor) else tuple(part.clone() if isinstance(part, Tensor) else part for part in value)
