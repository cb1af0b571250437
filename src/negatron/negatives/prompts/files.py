"""Prompt files: read, checked, filled in.

1. `load` finds `syneg.v1` among the prompts of the package, or reads a TOML file of the user's, and refuses one that is not whole.
2. `Prompt.without` leaves out parts, by their name or by the kind of constraint they state (the ablations of SyNeg's Table 4).
3. `Prompt.fill` puts a query, a positive and the drawn attributes into the text.
4. `parse` reads a reply to it.

A file has `name`, `version`, `parser`, `origin` (whose wording it is), `[[part]]` tables in the order of the prompt (`name`, `constraint`,
`text`) and one `[attributes.PRESET]` table for each list of attribute values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from negatron.errors import SettingError, nearest
from negatron.identity import fingerprint
from negatron.negatives.prompts.parsers import PARSERS, ParseFailure, Written
from negatron.settings import read_toml

Constraint = Literal["context", "attributes", "reflection"]
ATTRIBUTES = ("domain", "difficulty", "length")
"""What a negative may be asked to be like; each is drawn from a list for each request."""
REQUIRED = frozenset({"query", "positive", "count", "shape"})
PLACEHOLDERS = REQUIRED | frozenset(ATTRIBUTES)
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")  # JSON's braces are followed by a quote, so they never look like one
KEYS = frozenset({"name", "version", "parser", "origin", "part", "attributes"})
SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a prompt. `constraint` says what it constrains, after SyNeg (arXiv 2412.17250)."""

    name: str
    constraint: Constraint
    text: str

    @property
    def placeholders(self) -> frozenset[str]:
        """Names in braces."""
        return frozenset(PLACEHOLDER.findall(self.text))


@dataclass(frozen=True)
class Prompt:
    """A prompt file. `attributes` maps a preset to the values of each attribute."""

    name: str
    version: int
    parser: str
    origin: str
    parts: tuple[Part, ...]
    attributes: Mapping[str, Mapping[str, tuple[str, ...]]]

    @property
    def title(self) -> str:
        """Name and version: `syneg.v1`."""
        return f"{self.name}.v{self.version}"

    @property
    def fingerprint(self) -> str:
        """Of everything in it: an edited file is another prompt, even under the same version."""
        parts = [[part.name, part.constraint, part.text] for part in self.parts]
        return fingerprint(self.title, self.parser, parts, {preset: dict(lists) for preset, lists in self.attributes.items()})

    @property
    def placeholders(self) -> frozenset[str]:
        """Of all its parts."""
        return frozenset().union(*(part.placeholders for part in self.parts))

    @property
    def reflects(self) -> bool:
        """Whether a part asks for reasoning; only then does the reply have room for it."""
        return any(part.constraint == "reflection" for part in self.parts)

    def without(self, names: Iterable[str]) -> Prompt:
        """The prompt without the named parts, or without all parts of a constraint ("attributes", "reflection").

        Raises SettingError for a name it does not have, and when query, positive, number or form of the reply would be lost.
        """
        left_out = set(names)
        known = {part.name for part in self.parts} | {part.constraint for part in self.parts}
        for name in sorted(left_out - known):
            raise SettingError(f"{self.title} has no part {name!r}{nearest(name, known)}")
        prompt = replace(self, parts=tuple(p for p in self.parts if not {p.name, p.constraint} & left_out))
        if lost := sorted(REQUIRED - prompt.placeholders):
            raise SettingError(f"{self.title} without {', '.join(sorted(left_out))} no longer tells the model its {', '.join(lost)}")
        return prompt

    def values(self, preset: str) -> Mapping[str, tuple[str, ...]]:
        """The attribute values of a preset. Raises SettingError for an unknown one."""
        if preset not in self.attributes:
            raise SettingError(f"{self.title} has no attributes {preset!r}{nearest(preset, self.attributes)}")
        return self.attributes[preset]

    def draw(self, values: Mapping[str, Sequence[str]], stream: Random) -> dict[str, str]:
        """One value for each attribute. All are drawn, used or not: leaving out one part does not change what another part says."""
        drawn = {name: stream.choice(values[name]) for name in ATTRIBUTES if values.get(name)}
        return {name: value for name, value in drawn.items() if name in self.placeholders}

    def fill(self, *, query: str, positive: str, count: int, attributes: Mapping[str, str]) -> str:
        """The text for the model, parts separated by an empty line. Texts are put in as they are: braces in them mean nothing."""
        shape = PARSERS[self.parser].shape(count, reasoning=self.reflects)
        values = {"query": query, "positive": positive, "count": str(count), "shape": shape, **attributes}
        return "\n\n".join(PLACEHOLDER.sub(lambda match: values[match.group(1)], part.text) for part in self.parts)

    def schema(self, count: int) -> dict[str, Any]:
        """The JSON schema of a reply with `count` negatives."""
        return PARSERS[self.parser].schema(count, reasoning=self.reflects)


