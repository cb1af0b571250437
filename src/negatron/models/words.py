"""Texts to words: what counts as a word in a language, and how often each word stands in each of many texts.

A language is "en" (English stop words, Snowball stemmer), "zh" (jieba's words for search), any other Snowball language by its English
name ("german"; its stop words are left out where bm25s has a list of them), or "plain": lower-cased words without stemming, and
overlapping pairs of characters where a script is written without spaces (Chinese without jieba, Japanese, Thai, Khmer ...).

1. `Words` knows one language: `of` gives the words of a text, `count` the counts of many texts as arrays.
2. `count_parts` counts a corpus part by part into files, in as many processes as there are cores. A part that is already there is kept,
   so a killed run goes on; a part's contents depend on its texts alone, so the number of processes changes nothing.

The other processes run this very module (`python -m negatron.models.words`), so it imports little. What it does not know: BM25.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negatron.errors import MissingExtra, NegatronError, SettingError, nearest

ENGLISH = "en"
CHINESE = "zh"
PLAIN = "plain"

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
KANA = re.compile(r"[\u3040-\u30ff]")
WORD = re.compile(r"\w\w+")
"""What bm25s and scikit-learn take for a word: two word characters or more."""
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana, Han: no spaces between words."""
MARKED = r"\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0dff"
"""Hebrew and Arabic points and the Indian scripts, whose vowel signs are no word characters to `re` and would cut words apart."""
ANY_WORD = re.compile(rf"[{UNSPACED}]+|(?:[^\W{UNSPACED}]|[{MARKED}]){{2,}}")
IS_UNSPACED = re.compile(rf"[{UNSPACED}]")

SAMPLE = 1000
"""Texts looked at to tell their language."""
LEAST_SHARE_OF_STOP_WORDS = 0.15
"""Of all words, from which on a text is taken for a language. Measured: English collections 0.26 to 0.33 by their own list, at most 0.12 by
another language's; French and German, whose lists are longer, 0.5 to 0.6 by their own."""

# Lucene's list, the one that bm25s calls "english"; a test holds them equal
ENGLISH_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such "  # noqa: SIM905 - a list of words reads better as words
    "that the their then there these they this to was will with".split()
)
STOP_LISTS = {
    "danish": "STOPWORDS_DANISH",
    "dutch": "STOPWORDS_DUTCH",
    "french": "STOPWORDS_FRENCH",
    "german": "STOPWORDS_GERMAN",
    "italian": "STOPWORDS_ITALIAN",
    "norwegian": "STOPWORDS_NORWEGIAN",
    "portuguese": "STOPWORDS_PORTUGUESE",
    "russian": "STOPWORDS_RUSSIAN",
    "spanish": "STOPWORDS_SPANISH",
    "swedish": "STOPWORDS_SWEDISH",
    "turkish": "STOPWORDS_TURKISH",
}
"""Snowball language -> name of its list in bm25s.stopwords."""

PART = {CHINESE: 200_000}
OTHER_PART = 2_000_000
"""Characters of the texts counted together: about a second of jieba, a fifth of a second of anything else."""
WORTH_A_PROCESS = {CHINESE: 400_000}
OTHERS_WORTH_A_PROCESS = 4_000_000
"""Characters below which one process is done before another has helped (measured: 0.15 s to start and 10 to 16 million characters a second;
jieba 0.95 s and 0.23 million)."""


def stop_words(language: str) -> frozenset[str]:
    """The words of a language that say nothing alone; empty where no list is at hand."""
    if language == ENGLISH or language == "english":
        return ENGLISH_STOP_WORDS
    if language not in STOP_LISTS:
        return frozenset()
    from bm25s import stopwords

    return frozenset(getattr(stopwords, STOP_LISTS[language]))


def detect_language(texts: Sequence[str]) -> str:
    """The language of a sample of texts, by their characters and by their share of stop words.

    Chinese ("zh") when more than a tenth of the characters are Chinese and next to none Japanese; "plain" for other scripts without
    spaces; else the language whose stop words are at least 15 % of the words; else "en" for ASCII (code, names) and "plain" for the rest.

    >>> detect_language(["how do cells divide in the body"]), detect_language(["深度学习模型"]), detect_language(["深い学習のモデル"])
    ('en', 'zh', 'plain')
    >>> detect_language(["Die Zellen teilen sich, bevor der Körper wächst"]), detect_language(["find . -name '*.py'"])
    ('german', 'en')
    """
    sample = "\n".join(texts[:SAMPLE]).lower()
    if not sample:
        return PLAIN
    if len(IS_UNSPACED.findall(sample)) > 0.1 * len(sample):
        chinese = len(HAN.findall(sample)) > 0.1 * len(sample) and len(KANA.findall(sample)) < 0.01 * len(sample)
        return CHINESE if chinese else PLAIN
    words = WORD.findall(sample)
    if share(words, ENGLISH_STOP_WORDS) >= LEAST_SHARE_OF_STOP_WORDS:
        return ENGLISH
    shares = {language: share(words, stop_words(language)) for language in STOP_LISTS}
    best = max(shares, key=shares.__getitem__)
    if shares[best] >= LEAST_SHARE_OF_STOP_WORDS:
        return best
    return ENGLISH if sample.isascii() or sum(c.isascii() for c in sample) >= 0.95 * len(sample) else PLAIN


