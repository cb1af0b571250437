"""Processes that share the cache: one builds a thing while others wait for it, and what is in use is not pruned.

`entry` opens an entry that may have to be made; `building` lets one process at a time make it. The lock is the kernel's (`flock`), so a
killed process gives it up by dying; the file beside the entry holds the owner's process id for the message.

`note_use` writes an entry's path into `in-use/PID` of the cache, a file that the process keeps locked while it lives, and marks the entry
as used now. `in_use` reads the notes of living processes; `pruning` keeps others from noting until it is done.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from negatron.errors import NegatronError
from negatron.progress import clock, say
from negatron.store import MANIFEST, Work, begin
from negatron.wheels import cache_folder

PATIENCE = 24 * 3600.0
"""Seconds that a process waits for another one's work."""
LOOK_AGAIN = 0.2
REMIND = 300.0
"""Seconds between two messages of a process that waits."""

_notes: dict[Path, IO[str]] = {}
"""Folder of notes -> this process's own, open and locked while the process lives."""


@contextmanager
def building(entry: Path, what: str, *, patience_s: float = PATIENCE) -> Iterator[None]:
    """Only this process makes `entry` inside the block. Where another one does, waits for it and says so, every few minutes.

    Raises NegatronError after `patience_s` seconds. The other may have died or finished: look what is there when the block begins.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    place = entry.with_name(f".{entry.name}.building")
    began, said = time.monotonic(), 0.0
    while (file := locked(place)) is None:
        waited = time.monotonic() - began
        if waited >= patience_s:
            raise NegatronError(f"{owner(place)} has been making {what} for {clock(waited)}; wait for it or end it, then run this again")
        if not said or waited - said >= REMIND:
            said = max(waited, LOOK_AGAIN)
            say(f"{owner(place)} is making {what}; waiting for it ({clock(waited)})")
        time.sleep(min(LOOK_AGAIN, patience_s))
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        file.close()


def locked(place: Path) -> IO[str] | None:
    """The lock file, locked, with this process's id in it; None when another process (or thread) holds it."""
    while True:
        file = place.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        if is_at(file, place):
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return file
        file.close()


def is_at(file: IO[str], place: Path) -> bool:
    """False when the owner before removed the file between our opening and our locking it: then the lock is on nothing."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def owner(place: Path) -> str:
    """`process 4711`, as the lock file says."""
    try:
        number = place.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        number = ""
    return f"process {number}" if number else "another process"


def note_use(entry: Path) -> None:
    """Marks an entry of the cache, there or about to be made, as used now, by this process as long as it lives.

    What is outside of the cache is left alone, and so is a cache that this process may not write: then it cannot be pruned with its rights.
    """
    cache = cache_folder()
    if not entry.absolute().is_relative_to(cache) or (cache.exists() and not os.access(cache, os.W_OK)):
        return
    with pruning(cache, shared=True):
        if entry.exists():
            os.utime(entry)
        notes = own_notes(cache / "in-use")
        notes.write(f"{entry.absolute()}\n")
        notes.flush()


def own_notes(folder: Path) -> IO[str]:
    """The file of notes of this process, open and locked until it ends."""
    place = folder / str(os.getpid())
    if place not in _notes:
        folder.mkdir(parents=True, exist_ok=True)
        file = place.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        _notes[place] = file
    return _notes[place]


@contextmanager
def pruning(cache: Path, *, shared: bool = False) -> Iterator[None]:
    """Nobody else notes a use inside the block (shared=True: nobody prunes)."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".prune.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def in_use(cache: Path) -> set[Path]:
    """What living processes noted, this one included; notes of dead ones are removed."""
    found: set[Path] = set()
    for place in (cache / "in-use").glob("*"):
        if place in _notes:
            found |= paths_in(place)
            continue
        with place.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                place.unlink()
            except OSError:
                found |= paths_in(place)
    return found


def paths_in(notes: Path) -> set[Path]:
    """The entries that a file of notes names."""
    return {Path(line) for line in notes.read_text(encoding="utf-8").splitlines()}


@contextmanager
def entry(out: Path, *, kind: str, inputs: Mapping[str, Any], what: str) -> Iterator[Work]:
    """`store.begin` for an entry of the cache: noted as in use, and where another process is making it, waited for."""
    note_use(out)
    with ExitStack() as stack:
        if not (out / MANIFEST).is_file():
            stack.enter_context(building(out, what))
        yield stack.enter_context(begin(out, kind=kind, inputs=inputs))
