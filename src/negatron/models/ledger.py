"""The ledger: a record of every request to a language model and of every reply, so that nothing is asked twice.

1. A request's key is the fingerprint of everything in it but its id, with the model's name and the kind of endpoint.
2. Every reply is written at once, also an error and also one that nobody can parse; SQLite's write-ahead log survives kill -9, so
   what is lost is at most what was in flight.
3. `LedgeredModel` wraps any LanguageModel: what was answered once is never asked again, what failed is.

What it does not know: what a reply means, or how it was asked for.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from negatron.errors import DataError
from negatron.identity import fingerprint
from negatron.progress import say
from negatron.seams import LanguageModel
from negatron.types import Reply, Request

LOOKED_UP_AT_A_TIME = 256
SECONDS_TO_WAIT_FOR_A_LOCK = 60.0
TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
    text TEXT NOT NULL, replied_model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    error TEXT NOT NULL, at REAL NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS answered ON replies (key) WHERE error = '';
"""


def request_key(request: Request, model: str, kind: str) -> str:
    """16 hex digits: the same for requests that ask the same of the same model, whatever their id.

    >>> one, other = Request("a", (), seed=1), Request("b", (), seed=1)
    >>> request_key(one, "m", "chat") == request_key(other, "m", "chat") != request_key(one, "n", "chat")
    True
    """
    parts = asdict(request)
    del parts["id"]
    return fingerprint(parts, model, kind)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a ledger holds: answered requests, recorded failures, tokens of all of them."""

    answered: int
    failures: int
    prompt_tokens: int
    completion_tokens: int


class Ledger:
    """An open ledger file. Several processes may use one file. Raises DataError when the file is something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=SECONDS_TO_WAIT_FOR_A_LOCK, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            # NORMAL: a commit survives the end of the process in any way; a power cut may cost the last ones, never the file.
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(TABLE)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise DataError(f"is not a usable ledger ({error}); give another path or remove the file", path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def answers(self, keys: Sequence[str]) -> dict[str, Reply]:
        """key -> its successful reply, for those keys that have one. The replies' request id is empty."""
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), LOOKED_UP_AT_A_TIME):
            some = keys[start : start + LOOKED_UP_AT_A_TIME]
            rows = self._connection.execute(
                "SELECT key, text, replied_model, prompt_tokens, completion_tokens FROM replies "
                f"WHERE error = '' AND key IN ({','.join('?' * len(some))})",
                some,
            )
            found |= {key: Reply("", text, model, asked, written) for key, text, model, asked, written in rows}
        return found

    def record(self, request: Request, reply: Reply, *, model: str, kind: str) -> None:
        """Writes one reply. A second success for the same key is ignored: the first one stays the answer."""
        key = request_key(request, model, kind)
        asked = json.dumps(asdict(request), sort_keys=True)
        values = (key, model, kind, asked, reply.text, reply.model, reply.prompt_tokens, reply.completion_tokens, reply.error, time.time())
        self._connection.execute(
            "INSERT OR IGNORE INTO replies (key, model, kind, request, text, replied_model, prompt_tokens, completion_tokens, error, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )

    def counts(self) -> Counts:
        """What the ledger holds."""
        row: tuple[Any, ...] = self._connection.execute(
            "SELECT COALESCE(SUM(error = ''), 0), COALESCE(SUM(error != ''), 0), COALESCE(SUM(prompt_tokens), 0), "
            "COALESCE(SUM(completion_tokens), 0) FROM replies"
        ).fetchone()
        return Counts(*row)


@dataclass(frozen=True, slots=True)
class Rows(Sequence[Request]):
    """Some rows of a sequence of requests, made only when they are asked for."""

    requests: Sequence[Request]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        return Rows(self.requests, self.rows[index]) if isinstance(index, slice) else self.requests[self.rows[index]]


class LedgeredModel:
    """A LanguageModel that asks `model` only what the ledger at `path` does not answer yet, and records every reply at once.

    Requests that ask the same under different ids are asked once.
    """

    def __init__(self, model: LanguageModel, path: Path) -> None:
        self.model, self.path = model, path
        self.kind: str = getattr(model, "kind", "")
        self.found = 0
        """Requests answered from the ledger, over all calls."""

    @property
    def name(self) -> str:
        """The wrapped model's name."""
        return self.model.name

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """What the ledger answers first, then what had to be asked; memory holds a key a request, no texts."""
        with Ledger(self.path) as ledger:
            open_rows: dict[str, list[int]] = {}
            found = 0
            for start in range(0, len(requests), LOOKED_UP_AT_A_TIME):
                some = requests[start : start + LOOKED_UP_AT_A_TIME]
                keys = [request_key(request, self.name, self.kind) for request in some]
                answers = ledger.answers(keys)
                for row, (request, key) in enumerate(zip(some, keys, strict=True), start):
                    if key in answers:
                        found += 1
                        yield replace(answers[key], request_id=request.id)
                    else:
                        open_rows.setdefault(key, []).append(row)
            self.found += found
            if found:
                say(f"{self.name}: {found:,} of {len(requests):,} requests are answered in {self.path}")
            yield from self._ask(ledger, requests, open_rows)

    def _ask(self, ledger: Ledger, requests: Sequence[Request], open_rows: dict[str, list[int]]) -> Iterator[Reply]:
        """Asks the first request of each key, records the reply, and gives it to every request of that key."""
        asked = Rows(requests, [rows[0] for rows in open_rows.values()])
        rows_of_id = {requests[rows[0]].id: rows for rows in open_rows.values()}
        for reply in self.model.complete(asked) if len(asked) else ():
            rows = rows_of_id[reply.request_id]
            ledger.record(requests[rows[0]], reply, model=self.name, kind=self.kind)
            for row in rows:
                yield replace(reply, request_id=requests[row].id)
