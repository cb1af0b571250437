"""Language models behind any OpenAI-compatible endpoint (vLLM, SGLang, Ollama, llama.cpp, hosted ones).

1. `body` turns a Request into what is sent; it is pure, and batch files use it too.
2. `EndpointModel.complete` keeps at most `concurrency` requests in flight, takes the next request only when there is room for it, and
   gives replies as they arrive. The event loop runs in a thread of its own, so it works inside notebooks too.
3. Whatever may pass (408, 409, 429, 5xx, timeouts, lost connections, unreadable replies) is asked again after a growing, jittered
   pause; what cannot pass (no access, no such model, nobody there) stops everything with an error that says what to do.

What stays true: one Reply a Request, also for a failure. What it does not know: what the replies are for, and what was asked before
(see `ledger`).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from negatron.errors import NegatronError, SettingError
from negatron.identity import stream
from negatron.progress import Meter, say
from negatron.types import Reply, Request

if TYPE_CHECKING:
    import openai

KEY_VARIABLES = ("NEGATRON_API_KEY", "OPENAI_API_KEY")
AGAIN = frozenset({408, 409, 429})
"""Statuses that may pass, beside every 5xx."""
STOP = frozenset({401, 403, 404})
"""Statuses that no other request would escape."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries, unless the server asks for more."""
LONGEST_RETRY_AFTER = 600.0
"""Seconds: a server that asks for a longer pause is asked again after this one."""
WAITING_PER_REQUEST = 4
"""Replies per request in flight that may wait for whoever reads them, before no new request is begun."""


MAX_TOKENS = "max_tokens"


@dataclass(frozen=True, slots=True)
class Dialect:
    """In what a server differs from the protocol, as found out while asking it."""

    schema: bool = True
    tokens_key: str = MAX_TOKENS

    def others(self, request: Request, message: str) -> tuple[Dialect, ...]:
        """What to try after a 400 with this message, most likely first."""
        found = []
        if self.tokens_key == MAX_TOKENS and "max_completion_tokens" in message:
            found.append(replace(self, tokens_key="max_completion_tokens"))
        if self.schema and request.schema:
            found.append(replace(self, schema=False))
        return tuple(found)

    def in_words(self) -> tuple[str, ...]:
        """Each difference as a sentence about the server."""
        schema = () if self.schema else ("takes no JSON schema, so replies follow one only by good will",)
        tokens = () if self.tokens_key == MAX_TOKENS else (f"wants {self.tokens_key} in place of {MAX_TOKENS}",)
        return schema + tokens


def body(request: Request, model: str, dialect: Dialect = Dialect()) -> dict[str, Any]:
    """The JSON body of a chat completion.

    >>> body(Request("r", (), schema='{"type": "object"}'), "m")["response_format"]["json_schema"]["schema"]
    {'type': 'object'}
    """
    sent: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        dialect.tokens_key: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    if request.schema and dialect.schema:
        schema = {"name": "reply", "strict": True, "schema": json.loads(request.schema)}
        sent["response_format"] = {"type": "json_schema", "json_schema": schema}
    return sent


