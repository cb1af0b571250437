"""`log.jsonl`: one line a step. It holds no wall time: a training stopped and resumed leaves the same file as one that never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from negatron.store import write_bytes


class Journal:
    """Appends lines. Opened with the number of steps that are done: lines beyond it, which will be made again, are dropped.

    `writes` is False in a process that keeps the lines to itself.
    """

    def __init__(self, path: Path, steps_done: int, *, writes: bool = True) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = read(path)[:steps_done]
        self._writes = writes
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if self._writes:
            write_bytes(self.path, "".join(map(as_line, self.lines)).encode())
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line, handed to the operating system at once."""
        self.lines.append(line)
        if self._file is not None:
            self._file.write(as_line(line))
            self._file.flush()

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()


def as_line(line: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(line, ensure_ascii=False) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line without its end, torn by a killed run, is left out. No file: no lines."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
