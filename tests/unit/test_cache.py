"""cache size and cache prune: what is counted, what goes first, what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from negatron.cli import main
from negatron.errors import SettingError
from negatron.store import begin
from negatron.verbs.cache import is_used, prune, size

DAY = 86_400
NOW = 1_700_000_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six entries of 1,000 bytes, used 1, 2, ... days ago; the ledger and the result longest ago."""
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path))
    files = ["vectors/a/x", "vectors/search-b/x", "bm25/c/x", "wheels/d.whl", "results/e/x", "ledger.sqlite"]
    for days, name in enumerate(files, 1):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(900))
        beside = (
            [path.with_suffix(".json")]
            if path.suffix == ".whl"
            else [path.parent / "more"]
            if "/" in name
            else [tmp_path / "ledger.sqlite-wal"]
        )
        beside[0].write_bytes(bytes(100))
        for place in (path, *beside, *([path.parent] if name.count("/") == 2 else [])):
            os.utime(place, (NOW - days * DAY, NOW - days * DAY))
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "1.lock").write_bytes(bytes(5))
    return tmp_path


def names(entries: tuple) -> list[str]:
    return [entry.name for entry in entries]


def test_the_size_is_told_by_kind(cache: Path) -> None:
    found = size()
    kinds = ("vectors", "searches", "bm25", "wheels", "results", "ledger")
    assert {kind.kind: (kind.entries, kind.bytes) for kind in found.kinds} == dict.fromkeys(kinds, (1, 1000))
    assert found.bytes == 6000 and "6.0 kB" in str(found)


def test_the_least_recently_used_go_first_and_only_as_many_as_needed(cache: Path) -> None:
    result = prune(max_size="4 kB")
    assert names(result.removed) == ["d", "c"] and result.left == 4000
    assert not (cache / "wheels" / "d.whl").exists() and not (cache / "wheels" / "d.json").exists() and not (cache / "bm25" / "c").exists()
    assert size().bytes == 4000 and (cache / "vectors" / "a" / "x").exists()


def test_what_was_not_used_for_so_long_goes(cache: Path) -> None:
    assert names(prune(older_than="60h", now=NOW).removed) == ["d", "c"]
    assert names(prune(older_than="1d", max_size="1GB", now=NOW + 1).removed) == ["search-b", "a"]


def test_paid_replies_and_results_stay_unless_they_are_named(cache: Path) -> None:
    result = prune(max_size="0")
    assert sorted(names(result.removed)) == ["a", "c", "d", "search-b"] and result.left == 2000
    assert "more than 0 B: the rest is in use, or cannot be made again" in str(result)
    assert names(prune(max_size="0", kinds=["results"]).removed) == ["e"]
    assert (cache / "ledger.sqlite").exists() and (cache / "ledger.sqlite-wal").exists()


def test_a_dry_run_says_the_same_and_removes_nothing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ends(["cache", "prune", "--max-size", "4kB", "--dry-run", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in said["removed"]] == ["d", "c"] and said["bytes"] == 2000 and said["dry_run"]
    assert size().bytes == 6000
    main_ends(["cache", "prune", "--max-size", "4kB"])
    assert capsys.readouterr().out.endswith("2 entries, 2.0 kB removed; 4.0 kB stay\n")
    main_ends(["cache", "size", "--json"])
    assert json.loads(capsys.readouterr().out)["bytes"] == 4000


def test_a_file_open_anywhere_keeps_its_entry(cache: Path) -> None:
    with (cache / "bm25" / "c" / "x").open("rb"):
        result = prune(max_size="4kB")
    assert names(result.removed) == ["d", "search-b"] and names(result.spared) == ["c"]


def test_what_is_being_built_stays(cache: Path) -> None:
    with begin(cache / "bm25" / "new", kind="bm25", inputs={}) as work:
        (work.path / "part").write_bytes(bytes(10))
        result = prune(max_size="0")
        assert names(result.spared) == [".new.partial"] and (work.path / "part").exists()
        assert is_used(result.spared[0], set(), set()), "by its lock too: not every system tells of open files"
    assert not is_used(result.spared[0], set(), set())
    assert names(prune(max_size="0").removed) == [".new.partial"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "needs a limit"),
        ({"max_size": "10XB"}, "such as 10GB"),
        ({"older_than": "30"}, "such as 30d"),
        ({"max_size": "1GB", "kinds": ["vector"]}, "did you mean 'vectors'"),
    ],
)
def test_a_limit_that_cannot_be_read_is_refused(cache: Path, limits: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        prune(**limits)
    assert size().bytes == 6000


def test_no_cache_is_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path / "none"))
    assert size().kinds == () and size().bytes == 0


def main_ends(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