def whole_unicode(text: str) -> str:
    """The text with unpaired surrogates replaced: a server may send them, no file can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def reply_from(request_id: str, completion: Any, model: str) -> Reply:
    """The Reply in a chat completion given as JSON values. Raises ValueError when it is none."""
    try:
        choice = completion["choices"][0]["message"]
        usage = completion.get("usage") or {}
        text = choice.get("content")
        if text is None:
            return Reply(request_id, "", model, error=f"no text: {choice.get('refusal') or 'the message is empty'}")
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        return Reply(request_id, whole_unicode(str(text)), str(completion.get("model") or model), *tokens)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion ({type(error).__name__}: {error})") from error


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, 0 without a readable wish.

    >>> retry_after({"retry-after": "3"}), retry_after({}), retry_after({"retry-after": "soon"})
    (3.0, 0.0, 0.0)
    """
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def pause(attempt: int, first: float, asked: float, jitter: float) -> float:
    """Seconds before the next try: doubled each time, between half and all of it by `jitter` (0..1), never less than the server asks.

    >>> pause(0, 0.5, 0.0, 1.0), pause(3, 0.5, 0.0, 0.0), pause(0, 0.5, 7.0, 0.5)
    (0.5, 2.0, 7.0)
    """
    own = min(LONGEST_PAUSE, first * 2.0**attempt) * (0.5 + 0.5 * jitter)
    return max(own, min(asked, LONGEST_RETRY_AFTER))


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a try failed. `wait` is None where trying again cannot help."""

    reason: str
    wait: float | None
    unreachable: bool = False


class EndpointModel:
    """A LanguageModel behind one or several addresses of an OpenAI-compatible API; several are taken as servers of the same model.

    base_url: such as http://127.0.0.1:8000/v1. concurrency: requests in flight at most, over all addresses. timeout_s: seconds for one
    try. retries: further tries of a request. The key is read from NEGATRON_API_KEY or OPENAI_API_KEY and is written nowhere.

    `complete` raises NegatronError when no request can succeed: no access, no such model, nobody at the address, quota used up.
    """

    kind = "chat"
    """The kind of endpoint, a part of the ledger's key."""

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 300.0,
        retries: int = 5,
        first_pause_s: float = 0.5,
        extra_body: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.addresses = (base_url,) if isinstance(base_url, str) else tuple(base_url)
        for address in self.addresses:
            if not address.startswith(("http://", "https://")):
                raise SettingError(f"endpoint {address!r}: expected an address such as http://127.0.0.1:8000/v1")
        if not self.addresses or not model or concurrency < 1 or retries < 0 or timeout_s <= 0:
            raise SettingError("an endpoint needs an address, a model's name, concurrency >= 1, retries >= 0 and timeout_s > 0")
        self._model, self.concurrency, self.timeout_s, self.retries = model, concurrency, timeout_s, retries
        self._key = api_key or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "none")
        self._first_pause, self._extra, self._seed = first_pause_s, dict(extra_body or {}), seed
        self.dialect = Dialect()
        self.adaptations: list[str] = []
        """In words, where the server differs from the protocol; empty for most."""
        self.tries_again = 0
        """Tries after a failed one, over all calls."""
        self._answered = False
        self._unreachable_in_a_row = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    @property
    def schema_refused(self) -> bool:
        """True once the server has refused a JSON schema, after which none is sent."""
        return not self.dialect.schema

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Replies as they arrive. Closing the iterator early cancels what is in flight."""
        failed, tokens, began = 0, 0, time.monotonic()
        with Meter(f"ask {self.name}", len(requests), "requests") as meter:
            for reply in in_flight(self._everything, requests, self.concurrency * WAITING_PER_REQUEST):
                failed, tokens = failed + bool(reply.error), tokens + reply.completion_tokens
                meter.advance(note=f"{tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s, {failed:,} failed")
                yield reply

    async def _everything(self, take: Callable[[], Awaitable[Request | None]], give: Callable[[Reply], None]) -> None:
        """Asks until `take` has no more; each of `concurrency` workers has one request in flight."""
        import openai

        async def worker(client: openai.AsyncOpenAI) -> None:
            while (request := await take()) is not None:
                give(await self._ask(client, request))

        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(
                    openai.AsyncOpenAI(
                        base_url=address,
                        api_key=self._key,
                        max_retries=0,
                        timeout=self.timeout_s,
                        # a proxy of the environment could never reach this machine's own loopback
                        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if is_loopback(address) else None,
                    )
                )
                for address in self.addresses
            ]
            workers = [asyncio.create_task(worker(clients[n % len(clients)])) for n in range(self.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        """One request until it is answered, fails for good, or has used up its tries."""
        trouble = Trouble("", None)
        for attempt in range(self.retries + 1):
            self.tries_again += attempt > 0
            outcome = await self._try(client, request, self.dialect)
            if isinstance(outcome, Reply):
                self._answered, self._unreachable_in_a_row = True, 0
                return outcome
            trouble = outcome
            if trouble.wait is None:
                return Reply(request.id, "", self.name, error=trouble.reason)
            if attempt < self.retries:
                jitter = stream(self._seed, "retry", request.id, attempt).random()
                await asyncio.sleep(pause(attempt, self._first_pause, trouble.wait, jitter))
        if trouble.unreachable:
            self._unreachable_in_a_row += 1
            if not self._answered or self._unreachable_in_a_row > self.concurrency:
                raise NegatronError(
                    f"{client.base_url}: nobody answers there ({trouble.reason}, {self.retries + 1} tries); is the server running, is the "
                    "address right? Run the same command again to go on"
                )
        return Reply(request.id, "", self.name, error=f"{trouble.reason} ({self.retries + 1} tries)")

    async def _try(self, client: openai.AsyncOpenAI, request: Request, dialect: Dialect) -> Reply | Trouble:
        """One try; raises NegatronError for what stops everything."""
        import openai

        create: Any = client.chat.completions.with_raw_response.create
        try:
            raw = await create(**body(request, self.name, dialect), extra_body=self._extra)
            reply = reply_from(request.id, json.loads(raw.text), self.name)
        except openai.APITimeoutError:
            return Trouble(f"timeout after {self.timeout_s:g} s", 0.0)
        except openai.APIConnectionError as error:
            return Trouble(f"no connection: {error.__cause__ or error}", 0.0, unreachable=True)
        except openai.APIStatusError as error:
            return await self._after_status(client, request, dialect, error)
        except ValueError as error:
            return Trouble(f"unreadable reply: {error}", 0.0)
        self._adopt(client, dialect)
        return reply

    async def _after_status(
        self, client: openai.AsyncOpenAI, request: Request, dialect: Dialect, error: openai.APIStatusError
    ) -> Reply | Trouble:
        """What an HTTP error means: stop, try again, try another dialect, or give this request up."""
        status, message = error.status_code, " ".join(error.message.split())[:500]
        if status in STOP or "insufficient_quota" in message:
            raise NegatronError(f"{client.base_url}: {advice(status, self.name)} (HTTP {status}: {message})")
        if status in AGAIN or status >= 500:
            return Trouble(f"HTTP {status}: {message}", retry_after(error.response.headers))
        if status in (400, 422):
            for other in dialect.others(request, message):
                outcome = await self._try(client, request, other)
                if isinstance(outcome, Reply):
                    return outcome
        return Trouble(f"HTTP {status}: {message}", None)

    def _adopt(self, client: openai.AsyncOpenAI, spoken: Dialect) -> None:
        """Speaks from now on a dialect that the server understood, and says once in what it differs."""
        for change in spoken.in_words():
            if change not in self.adaptations:
                self.adaptations.append(change)
                say(f"{client.base_url}: the server {change}")
        # joined, not replaced: an answer in the plain protocol that was under way meanwhile takes nothing back
        tokens_key = spoken.tokens_key if spoken.tokens_key != MAX_TOKENS else self.dialect.tokens_key
        self.dialect = Dialect(self.dialect.schema and spoken.schema, tokens_key)


def is_loopback(address: str) -> bool:
    """Whether an address is on this machine.

    >>> is_loopback("http://127.0.0.1:8000/v1"), is_loopback("https://api.example.org/v1")
    (True, False)
    """
    return (urlsplit(address).hostname or "") in {"localhost", "127.0.0.1", "::1"}


def advice(status: int, model: str) -> str:
    """What a person can do about a status that stops everything."""
    if status in (401, 403):
        return f"no access; put a valid key into {' or '.join(KEY_VARIABLES)}"
    if status == 404:
        return f"no such address or no model {model!r} there; most addresses end in /v1, and GET /models lists the models"
    return "the account's quota is used up; top it up, or use another endpoint"


def in_flight(
    work: Callable[[Callable[[], Awaitable[Request | None]], Callable[[Reply], None]], Awaitable[None]],
    requests: Sequence[Request],
    waiting: int,
) -> Iterator[Reply]:
    """Runs `work(take, give)` in an event loop of its own thread and yields what it gives, as it comes.

    At most `waiting` requests are begun and not yet read here, so memory does not grow with the number of requests. An error of the
    work is raised here; leaving early cancels the work.
    """
    arrived: SimpleQueue[Reply | None] = SimpleQueue()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="negatron-requests", daemon=True)
    upcoming = iter(requests)
    room = asyncio.Semaphore(waiting)

    async def take() -> Request | None:
        await room.acquire()
        return next(upcoming, None)

    async def everything() -> None:
        await work(take, arrived.put)

    thread.start()
    future = asyncio.run_coroutine_threadsafe(everything(), loop)
    future.add_done_callback(lambda _: arrived.put(None))
    try:
        while (reply := arrived.get()) is not None:
            loop.call_soon_threadsafe(room.release)
            yield reply
        future.result()
    finally:
        if not sys.is_finalizing():  # the interpreter has stopped the thread by then: waiting for it would never end
            asyncio.run_coroutine_threadsafe(cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def cancel_others() -> None:
    """Cancels every other task of this loop and waits until they have cleaned up."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
