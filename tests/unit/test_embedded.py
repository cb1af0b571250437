"""The embedded model: what is refused, and, where its weights are at hand, that a text depends on its request alone."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from negatron.errors import DataError, NegatronError
from negatron.models.embedded import EmbeddedModel
from negatron.types import Message, Request
from negatron.wheels import cache_folder

pytest.importorskip("xllamacpp", reason="needs negatron[embedded]")


@pytest.fixture(scope="module")
def weights() -> Path:
    """SmolLM2-135M, if it is in the cache."""
    found = sorted(cache_folder().rglob("SmolLM2-135M*.gguf")) if cache_folder().is_dir() else []
    if not found:
        pytest.skip(f"no SmolLM2-135M in {cache_folder()}: negatron models fetch smollm2-135m")
    return found[0]


def asking() -> list[Request]:
    topics = ["ships", "bread", "stars", "cells"]
    return [
        Request(topic, (Message("user", f"Write one sentence about {topic}."),), max_tokens=16, temperature=0.9, seed=n)
        for n, topic in enumerate(topics)
    ]


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(DataError, match="begins with b'PK"):
        EmbeddedModel(tmp_path / "weights.gguf")
    with pytest.raises(DataError, match="no such file"):
        EmbeddedModel(tmp_path / "missing.gguf")


@pytest.mark.slow
def test_a_text_depends_on_its_request_alone(weights: Path) -> None:
    with EmbeddedModel(weights, servers=2, context=512) as model:
        address = model.addresses[0]
        first = {reply.request_id: reply.text for reply in model.complete(asking())}
        turned = {reply.request_id: reply.text for reply in model.complete(asking()[::-1])}
    with EmbeddedModel(weights, servers=1, context=512) as model:  # started anew, and nothing beside it
        alone = {reply.request_id: reply.text for reply in model.complete(asking()[2:])}
        other_seed = [Request("x", (Message("user", "Write one sentence about ships."),), max_tokens=16, temperature=0.9, seed=77)]
        (changed,) = model.complete(other_seed)
    assert all(first.values()) and changed.text != first["ships"], "the seed matters, so that equality says something"
    assert turned == first
    assert alone == {topic: first[topic] for topic in ("stars", "cells")}
    with pytest.raises(urllib.error.URLError):  # the servers are gone
        urllib.request.urlopen(f"{address}/models", timeout=2)


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_says_what_to_do(weights: Path) -> None:
    with EmbeddedModel(weights, servers=1, context=256) as model:
        (reply,) = model.complete([Request("long", (Message("user", "word " * 600),), max_tokens=4)])
    assert reply.error.startswith("too long: ") and "positive_words" in reply.error and "256" in reply.error
    with pytest.raises(NegatronError, match="not running"):
        list(model.complete(asking()))
