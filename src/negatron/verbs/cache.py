"""The verbs that keep the cache in bounds: cache size, cache prune.

An entry is what is made, used and removed as one: a folder of vectors, an index, a model, a wheel with its record. Its kind is the folder
of the cache that it lies in. `prune` removes the entries that were used longest ago and that can be made or fetched again: never the
ledger of paid replies, results only when they are named, and nothing that a running command uses.

What it does not know: what is in an entry.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from negatron.errors import SettingError, nearest
from negatron.models.locks import in_use, pruning
from negatron.wheels import cache_folder

LEDGER, RESULTS = "ledger", "results"
INSIDE_VECTORS = {"search-": "searches", "index-": "indexes"}
"""Prefix of an entry's name in the folder of vectors -> its kind."""
NOT_ENTRIES = frozenset({"locks", "in-use"})
UNITS = {"": 1, "b": 1} | {f"{letter}{ending}": 1000**n for n, letter in enumerate("kmgt", 1) for ending in ("", "b")}
UNITS |= {f"{letter}ib": 1024**n for n, letter in enumerate("kmgt", 1)}
SPANS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in the cache: its files, their size in bytes, when it was last used (seconds since 1970)."""

    kind: str
    name: str
    paths: tuple[Path, ...]
    bytes: int
    last_used: float

    def as_json(self) -> dict[str, Any]:
        """The entry as JSON values."""
        return {"kind": self.kind, "name": self.name, "bytes": self.bytes, "last_used": day(self.last_used)}


@dataclass(frozen=True, slots=True)
class Kind:
    """All entries of one kind."""

    kind: str
    entries: int
    bytes: int
    last_used: str


@dataclass(frozen=True, slots=True)
class Size:
    """What the cache holds, by kind, the largest first."""

    folder: Path
    kinds: tuple[Kind, ...]

    @property
    def bytes(self) -> int:
        """Of all kinds together."""
        return sum(kind.bytes for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"folder": str(self.folder), "bytes": self.bytes, "kinds": [asdict(kind) for kind in self.kinds]}

    def __str__(self) -> str:
        rows = [f"{one.kind:<14}{one.entries:>8,}  {in_units(one.bytes):>10}  last used {one.last_used}" for one in self.kinds]
        return "\n".join([f"{self.folder}: {in_units(self.bytes)}", *rows])


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be (`dry_run`); `spared` are entries that were due but are in use; `left` bytes stay."""

    removed: tuple[Entry, ...]
    spared: tuple[Entry, ...]
    left: int
    dry_run: bool
    wanted: int | None = None
    """The size asked for, in bytes."""

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        entries = {name: [entry.as_json() for entry in getattr(self, name)] for name in ("removed", "spared")}
        return entries | {"bytes": sum(entry.bytes for entry in self.removed), "left": self.left, "dry_run": self.dry_run}

    def __str__(self) -> str:
        lines = [
            f"{entry.kind:<14}{entry.name:<44}{in_units(entry.bytes):>10}  last used {day(entry.last_used)}{note}"
            for entries, note in ((self.removed, ""), (self.spared, "  in use, stays"))
            for entry in entries
        ]
        verb = "would be removed" if self.dry_run else "removed"
        total = sum(entry.bytes for entry in self.removed)
        lines.append(f"{len(self.removed):,} entries, {in_units(total)} {verb}; {in_units(self.left)} stay")
        if self.wanted is not None and self.left > self.wanted:
            lines.append(f"more than {in_units(self.wanted)}: the rest is in use, or cannot be made again (name its kind with --kind)")
        return "\n".join(lines)


def size() -> Size:
    """What the cache holds."""
    cache = cache_folder()
    by_kind: dict[str, list[Entry]] = {}
    for entry in entries_of(cache):
        by_kind.setdefault(entry.kind, []).append(entry)
    kinds = [Kind(kind, len(own), sum(e.bytes for e in own), day(max(e.last_used for e in own))) for kind, own in by_kind.items()]
    return Size(cache, tuple(sorted(kinds, key=lambda kind: (-kind.bytes, kind.kind))))


def prune(
    *,
    max_size: str | None = None,
    older_than: str | None = None,
    kinds: Sequence[str] = (),
    dry_run: bool = False,
    now: float | None = None,
) -> Pruned:
    """Removes entries that were not used for `older_than` ("30d"), then the least recently used until all take at most `max_size` ("10GB").

    kinds: only these; without, every kind that can be made or fetched again. now: seconds since 1970, for those who know better than
    the clock. Raises SettingError when neither limit is given, or one cannot be read, or a kind is unknown.
    """
    if max_size is None and older_than is None:
        raise SettingError("cache prune needs a limit: --max-size 10GB, --older-than 30d, or both")
    limit = None if max_size is None else bytes_in(max_size)
    oldest = 0.0 if older_than is None else (time.time() if now is None else now) - seconds_in(older_than)
    cache = cache_folder()
    with pruning(cache):
        found = sorted(entries_of(cache), key=lambda entry: (entry.last_used, entry.kind, entry.name))
        known = {entry.kind for entry in found}
        if unknown := sorted(set(kinds) - known):
            raise SettingError(f"the cache holds no kind {unknown[0]!r}{nearest(unknown[0], known)}")
        due = chosen(
            [e for e in found if e.kind in (kinds or known - {LEDGER, RESULTS})], sum(e.bytes for e in found), limit, oldest, cache
        )
        removed, spared = due
        if not dry_run:
            for entry in removed:
                remove(entry)
    return Pruned(tuple(removed), tuple(spared), sum(e.bytes for e in found) - sum(e.bytes for e in removed), dry_run, limit)


