"""Batch files: written for elsewhere, read back by what was asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negatron.errors import DataError
from negatron.models.batch_files import BatchReplies, export_batch, import_batch
from negatron.types import Message, Request

REQUESTS = [Request(f"q{n}#0", (Message("user", f"text {n}"),), seed=n) for n in range(3)]


def done(line: dict[str, Any], text: str) -> dict[str, Any]:
    """The output line of a batch for a line of its input."""
    completion = {"model": "served", "choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    return {"id": "x", "custom_id": line["custom_id"], "response": {"status_code": 200, "body": completion}, "error": None}


def sent(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_replies_find_their_requests_in_any_order(tmp_path: Path) -> None:
    assert export_batch(REQUESTS, tmp_path / "in.jsonl", "m") == 3
    lines = sent(tmp_path / "in.jsonl")
    assert [set(line) for line in lines] == [{"custom_id", "method", "url", "body"}] * 3
    assert lines[1]["body"]["messages"][0]["content"] == "text 1" and lines[1]["url"] == "/v1/chat/completions"
    write(tmp_path / "out.jsonl", [done(line, f"reply {n}") for n, line in reversed(list(enumerate(lines)))])
    replies = list(BatchReplies(tmp_path / "out.jsonl", "m").complete(REQUESTS))
    assert [(r.request_id, r.text, r.prompt_tokens) for r in replies] == [(f"q{n}#0", f"reply {n}", 5) for n in range(3)]


def test_replies_to_other_requests_are_not_taken_for_these(tmp_path: Path) -> None:
    export_batch(REQUESTS, tmp_path / "in.jsonl", "m")
    out = write(tmp_path / "out.jsonl", [done(line, "reply") for line in sent(tmp_path / "in.jsonl")])
    assert not any(reply.error for reply in BatchReplies(out, "m").complete(REQUESTS)), "else nothing is shown below"
    with pytest.raises(DataError, match="answer none of the 3 requests"):
        list(BatchReplies(out, "m").complete([replace(request, seed=99) for request in REQUESTS]))
    with pytest.raises(DataError, match="answer none"):
        list(BatchReplies(out, "another model").complete(REQUESTS))


def test_what_is_missing_or_failed_is_a_reply_with_an_error(tmp_path: Path) -> None:
    export_batch(REQUESTS, tmp_path / "in.jsonl", "m")
    lines = sent(tmp_path / "in.jsonl")
    failed = {"custom_id": lines[1]["custom_id"], "response": {"status_code": 429, "body": {"error": "busy"}}, "error": None}
    replies = list(BatchReplies(write(tmp_path / "out.jsonl", [done(lines[0], "fine"), failed]), "m").complete(REQUESTS))
    assert [r.text for r in replies] == ["fine", "", ""]
    assert [r.error.split(":")[0] for r in replies] == ["", "HTTP 429", "batch"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", r":2: not JSON"),
        ('{"id": 1}', r':2: expected an object with a "custom_id"'),
        ('{"custom_id": "b", "response": {"status_code": 200, "body": {}}}', r":2: not a chat completion"),
        ('{"custom_id": "a", "response": {"status_code": 500}}', r":2: custom_id 'a' stands in line 1 already"),
        ('{"custom_id": "b", "method": "POST", "url": "/", "body": {}}', r":2: this is a request, not a reply"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"custom_id": "a", "response": None, "error": {"code": "expired"}}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=words):
        list(import_batch(path))


def test_long_ids_fit_the_limit_and_stay_apart(tmp_path: Path) -> None:
    long = [replace(request, id="x" * 200 + str(n)) for n, request in enumerate(REQUESTS)]
    export_batch(long, tmp_path / "in.jsonl", "m")
    names = [line["custom_id"] for line in sent(tmp_path / "in.jsonl")]
    assert len(set(names)) == 3 and max(map(len, names)) <= 64
