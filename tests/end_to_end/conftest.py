"""What the end-to-end tests share: the command line as a function, the user's own BEIR folder, a chat server, and finished folders.

The folders are made once, by the verbs themselves, each from the one before; a test that changes something writes beside them.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from negatron.cli import main
from negatron.data.beir import write_beir
from negatron.data.collection import Collection
from negatron.types import Document, Judgement, Query

TOPICS = {
    "cells": ("how do cells divide", "Mitosis splits the nucleus before the body separates in two."),
    "stars": ("why do stars shine", "Hydrogen fuses to helium in the core and sets energy free."),
    "bread": ("how to make bread rise", "Yeast turns sugar into gas that lifts the dough."),
    "ships": ("why do ships float", "The hull displaces water that weighs as much as the vessel."),
    "rain": ("where does rain come from", "Vapour cools in high air until drops grow heavy."),
    "bees": ("how do bees find home", "They steer by the sun and by landmarks around the hive."),
    "glass": ("what is glass made of", "Sand melts with soda and lime and cools without crystals."),
    "tides": ("what causes the tides", "The moon pulls the near ocean more than the far one."),
}
TRAIN, TEST = ("cells", "stars", "bread", "ships", "rain"), ("bees", "glass", "tides")


def user_collection() -> Collection:
    """Eight topics of five documents: an answer, a copy of it, a decoy in the query's own words, two asides. `cells` has two positives.

    One training query, q-same, asks what a test query asks; another, q-twin, asks what q-ships asks and has an answer of its own.
    """
    documents, queries = {}, {}
    for topic, (question, answer) in TOPICS.items():
        texts = [answer, answer.upper(), f"Many people ask {question}, but nobody here knows.", f"A poem about {topic} and the way home.",
                 f"The museum of {topic} opens at nine and closes at five, and the shop sells postcards."]  # fmt: skip
        for number, text in enumerate(texts, 1):
            id_ = f"{topic}-{number}"
            documents[id_] = Document(id_, text, topic.title() if number < 3 else "")
        queries[f"q-{topic}"] = Query(f"q-{topic}", question)
    queries["q-same"] = Query("q-same", "How do BEES  find home")
    queries["q-twin"] = Query("q-twin", "Why do ships  float")
    train = [Judgement(f"q-{topic}", f"{topic}-1", 1) for topic in TRAIN]
    train += [Judgement("q-cells", "cells-3", 2), Judgement("q-cells", "cells-4", 0)]
    train += [Judgement("q-same", "bees-1", 1), Judgement("q-twin", "ships-3", 1)]
    test = [Judgement(f"q-{topic}", f"{topic}-1", 1) for topic in TEST]
    return Collection("user", documents, queries, {"train": tuple(train), "test": tuple(test)})


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; anything beside it is an error."""
        return json.loads(self.out)


Negatron = Callable[..., Outcome]


@pytest.fixture(scope="session")
def negatron(tmp_path_factory: pytest.TempPathFactory) -> Negatron:
    """The command line: arguments -> Outcome, with a cache of these tests alone.

    Whatever ends in neither 0 nor the exit code expected fails the test; what is no exit at all would be a traceback for the user.
    """
    own_cache = tmp_path_factory.mktemp("cache")

    def run(*arguments: object, expect: int = 0, cache: Path = own_cache) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as environment, redirect_stdout(out), redirect_stderr(err):
            environment.setenv("NEGATRON_CACHE", str(cache))
            try:
                main([str(argument) for argument in arguments])
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        outcome = Outcome(code, out.getvalue(), err.getvalue())
        assert outcome.code == expect, f"negatron {' '.join(map(str, arguments))}: exit code {outcome.code}\n{outcome.out}{outcome.err}"
        return outcome

    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared folders stand."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def data(place: Path) -> Path:
    """The user's BEIR folder: 40 documents, 10 queries, splits train and test."""
    return write_beir(user_collection(), place / "data")


@dataclass
class ChatServer:
    """An OpenAI-compatible server on loopback: `url`, and the bodies of the requests it got."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="session")
def chat_server() -> Iterator[ChatServer]:
    """Writes as many negatives as the request's schema wants; the first of each reply repeats the positive's words in capitals."""
    state = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.bodies.append(sent)
            schema = sent["response_format"]["json_schema"]["schema"]
            count = schema["properties"]["hard_negatives"]["minItems"]
            query = next(question for question, _ in TOPICS.values() if question in " ".join(str(sent["messages"]).lower().split()))
            texts = [
                f"A guide of {n + 2} pages lists every place in town where {query[:9]} is talked about at length." for n in range(count)
            ]
            texts[0] = next(answer for question, answer in TOPICS.values() if question == query).upper()
            text = json.dumps({"reasoning": "near, and yet no answer", "hard_negatives": [{"text": text} for text in texts]})
            usage = {"prompt_tokens": 50, "completion_tokens": 20}
            reply = json.dumps({"model": "served", "choices": [{"message": {"content": text}}], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


LOOSE = ("--set", "relative_margin=0", "--set", "precision=fp32")
"""An untrained encoder scores everything high: with the usual margin nothing would be left."""


@pytest.fixture(scope="session")
def mined(negatron: Negatron, data: Path, place: Path, tiny_encoder: Path) -> Path:
    """Negatives from both sources, three kept a query."""
    sources = ("--source", "bm25", "--source", "dense")
    negatron("mine", data, *sources, "--model", tiny_encoder, "--negatives", 3, *LOOSE, "--out", place / "mined")
    return place / "mined"


@pytest.fixture(scope="session")
def written(negatron: Negatron, data: Path, place: Path, tiny_encoder: Path, chat_server: ChatServer) -> Path:
    """Negatives that the chat server wrote, three asked for a query."""
    server = ("--endpoint", chat_server.url, "--llm", "served", "--per-query", 3, "--prompt", "drg.v1")
    negatron("synthesize", data, *server, "--model", tiny_encoder, "--set", "relative_margin=off", "--out", place / "written")
    return place / "written"


@pytest.fixture(scope="session")
def trained(negatron: Negatron, data: Path, mined: Path, place: Path, tiny_encoder: Path) -> Path:
    """A model trained for two steps on the mined negatives."""
    recipe = ("--set", "batch_size=4", "--set", "learning_rate=0.001", "--set", "precision=fp32")
    negatron("train", data, "--negatives", mined, "--model", tiny_encoder, *recipe, "--seed", 3, "--out", place / "trained")
    return place / "trained"


@pytest.fixture(scope="session")
def evaluated(negatron: Negatron, data: Path, trained: Path, tiny_encoder: Path, place: Path) -> Path:
    """A folder of two evaluations: before and after."""
    for name, model in (("before", tiny_encoder), ("after", trained)):
        negatron("evaluate", model, data, "--name", name, "--set", "precision=fp32", "--out", place / "evaluated" / name)
    return place / "evaluated"
