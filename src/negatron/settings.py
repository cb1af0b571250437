"""Strict, typed settings: each from its default, a TOML file, or `--set key=value`, the later winning.

An unknown key or a wrong type is refused, with the key, the value, what was expected and the nearest known name. Settings may hold
settings (a TOML table, or a list of tables); what is wrong inside is told with its place, such as `stages (number 2)`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from negatron.errors import SettingError, nearest


class Settings(BaseModel):
    """Base of all settings. Each field carries a string under it: its unit first, then what it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @classmethod
    def read(cls, file: Path | None = None, assignments: Sequence[str] = (), **given: Any) -> Self:
        """Settings from a TOML file, then `key=value` assignments, then keyword values that are not None.

        Raises SettingError for an unknown key, a wrong type or a value out of range.
        """
        values: dict[str, Any] = dict(read_toml(file)) if file is not None else {}
        for text in assignments:
            key, value = parse_assignment(text)
            name, *inner = key.split(".")
            if name not in cls.model_fields:
                raise SettingError(f"--set {text}: there is no setting {name!r}{nearest(name, cls.model_fields)}")
            values[name] = with_value(values.get(name), inner, value)
        values |= {key: value for key, value in given.items() if value is not None}
        return cls.checked(values, place=str(file) if file else "settings")

    @classmethod
    def checked(cls, values: Mapping[str, Any], *, place: str = "settings") -> Self:
        """The settings made from `values`; a validation error becomes one SettingError in plain words."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingError("; ".join(in_words(cls, place, e) for e in error.errors())) from None

    @model_validator(mode="before")
    @classmethod
    def _from_toml(cls, values: Any) -> Any:
        """The values in Python's types, here and in the settings that these hold."""
        return {key: cls._as_python(key, value) for key, value in values.items()} if isinstance(values, dict) else values

    @classmethod
    def _as_python(cls, key: str, value: Any) -> Any:
        """TOML has no tuple and no null, and writes 1 for 1.0: they become a tuple, None ("off") and a float where the field says so."""
        known = cls.model_fields.get(key)
        kinds = () if known is None else tuple(alternatives(known.annotation))
        if value == "off" and type(None) in kinds:
            return None
        return float(value) if type(value) is int and float in kinds and int not in kinds else without_lists(value)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, for a manifest."""
        return self.model_dump(mode="json", by_alias=True)


def with_value(table: Any, path: Sequence[str], value: Any) -> Any:
    """The table with a value at a path of keys; the value itself where the path is empty. What is no table gives way to one.

    >>> with_value({"focal": 1.0}, ["hardness"], 9.0), with_value(None, ["scifact", "query"], "ask: "), with_value(1, [], 2)
    ({'focal': 1.0, 'hardness': 9.0}, {'scifact': {'query': 'ask: '}}, 2)
    """
    if not path:
        return value
    known = dict(table) if isinstance(table, dict) else {}
    return {**known, path[0]: with_value(known.get(path[0]), path[1:], value)}


def without_lists(value: Any) -> Any:
    """The value with tuples for lists, also inside lists and tables.

    >>> without_lists({"dense": [1, 5]})
    {'dense': (1, 5)}
    """
    if isinstance(value, dict):
        return {key: without_lists(own) for key, own in value.items()}
    return tuple(map(without_lists, value)) if isinstance(value, list) else value


def alternatives(annotation: Any) -> Iterator[Any]:
    """The types of which a value may be one.

    >>> list(alternatives(float | tuple[int, int] | None))
    [<class 'float'>, tuple[int, int], <class 'NoneType'>]
    """
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation


def settings_inside(annotation: Any) -> type[Settings] | None:
    """The class of settings that a field holds, alone or several; None where it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in get_args(annotation) if (found := settings_inside(part))), None)


def located(cls: type[Settings], location: Sequence[str | int]) -> tuple[type[Settings], str, str]:
    """(the settings that hold it, where these stand, the setting), from pydantic's location of an error; where = "" at the top.

    A part such as "<number>" tells which kind of value a union took it for, and is no name.
    """
    owner, inner, where, names = cls, None, "", list[str]()
    for part in location:
        if isinstance(part, int):
            names = [*names[:-1], f"{names[-1]} (number {part + 1})"] if names else [f"number {part + 1}"]
        elif not part.startswith("<"):
            if inner is not None:
                owner, where, names = inner, ".".join(filter(None, (where, *names))), []
            inner = settings_inside(owner.model_fields[part].annotation) if part in owner.model_fields else None
            names.append(part)
    return owner, where, ".".join(names)


def in_words(cls: type[Settings], place: str, error: Any) -> str:
    """One pydantic error as a sentence that names the setting, the value and what was expected."""
    owner, where, key = located(cls, error["loc"])
    path = ".".join(filter(None, (where, key))) or "value"
    if error["type"] == "extra_forbidden":
        known = [field.serialization_alias or name for name, field in owner.model_fields.items()]
        return f"{place}: there is no setting {key!r}{f' in {where}' if where else ''}{nearest(key, known)}"
    if error["type"] == "value_error":
        return f"{place}: {f'{path}: ' if error['loc'] else ''}{error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"{place}: {f'{where} needs {key}' if where else f'{key} is missing'}"
    if error["type"] == "missing":
        return f"{place}: {path} is missing in {list(error['input'])!r}"
    if error["type"] == "tuple_type":
        given = error["input"]
        shown = f"{path} = [{json.dumps(given if isinstance(given, int | float) else str(given))}]"
        holds_tables = key in owner.model_fields and settings_inside(owner.model_fields[key].annotation) is not None
        return f"{place}: {path} = {given!r}: expected a list, such as {f'a table [[{path}]] for each' if holds_tables else shown}"
    return f"{place}: {path} = {error['input']!r}: {error['msg'].replace('Input should', 'it should')}"


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value`, the value read as TOML, or as a plain string where it is no TOML value.

    >>> parse_assignment("batch_size=64"), parse_assignment("model=some/name"), parse_assignment("filters=['margin']")
    (('batch_size', 64), ('model', 'some/name'), ('filters', ['margin']))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(f"--set {text}: expected key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises SettingError with the file and the parser's line when it is missing or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not TOML: {error}") from error
