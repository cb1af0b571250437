"""Trackers: the lines of the log, sent to TensorBoard, Weights & Biases and the like through accelerate's tracker interface.

What it does not know: any tracker by name. Whatever accelerate knows and finds installed can be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from negatron.errors import SettingError, nearest
from negatron.training.workers import Workers

PROJECT = "negatron"


def known() -> list[str]:
    """Names of all trackers that accelerate knows."""
    return sorted(name for name in LoggerType.list() if name != "all")


def installed() -> list[str]:
    """Names of those of them that can be used here."""
    return sorted(str(tracker.value) for tracker in get_available_trackers())


def refuse_missing(names: Sequence[str]) -> None:
    """Raises SettingError, by name, for a tracker that accelerate does not know or that is not installed."""
    for name in names:
        if name not in known():
            raise SettingError(f"trackers: there is no {name!r}{nearest(name, known())}")
        if name not in installed():
            raise SettingError(f"trackers: {name} is not installed here; install its package, or leave it out")


@contextmanager
def tracked(workers: Workers, recipe: Mapping[str, Any]) -> Iterator[None]:
    """Begins the trackers that `workers` was started with, the recipe as their settings, and ends them with the block."""
    flat = {key: value if isinstance(value, int | float | str) else str(value) for key, value in recipe.items()}
    workers.accelerator.init_trackers(PROJECT, config=flat)
    try:
        yield
    finally:
        for tracker in workers.accelerator.trackers:  # not end_training, which would end the process group as well
            tracker.finish()


def log(workers: Workers, line: Mapping[str, Any]) -> None:
    """Sends the numbers of a line of the log; nested ones as `name/inner`."""
    workers.accelerator.log({f"train/{key}": value for key, value in numbers(line) if key != "step"}, step=line["step"])


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a line.

    >>> list(numbers({"loss": 0.5, "quotas": {"bm25": 2}, "stage": "hard"}))
    [('loss', 0.5), ('quotas/bm25', 2)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value
