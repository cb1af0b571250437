from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from negatron.errors import SettingError
from negatron.settings import Settings


class Example(Settings):
    batch_size: int = Field(64, ge=1)
    margin: float | None = 0.05
    names: tuple[str, ...] = ()


def test_an_unknown_setting_is_refused_with_the_nearest_known_name(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no setting 'bacth_size'; did you mean 'batch_size'\?"):
        Example.read(assignments=["bacth_size=3"])
    (tmp_path / "s.toml").write_text("bacth_size = 3")
    with pytest.raises(SettingError, match=r"s\.toml: there is no setting 'bacth_size'; did you mean"):
        Example.read(tmp_path / "s.toml")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("batch_size = 3\nmargin = 1")
    settings = Example.read(tmp_path / "s.toml", ["batch_size=5", "names=['a','b']"])
    assert settings == Example(batch_size=5, margin=1.0, names=("a", "b"))


def test_off_means_none() -> None:
    assert Example.read(assignments=["margin=off"]).margin is None
    with pytest.raises(SettingError, match="batch_size = 'off'"):
        Example.read(assignments=["batch_size=off"])


@pytest.mark.parametrize("text", ["batch_size=0", "batch_size=2.5", "batch_size=two", "batch_size='3'", "margin='x'", "names=['a', 1]"])
def test_a_wrong_value_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingError, match=text.partition("=")[0]):
        Example.read(assignments=[text])


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("a = = 3")
    with pytest.raises(SettingError, match=r"s\.toml: not TOML"):
        Example.read(tmp_path / "s.toml")
    with pytest.raises(SettingError, match="cannot be read"):
        Example.read(tmp_path / "none.toml")
