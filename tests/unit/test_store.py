from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from negatron.errors import DataError, NegatronError
from negatron.store import begin, partial_path, read_manifest, writing


def build(out: Path, text: str = "hello", **inputs: object) -> str:
    with begin(out, kind="test", inputs=inputs) as work:
        if work.finished is None:
            (work.path / "a.txt").write_text(text)
            work.finish(count=1)
        assert work.finished is not None
        return work.finished.fingerprint


def test_a_finished_folder_is_given_back_and_not_made_again(tmp_path: Path) -> None:
    first = build(tmp_path / "x", "one", seed=1)
    assert build(tmp_path / "x", "two", seed=1) == first
    assert (tmp_path / "x" / "a.txt").read_text() == "one"


def test_other_inputs_are_refused_and_the_message_names_the_difference(tmp_path: Path) -> None:
    build(tmp_path / "x", settings={"depth": 5})
    with pytest.raises(NegatronError, match=r"settings.depth: 5 there, 6 now"):
        build(tmp_path / "x", settings={"depth": 6})


def test_a_folder_of_somebody_else_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("precious")
    with pytest.raises(NegatronError, match="not written by negatron"):
        build(tmp_path / "x")
    assert (tmp_path / "x" / "mine.txt").read_text() == "precious"


def test_the_same_contents_have_the_same_fingerprint_and_others_another(tmp_path: Path) -> None:
    assert build(tmp_path / "x", "one") == build(tmp_path / "y", "one") != build(tmp_path / "z", "two")


def test_a_failed_block_leaves_no_result_and_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "x"
    with pytest.raises(RuntimeError), begin(out, kind="test", inputs={"seed": 1}) as work:
        (work.path / "half.txt").write_text("half")
        raise RuntimeError
    assert not out.exists()
    with begin(out, kind="test", inputs={"seed": 1}) as work:
        assert work.resumed and (work.path / "half.txt").read_text() == "half"
    with begin(out, kind="test", inputs={"seed": 2}) as work:
        assert not work.resumed and not (work.path / "half.txt").exists()


def test_two_processes_cannot_build_the_same_folder(tmp_path: Path) -> None:
    with begin(tmp_path / "x", kind="test", inputs={}), pytest.raises(NegatronError, match="another process"):
        build(tmp_path / "x")


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from negatron.store import begin, writing
        with begin(Path(sys.argv[1]), kind="test", inputs={}) as work, writing(work.path / "a.txt") as beside:
            beside.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    out = tmp_path / "x"
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(out)], check=False, env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    assert not out.exists() and not (partial_path(out) / "a.txt").exists()
    build(out, "whole")
    assert sorted(read_manifest(out).files) == ["a.txt"]


def test_a_process_killed_while_it_writes_the_manifest_leaves_no_result(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from negatron import store
        whole = store.write_json
        store.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL) if path.name == store.MANIFEST else whole(path, value)
        with store.begin(Path(sys.argv[1]), kind="test", inputs={}) as work:
            (work.path / "a.txt").write_text("whole")
            work.finish()
    """
    out = tmp_path / "x"
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(out)], check=False, env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    assert not out.exists() and (partial_path(out) / "a.txt").read_text() == "whole"


def test_a_block_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NegatronError), begin(tmp_path / "x", kind="test", inputs={}):
        raise NegatronError("a wrong setting")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "x")
    with pytest.raises(DataError, match="holds test, expected negatives"):
        read_manifest(tmp_path / "x", "negatives")
    with pytest.raises(NegatronError, match="it holds test, not negatives"), begin(tmp_path / "x", kind="negatives", inputs={}):
        raise AssertionError


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    build(tmp_path / "x", "hello")
    (tmp_path / "x" / "a.txt").write_text("hel")
    with pytest.raises(DataError, match="3 bytes, the manifest says 5"):
        read_manifest(tmp_path / "x")


def test_a_folder_without_a_manifest_is_not_a_result(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finished"):
        read_manifest(tmp_path)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), writing(tmp_path / "a.txt") as beside:
        beside.write_text("half")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
