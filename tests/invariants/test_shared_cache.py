"""Commands that run at the same time: one makes what both need, the other waits; what is in use is not pruned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from negatron.conformance import TableEncoder
from negatron.errors import NegatronError
from negatron.models.locks import building, in_use, note_use
from negatron.models.vectors import VectorStore
from negatron.verbs.cache import prune

TABLE = {"north": (0, 1), "east": (1, 0)}

ENCODE = """
    import sys, time
    from pathlib import Path
    from negatron.conformance import TableEncoder
    from negatron.models.vectors import VectorStore
    class Slow(TableEncoder):
        def encode_documents(self, texts):
            Path(sys.argv[2]).touch()
            while not Path(sys.argv[3]).exists():
                time.sleep(0.01)
            print("encoded", flush=True)
            return super().encode_documents(texts)
    encoder = Slow({"north": (0, 1), "east": (1, 0)})
    print(VectorStore(Path(sys.argv[1])).encode(encoder, ["north", "east"], "document").tolist())
    sys.stdout.flush()
    if len(sys.argv) > 4:
        time.sleep(float(sys.argv[4]))
"""


def started(*arguments: object, cache: Path | None = None) -> subprocess.Popen[str]:
    environment = os.environ | ({"NEGATRON_CACHE": str(cache)} if cache is not None else {})
    command = [sys.executable, "-c", textwrap.dedent(ENCODE), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_the_second_of_two_commands_waits_for_the_first_and_encodes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = started(tmp_path / "v", tmp_path / "begun", tmp_path / "go")
    wait_for(tmp_path / "begun", first)
    second = started(tmp_path / "v", tmp_path / "never", tmp_path / "go")
    assert second.stderr is not None
    said = second.stderr.readline()
    assert said == f"process {first.pid} is making the vectors of the same 2 texts; waiting for it (0:00)\n"
    (tmp_path / "go").touch()
    one, two = first.communicate()[0], second.communicate()[0]
    assert one == "encoded\n[[0.0, 1.0], [1.0, 0.0]]\n" and two == "[[0.0, 1.0], [1.0, 0.0]]\n"
    assert not (tmp_path / "never").exists()
    assert [path.name for path in (tmp_path / "v").iterdir() if path.name.startswith(".")] == []


def test_the_work_of_a_killed_command_is_taken_over_without_waiting(tmp_path: Path) -> None:
    killed = started(tmp_path / "v", tmp_path / "begun", tmp_path / "go")
    wait_for(tmp_path / "begun", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [path.name for path in (tmp_path / "v").glob(".*.building")] != [], "its lock file is left"
    began = time.monotonic()
    vectors = VectorStore(tmp_path / "v").encode(TableEncoder(TABLE), ["north", "east"], "document")
    assert np.array_equal(vectors, [[0, 1], [1, 0]]) and time.monotonic() - began < 60


def test_waiting_ends_after_a_while_with_the_owner_s_number(tmp_path: Path) -> None:
    with building(tmp_path / "entry", "it"), pytest.raises(NegatronError, match=f"process {os.getpid()} has been making it for"):  # noqa: SIM117
        with building(tmp_path / "entry", "it", patience_s=0.01):
            pytest.fail("two at a time")
    with building(tmp_path / "entry", "it", patience_s=0.01):
        pass


def test_what_a_running_command_uses_is_not_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("NEGATRON_CACHE", str(cache))
    running = started(cache / "vectors", tmp_path / "begun", tmp_path / "go", 60, cache=cache)
    wait_for(tmp_path / "begun", running)
    building_now = prune(older_than="0m")
    assert building_now.removed == () and [entry.name[-8:] for entry in building_now.spared] == [".partial"]
    (tmp_path / "go").touch()
    assert running.stdout is not None and running.stdout.readline() == "encoded\n" and running.stdout.readline()
    used = prune(max_size="0")
    assert used.removed == () and [entry.kind for entry in used.spared] == ["vectors"]
    running.send_signal(signal.SIGKILL)
    running.communicate()
    after = prune(max_size="0")
    assert [entry.kind for entry in after.removed] == ["vectors"] and after.left == 0
    assert list((cache / "vectors").iterdir()) == [] and list((cache / "in-use").iterdir()) == []


def test_a_note_of_use_is_for_the_cache_alone_and_counts_as_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("NEGATRON_CACHE", str(cache))
    entry = cache / "models" / "m"
    entry.mkdir(parents=True)
    os.utime(entry, (0, 0))
    note_use(tmp_path / "elsewhere")
    assert in_use(cache) == set()
    note_use(entry)
    assert in_use(cache) == {entry} and time.time() - entry.stat().st_mtime < 60
