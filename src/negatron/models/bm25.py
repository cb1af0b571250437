"""Lexical top-k by BM25 (Robertson et al., TREC-3) in Lucene's form: its weights and sums are those of bm25s, to the last bit.

1. `words` counts the corpus part by part, in several processes where that is worth it.
2. `build` joins the parts to an index on disk: for each word the rows of its documents and what it adds to their scores.
3. `BM25Searcher.search` multiplies a block of queries by the index, a sparse matrix product, and takes the best of each row.

The index is memory-mapped; with a `folder` it is kept under its fingerprint and found again, and a killed run continues after the last
part it counted. Documents are sorted by id, so equal scores go by id. Documents that share no word with a query are not found.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from negatron.identity import fingerprint
from negatron.models.locks import entry
from negatron.models.words import SAMPLE, Counted, Words, count_parts, detect_language
from negatron.progress import Meter
from negatron.seams import Float32Array
from negatron.settings import Settings
from negatron.store import write_json
from negatron.types import Document, Query, ScoredDocument

POSTINGS_AT_A_TIME = 4_000_000
"""Of the words of the queries multiplied together: bounds the scores held in memory (8 bytes each)."""
QUERIES_AT_A_TIME = 256
"""At most so many queries together, so that progress shows."""


class BM25Settings(Settings):
    """The form is Lucene's; k1 and b are Anserini's for passages, with which the published BEIR figures were made."""

    k1: float = Field(default=0.9, ge=0)
    """How slowly a word's weight saturates with its count."""
    b: float = Field(default=0.4, ge=0, le=1)
    """How much long documents are held back, 0..1."""
    language: str = "auto"
    """auto, en, zh, plain, or a Snowball language by its English name."""


class BM25Searcher:
    """A Searcher by BM25. The index is made when first asked for, kept in `folder` under its fingerprint where one is given."""

    def __init__(
        self, documents: Sequence[Document], corpus_fingerprint: str, settings: BM25Settings | None = None, folder: Path | None = None
    ) -> None:
        self.settings = settings or BM25Settings()
        self.documents = sorted(documents, key=lambda d: d.id)
        self.folder = folder
        language = (
            detect_language([d.content for d in self.documents[:SAMPLE]]) if self.settings.language == "auto" else self.settings.language
        )
        self.words = Words(language)
        self.fingerprint = fingerprint("bm25.v2", corpus_fingerprint, self.settings.k1, self.settings.b, self.words.maker)

    @cached_property
    def index(self) -> Index:
        """The index of all documents, in the order of `documents`."""
        contents = [document.content for document in self.documents]
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="negatron-bm25-") as passing:
                build(Path(passing), self.words, contents, self.settings)
                return Index.open(Path(passing), in_memory=True)
        place = self.folder / self.fingerprint
        inputs = {"index": self.fingerprint, "documents": len(contents)}
        with entry(place, kind="bm25", inputs=inputs, what="the BM25 index of the same corpus") as work:
            if work.finished is None:
                build(work.path, self.words, contents, self.settings)
                work.finish()
        return Index.open(place)

    def search(self, queries: Sequence[Query], k: int) -> Iterator[Sequence[ScoredDocument]]:
        """At most k documents a query that share a word with it, best first, ties by document id."""
        with Meter("bm25 search", len(queries), "queries") as meter:
            for query, (rows, scores) in zip(queries, self.search_rows([query.text for query in queries], k), strict=True):
                found = zip(rows.tolist(), scores.tolist(), strict=True)
                yield [ScoredDocument(query.id, self.documents[row].id, score) for row, score in found]
                meter.advance()

    def search_rows(self, texts: Sequence[str], k: int) -> Iterator[tuple[NDArray[np.int32], Float32Array]]:
        """The same as arrays: for each text of a query the rows of `documents` [<= k] and their scores."""
        asked = [self.index.numbers(self.words.of(text)) for text in texts]
        for block in self.index.blocks(asked):
            rows, scores, starts = self.index.scores(asked[block.start : block.stop])
            for place in range(len(block)):
                own = slice(starts[place], starts[place + 1])
                best = best_of(rows[own], scores[own], k)
                yield rows[own][best], scores[own][best]


