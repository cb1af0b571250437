"""Lexical top-k: bm25s computes, this module chooses the words and breaks ties by document id.

Languages: "en" (English stop words, Snowball stemmer), "zh" (jieba's words for search), any other Snowball language by its English
name ("german"), "plain" (lower-cased words, no stemming). "auto" reads a sample of the corpus: Chinese characters -> "zh", mostly
ASCII -> "en", else "plain".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from negatron.errors import MissingExtra, SettingError, nearest
from negatron.identity import fingerprint
from negatron.progress import track
from negatron.settings import Settings
from negatron.types import Document, Query, ScoredDocument

CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
WORD = re.compile(r"(?u)\b\w\w+\b")  # what bm25s and scikit-learn take for a word
SAMPLE = 1000


class BM25Settings(Settings):
    """The form is Lucene's; k1 and b are Anserini's for passages, with which the published BEIR figures were made."""

    k1: float = Field(default=0.9, ge=0)
    """How slowly a word's weight saturates with its count."""
    b: float = Field(default=0.4, ge=0, le=1)
    """How much long documents are held back, 0..1."""
    language: str = "auto"
    """auto, en, zh, plain, or a Snowball language by its English name."""


def detect_language(texts: Sequence[str]) -> str:
    """Chinese ("zh") when more than a tenth of the characters of a sample are Chinese, "en" when at least 95 % are ASCII, else "plain".

    >>> detect_language(["how do cells divide"]), detect_language(["深度学习模型"]), detect_language(["Überprüfung für Größe"])
    ('en', 'zh', 'plain')
    """
    sample = "".join(texts[:SAMPLE])
    if not sample:
        return "plain"
    if len(CJK.findall(sample)) > 0.1 * len(sample):
        return "zh"
    return "en" if sum(c.isascii() for c in sample) >= 0.95 * len(sample) else "plain"


class Words:
    """Texts to words, in one language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._stemmer: Any = None
        self._stop_words: frozenset[str] = frozenset()
        if language == "zh":
            try:
                import jieba
            except ImportError as error:
                raise MissingExtra("jieba", "chinese") from error
            jieba.setLogLevel("ERROR")
            self._cut = jieba.cut_for_search
        elif language != "plain":
            import Stemmer
            from bm25s.stopwords import STOPWORDS_EN

            name = "english" if language == "en" else language
            if name not in Stemmer.algorithms():
                raise SettingError(
                    f"bm25: no language {language!r}{nearest(language, ['auto', 'en', 'zh', 'plain', *Stemmer.algorithms()])}"
                )
            self._stemmer = Stemmer.Stemmer(name)
            self._stop_words = frozenset(STOPWORDS_EN) if name == "english" else frozenset()

    def of(self, text: str) -> list[str]:
        """The words of a text, in order, stop words left out."""
        if self.language == "zh":
            return [word for word in self._cut(text.lower()) if word.strip() and (len(word) > 1 or word.isalnum())]
        words = [word for word in WORD.findall(text.lower()) if word not in self._stop_words]
        return self._stemmer.stemWords(words) if self._stemmer is not None else words


class BM25Searcher:
    """A Searcher by BM25 (Robertson et al., TREC-3, in Lucene's form as computed by bm25s). Documents that share no word are not found."""

    def __init__(self, documents: Sequence[Document], corpus_fingerprint: str, settings: BM25Settings | None = None) -> None:
        import bm25s

        self.settings = settings or BM25Settings()
        self.documents = sorted(documents, key=lambda d: d.id)
        contents = [document.content for document in self.documents]
        language = detect_language(contents) if self.settings.language == "auto" else self.settings.language
        self.words = Words(language)
        self.fingerprint = fingerprint("bm25.v1", corpus_fingerprint, self.settings.k1, self.settings.b, language, bm25s.__version__)
        counted = [self.words.of(content) for content in track(contents, "bm25 words", len(contents), "documents")]
        self._index: Any = None
        if any(counted):
            self._index = bm25s.BM25(method="lucene", k1=self.settings.k1, b=self.settings.b)
            self._index.index(counted, show_progress=False)

    def search(self, queries: Sequence[Query], k: int) -> Iterator[Sequence[ScoredDocument]]:
        """At most k documents a query that share a word with it, best first, ties by document id."""
        for query in track(queries, "bm25 search", len(queries), "queries"):
            scores = self._scores(self.words.of(query.text))
            yield [ScoredDocument(query.id, self.documents[row].id, float(scores[row])) for row in best_rows(scores, k)]

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        known = [word for word in words if self._index is not None and word in self._index.vocab_dict]
        if not known:
            return np.zeros(len(self.documents), np.float32)
        scores: NDArray[np.float32] = self._index.get_scores(known)
        return scores


def best_rows(scores: NDArray[np.float32], k: int) -> list[int]:
    """Rows of the k best scores above 0, best first, equal scores by row.

    >>> best_rows(np.array([0.0, 2.0, 1.0, 2.0, 1.0], np.float32), 3)
    [1, 3, 2]
    """
    positive = int((scores > 0).sum())
    k = min(k, positive)
    if k == 0:
        return []
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero(scores >= limit)
    order: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:k].tolist()
    return order
