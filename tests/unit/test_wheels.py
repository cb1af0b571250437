"""Wheels are fetched whole or not at all, verified, kept, and taken apart safely. The server is a real one on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from negatron.errors import DataError, NegatronError
from negatron.wheels import cache_folder, fetch_file, fetch_wheel, unpack


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder: Path, name: str = "tinyset", version: str = "1.0", **members: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in (
            members or {f"{name}/data/a.txt": "alpha", f"{name}/data/deep/b.txt": "beta", f"{name}/c.txt": "gamma"}
        ).items():
            archive.writestr(member, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Index:
    """PyPI's JSON API for one wheel, and the wheel itself; it remembers what was asked."""

    def __init__(self, wheel: Path, announced: str | None = None) -> None:
        self.asked: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                entry = {"filename": wheel.name, "url": f"{index.address}/{wheel.name}", "digests": {"sha256": announced or sha256(wheel)}}
                known = {"/tinyset/1.0/json": json.dumps({"urls": [entry]}).encode(), f"/{wheel.name}": wheel.read_bytes()}
                body = known.get(self.path)
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "made")


@pytest.fixture
def index(wheel: Path) -> Iterator[Index]:
    server = Index(wheel)
    yield server
    server.stop()


def test_the_cache_stands_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEGATRON_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("NEGATRON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "negatron"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "negatron"


def test_a_fetched_wheel_has_its_checksum_and_is_not_fetched_again(wheel: Path, index: Index) -> None:
    first = fetch_wheel("tinyset", "1.0", sha256(wheel), only="pypi", index=index.address)
    assert sha256(first) == sha256(wheel)
    assert len(index.asked) == 2
    assert fetch_wheel("tinyset", "1.0", sha256(wheel), only="pypi", index=index.address) == first
    assert len(index.asked) == 2


def test_pip_fetches_by_the_users_own_settings(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert sha256(fetch_wheel("tinyset", "1.0", sha256(wheel), only="pip")) == sha256(wheel)


def test_another_file_than_announced_is_refused_with_both_sums(wheel: Path, tmp_path: Path, own_cache: Path) -> None:
    announced = "0" * 64
    server = Index(wheel, announced=announced)
    try:
        with pytest.raises(DataError) as refusal:
            fetch_wheel("tinyset", "1.0", announced, only="pypi", index=server.address)
    finally:
        server.stop()
    assert sha256(wheel) in str(refusal.value)
    assert announced in str(refusal.value)
    assert not list((own_cache / "wheels").iterdir())


def test_a_checksum_that_the_index_does_not_offer_is_refused_with_both_sums(wheel: Path, index: Index) -> None:
    with pytest.raises(DataError, match=sha256(wheel)) as refusal:
        fetch_wheel("tinyset", "1.0", "1" * 64, only="pypi", index=index.address)
    assert "1" * 64 in str(refusal.value)


def test_a_file_of_the_cache_that_was_cut_is_fetched_again(wheel: Path, index: Index) -> None:
    place = fetch_wheel("tinyset", "1.0", sha256(wheel), only="pypi", index=index.address)
    place.write_bytes(place.read_bytes()[:-10])
    assert sha256(fetch_wheel("tinyset", "1.0", sha256(wheel), only="pypi", index=index.address)) == sha256(wheel)


def test_what_cannot_be_fetched_is_said_with_the_reason(wheel: Path, index: Index) -> None:
    with pytest.raises(NegatronError, match=r"other 1\.0 could not be fetched .*Not Found"):
        fetch_wheel("other", "1.0", "2" * 64, only="pypi", index=index.address)
    with pytest.raises(NegatronError, match="not in the cache"):
        fetch_wheel("tinyset", "1.0", sha256(wheel), only="cache")


def test_a_single_file_is_fetched_by_address_and_checksum(wheel: Path, index: Index) -> None:
    url = f"{index.address}/{wheel.name}"
    first = fetch_file(url, "weights.bin", sha256(wheel))
    assert first.read_bytes() == wheel.read_bytes()
    assert fetch_file(url, "weights.bin", sha256(wheel)) == first
    assert index.asked == [f"/{wheel.name}"]
    with pytest.raises(DataError, match="expected " + "3" * 64):
        fetch_file(url, "weights.bin", "3" * 64)


def test_a_prefix_is_unpacked_with_paths_relative_to_it(wheel: Path, tmp_path: Path) -> None:
    target = unpack(wheel, "tinyset/data/", tmp_path / "out")
    assert (target / "a.txt").read_text() == "alpha"
    assert (target / "deep" / "b.txt").read_text() == "beta"
    assert not (target / "c.txt").exists()


def test_named_members_are_unpacked_under_their_last_part(wheel: Path, tmp_path: Path) -> None:
    target = unpack(wheel, ["tinyset/data/deep/b.txt", "tinyset/c.txt"], tmp_path / "out")
    assert sorted(path.name for path in target.iterdir()) == ["b.txt", "c.txt", "manifest.json"]


def test_unpacking_again_changes_nothing_and_another_wheel_replaces(wheel: Path, tmp_path: Path) -> None:
    target = unpack(wheel, "tinyset/data/", tmp_path / "out")
    (target / "a.txt").touch()
    before = (target / "a.txt").stat().st_ino
    unpack(wheel, "tinyset/data/", tmp_path / "out")
    assert (target / "a.txt").stat().st_ino == before
    other = make_wheel(tmp_path / "other", **{"tinyset/data/a.txt": "omega"})
    unpack(other, "tinyset/data/", tmp_path / "out")
    assert (target / "a.txt").read_text() == "omega"
    assert not (target / "deep").exists()


@pytest.mark.parametrize("member", ["p/../../evil.txt", "p//etc/evil.txt", "p/..\\evil.txt"])
def test_a_member_that_points_out_of_its_folder_is_refused(member: str, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "bad", **{member: "evil", "p/good.txt": "good"})
    with pytest.raises(DataError, match="points out of its folder"):
        unpack(wheel, "p/", tmp_path / "here" / "out")
    assert not (tmp_path / "here" / "out").exists()
    assert not list(tmp_path.rglob("evil.txt"))


def test_missing_members_and_damaged_wheels_leave_no_folder(wheel: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(wheel.read_bytes()[:200])
    for source, members, words in (
        (wheel, "nothing/", "holds nothing below 'nothing/'"),
        (wheel, "tinyset/data", "a prefix ends in '/'"),
        (wheel, ["tinyset/none.txt"], "no member 'tinyset/none.txt'"),
        (broken, "tinyset/", "not a readable wheel"),
    ):
        with pytest.raises(DataError, match=words):
            unpack(source, members, tmp_path / "out")
        assert not (tmp_path / "out").exists()
