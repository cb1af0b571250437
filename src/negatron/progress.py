"""Progress on stderr: what is done, at which rate, and the time left. A terminal gets a bar, a file one line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate(count: float, seconds: float, unit: str) -> str:
    """`12.3 texts/s`; from 100 a second on without decimals."""
    per_second = count / seconds if seconds > 0 else 0.0
    return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.1f} {unit}/s"


class Meter:
    """Counts finished units. `skipped` units were already there (a resumed run) and do not enter the rate. `quiet` ones say nothing.

    `with Meter("encode", 500, "texts") as meter: meter.advance(32)`
    """

    def __init__(self, label: str, total: int, unit: str, *, skipped: int = 0, quiet: bool = False) -> None:
        self.label, self.total, self.unit, self.quiet = label, total, unit, quiet
        self.done = self.skipped = skipped
        self.note = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._began = self._last_line = time.monotonic()
        if self.quiet:
            return self
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=30), TextColumn("{task.fields[status]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, status=self.status())
        elif self.skipped:
            say(f"{self.label}: {self.skipped:,} of {self.total:,} {self.unit} are already there")
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more units as finished; `note` is shown behind the rate."""
        self.done += count
        self.note = note or self.note
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, status=self.status())
        elif not self.quiet and now - self._last_line >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self._last_line = now
            say(f"{self.label}: {self.status()}")

    def status(self) -> str:
        """`120/500 texts, 31.2 texts/s, 0:12 left`."""
        seconds = time.monotonic() - self._began
        made = self.done - self.skipped
        left = clock((self.total - self.done) * seconds / made) if made else "?"
        ending = f"{clock(seconds)} in all" if self.done >= self.total else f"{left} left"
        note = f", {self.note}" if self.note else ""
        return f"{self.done:,}/{self.total:,} {self.unit}, {rate(made, seconds, self.unit)}, {ending}{note}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self.total and not self.quiet:
            say(f"{self.label}: {self.status()}")


def track(items: Iterable[T], label: str, total: int, unit: str) -> Iterator[T]:
    """Yields the items, showing progress."""
    with Meter(label, total, unit) as meter:
        for item in items:
            yield item
            meter.advance()


def say(message: str) -> None:
    """A line for the person at the terminal: stderr, so that stdout holds results only."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
