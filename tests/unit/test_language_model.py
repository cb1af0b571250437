"""The endpoint client against a real HTTP server on loopback: how many at once, what is asked again, what stops everything."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, overload

import pytest

from negatron.errors import NegatronError, SettingError
from negatron.models.language_model import EndpointModel, body, pause, retry_after
from negatron.types import Message, Request

Answer = tuple[int, dict[str, str], str]


def answer(text: str) -> Answer:
    """A good chat completion."""
    completion = {"model": "served", "choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    return 200, {}, json.dumps(completion)


def refusal(status: int, message: str = "no", **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps({"error": {"message": message}})


@dataclass
class ChatServer:
    """What the server was asked, and how many at once."""

    decide: Callable[[dict[str, Any], int], Answer]
    seconds: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""


@contextmanager
def serving(decide: Callable[[dict[str, Any], int], Answer], seconds: float = 0.0) -> Iterator[ChatServer]:
    """A server whose `decide(body, n)` gives the answer to the n-th try (from 1) of a user message."""
    state = ChatServer(decide, seconds)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = sent["messages"][-1]["content"]
            with state.lock:
                state.bodies.append(sent)
                state.keys.append(self.headers["authorization"])
                state.tries[question] += 1
                state.now += 1
                state.most = max(state.most, state.now)
                tried = state.tries[question]
            time.sleep(state.seconds)
            status, headers, text = state.decide(sent, tried)
            with state.lock:
                state.now -= 1
            data = text.encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # a client that has given up
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def echo(sent: dict[str, Any], _: int) -> Answer:
    return answer(sent["messages"][-1]["content"].upper())


def asking(*texts: str, schema: str = "") -> list[Request]:
    return [Request(f"id-{text}", (Message("user", text),), schema=schema) for text in texts]


def endpoint(server: ChatServer, **given: Any) -> EndpointModel:
    return EndpointModel(server.url, "m", **{"first_pause_s": 0.01, "concurrency": 4, "timeout_s": 5.0, **given})


def test_every_request_gets_its_own_reply_whatever_the_order_of_arrival() -> None:
    with serving(echo) as server:
        replies = {reply.request_id: reply for reply in endpoint(server).complete(asking(*"abcdefgh"))}
    assert {key: reply.text for key, reply in replies.items()} == {f"id-{letter}": letter.upper() for letter in "abcdefgh"}
    assert {(r.prompt_tokens, r.completion_tokens, r.error, r.model) for r in replies.values()} == {(7, 3, "", "served")}


def test_never_more_requests_are_in_flight_than_allowed_and_that_many_are() -> None:
    with serving(echo, seconds=0.05) as server:
        assert len(list(endpoint(server, concurrency=3).complete(asking(*"abcdefghijkl")))) == 12
    assert server.most == 3


class Counting(Sequence[Request]):
    """Requests that are made when asked for, and counted."""

    def __init__(self, count: int) -> None:
        self.count, self.made = count, 0

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, index: int) -> Request: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if not isinstance(index, int) or index >= self.count:
            raise IndexError(index)
        self.made += 1
        return Request(str(index), (Message("user", str(index)),))


def test_requests_are_made_only_as_they_are_needed() -> None:
    many = Counting(10_000)
    with serving(echo) as server:
        replies = endpoint(server, concurrency=2).complete(many)
        next(replies)
        time.sleep(0.2)  # more would be begun by now, were nothing to hold them back
        assert 0 < many.made <= 2 * 4 + 2
        replies.close()
        assert many.made < 30


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with serving(lambda sent, tried: refusal(status) if tried < 3 else answer("yes")) as server:
        model = endpoint(server)
        replies = list(model.complete(asking("a", "b")))
    assert [reply.text for reply in replies] == ["yes", "yes"]
    assert server.tries == {"a": 3, "b": 3} and model.tries_again == 4


def test_a_reply_that_is_no_json_is_asked_for_again() -> None:
    for broken in ("<html>busy</html>", '{"choices": []}', "[1]"):
        with serving(lambda sent, tried, broken=broken: (200, {}, broken) if tried == 1 else answer("yes")) as server:
            assert [reply.text for reply in endpoint(server).complete(asking("a"))] == ["yes"]


def test_a_slow_reply_is_given_up_and_asked_for_again() -> None:
    def first_slow(sent: dict[str, Any], tried: int) -> Answer:
        time.sleep(1.0 if tried == 1 else 0.0)
        return answer("yes")

    with serving(first_slow) as server:
        assert [reply.text for reply in endpoint(server, timeout_s=0.3).complete(asking("a"))] == ["yes"]
    assert server.tries["a"] == 2


def test_what_never_passes_is_a_reply_with_its_error_and_the_others_go_on() -> None:
    with serving(lambda sent, tried: refusal(500, "broken") if sent["messages"][-1]["content"] == "bad" else answer("yes")) as server:
        replies = {r.request_id: r for r in endpoint(server, retries=2).complete(asking("bad", "good"))}
    assert replies["id-good"].text == "yes" and not replies["id-good"].error
    assert replies["id-bad"].error.startswith("HTTP 500: ") and "3 tries" in replies["id-bad"].error
    assert server.tries == {"bad": 3, "good": 1}


def test_a_request_the_server_refuses_is_asked_once() -> None:
    with serving(lambda sent, tried: refusal(413, "too large")) as server:
        (reply,) = endpoint(server).complete(asking("a"))
    assert reply.error.startswith("HTTP 413: ") and server.tries == {"a": 1}


@pytest.mark.parametrize(("status", "words"), [(401, "NEGATRON_API_KEY"), (403, "NEGATRON_API_KEY"), (404, "no model 'm'")])
def test_no_access_and_no_model_stop_at_once_and_say_what_to_do(status: int, words: str) -> None:
    with serving(lambda sent, tried: refusal(status, "go away")) as server, pytest.raises(NegatronError, match=words) as raised:
        list(endpoint(server).complete(asking(*"abcdefghij")))
    assert server.url in str(raised.value) and "go away" in str(raised.value)
    assert max(server.tries.values()) == 1 and sum(server.tries.values()) <= 5


def test_a_used_up_quota_is_not_waited_for() -> None:
    with serving(lambda sent, tried: refusal(429, "insufficient_quota")) as server, pytest.raises(NegatronError, match="quota is used up"):
        list(endpoint(server, concurrency=1).complete(asking("a")))
    assert server.tries == {"a": 1}


def test_an_address_where_nobody_listens_is_an_error_that_names_it() -> None:
    with serving(echo) as server:
        gone = server.url
    with pytest.raises(NegatronError, match=f"{gone}.*nobody answers"):
        list(EndpointModel(gone, "m", retries=1, first_pause_s=0.01).complete(asking(*"abc")))


def test_a_server_that_refuses_schemas_is_asked_without_and_that_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def no_schema(sent: dict[str, Any], tried: int) -> Answer:
        return refusal(400, "response_format is not supported") if "response_format" in sent else answer("yes")

    with serving(no_schema) as server:
        model = endpoint(server, concurrency=1)
        assert not model.schema_refused
        assert [r.text for r in model.complete(asking("a", "b", "c", schema='{"type": "object"}'))] == ["yes"] * 3
    assert model.schema_refused and len(model.adaptations) == 1
    assert capsys.readouterr().err.count("takes no JSON schema") == 1
    assert ["response_format" in sent for sent in server.bodies] == [True, False, False, False]


def test_a_request_that_is_wrong_in_itself_does_not_switch_schemas_off() -> None:
    with serving(lambda sent, tried: refusal(400, "context too long")) as server:
        model = endpoint(server)
        (reply,) = model.complete(asking("a", schema='{"type": "object"}'))
    assert "context too long" in reply.error and not model.schema_refused


def test_a_server_with_two_differences_is_understood() -> None:
    def modern(sent: dict[str, Any], tried: int) -> Answer:
        if "max_tokens" in sent:
            return refusal(400, "Unsupported parameter: use 'max_completion_tokens' instead")
        return refusal(400, "no response_format") if "response_format" in sent else answer("yes")

    with serving(modern) as server:
        model = endpoint(server, concurrency=1)
        assert [r.text for r in model.complete(asking("a", "b", schema="{}"))] == ["yes", "yes"]
    assert server.tries == {"a": 3, "b": 1} and len(model.adaptations) == 2


def test_the_key_comes_from_the_environment_and_ours_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    with serving(echo) as server:
        list(endpoint(server).complete(asking("a")))
        monkeypatch.setenv("NEGATRON_API_KEY", "ours")
        list(endpoint(server).complete(asking("b")))
    assert server.keys == ["Bearer theirs", "Bearer ours"]


def test_loopback_is_asked_past_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving(echo) as server:
        assert [reply.text for reply in endpoint(server).complete(asking("a"))] == ["A"]


def test_several_addresses_share_the_requests() -> None:
    with serving(echo, 0.02) as one, serving(echo, 0.02) as other:
        model = EndpointModel([one.url, other.url], "m", concurrency=2)
        assert len(list(model.complete(asking(*"abcdefgh")))) == 8
    assert one.tries and other.tries and sum((one.tries + other.tries).values()) == 8


def test_an_unpaired_surrogate_in_a_reply_becomes_something_a_file_can_hold() -> None:
    with serving(lambda sent, tried: answer("a\ud800b")) as server:
        (reply,) = endpoint(server).complete(asking("a"))
    assert reply.text == "a\ufffdb"


def test_leaving_early_leaves_no_thread_behind() -> None:
    with serving(echo, 0.05) as server:
        replies = endpoint(server).complete(asking(*"abcdefgh"))
        next(replies)
        replies.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "negatron-requests"]


ABANDONED = """
import sys
from negatron.models.language_model import EndpointModel
from negatron.types import Message, Request