def chosen(candidates: Sequence[Entry], total: int, limit: int | None, oldest: float, cache: Path) -> tuple[list[Entry], list[Entry]]:
    """(entries to remove, entries that are due but in use), from candidates by last use, the longest ago first."""
    noted, opened = in_use(cache), open_files(cache)
    removed: list[Entry] = []
    spared: list[Entry] = []
    for entry in candidates:
        if entry.last_used >= oldest and (limit is None or total <= limit):
            continue
        if is_used(entry, noted, opened):
            spared.append(entry)
        else:
            removed.append(entry)
            total -= entry.bytes
    return removed, spared


def entries_of(cache: Path) -> Iterator[Entry]:
    """Everything in the cache, in the order of its names."""
    if not cache.is_dir():
        return
    for top in sorted(cache.iterdir()):
        if top.is_file() and top.name.startswith("ledger."):
            continue
        if top.is_dir() and top.name not in NOT_ENTRIES and not top.name.startswith("."):
            yield from entries_in(top)
    if ledger := sorted(cache.glob("ledger.*")):
        yield entry_of(LEDGER, "ledger", ledger)


def entries_in(folder: Path) -> Iterator[Entry]:
    """The entries of one folder of the cache. Files that differ in their ending alone (a wheel and its record) are one entry."""
    together: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if not hidden or path.name.endswith((".partial", ".pruned")):
            together.setdefault(path.name if path.is_dir() else path.stem, []).append(path)
    for name, paths in together.items():
        kind = next((kind for prefix, kind in INSIDE_VECTORS.items() if name.lstrip(".").startswith(prefix)), folder.name)
        yield entry_of(kind, name, paths)


def entry_of(kind: str, name: str, paths: Sequence[Path]) -> Entry:
    """The entry of these files and folders."""
    parts = [part for path in paths for part in parts_of(path)]
    return Entry(kind, name, tuple(paths), sum(size for size, _ in parts), max((used for _, used in parts), default=0.0))


def parts_of(path: Path) -> Iterator[tuple[int, float]]:
    """(bytes, last used) of a file, or of a folder and the files below it; what vanishes meanwhile is left out.

    A folder counts as used when it was last changed, which `note_use` does, and not when it was last listed.
    """
    for place in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            state, folder = place.lstat(), place.is_dir()
            yield 0 if folder else state.st_size, state.st_mtime if folder else max(state.st_atime, state.st_mtime)


def is_used(entry: Entry, noted: Collection[Path], opened: Collection[Path]) -> bool:
    """True when a living process noted the entry, has a file of it open or mapped, or is building it."""
    for path in entry.paths:
        if path in noted or any(other.is_relative_to(path) for other in opened):
            return True
        if path.name.endswith(".partial") and is_locked(path / "lock"):
            return True
    return False


def is_locked(path: Path) -> bool:
    """True when another process holds the lock file."""
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def open_files(cache: Path) -> set[Path]:
    """Files of the cache that processes have open or mapped, as far as /proc tells; empty where there is none."""
    found: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            lines = (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
            found |= {Path(line.split(maxsplit=5)[5]) for line in lines if str(cache) in line}
            for link in (process / "fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    found.add(link.readlink())
    return {path for path in found if path.is_relative_to(cache)}


def remove(entry: Entry) -> None:
    """Removes an entry: first out of sight by a rename, so that nobody meets a half of it."""
    for path in entry.paths:
        if path.is_dir():
            hidden = path if path.name.endswith(".pruned") else path.with_name(f".{path.name.lstrip('.')}.pruned")
            path.rename(hidden)
            shutil.rmtree(hidden)
        else:
            path.unlink(missing_ok=True)


def bytes_in(text: str) -> int:
    """`10GB`, `512 MiB` or plain bytes, as a number. Raises SettingError for anything else.

    >>> bytes_in("10GB"), bytes_in("1.5 MiB"), bytes_in("0")
    (10000000000, 1572864, 0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise SettingError(f"--max-size {text}: expected a number and a unit, such as 10GB or 500MB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def seconds_in(text: str) -> float:
    """`30d`, `12h`, `2w` or `45m`, in seconds. Raises SettingError for anything else.

    >>> seconds_in("1d"), seconds_in("0.5h")
    (86400.0, 1800.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdw])\s*", text)
    if match is None:
        raise SettingError(f"--older-than {text}: expected a number and one of m, h, d, w, such as 30d")
    return float(match[1]) * SPANS[match[2]]


def in_units(count: float) -> str:
    """Bytes for people.

    >>> in_units(999), in_units(1_500_000)
    ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} TB"


def day(seconds: float) -> str:
    """The date of a time, in this place's time zone."""
    return datetime.fromtimestamp(seconds).date().isoformat()