def parse(prompt: Prompt, reply: str, count: int) -> tuple[Written, ...] | ParseFailure:
    """What a reply to the prompt holds, at most `count` negatives, or why it holds nothing."""
    return PARSERS[prompt.parser].read(reply, count)


def shipped() -> tuple[str, ...]:
    """The names of the prompts in the package."""
    files = resources.files("negatron.negatives.prompts").iterdir()
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX)))


def load(name: str) -> Prompt:
    """A prompt of the package by its name, or the user's own by the path of its .toml file.

    Raises SettingError for an unknown name and for a file that is not whole.
    """
    if name.endswith(SUFFIX):
        return checked(read_toml(Path(name)), name)
    if name not in shipped():
        raise SettingError(f"there is no prompt {name!r}{nearest(name, shipped())}, or the path of a {SUFFIX} file")
    with resources.as_file(resources.files("negatron.negatives.prompts") / (name + SUFFIX)) as path:
        prompt = checked(read_toml(path), str(path))
    if prompt.title != name:
        raise SettingError(f"{name}{SUFFIX} calls itself {prompt.title}")
    return prompt


def checked(raw: Mapping[str, Any], place: str) -> Prompt:
    """The prompt in a file's values. Raises SettingError, with the file, for what is unknown, missing or of the wrong kind."""
    for key in sorted(raw.keys() - KEYS):
        raise SettingError(f"{place}: there is no key {key!r}{nearest(key, KEYS)}")
    for key, kind in (("name", str), ("version", int), ("parser", str), ("origin", str), ("part", list)):
        if type(raw.get(key)) is not kind or not raw[key]:
            raise SettingError(f"{place}: {key} = {raw.get(key)!r}, expected {'text' if kind is str else f'a {kind.__name__}'}")
    if raw["parser"] not in PARSERS:
        raise SettingError(f"{place}: there is no parser {raw['parser']!r}{nearest(raw['parser'], PARSERS)}")
    parts = tuple(checked_part(part, place, number) for number, part in enumerate(raw["part"], 1))
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        raise SettingError(f"{place}: two parts have the same name ({', '.join(names)})")
    attributes = checked_attributes(raw.get("attributes", {}), place)
    prompt = Prompt(raw["name"], raw["version"], raw["parser"], raw["origin"], parts, attributes)
    if missing := sorted(REQUIRED - prompt.placeholders):
        raise SettingError(f"{place}: no part has the placeholder {{{missing[0]}}}")
    for attribute in sorted(prompt.placeholders - REQUIRED):
        for preset, values in {**attributes, **({} if attributes else {"general": {}})}.items():
            if not values.get(attribute):
                raise SettingError(f"{place}: the prompt asks for {{{attribute}}}, but [attributes.{preset}] has no values for it")
    return prompt


def checked_part(raw: Any, place: str, number: int) -> Part:
    """One `[[part]]` of a file."""
    where = f"{place}: part {number}"
    if not isinstance(raw, Mapping) or set(raw) != {"name", "constraint", "text"} or not all(isinstance(v, str) for v in raw.values()):
        raise SettingError(f"{where}: expected name, constraint and text")
    if raw["constraint"] not in get_args(Constraint):
        raise SettingError(f"{where}: constraint = {raw['constraint']!r}{nearest(raw['constraint'], get_args(Constraint))}")
    part = Part(raw["name"], raw["constraint"], raw["text"].strip())
    for name in sorted(part.placeholders - PLACEHOLDERS):
        raise SettingError(f"{where} ({part.name}): there is no placeholder {{{name}}}{nearest(name, PLACEHOLDERS)}")
    return part


def checked_attributes(raw: Any, place: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """The `[attributes.PRESET]` tables of a file."""
    presets: dict[str, dict[str, tuple[str, ...]]] = {}
    for preset, lists in raw.items() if isinstance(raw, Mapping) else [("attributes", None)]:
        if not isinstance(lists, Mapping):
            raise SettingError(f"{place}: attributes.{preset} is no table")
        for name, values in lists.items():
            if name not in ATTRIBUTES:
                raise SettingError(f"{place}: attributes.{preset} has no {name!r}{nearest(name, ATTRIBUTES)}")
            if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
                raise SettingError(f"{place}: attributes.{preset}.{name}: expected a list of texts")
        presets[preset] = {name: tuple(values) for name, values in lists.items()}
    return presets
