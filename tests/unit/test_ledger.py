"""The ledger: what was answered is not asked again, what failed is, and kill -9 loses only what was in flight."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from negatron.errors import DataError
from negatron.models.ledger import Ledger, LedgeredModel, request_key
from negatron.types import Message, Reply, Request


class Parrot:
    """A language model that says everything back, fails at what it is told to, and remembers what it was asked."""

    kind = "parrot"

    def __init__(self, name: str = "parrot", fails_at: frozenset[str] = frozenset()) -> None:
        self._name, self.fails_at, self.asked = name, fails_at, []

    @property
    def name(self) -> str:
        return self._name

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        for request in reversed(requests):  # order must not matter
            text = request.messages[-1].content
            self.asked.append(text)
            error = "cannot" if text in self.fails_at else ""
            yield Reply(request.id, "" if error else text.upper(), self._name, 2, 3, error)


def asking(*texts: str) -> list[Request]:
    return [Request(f"id-{n}", (Message("user", text),)) for n, text in enumerate(texts)]


def test_a_second_time_nothing_is_asked_and_the_replies_are_the_same(tmp_path: Path) -> None:
    parrot = Parrot()
    first = sorted(LedgeredModel(parrot, tmp_path / "ledger.sqlite").complete(asking("a", "b", "c")), key=lambda r: r.request_id)
    assert sorted(parrot.asked) == ["a", "b", "c"]
    again = Parrot()
    model = LedgeredModel(again, tmp_path / "ledger.sqlite")
    second = sorted(model.complete(asking("a", "b", "c")), key=lambda r: r.request_id)
    assert (second, again.asked, model.found) == (first, [], 3)


def test_failures_are_recorded_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    replies = list(LedgeredModel(Parrot(fails_at=frozenset({"b"})), path).complete(asking("a", "b")))
    assert sorted(r.error for r in replies) == ["", "cannot"]
    with Ledger(path) as ledger:
        counts = ledger.counts()
    assert (counts.answered, counts.failures, counts.prompt_tokens, counts.completion_tokens) == (1, 1, 4, 6)
    mended = Parrot()
    assert {r.text for r in LedgeredModel(mended, path).complete(asking("a", "b"))} == {"A", "B"}
    assert mended.asked == ["b"]


def test_requests_that_ask_the_same_are_asked_once_and_all_answered(tmp_path: Path) -> None:
    parrot = Parrot()
    replies = list(LedgeredModel(parrot, tmp_path / "l").complete(asking("a", "b", "a")))
    assert sorted((r.request_id, r.text) for r in replies) == [("id-0", "A"), ("id-1", "B"), ("id-2", "A")]
    assert sorted(parrot.asked) == ["a", "b"]


def test_the_key_holds_everything_but_the_id() -> None:
    request = Request("r", (Message("user", "a"),), max_tokens=1, temperature=0.1, top_p=0.1, seed=1, schema="{}")
    key = request_key(request, "m", "chat")
    assert request_key(replace(request, id="other"), "m", "chat") == key
    others = [
        replace(request, messages=(Message("system", "a"),)),
        replace(request, max_tokens=2),
        replace(request, temperature=0.2),
        replace(request, top_p=0.2),
        replace(request, seed=2),
        replace(request, schema=""),
    ]
    keys = [request_key(other, "m", "chat") for other in others] + [
        request_key(request, "n", "chat"),
        request_key(request, "m", "embedded"),
    ]
    assert len({key, *keys}) == len(keys) + 1


def test_another_model_does_not_get_this_ones_replies(tmp_path: Path) -> None:
    list(LedgeredModel(Parrot("one"), tmp_path / "l").complete(asking("a")))
    other = Parrot("two")
    (reply,) = LedgeredModel(other, tmp_path / "l").complete(asking("a"))
    assert other.asked == ["a"] and reply.model == "two"


def test_more_requests_than_are_looked_up_at_a_time(tmp_path: Path) -> None:
    texts = [str(n) for n in range(600)]
    assert len(list(LedgeredModel(Parrot(), tmp_path / "l").complete(asking(*texts[:500])))) == 500
    parrot = Parrot()
    replies = list(LedgeredModel(parrot, tmp_path / "l").complete(asking(*texts)))
    assert {r.request_id: r.text for r in replies} == {f"id-{n}": str(n) for n in range(600)}
    assert sorted(parrot.asked, key=int) == texts[500:]


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, and they are long enough to be taken for a file of some kind " * 20)
    with pytest.raises(DataError, match="is not a usable ledger"):
        Ledger(path)
    assert path.read_text().startswith("these are my notes")


KILLED = """
import sys, time
from pathlib import Path
from negatron.models.ledger import LedgeredModel
from negatron.types import Message, Reply, Request

class Slow:
    name, kind = "slow", "test"
    def complete(self, requests):
        for request in requests:
            yield Reply(request.id, request.messages[0].content, self.name)
            print(request.id, flush=True)  # the ledger has it: the consumer has asked for the next one
            time.sleep(0.02)

requests = [Request(str(n), (Message("user", f"text {n}"),)) for n in range(500)]
for reply in LedgeredModel(Slow(), Path(sys.argv[1])).complete(requests):
    pass
"""


def test_kill_9_loses_only_what_was_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        finished = [process.stdout.readline().strip() for _ in range(7)]
        os.kill(process.pid, signal.SIGKILL)
        finished += process.stdout.read().split()
        assert process.wait(timeout=10) == -signal.SIGKILL
    assert 7 <= len(finished) < 500, "killed in the middle"
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        recorded = connection.execute("SELECT COUNT(*) FROM replies WHERE error = ''").fetchone()[0]
    connection.close()
    assert len(finished) <= recorded <= len(finished) + 1

    parrot = Parrot("slow")
    parrot.kind = "test"
    requests = [Request(str(n), (Message("user", f"text {n}"),)) for n in range(500)]
    assert len(list(LedgeredModel(parrot, path).complete(requests))) == 500
    assert len(parrot.asked) == 500 - recorded
