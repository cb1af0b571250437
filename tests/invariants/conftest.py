"""Random collections full of what goes wrong in real ones, an encoder that knows every text, and a store of vectors that keeps none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from negatron.data.collection import Collection
from negatron.identity import same_words, stream
from negatron.models.vectors import VectorStore
from negatron.seams import Encoder, Float32Array
from negatron.types import Document, Judgement, Query

WORDS = [f"{first}{second}{first}n" for first in "bdgkmprt" for second in "aeiou"]


def make_collection(seed: int, *, documents: int = 30, queries: int = 10) -> Collection:
    """About a third of the documents are copies of others, up to case, white space, a title or one word; some queries ask the same.

    Split train has queries with up to three positives, judgements of grade 0, a query without a positive, two queries of one text with
    different positives, and one that asks what a query of split test asks.
    """
    draw = stream(seed, "collection")
    found: dict[str, Document] = {}
    for number in range(documents):
        id_, kind = f"d{draw.randrange(1000):03d}-{number}", draw.random()
        text = " ".join(draw.choices(WORDS, k=draw.randint(4, 12)))
        if found and kind < 0.35:
            text = draw.choice(list(found.values())).text
            text = text.upper().replace(" ", "  ") if kind < 0.15 else f"{text} {draw.choice(WORDS)}" if kind < 0.25 else text
        found[id_] = Document(id_, text, "A title" if draw.random() < 0.15 else "")
    asked = {f"q{number}": Query(f"q{number}", " ".join(draw.choices(WORDS, k=3))) for number in range(queries)}
    asked["q-twin"] = Query("q-twin", asked["q0"].text.upper())
    asked["q-tested"] = Query("q-tested", f" {asked[f'q{queries - 1}'].text} ")
    asked["q-empty"] = Query("q-empty", "nobody knows this")
    rows: dict[str, list[Judgement]] = {"train": [], "test": []}
    ids = list(found)
    for id_ in asked:
        split = "test" if id_[1:].isdigit() and int(id_[1:]) >= queries - 3 else "train"
        chosen = draw.sample(ids, k=draw.randint(2, 4))
        positives = 0 if id_ == "q-empty" else len(chosen) - 1
        rows[split] += [Judgement(id_, document, draw.randint(1, 2) if n < positives else 0) for n, document in enumerate(chosen)]
    return Collection(f"random {seed}", found, asked, {split: tuple(own) for split, own in rows.items()})


class WordEncoder:
    """An Encoder: the sum of a fixed random vector for each word, case and white space ignored, brought to unit length."""

    fingerprint = "words"

    def encode_queries(self, texts: Sequence[str]) -> Float32Array:
        """[n, 16], unit length."""
        vectors = np.asarray([np.sum([word_vector(word) for word in same_words(text).split()], axis=0) for text in texts], np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    encode_documents = encode_queries


@lru_cache
def word_vector(word: str) -> list[float]:
    """The vector of a word."""
    draw = stream(0, "word", word)
    return [draw.gauss(0, 1) for _ in range(16)]


class PassingStore(VectorStore):
    """Encodes each time anew and writes nothing, so that hundreds of searches cost no disk."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))

    def encode(self, encoder: Encoder, texts: Sequence[str], role: Literal["query", "document"], label: str = "encode") -> Float32Array:
        """[n, D], in the order of the texts."""
        return encoder.encode_queries(texts) if role == "query" else encoder.encode_documents(texts)


@pytest.fixture(scope="session")
def passing_store() -> VectorStore:
    return PassingStore()


@pytest.fixture(scope="session")
def random_collection() -> Callable[..., Collection]:
    return make_collection


@pytest.fixture(scope="session")
def word_encoder() -> WordEncoder:
    return WordEncoder()
