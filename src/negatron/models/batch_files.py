"""Batch files of the OpenAI form: requests written to be run elsewhere, replies read back.

`export_batch` writes one line a request; `import_batch` reads one Reply a line. They are matched by `custom_id`, never by order: it
begins with the fingerprint of what is asked, so replies to another prompt, seed or model are never taken for these.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from negatron.errors import DataError
from negatron.models.language_model import body, reply_from
from negatron.models.ledger import request_key
from negatron.store import writing
from negatron.types import Reply, Request

URL = "/v1/chat/completions"
LONGEST_ID = 64
"""Characters of a custom_id, by the limit hosted endpoints state."""


def custom_id(request: Request, model: str) -> str:
    """The fingerprint of what is asked of which model, and as much of the request's id as fits."""
    return f"{request_key(request, model, 'batch')}:{request.id}"[:LONGEST_ID]


def export_batch(requests: Iterable[Request], path: Path, model: str) -> int:
    """Writes a batch file, whole or not at all; returns the number of its lines. Requests with the same custom_id are written once."""
    written: set[str] = set()
    with writing(path) as beside, beside.open("w", encoding="utf-8") as file:
        for request in requests:
            name = custom_id(request, model)
            if name not in written:
                written.add(name)
                line = {"custom_id": name, "method": "POST", "url": URL, "body": body(request, model)}
                file.write(json.dumps(line, ensure_ascii=True) + "\n")
    return len(written)


def import_batch(path: Path) -> Iterator[Reply]:
    """The replies of a batch's output file, request_id being the custom_id. A line that reports an error is a Reply with `error`.

    Raises DataError with file and line for a line that is no batch reply and for a custom_id that comes twice.
    """
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                reply = read_line(line, path, number)
                if reply.request_id in seen:
                    raise DataError(f"custom_id {reply.request_id!r} stands in line {seen[reply.request_id]} already", path, number)
                seen[reply.request_id] = number
                yield reply
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path) from error
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text ({error.reason} at byte {error.start})", path) from error


def read_line(line: str, path: Path, number: int) -> Reply:
    """One line of an output file."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON ({error})", path, number) from error
    if not isinstance(row, Mapping) or not isinstance(row.get("custom_id"), str):
        raise DataError('expected an object with a "custom_id" (an output file of a batch)', path, number)
    name, response = row["custom_id"], row.get("response")
    if "body" in row and response is None:
        raise DataError("this is a request, not a reply: give the output file of the batch, not the file that was sent", path, number)
    if row.get("error") or not isinstance(response, Mapping):
        return Reply(name, "", "", error=f"batch: {json.dumps(row.get('error') or 'no response')}"[:500])
    status = response.get("status_code", 200)
    if status != 200:
        return Reply(name, "", "", error=f"HTTP {status}: {json.dumps(response.get('body'))}"[:500])
    try:
        return reply_from(name, response.get("body"), "")
    except ValueError as error:
        raise DataError(str(error), path, number) from error


class BatchReplies:
    """A LanguageModel that answers from a batch's output file. What the file does not answer is a Reply with `error`."""

    kind = "chat"
    """As if the endpoint had been asked: the ledger's keys are the same."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self._model = path, model
        self._replies = {reply.request_id: reply for reply in import_batch(path)}

    @property
    def name(self) -> str:
        """The model's name, as given when the batch was exported."""
        return self._model

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Raises DataError when the file answers none of the requests: it was made from another prompt, model, seed or data set."""
        missing = 0
        for request in requests:
            reply = self._replies.get(custom_id(request, self.name))
            missing += reply is None
            if reply is None and missing == len(requests):
                raise DataError(
                    f"its {len(self._replies):,} replies answer none of the {len(requests):,} requests: it belongs to another prompt, "
                    "model name, seed, setting or data set; give the ones it was exported with",
                    self.path,
                )
            found = reply or Reply("", "", self.name, error=f"batch: no reply in {self.path.name}")
            yield replace(found, request_id=request.id, model=found.model or self.name)