def share(words: Sequence[str], among: frozenset[str]) -> float:
    """Of the words, 0..1, those that are `among`."""
    return sum(word in among for word in words) / max(len(words), 1)


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """How often each word stands in each of n texts: text rows[i] holds word t counts[i] times, for starts[t] <= i < starts[t + 1].

    terms: the words, in the order in which the texts first use them. starts [terms + 1] int64, rows [m] int32 ascending within a word,
    counts [m] int32. lengths [n] int64: words of each text, copies counted.
    """

    terms: list[str]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.int32]
    lengths: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Writes the counts as one .npz file, whole or not at all."""
        terms = np.frombuffer(json.dumps(self.terms).encode(), np.uint8)
        beside = path.with_suffix(".tmp")
        with beside.open("wb") as file:
            np.savez(file, terms=terms, starts=self.starts, rows=self.rows, counts=self.counts, lengths=self.lengths)
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Counted:
        """The counts that `save` wrote."""
        with np.load(path) as stored:
            terms = json.loads(stored["terms"].tobytes())
            return cls(terms, stored["starts"], stored["rows"], stored["counts"], stored["lengths"])


class Words:
    """Texts to words, in one language. Raises SettingError for an unknown language, MissingExtra for "zh" without jieba."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.split: Callable[[str], list[str]] = any_words
        self._stem: Callable[[list[str]], list[str]] | None = None
        self._stop_words = stop_words(language)
        self._stems: dict[str, str] = {}
        self.maker = language
        if language == CHINESE:
            self.split = chinese_words()
            self.maker = f"zh, jieba {version('jieba')}"
        elif language != PLAIN:
            self._stem = snowball(language)
            self.split = english_words if language in (ENGLISH, "english") else any_words
            lists = f", bm25s {version('bm25s')}" if language in STOP_LISTS else ""
            self.maker = f"{language}, PyStemmer {version('PyStemmer')}{lists}"

    def of(self, text: str) -> list[str]:
        """The words of a text, in order, stop words left out."""
        words = [word for word in self.split(text) if word not in self._stop_words]
        return self._stem(words) if self._stem is not None else words

    def count(self, texts: Sequence[str]) -> Counted:
        """The counts of many texts; each distinct word is looked at and stemmed once."""
        numbers: defaultdict[str, int] = defaultdict(int)
        numbers.default_factory = numbers.__len__
        found, lengths = array("i"), array("q")
        for text in texts:
            words = self.split(text)
            found.extend(map(numbers.__getitem__, words))
            lengths.append(len(words))
        terms, term_of = self._terms_of(list(numbers))
        term = term_of[np.frombuffer(found, np.int32)]
        row = np.repeat(np.arange(len(texts)), np.frombuffer(lengths, np.int64))
        row, term = row[term >= 0], term[term >= 0]
        key = np.sort(term * len(texts) + row)
        first = np.flatnonzero(np.diff(key, prepend=-1))
        own_term, own_row = np.divmod(key[first], max(len(texts), 1))
        return Counted(
            terms,
            np.searchsorted(own_term, np.arange(len(terms) + 1)).astype(np.int64),
            own_row.astype(np.int32),
            np.diff(first, append=len(key)).astype(np.int32),
            np.bincount(row, minlength=len(texts)).astype(np.int64),
        )

    def _terms_of(self, words: list[str]) -> tuple[list[str], NDArray[np.int64]]:
        """The terms of distinct words, and for each word the place of its term among them, -1 for a stop word."""
        kept = [word for word in words if word not in self._stop_words]
        if self._stem is None:
            stems = dict(zip(kept, kept, strict=True))
        else:
            new = [word for word in kept if word not in self._stems]
            self._stems.update(zip(new, self._stem(new), strict=True))
            stems = self._stems
        terms = {term: place for place, term in enumerate(dict.fromkeys(stems[word] for word in kept))}
        places = (terms[stems[word]] if word not in self._stop_words else -1 for word in words)
        return list(terms), np.fromiter(places, np.int64, len(words))


def english_words(text: str) -> list[str]:
    """Two word characters or more, lower-cased."""
    return WORD.findall(text.lower())


def any_words(text: str) -> list[str]:
    """Words of any script: as in English where there are spaces, overlapping pairs of characters where there are none.

    >>> any_words("Größe a 日本語 हिन्दी")
    ['größe', '日本', '本語', 'हिन्दी']
    """
    words: list[str] = []
    for word in ANY_WORD.findall(text.lower()):
        if len(word) > 1 and IS_UNSPACED.match(word):
            words += map("".join, pairwise(word))
        else:
            words.append(word)
    return words


