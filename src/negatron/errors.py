"""Errors that a user can put right. The command line prints their message and ends with exit code 2; nothing else does."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class NegatronError(Exception):
    """Something the user can put right; the message says what was found, what was expected and what to do."""


class DataError(NegatronError):
    """A damaged or unsuitable file. The message begins with `file:line:` where a line is to blame."""

    def __init__(self, message: str, path: Path | str | None = None, line: int | None = None) -> None:
        place = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(place + message)
        self.path, self.line = path, line


class SettingError(NegatronError):
    """A setting, option or name that is unknown, contradicts another or cannot be honoured."""


class MissingExtra(NegatronError):  # noqa: N818 - the name says what to do
    """An optional dependency that is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs the Python package {module}, which is not installed: pip install 'negatron[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name closest to `name`, with all known names where none is close.

    >>> nearest("bacth_size", ["batch_size", "epochs"])
    "; did you mean 'batch_size'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
