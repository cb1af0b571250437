"""Writes docs/settings.md from the Settings classes: `python docs/make_settings.py`. A test fails when the page is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from negatron.demo import DemoSettings
from negatron.negatives.mixing import MixSettings
from negatron.settings import Settings
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
that is no TOML value is a text. `off` turns a setting off that can be off. An unknown name, a value of the wrong type, and a setting that
could have no effect are refused, with the nearest known name.

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
    return "\n".join([INTRODUCTION, *(section(verb, settings) for verb, settings in VERBS.items())])


def section(verb: str, settings: type[Settings]) -> str:
    """The table of one verb."""
    rows = [f"| `{name}` | {default(field)} | {accepted(field)} | {meaning(field)} |" for name, field in settings.model_fields.items()]
    return "\n".join([f"## negatron {verb}", "", "| setting | default | accepts | meaning |", "|---|---|---|---|", *rows, ""])


def default(field: FieldInfo) -> str:
    """The default as one would type it."""
    value = field.default
    if value is None:
        return "`off`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def accepted(field: FieldInfo) -> str:
    """Kind and range of the values."""
    limits = [f"{SIGNS[kind]} {getattr(limit, kind.lower()):g}" for limit in field.metadata if (kind := type(limit).__name__) in SIGNS]
    return ", ".join([" or ".join(kinds(field.annotation)), *limits])


def kinds(annotation: Any) -> Iterator[str]:
    """What a value may be, in words."""
    if get_origin(annotation) is Literal:
        yield ", ".join(f"`{value}`" for value in get_args(annotation))
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from kinds(part)
    elif annotation is type(None):
        yield "`off`"
    else:
        yield "list of texts" if get_origin(annotation) is tuple else KINDS[annotation]


def meaning(field: FieldInfo) -> str:
    """The string under the field, on one line of a table. Raises ValueError for a field without one."""
    if not field.description:
        raise ValueError(f"a setting has no string under it: {field}")
    return " ".join(field.description.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
