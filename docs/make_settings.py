"""Writes docs/settings.md from the Settings classes: `python docs/make_settings.py`. A test fails when the page is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from negatron.demo import DemoSettings
from negatron.models.cross_encoder_training import CrossEncoderSettings
from negatron.negatives.mixing import MixSettings
from negatron.settings import Settings, alternatives
from negatron.training.recipe import TrainingSettings
from negatron.verbs.common import EncodingSettings, MiningSettings
from negatron.verbs.evaluation import EvaluationSettings
from negatron.verbs.negatives import RefilterSettings, WritingSettings

PAGE = Path(__file__).with_name("settings.md")
VERBS: dict[str, type[Settings]] = {
    "mine": MiningSettings,
    "synthesize": WritingSettings,
    "filter": RefilterSettings,
    "mix": MixSettings,
    "train": TrainingSettings,
    "train-cross-encoder": CrossEncoderSettings,
    "evaluate": EvaluationSettings,
    "search": EncodingSettings,
    "demo": DemoSettings,
}
"""The settings of each verb that has --set, in the order of the page."""
KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
SIGNS = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
INTRODUCTION = """\
# Settings

Made by `python docs/make_settings.py` from the classes that the verbs read; do not edit it by hand.

A setting is given by `--set key=value` (may be repeated), by `--settings FILE.toml` (keys at the top level; `--set` wins; not for `search`)
or from Python as a keyword: `ng.mine(data, negatives=3)`. Values are read as TOML: `--set measures='["ndcg@10"]'` is a list, a word
that is no TOML value is a text. A dot leads into a table: `--set weighting.focal=2`. `off` turns a setting off that can be off. An unknown
name, a value of the wrong type, and a setting that could have no effect are refused, with the nearest known name.

## Environment

| variable | meaning |
|---|---|
| `NEGATRON_CACHE` | downloads, encoded texts, ledger, results without `--out`; else `negatron` in `XDG_CACHE_HOME` or `~/.cache` |
| `NEGATRON_DATA` | folder around BEIR folders of your own, which are then found by name, before the catalogue |
| `NEGATRON_API_KEY`, `OPENAI_API_KEY` | key for `synthesize --endpoint`; the first that is set; written nowhere |
| `HF_HUB_OFFLINE`, `HF_ENDPOINT` | as everywhere: never ask the Hugging Face hub; ask a mirror |
"""


def page() -> str:
    """The whole page as Markdown."""
    inner = dict.fromkeys(found for settings in VERBS.values() for found in tables_in(settings))
    sections = [section(f"negatron {verb}", settings) for verb, settings in VERBS.items()]
    return "\n".join([INTRODUCTION, *sections, *(section(f"Table {settings.__name__}", settings) for settings in inner)])


def tables_in(settings: type[Settings]) -> Iterator[type[Settings]]:
    """The classes of the tables that settings hold, and those hold."""
    for field in settings.model_fields.values():
        for found in classes_in(field.annotation):
            yield found
            yield from tables_in(found)


def classes_in(annotation: Any) -> Iterator[type[Settings]]:
    """The classes of settings inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for part in get_args(annotation):
        yield from classes_in(part)


def section(title: str, settings: type[Settings]) -> str:
    """The table of one verb, or of a table that its settings hold."""
    rows = []
    for name, field in settings.model_fields.items():
        can_be_off = settings._as_python(name, "off") is None  # else None is silence, which cannot be written
        cells = [f"`{field.serialization_alias or name}`", default(field, can_be_off), accepted(field, can_be_off), meaning(field)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"## {title}", "", "| setting | default | accepts | meaning |", "|---|---|---|---|", *rows, ""])


def default(field: FieldInfo, can_be_off: bool) -> str:
    """The default as one would type it."""
    value = field.default
    if field.is_required() or value == "" or (value is None and not can_be_off):
        return ""
    if isinstance(value, Settings):
        return "`{}`"
    if value is None:
        return "`off`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def accepted(field: FieldInfo, can_be_off: bool) -> str:
    """Kind and range of the values."""
    limits = [f"{SIGNS[kind]} {getattr(limit, kind.lower()):g}" for limit in field.metadata if (kind := type(limit).__name__) in SIGNS]
    return ", ".join([" or ".join(kinds(field.annotation, can_be_off)), *limits])


def kinds(annotation: Any, can_be_off: bool = True) -> Iterator[str]:
    """What a value may be, in words."""
    for one in alternatives(annotation):
        if get_origin(one) is Literal:
            yield ", ".join(f"`{value}`" for value in get_args(one))
        elif one is type(None):
            yield from ["`off`"] * can_be_off
        elif isinstance(one, type) and issubclass(one, Settings):
            yield f"[table](#table-{one.__name__.lower()})"
        elif get_origin(one) is dict:
            yield f"table of {plural(get_args(one)[1])}"
        else:
            yield f"list of {plural(get_args(one)[0])}" if get_origin(one) is tuple else KINDS[one]


def plural(annotation: Any) -> str:
    """What several such values are called."""
    if get_origin(annotation) is Annotated:
        return plural(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(kinds(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"[tables](#table-{annotation.__name__.lower()})"
    return "pairs of whole numbers" if get_origin(annotation) is tuple else KINDS[annotation] + "s"


def meaning(field: FieldInfo) -> str:
    """The string under the field, on one line of a table. Raises ValueError for a field without one."""
    if not field.description:
        raise ValueError(f"a setting has no string under it: {field}")
    return " ".join(field.description.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
