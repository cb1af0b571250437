"""Strict, typed settings: each from its default, a TOML file, or `--set key=value`, the later winning.

An unknown key or a wrong type is refused, with the key, the value, what was expected and the nearest known name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

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
            if key not in cls.model_fields:
                raise SettingError(f"--set {text}: there is no setting {key!r}{nearest(key, cls.model_fields)}")
            values[key] = value
        values |= {key: value for key, value in given.items() if value is not None}
        return cls.checked(values, place=str(file) if file else "settings")

    @classmethod
    def checked(cls, values: Mapping[str, Any], *, place: str = "settings") -> Self:
        """The settings made from `values`; a validation error becomes one SettingError in plain words."""
        try:
            return cls(**{key: cls._as_python(key, value) for key, value in values.items()})
        except ValidationError as error:
            raise SettingError("; ".join(in_words(cls, place, e) for e in error.errors())) from None

    @classmethod
    def _as_python(cls, key: str, value: Any) -> Any:
        """TOML has no tuple and no null, and writes 1 for 1.0: they become a tuple, None ("off") and a float where the field says so."""
        known = cls.model_fields.get(key)
        kinds = () if known is None else (known.annotation, *get_args(known.annotation))
        if isinstance(value, list):
            return tuple(value)
        if value == "off" and type(None) in kinds:
            return None
        return float(value) if type(value) is int and float in kinds and int not in kinds else value

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, for a manifest."""
        return self.model_dump(mode="json")


def in_words(cls: type[Settings], place: str, error: Any) -> str:
    """One pydantic error as a sentence that names the setting, the value and what was expected."""
    key = ".".join(map(str, error["loc"])) or "value"
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no setting {key!r}{nearest(key, cls.model_fields)}"
    if error["type"] == "value_error":
        return f"{place}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "tuple_type":
        return f"{place}: {key} = {error['input']!r}: expected a list, such as {key} = [{json.dumps(str(error['input']))}]"
    return f"{place}: {key} = {error['input']!r}: {error['msg'].replace('Input should', 'it should')}"


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