def chinese_words() -> Callable[[str], list[str]]:
    """jieba's cut for search: also the shorter words inside a long one. Raises MissingExtra without jieba."""
    try:
        import jieba
    except ImportError as error:
        raise MissingExtra("jieba", "chinese") from error
    jieba.setLogLevel("ERROR")

    def split(text: str) -> list[str]:
        return [word for word in jieba.cut_for_search(text.lower()) if word.strip() and (len(word) > 1 or word.isalnum())]

    return split


def snowball(language: str) -> Callable[[list[str]], list[str]]:
    """The Snowball stemmer of a language. Raises SettingError, with the nearest known name, when there is none."""
    import Stemmer

    name = "english" if language == ENGLISH else language
    if name not in Stemmer.algorithms():
        raise SettingError(f"bm25: no language {language!r}{nearest(language, ['auto', ENGLISH, CHINESE, PLAIN, *Stemmer.algorithms()])}")
    stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer(name, 0).stemWords  # 0: no cache of its own; `Words` asks for each word once
    return stem


def parts_of(texts: Sequence[str], characters: int = OTHER_PART) -> list[range]:
    """Ranges of texts of about so many characters together; they depend on the texts alone.

    >>> parts_of(["abc", "de", "f", "ghijk"], characters=5)
    [range(0, 2), range(2, 4)]
    """
    parts, first, size = [], 0, 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= characters:
            parts.append(range(first, place + 1))
            first, size = place + 1, 0
    return [*parts, range(first, len(texts))] if first < len(texts) else parts


def processes_for(language: str, texts: Sequence[str]) -> int:
    """How many processes are worth starting for the texts; a daemon (a worker of somebody's) gets no more than itself."""
    worth = WORTH_A_PROCESS.get(language, OTHERS_WORTH_A_PROCESS)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, sum(map(len, texts)) // worth))


def count_parts(
    words: Words, texts: Sequence[str], folder: Path, *, processes: int | None = None, characters: int | None = None
) -> Iterator[tuple[range, Path]]:
    """Counts the texts part by part into `folder`; yields each part's texts and its file (`Counted.load`), in no particular order.

    This process counts too; `processes` is their number in all, None = as many as are worth it; `characters` is the size of a part.
    """
    size = characters or PART.get(words.language, OTHER_PART)
    parts = [(own, folder / f"part-{number:06d}.npz") for number, own in enumerate(parts_of(texts, size))]
    todo: SimpleQueue[tuple[range, Path]] = SimpleQueue()
    waiting = 0
    for own, path in parts:
        if path.exists():
            yield own, path
        else:
            todo.put((own, path))
            waiting += 1
    wanted = min(processes or processes_for(words.language, texts), max(waiting, 1))
    with Helpers(wanted - 1, words.language, texts, todo) as helpers:
        while waiting:
            for done in helpers.finished():
                yield done
                waiting -= 1
            try:
                own, path = todo.get_nowait()
            except Empty:
                if waiting:
                    yield helpers.next_finished()
                    waiting -= 1
                continue
            words.count(texts[own.start : own.stop]).save(path)
            yield own, path
            waiting -= 1


class Helpers:
    """Other processes that count parts from a queue, each fed by a thread of this process."""

    def __init__(self, count: int, language: str, texts: Sequence[str], todo: SimpleQueue[tuple[range, Path]]) -> None:
        self.language, self.texts, self.todo = language, texts, todo
        self._done: SimpleQueue[tuple[range, Path] | NegatronError] = SimpleQueue()
        self._processes = [self._started() for _ in range(count)]
        self._threads = [threading.Thread(target=self._feed, args=(process,), daemon=True) for process in self._processes]

    def _started(self) -> subprocess.Popen[bytes]:
        places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
        command = [sys.executable, "-m", __name__, self.language]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __enter__(self) -> Helpers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        for thread in self._threads:
            thread.join()

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Gives a process one part after the other, until there is none."""
        assert process.stdin is not None and process.stdout is not None
        try:
            while True:
                own, path = self.todo.get_nowait()
                pickle.dump((self.texts[own.start : own.stop], str(path)), process.stdin, protocol=5)
                process.stdin.flush()
                if not process.stdout.readline():
                    raise BrokenPipeError
                self._done.put((own, path))
        except Empty:
            return
        except (BrokenPipeError, ValueError):  # ValueError: closed while it was being ended
            self._done.put(NegatronError(f"a process that counts words ended (exit code {process.poll()}); run the same command again"))

    def finished(self) -> Iterator[tuple[range, Path]]:
        """The parts that are done by now."""
        while not self._done.empty():
            yield self.next_finished()

    def next_finished(self) -> tuple[range, Path]:
        """The next part that is done; waits for it. Raises NegatronError when a process has died."""
        found = self._done.get()
        if isinstance(found, NegatronError):
            raise found
        return found


def serve(source: Any, answer: Any, language: str) -> None:
    """Counts parts until `source` ends: reads a pickled (texts, path), writes the file, answers with one line."""
    words = Words(language)
    while True:
        try:
            texts, path = pickle.load(source)
        except EOFError:
            return
        words.count(texts).save(Path(path))
        answer.write(b"done\n")
        answer.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, sys.argv[1])
