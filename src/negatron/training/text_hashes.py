"""The texts of training examples as 64-bit numbers, made once for a data set, so that a plan never reads a text.

In: training examples. Out: `TextHashes`, in memory or memory-mapped from a folder.

1. `texts` [rows, texts]: the query, the positive and the own negatives of each example; 0 where a row has fewer. A text that stands
   twice in a row is kept once.
2. The known positives of each example's query, ragged: `known_values[known_ranges[i, 0] : known_ranges[i, 1]]`. They are there only
   where there are more than the row's own positive; examples that stand one behind the other and know the same share their values.

What stays true: texts that are the same words (identity.same_words) have the same number in any process and on any machine. Two other
texts share a number by chance with probability 2^-64: among the 700 million texts of 100 million rows about one pair in 75 such data sets,
and all it does is to keep two rows apart that could have met.

What it does not know: batches, seeds, tokens.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from negatron.errors import DataError, SettingError
from negatron.identity import same_words
from negatron.progress import Meter
from negatron.store import begin, read_manifest
from negatron.training.example_store import ExampleStore, ExampleTexts, texts_of
from negatron.types import TrainingExample

KIND = "text hashes"
RULE = "same_words.v1 blake2b-64"
TEXTS, RANGES, VALUES = "texts.npy", "known_ranges.npy", "known_values.u64"
ROWS_AT_A_TIME = 8192
REMEMBERED = 1 << 16
"""Texts whose number is remembered while hashing: mined negatives come again and again."""

Part = tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]
"""Of some rows: texts [n, T], known ranges [n, 2] (into the part's own values), known values [v]."""


@dataclass(frozen=True, slots=True, eq=False)
class TextHashes:
    """Numbers in the place of texts; `len` is the number of rows. All three arrays may be memory-mapped."""

    texts: NDArray[np.uint64]
    """[rows, texts]; 0 = no text."""
    known_ranges: NDArray[np.int64]
    """[rows, 2]: first and end of the row's known positives in `known_values`."""
    known_values: NDArray[np.uint64]
    """[values]."""
    fingerprint: str
    """Of the contents."""

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, examples: Sequence[TrainingExample], *, fingerprint: str = "") -> TextHashes:
        """The numbers of all texts of the examples, in memory. `fingerprint`: a name for these examples, if they have one."""
        width = texts_per_row(examples)
        digest = remembering()
        parts = [hashed(rows, width, digest) for rows in blocks(texts_of(examples))]
        texts = np.concatenate([part[0] for part in parts]) if parts else np.zeros((0, width), np.uint64)
        shifts = np.cumsum([0, *(len(part[2]) for part in parts)])
        ranges = [part[1] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
        values = [part[2] for part in parts]
        return cls(
            texts,
            np.concatenate(ranges) if ranges else np.zeros((0, 2), np.int64),
            np.concatenate(values) if values else np.zeros(0, np.uint64),
            fingerprint,
        )

    @classmethod
    def open(cls, folder: Path) -> TextHashes:
        """The numbers in a folder that `write` made, memory-mapped. Raises DataError for anything else."""
        manifest = read_manifest(folder, KIND)
        if manifest.inputs.get("rule") != RULE:
            raise DataError(f"made by the rule {manifest.inputs.get('rule')!r}, this version compares by {RULE!r}; make it again", folder)
        values = folder / VALUES
        return cls(
            np.load(folder / TEXTS, mmap_mode="r"),
            np.load(folder / RANGES, mmap_mode="r"),
            np.memmap(values, np.uint64, "r") if values.stat().st_size else np.zeros(0, np.uint64),
            manifest.fingerprint,
        )

    @classmethod
    def write(cls, folder: Path, examples: Sequence[TrainingExample], *, fingerprint: str, workers: int = 1) -> TextHashes:
        """Hashes all texts into a folder, whole or not at all, and opens it. A folder of the same examples is opened as it is.

        Args:
            folder: written through `store`, with a manifest.
            examples: a list, or an ExampleStore, of which only the texts are read.
            fingerprint: of the examples (ExampleStore.fingerprint, or what the caller calls them).
            workers: processes that hash; more than one needs an ExampleStore, which they can open themselves.

        Raises SettingError for several workers on examples in memory, NegatronError when the folder holds something else.

        """
        if workers > 1 and not isinstance(examples, ExampleStore):
            raise SettingError(
                f"workers = {workers}: several processes can only hash examples that lie in an ExampleStore; write one first"
            )
        with begin(folder, kind=KIND, inputs={"examples": fingerprint, "rule": RULE}) as work:
            if work.finished is None:
                write_parts(work.path, parts_of(examples, workers), len(examples), texts_per_row(examples))
                work.finish(rows=len(examples))
        return cls.open(folder)

    def known_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The known positives of some rows: [k] places in `rows`, ascending, and [k] numbers."""
        if not len(self.known_values):
            return np.zeros(0, np.int64), np.zeros(0, np.uint64)
        ranges = self.known_ranges[rows]
        counts = ranges[:, 1] - ranges[:, 0]
        owners = np.repeat(np.arange(len(rows)), counts)
        behind = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, self.known_values[ranges[owners, 0] + behind]


def texts_per_row(examples: Sequence[TrainingExample]) -> int:
    """Query, positive and the most negatives that an example has."""
    if isinstance(examples, ExampleStore):
        return 2 + examples.most_negatives
    return 2 + max((len(example.negatives) for example in examples), default=0)


def digest_of(text: str) -> bytes:
    """Eight bytes: the number of a text, little end first; the same for texts that are the same words.

    >>> digest_of(" What  is DNA?") == digest_of("what is dna?"), digest_of("what is rna?") == digest_of("what is dna?")
    (True, False)
    """
    return blake2b(same_words(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def remembering(limit: int = REMEMBERED) -> Callable[[str], bytes]:
    """`digest_of` that remembers up to `limit` texts, so that memory does not grow with the data set."""
    memory: dict[str, bytes] = {}

    def digest(text: str) -> bytes:
        found = memory.get(text)
        if found is None:
            if len(memory) >= limit:
                memory.clear()
            found = memory[text] = digest_of(text)
        return found

    return digest


def blocks(rows: Iterator[ExampleTexts]) -> Iterator[list[ExampleTexts]]:
    """Lists of ROWS_AT_A_TIME rows, the last one shorter."""
    block: list[ExampleTexts] = []
    for row in rows:
        block.append(row)
        if len(block) == ROWS_AT_A_TIME:
            yield block
            block = []
    if block:
        yield block


def hashed(rows: Sequence[ExampleTexts], width: int, digest: Callable[[str], bytes]) -> Part:
    """The numbers of some rows; `width` texts a row at most."""
    texts, values = list[bytes](), list[bytes]()
    ranges = np.zeros((len(rows), 2), np.int64)
    before: frozenset[str] = frozenset()
    for place, (query, documents, known) in enumerate(rows):
        texts.append(digest(query))
        texts.extend(map(digest, documents))
        texts.append(bytes(8 * (width - 1 - len(documents))))
        if len(known) < 2 and known <= {documents[0]}:
            continue
        if known == before:
            ranges[place] = ranges[place - 1]
            continue
        first, before = len(values), known
        values += sorted(set(map(digest, known)))
        ranges[place] = first, len(values)
    return kept_once(numbers(texts).reshape(len(rows), width)), ranges, numbers(values)


def numbers(digests: Sequence[bytes]) -> NDArray[np.uint64]:
    """The digests, behind each other, as numbers."""
    return np.frombuffer(bytearray(b"".join(digests)), "<u8").astype(np.uint64, copy=False)


def kept_once(texts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same array, in which later copies of a row's text are 0: a row does not stand in its own way."""
    for column in range(1, texts.shape[1]):
        texts[(texts[:, :column] == texts[:, column : column + 1]).any(axis=1), column] = 0
    return texts


def parts_of(examples: Sequence[TrainingExample], workers: int) -> Iterator[Part]:
    """The hashed parts of all rows, in order, each of ROWS_AT_A_TIME rows at most."""
    width = texts_per_row(examples)
    if workers > 1 and isinstance(examples, ExampleStore):
        starts = range(0, len(examples), ROWS_AT_A_TIME)
        ends = (min(first + ROWS_AT_A_TIME, len(examples)) for first in starts)
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(partial(hashed_from, examples.path, width), starts, ends)
    else:
        digest = remembering()
        yield from (hashed(rows, width, digest) for rows in blocks(texts_of(examples)))


def hashed_from(path: Path, width: int, first: int, end: int) -> Part:
    """The part of the rows first .. end-1 of a stored file; for worker processes."""
    return hashed(list(ExampleStore(path).texts(first, end)), width, remembering())


def write_parts(folder: Path, parts: Iterator[Part], rows: int, width: int) -> None:
    """Writes the three files of a folder, a part in memory at a time."""
    texts = np.lib.format.open_memmap(folder / TEXTS, "w+", np.uint64, (rows, width))
    ranges = np.lib.format.open_memmap(folder / RANGES, "w+", np.int64, (rows, 2))
    first = shift = 0
    with (folder / VALUES).open("wb") as file, Meter("hash", rows, "rows") as meter:
        for part_texts, part_ranges, part_values in parts:
            end = first + len(part_texts)
            texts[first:end], ranges[first:end] = part_texts, part_ranges + shift
            file.write(part_values.tobytes())
            first, shift = end, shift + len(part_values)
            meter.advance(len(part_texts))
    texts.flush()
    ranges.flush()