replies = EndpointModel(sys.argv[1], "m", concurrency=2).complete([Request(str(n), (Message("user", str(n)),)) for n in range(50)])
print(next(replies).text)
raise SystemExit(3)
"""


def test_a_program_that_ends_with_requests_under_way_ends() -> None:
    with serving(echo, 0.05) as server:
        ended = subprocess.run([sys.executable, "-c", ABANDONED, server.url], capture_output=True, timeout=30, check=False)
    assert ended.returncode == 3 and ended.stdout.strip() in {b"0", b"1"}


def test_no_requests_need_no_server() -> None:
    assert list(EndpointModel("http://127.0.0.1:9/v1", "m").complete([])) == []


def test_a_pause_grows_and_is_never_shorter_than_the_server_asks() -> None:
    assert [pause(n, 1.0, 0.0, 1.0) for n in range(4)] == [1.0, 2.0, 4.0, 8.0]
    assert pause(0, 1.0, 20.0, 0.0) == 20.0 and pause(30, 1.0, 0.0, 1.0) == 30.0 and pause(0, 1.0, 1e9, 0.0) == 600.0


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert 25 < retry_after({"retry-after": later}) <= 30


def test_a_server_that_asks_for_time_gets_it() -> None:
    came: list[float] = []

    def busy(sent: dict[str, Any], tried: int) -> Answer:
        came.append(time.monotonic())
        return refusal(429, "busy", retry_after="0.4") if tried == 1 else answer("yes")

    with serving(busy) as server:
        list(endpoint(server).complete(asking("a")))
    assert came[1] - came[0] >= 0.4


def test_every_setting_of_a_request_is_sent() -> None:
    messages = (Message("system", "s"), Message("user", "u"))
    assert body(Request("r", messages, max_tokens=9, temperature=0.1, top_p=0.2, seed=3), "m") == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "max_tokens": 9,
        "temperature": 0.1,
        "top_p": 0.2,
        "seed": 3,
    }


def test_an_address_without_scheme_is_refused() -> None:
    with pytest.raises(SettingError, match=r"localhost:8000.*http://"):
        EndpointModel("localhost:8000", "m")
