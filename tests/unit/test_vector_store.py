"""What a stored array of vectors is known by, and what its rows are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from negatron.conformance import TableEncoder
from negatron.errors import NegatronError
from negatron.models.vectors import VectorStore

TEXTS = ["north", "east", "north-east"]
TABLE = {"north": (0, 1), "east": (1, 0), "north-east": (1, 1)}


class TwoPrompts(TableEncoder):
    """Queries point the other way, as with a prompt of their own; counts the texts it was asked for."""

    asked = 0

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return -self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += len(texts)
        return np.stack([self.table[text] for text in texts]).astype(np.float32)


def test_a_text_as_a_query_is_never_taken_for_the_text_as_a_document(tmp_path: Path) -> None:
    store, encoder = VectorStore(tmp_path), TwoPrompts(TABLE)
    documents, queries = store.encode(encoder, TEXTS, "document"), store.encode(encoder, TEXTS, "query")
    assert np.array_equal(queries, -documents) and np.abs(documents).min() >= 0 and not np.array_equal(queries, documents)


def test_the_same_texts_in_another_order_are_another_array(tmp_path: Path) -> None:
    store, encoder = VectorStore(tmp_path), TwoPrompts(TABLE)
    forward, backward = store.encode(encoder, TEXTS, "document"), store.encode(encoder, TEXTS[::-1], "document")
    assert np.array_equal(backward, forward[::-1]) and not np.array_equal(backward, forward)


def test_what_was_encoded_once_is_not_encoded_again_and_copies_are_encoded_once(tmp_path: Path) -> None:
    encoder = TwoPrompts(TABLE)
    first = VectorStore(tmp_path).encode(encoder, [*TEXTS, "north"], "document")
    assert encoder.asked == 3
    again = VectorStore(tmp_path).encode(encoder, [*TEXTS, "north"], "document")
    assert encoder.asked == 3 and np.array_equal(first, again) and np.array_equal(first[0], first[3])


def test_stored_vectors_cannot_be_changed_by_mistake(tmp_path: Path) -> None:
    vectors = VectorStore(tmp_path).encode(TwoPrompts(TABLE), TEXTS, "document")
    with pytest.raises(ValueError, match="read-only"):
        vectors[0] = 0


def test_a_vector_that_is_not_finite_is_refused_with_its_text(tmp_path: Path) -> None:
    class Broken(TwoPrompts):
        def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
            return np.where([[text == "east"] for text in texts], np.nan, super().encode_documents(texts)).astype(np.float32)

    with pytest.raises(NegatronError, match="not finite for 'east'"):
        VectorStore(tmp_path).encode(Broken(TABLE), TEXTS, "document")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_no_texts_are_no_vectors(tmp_path: Path) -> None:
    class Empty(TwoPrompts):
        def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
            return np.zeros((0, 2), np.float32)

    assert VectorStore(tmp_path).encode(Empty(TABLE), [], "document").shape == (0, 2)
