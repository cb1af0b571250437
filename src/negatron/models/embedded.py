"""A small language model inside this process: llama.cpp servers on loopback that are started and stopped here.

Each server has one slot and one thread, and there are as many servers as cores (at most four). So a request is computed alone, whatever
else runs and in whatever order, and the same request gives the same text: a run that was killed and goes on ends with the same result.
Slots of one server share a batch, and the sums of a batch depend on who else is in it. Two threads of one server are also far slower
on a loaded machine, because they wait for each other by spinning (measured: 2 against 70 tokens/s, docs/notebook.md).

What it does not know: which model is good; `models.catalog` fetches one.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from negatron.errors import DataError, MissingExtra, NegatronError, SettingError
from negatron.identity import file_sha256
from negatron.models.language_model import EndpointModel
from negatron.types import Reply, Request

MOST_SERVERS = 4
CONTEXT = 2048
"""Tokens of prompt and reply together."""
MAGIC = b"GGUF"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EmbeddedModel:
    """A LanguageModel from a GGUF file. `with EmbeddedModel(path) as model: model.complete(requests)`.

    servers: each holds its own context and works on one request at a time; weights are mapped once. context: tokens of prompt and reply
    together; a request that does not fit is a Reply whose error says so. timeout_s: seconds for one request.

    Raises MissingExtra without xllamacpp, DataError for a file that is no GGUF.
    """

    def __init__(self, path: Path, *, servers: int | None = None, context: int = CONTEXT, timeout_s: float = 1800.0) -> None:
        if (servers is not None and servers < 1) or context < 1:
            raise SettingError("an embedded model needs servers >= 1 and context >= 1")
        self.path, self.context, self.timeout_s = path, context, timeout_s
        self.servers = servers or min(cores(), MOST_SERVERS)
        check_weights(path)
        self.engine = engine_version()
        self._name = f"{path.stem}@{file_sha256(path)[:12]}"
        self._running: list[Any] = []
        self._endpoint: EndpointModel | None = None

    @property
    def name(self) -> str:
        """The file's name and the beginning of its SHA-256: other weights are another model."""
        return self._name

    @property
    def kind(self) -> str:
        """Engine, version and context: with the request, all that a text depends on. The number of servers is not part of it."""
        return f"xllamacpp {self.engine}, context {self.context}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the running servers, empty outside of the `with` block."""
        return () if self._endpoint is None else self._endpoint.addresses

    def __enter__(self) -> Self:
        try:
            self._running = [start(self.path, self.context) for _ in range(self.servers)]
        except RuntimeError as error:
            raise NegatronError(f"{self.path}: the engine (xllamacpp {self.engine}) cannot load it: {error}") from error
        self._endpoint = EndpointModel(
            [f"{server.listening_address}/v1" for server in self._running],
            self.name,
            api_key="none",
            concurrency=self.servers,
            timeout_s=self.timeout_s,
            retries=1,
            extra_body={"cache_prompt": False},  # else a prompt's sums depend on the prompt before it
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._endpoint = None
        self._running.clear()  # a server stops when the last reference to it goes

    def complete(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Replies as they are done, at most one request a server at a time. Raises NegatronError outside of its `with` block."""
        if self._endpoint is None:
            raise NegatronError("the embedded model is not running: use it inside `with EmbeddedModel(...) as model:`")
        for reply in self._endpoint.complete(requests):
            error = reply.error
            if "exceeds the available context size" in error:
                error = (
                    f"too long: prompt and reply have {self.context} tokens in all; lower positive_words, or raise the context ({error})"
                )
            # the server reports the file's path as its model, which says nothing on another machine
            yield replace(reply, model=self.name, error=error)


def engine_version() -> str:
    """The version of xllamacpp. Raises MissingExtra without it."""
    try:
        import xllamacpp  # noqa: F401 only whether it is there
    except ImportError as error:
        raise MissingExtra("xllamacpp", "embedded") from error
    return importlib.metadata.version("xllamacpp")


def check_weights(path: Path) -> None:
    """Raises DataError unless the file begins as a GGUF file does: the engine's own complaint would be obscure."""
    if not path.is_file():
        raise DataError("no such file; `negatron models fetch` gets one", path)
    with path.open("rb") as file:
        if (found := file.read(len(MAGIC))) != MAGIC:
            raise DataError(f"begins with {found!r}, a GGUF file with {MAGIC!r}; give a .gguf file", path)


def start(path: Path, context: int) -> Any:
    """One server on a free port of 127.0.0.1: one slot, one thread, silent. Returns when the weights are loaded."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = 1
    params.n_ctx = context
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    params.cache_ram_mib = 0  # no store of earlier prompts: it would cost memory, and could only make texts depend on their order
    return xllamacpp.Server(params)
