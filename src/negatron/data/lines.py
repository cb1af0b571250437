r"""Text files read line by line, with every damage kept together with its file and line.

`lines_of` gives (line number, text) and reports to a `Findings` what is no UTF-8 text; `objects_of` goes on to JSON objects.
Lines end at "\n" alone: other characters that Python counts as line ends may stand inside a text. A carriage return before it
and a byte order mark are accepted and noted. What it does not know: which keys a line should have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from negatron.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BINARY_KINDS = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PAR1": "Parquet", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
HEAD = 4096
"""Bytes looked at to tell a binary file from a text with a damaged line."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong. `line` is None where the whole file or folder is meant."""

    path: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}" if self.line is not None else f"{self.path}: {self.message}"


@dataclass(slots=True)
class Findings:
    """What a reader found: damages that forbid using the data, and counted oddities that do not."""

    damages: list[Damage] = field(default_factory=list)
    oddities: Counter[str] = field(default_factory=Counter)

    def damage(self, path: Path, line: int | None, message: str) -> None:
        """Keeps one damage."""
        self.damages.append(Damage(path, line, message))

    def oddity(self, path: Path, message: str) -> None:
        """Counts something unusual that is accepted."""
        self.oddities[f"{path.name}: {message}"] += 1

    def refuse(self, shown: int = 5) -> None:
        """Raises DataError with the first damages and their number, if there are any."""
        if self.damages:
            raise_for(self.damages, shown)


def raise_for(damages: list[Damage], shown: int) -> NoReturn:
    """DataError that lists the first `shown` damages and counts them all."""
    first, *others = damages[:shown]
    more = len(damages) - shown
    lines = [first.message, *map(str, others), *([f"and {more:,} more; `negatron data check` lists them all"] if more > 0 else [])]
    raise DataError("\n".join(lines), first.path, first.line)


def binary_kind(head: bytes) -> str | None:
    """What kind of binary file begins like this; None for text.

    >>> binary_kind(b"PAR1..."), binary_kind(b"a text")
    ('Parquet', None)
    """
    for magic, kind in BINARY_KINDS.items():
        if head.startswith(magic):
            return kind
    return "with NUL bytes" if b"\0" in head else None


def lines_of(path: Path, findings: Findings) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of a UTF-8 file; blank lines are left out; damaged lines are reported and left out."""
    try:
        file = path.open("rb")
    except OSError as error:
        findings.damage(path, None, f"cannot be read ({error.strerror})")
        return
    with file:
        kind = binary_kind(file.read(HEAD))
        if kind is not None:
            findings.damage(path, None, f"a binary file ({kind}), expected UTF-8 text; unpack or convert it first")
            return
        file.seek(0)
        for number, raw in enumerate(file, 1):
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                raw = raw.removeprefix(BYTE_ORDER_MARK)
                findings.oddity(path, "begins with a byte order mark (accepted)")
            if raw.endswith(b"\r\n"):
                findings.oddity(path, "lines that end with a carriage return (accepted)")
            raw = raw.rstrip(b"\r\n")
            if not raw.strip():
                findings.oddity(path, "blank lines (skipped)")
            elif b"\0" in raw:
                findings.damage(path, number, f"a NUL byte at column {raw.index(0) + 1}, expected UTF-8 text")
            else:
                try:
                    yield number, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    place = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
                    findings.damage(path, number, f"not UTF-8 ({place}); convert the file to UTF-8")


def objects_of(path: Path, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON Lines file; what is no JSON object is reported and left out."""
    for number, text in lines_of(path, findings):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            findings.damage(path, number, f"not JSON: {error}")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            findings.damage(path, number, f"{describe(value)}, expected a JSON object such as {{...}}")


def describe(value: object) -> str:
    """What a JSON value is, in words.

    >>> describe(3), describe(["a"])
    ('a number (3)', 'a list (["a"])')
    """
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return "null" if value is None else f"{KINDS.get(type(value), type(value).__name__)} ({shown})"


def unwritable(text: str) -> bool:
    """True for a text with half of a surrogate pair, which no UTF-8 file can hold (JSON can smuggle it in as an escape)."""
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
