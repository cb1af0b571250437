"""The processes of a training and their device, by accelerate: one process as well as those of `accelerate launch` or torchrun.

What stays true: every process does the same steps on the same weights, which are equal because every process adds up the same sum of
gradients (`gradients`), not because one sends them to the others: the model is not wrapped. Only the first process writes.

What it does not know: batches, gradients, files. Precision is no matter of accelerate's here: its autocast would be on in the loss
too, whose cosines must be fp32, and it does not know which CPUs are fast in bf16.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from negatron.errors import NegatronError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long the others wait while the first process mines or evaluates; torch's own limit is minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """All processes, seen from one of them."""

    accelerator: Any
    device: torch.device
    """This process's own."""

    @classmethod
    def start(cls, device: str | None = None, *, trackers: Sequence[str] = (), folder: Path | None = None) -> Workers:
        """Joins the process group that the launcher describes in the environment, if there is one.

        Args:
            device: "cpu", "cuda", ...; None = this process's own by accelerate.
            trackers: names for `tracking`.
            folder: where those of them that write files put them.

        Raises NegatronError when the processes cannot work together on their devices.

        """
        accelerator = Accelerator(
            cpu=launched() > 1 and (device == "cpu" or not torch.accelerator.is_available()),  # else it would not join them on a CPU
            log_with=list(trackers) or None,
            project_dir=None if folder is None else str(folder),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        if accelerator.num_processes != launched():
            raise NegatronError(
                f"{launched()} processes were started, but accelerate joins {accelerator.num_processes} on {accelerator.device}; "
                "start one, or say ACCELERATE_USE_CPU=true in the environment"
            )
        return cls(accelerator, torch.device(device) if device is not None else accelerator.device)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self.accelerator.num_processes)

    @property
    def index(self) -> int:
        """The number of this one, from 0."""
        return int(self.accelerator.process_index)

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, in the first process before the others: so that it writes a file which they then find."""
        if not self.first:
            self.wait()
        made = make()
        if self.first:
            self.wait()
        return made

    def agree(self, value: T) -> T:
        """The first process's value, in every process; those of the others are not looked at."""
        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]


def launched() -> int:
    """How many processes the launcher started, by the environment; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