def best_of(rows: NDArray[np.int32], scores: Float32Array, k: int) -> NDArray[np.intp]:
    """Places of the k best scores above 0, best first, equal scores by row.

    >>> best_of(np.array([7, 3, 5, 1], np.int32), np.array([2.0, 1.0, 2.0, 1.0], np.float32), 3).tolist()
    [2, 0, 3]
    """
    found = np.flatnonzero(scores > 0)
    if len(found) > k:
        limit = np.partition(scores[found], len(found) - k)[len(found) - k]
        found = found[scores[found] >= limit]
    return found[np.lexsort((rows[found], -scores[found]))][:k]


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """vocabulary: word -> its row in `matrix` [words, documents], a scipy CSR matrix in fp32 of what a word adds to a document's score."""

    vocabulary: dict[str, int]
    matrix: Any

    @classmethod
    def open(cls, folder: Path, *, in_memory: bool = False) -> Index:
        """The index that `build` wrote, memory-mapped unless it shall be read whole."""
        from scipy.sparse import csr_matrix

        terms = json.loads((folder / "terms.json").read_text(encoding="utf-8"))
        weights, rows = (np.load(folder / f"{name}.npy", mmap_mode=None if in_memory else "r") for name in ("weights", "rows"))
        shape = (len(terms), len(np.load(folder / "lengths.npy", mmap_mode="r")))
        matrix = csr_matrix((weights, rows, np.load(folder / "starts.npy")), shape=shape, copy=False)
        return cls({term: place for place, term in enumerate(terms)}, matrix)

    def numbers(self, words: Sequence[str]) -> list[int]:
        """The words that the index knows, by their number, in order."""
        return [self.vocabulary[word] for word in words if word in self.vocabulary]

    def blocks(self, asked: Sequence[Sequence[int]]) -> Iterator[range]:
        """Ranges of queries that are multiplied together."""
        holding = np.diff(self.matrix.indptr)
        first, postings = 0, 0
        for place, words in enumerate(asked):
            own = int(holding[words].sum()) if words else 0
            if place > first and (postings + own > POSTINGS_AT_A_TIME or place - first == QUERIES_AT_A_TIME):
                yield range(first, place)
                first, postings = place, 0
            postings += own
        if first < len(asked):
            yield range(first, len(asked))

    def scores(self, asked: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], Float32Array, NDArray[np.int32]]:
        """(rows, scores, starts) of the documents that share a word with each query: query q has them at starts[q] .. starts[q+1].

        A score is the sum in fp32 of its words' weights in the order of the query, a word that it asks twice counted twice.
        """
        from scipy.sparse import csr_matrix

        ends = np.cumsum([0, *map(len, asked)])
        words = np.fromiter((word for own in asked for word in own), np.int32, int(ends[-1]))
        queries = csr_matrix((np.ones(len(words), np.float32), words, ends), shape=(len(asked), len(self.vocabulary)))
        product = queries @ self.matrix
        return product.indices, product.data, product.indptr


def build(folder: Path, words: Words, texts: Sequence[str], settings: BM25Settings) -> None:
    """Writes the index of the texts: terms.json, starts.npy, rows.npy, weights.npy, lengths.npy. Continues from the parts there are."""
    parts = []
    with Meter("bm25 words", len(texts), "documents", quiet=not texts) as meter:
        for own, path in count_parts(words, texts, folder):
            parts.append((own, path))
            meter.advance(len(own))
    join(folder, sorted(parts, key=lambda part: part[0].start), len(texts), settings)
    for _, path in parts:
        path.unlink()


def join(folder: Path, parts: Sequence[tuple[range, Path]], documents: int, settings: BM25Settings) -> None:
    """One index from the counts of all parts, one part in memory at a time."""
    vocabulary: dict[str, int] = {}
    lengths = np.zeros(documents, np.int64)
    holding = np.zeros(0, np.int64)  # documents that hold each word
    for own, path in parts:
        part = Counted.load(path)
        numbers = numbered(vocabulary, part.terms)
        lengths[own.start : own.stop] = part.lengths
        holding = np.pad(holding, (0, len(vocabulary) - len(holding)))
        holding[numbers] += np.diff(part.starts)
    starts = np.concatenate([[0], np.cumsum(holding)])
    lucene = Lucene.of(holding, lengths, settings)
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.int32, (int(starts[-1]),))
    weights = np.lib.format.open_memmap(folder / "weights.npy", "w+", np.float32, (int(starts[-1]),))
    free = starts[:-1].copy()  # where each word's next document goes
    for own, path in parts:
        part = Counted.load(path)
        numbers, counts = numbered(vocabulary, part.terms), np.diff(part.starts)
        places = np.repeat(free[numbers] - part.starts[:-1], counts) + np.arange(len(part.rows))
        document = (part.rows + own.start).astype(np.int32)
        rows[places] = document
        weights[places] = lucene.weights(np.repeat(numbers, counts), document, part.counts)
        free[numbers] += counts
    rows.flush()
    weights.flush()
    np.save(folder / "starts.npy", starts)
    np.save(folder / "lengths.npy", lengths)
    write_json(folder / "terms.json", list(vocabulary))


def numbered(vocabulary: dict[str, int], terms: Sequence[str]) -> NDArray[np.int64]:
    """The numbers of the terms; new ones get the next numbers."""
    return np.fromiter((vocabulary.setdefault(term, len(vocabulary)) for term in terms), np.int64, len(terms))


@dataclass(frozen=True, slots=True, eq=False)
class Lucene:
    """ln(1 + (N - n + 0.5) / (n + 0.5)) f / (f + k1 (1 - b + b L / mean L)), without the factor k1 + 1 that changes no rank.

    Source: Kamphuis et al., ECIR 2020, "accurate" Lucene. N documents, n of them with the word, f times in this one of L words. Computed
    in fp64 from an inverse document frequency in fp32, as bm25s does. inverse [words], saturation [documents].
    """

    inverse: Float32Array
    saturation: NDArray[np.float64]

    @classmethod
    def of(cls, holding: NDArray[np.int64], lengths: NDArray[np.int64], settings: BM25Settings) -> Lucene:
        """What the weights need of the whole corpus."""
        n, place = np.unique(holding, return_inverse=True)
        inverse = np.array([math.log(1 + (len(lengths) - one + 0.5) / (one + 0.5)) for one in n.tolist()], np.float32)
        mean = lengths.mean() if len(lengths) and lengths.any() else 1.0
        return cls(inverse[place], settings.k1 * ((1 - settings.b) + settings.b * lengths / mean))

    def weights(self, words: NDArray[np.int64], documents: NDArray[np.int32], counts: NDArray[np.int32]) -> Float32Array:
        """[m] what each word adds to the score of each document."""
        own: Float32Array = (self.inverse[words] * (counts / (self.saturation[documents] + counts))).astype(np.float32)
        return own
