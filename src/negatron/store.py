"""Results are written whole or not at all.

A result is a folder. It is built in `.NAME.partial` beside its final place and becomes NAME by one rename, after its manifest, which
lists every file with its size and SHA-256, has been written last. So a folder with a manifest is whole, and a killed run leaves only
a partial folder, which the same command finds again by its `inputs.json` and continues.

1. `begin(out, kind=..., inputs=...)` gives a Work: finished (the same command ran before), resumed, or fresh.
2. The caller writes into `work.path`.
3. `work.finish(...)` writes the manifest and renames.

What it does not know: what is in the files.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from negatron.errors import DataError, NegatronError
from negatron.identity import file_sha256, fingerprint

MANIFEST = "manifest.json"
INPUTS = "inputs.json"
FORMAT = 1
NOT_LISTED = frozenset({MANIFEST, INPUTS, "lock", "seconds.json", "scores.json"})
"""Files that do not belong to the identity of a result. The last two tell how long it took, which differs from run to run."""


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: beside it first, then one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON with sorted keys, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a folder whole. `fingerprint` names the contents; `inputs` is everything they were made from."""

    kind: str
    fingerprint: str
    inputs: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The manifest as written to `manifest.json`."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "inputs": dict(self.inputs),
            "files": dict(self.files),
            "facts": dict(self.facts),
        }


def read_manifest(folder: Path, kind: str | None = None) -> Manifest:
    """The manifest of a finished folder.

    Raises DataError when the folder is missing, unfinished, damaged (a listed file is missing or of another size) or of another kind.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError("no such folder", folder)
    if not path.is_file():
        raise DataError(
            f"no {MANIFEST} in it, so it was not written by negatron or is not finished; give a folder that a verb wrote", folder
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(raw["kind"], raw["fingerprint"], raw["inputs"], raw["files"], raw["facts"])
        version = raw["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a manifest ({type(error).__name__}: {error}); make the folder again", path) from error
    if version != FORMAT:
        raise DataError(f"written in format {version}, this version reads {FORMAT}; make the folder again", path)
    if kind is not None and manifest.kind != kind:
        raise DataError(f"holds {manifest.kind}, expected {kind}", folder)
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"the manifest lists {name}, which is missing; make the folder again", folder)
        if file.stat().st_size != entry["bytes"]:
            raise DataError(f"has {file.stat().st_size:,} bytes, the manifest says {entry['bytes']:,}; make the folder again", file)
    return manifest


@dataclass(slots=True)
class Work:
    """A folder being built, or found finished. Write into `path`; `finished` is the manifest when there is nothing left to do."""

    out: Path
    path: Path
    kind: str
    inputs: dict[str, Any]
    resumed: bool
    finished: Manifest | None
    _lock: IO[str] | None

    def finish(self, **facts: Any) -> Manifest:
        """Lists every file, writes the manifest last, and renames the partial folder to its final place."""
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        files = {
            name: {"bytes": (self.path / name).stat().st_size, "sha256": file_sha256(self.path / name)}
            for name in names
            if Path(name).name not in NOT_LISTED and not Path(name).name.endswith(".tmp")
        }
        identity = fingerprint(self.kind, {name: entry["sha256"] for name, entry in files.items()})
        manifest = Manifest(self.kind, identity, self.inputs, files, facts)
        write_json(self.path / MANIFEST, manifest.as_json())
        self.path.rename(self.out)
        for name in (INPUTS, "lock"):  # only now: without them a kill just before the rename would lose the partial folder
            (self.out / name).unlink(missing_ok=True)
        self.finished = manifest
        self.close()
        return manifest

    def close(self) -> None:
        """Gives up the lock; an unfinished partial folder stays for the next run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def partial_path(out: Path) -> Path:
    """Where a folder is built: `.NAME.partial` beside it."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def begin(out: Path, *, kind: str, inputs: Mapping[str, Any]) -> Iterator[Work]:
    """Opens the building of `out`, made by `kind` from `inputs` (JSON values: fingerprints, settings, seed, versions of rules).

    The same inputs again: a finished folder is given back as it is, a partial one is continued. A partial folder of other inputs is
    thrown away. Raises NegatronError when `out` holds anything else, or when another process is building it.
    """
    out = out.absolute()
    wanted = json.loads(json.dumps(dict(inputs), sort_keys=True))
    if out.exists():
        if not out.is_dir() or not (out / MANIFEST).is_file():
            if not out.is_dir() or any(out.iterdir()):
                raise NegatronError(f"{out} exists and was not written by negatron; choose another --out")
            out.rmdir()
        else:
            manifest = read_manifest(out)
            if manifest.kind == kind and manifest.inputs == wanted:
                yield Work(out, out, kind, wanted, True, manifest, None)
                return
            raise NegatronError(
                f"{out} already holds another result ({difference(manifest, kind, wanted)}); choose another --out or remove the folder"
            )
    path = partial_path(out)
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise NegatronError(f"another process is writing {out}; wait for it, or choose another --out") from error
    resumed = (path / INPUTS).is_file() and json.loads((path / INPUTS).read_text(encoding="utf-8")) == [kind, wanted]
    if not resumed:
        for entry in path.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_json(path / INPUTS, [kind, wanted])
    work = Work(out, path, kind, wanted, resumed, None, lock)
    try:
        yield work
    finally:
        if work.finished is None and {entry.name for entry in path.iterdir()} <= {INPUTS, "lock"}:
            shutil.rmtree(path)  # nothing was begun: a mistyped option shall leave no trace
        work.close()


def difference(manifest: Manifest, kind: str, wanted: Mapping[str, Any]) -> str:
    """In words, the first inputs in which a finished folder and a command differ."""
    if manifest.kind != kind:
        return f"it holds {manifest.kind}, not {kind}"
    keys = [k for k in sorted({*manifest.inputs, *wanted}) if manifest.inputs.get(k) != wanted.get(k)]
    shown = []
    for key in keys[:2]:
        old, new = manifest.inputs.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
            key, old, new = f"{key}.{inner}", old.get(inner), new.get(inner)
        shown.append(f"{key}: {old!r} there, {new!r} now")
    return "; ".join(shown)
