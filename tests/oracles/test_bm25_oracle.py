"""BM25 against bm25s, bit for bit: the same words, the same settings, the same ranks and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from negatron.identity import stream
from negatron.models.bm25 import BM25Searcher, BM25Settings
from negatron.types import Document, Query

WORDS = [f"{a}{b}{c}" for a in "bdgkl" for b in "aeio" for c in "mnrt"]


def random_texts(name: str, count: int, most: int) -> list[str]:
    draw = stream(3, name)
    return [" ".join(draw.choices(WORDS, weights=range(1, len(WORDS) + 1), k=draw.randint(0, most))) for _ in range(count)]


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 1.0)])
def test_scores_and_ranks_are_those_of_bm25s(k1: float, b: float, tmp_path: Path) -> None:
    import bm25s

    texts, asked = random_texts("documents", 300, 40), [f"{WORDS[-1]} {WORDS[-1]} {WORDS[-2]}", *random_texts("queries", 30, 6)]
    documents = [Document(f"{row:04d}", text) for row, text in enumerate(texts)]
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    index.index([text.split() for text in texts], show_progress=False)
    searcher = BM25Searcher(documents, "c", BM25Settings(k1=k1, b=b, language="plain"), tmp_path)
    tied = 0
    for query, hits in zip(asked, searcher.search([Query(text, text) for text in asked], 50), strict=True):
        words = [word for word in query.split() if word in index.vocab_dict]
        scores = index.get_scores(words) if words else np.zeros(len(texts), np.float32)
        best = [row for row in np.lexsort((np.arange(len(texts)), -scores))[:50].tolist() if scores[row] > 0]
        assert [(hit.document_id, hit.score) for hit in hits] == [(f"{row:04d}", float(scores[row])) for row in best]
        tied += len({hit.score for hit in hits}) < len(hits)
    assert tied or k1, "with k1 = 0 scores tie"
