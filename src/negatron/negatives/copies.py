"""Rules that reject copies by comparing texts: the same text, and a near copy. They ask no model and need no scores.

A near copy is found without comparing every pair: two texts whose shingles overlap by at least the limit share one of the few
shingles that each would have to lose to fall below it (the prefix filter of Chaudhuri et al., ICDE 2006). Only texts that do are compared
whole. Shingles are ordered by a hash of their characters, so which texts are compared is the same in every process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from negatron.identity import same_words
from negatron.types import Candidate, Positive, Query, Verdict

WORDS_IN_SHINGLE, CHARACTERS_IN_SHINGLE = 3, 4
FEWEST_WORDS = 8
"""Texts of fewer words (short ones, Chinese ones) are compared by runs of characters."""
ROUNDING = 1e-9
"""Subtracted before rounding up, so that 0.56 x 25 = 14.000000000000002 counts as 14 shared shingles and not as 15."""


@lru_cache(maxsize=2_000)
def shingles(text: str) -> frozenset[str]:
    """The runs of three words of a text, or of four characters where it has fewer than eight words.

    >>> sorted(shingles("ls -la"))
    [' -la', 'ls -', 's -l']
    """
    folded = same_words(text)
    words = folded.split(" ")
    if len(words) < FEWEST_WORDS:
        return frozenset(folded[i : i + CHARACTERS_IN_SHINGLE] for i in range(max(1, len(folded) - CHARACTERS_IN_SHINGLE + 1)))
    return frozenset(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard overlap of two sets, 0..1."""
    if not a or not b:
        return 0.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


@dataclass(frozen=True, slots=True)
class Sketch:
    """What tells whether a text may be a near copy: its number of shingles, and hashes of those of which a near copy must share one."""

    size: int
    prefix: tuple[int, ...]


@lru_cache(maxsize=50_000)
def sketch(text: str, limit: float) -> Sketch:
    """The sketch of a text for one limit, 0 < limit <= 1. A text that overlaps by `limit` shares at least limit x size shingles with it."""
    found = shingles(text)
    kept = len(found) - math.ceil(limit * len(found) - ROUNDING) + 1
    return Sketch(len(found), tuple(sorted(crc32(shingle.encode("utf-8", "surrogatepass")) for shingle in found)[:kept]))


@lru_cache(maxsize=50_000)
def same_text_key(text: str) -> bytes:
    """Equal for two texts that are equal but for case and white space: 16 bytes, so that no folded text need be kept."""
    return blake2b(same_words(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class SameText:
    """Rejects copies: of a positive, of the query, or of an earlier candidate, up to case and white space."""

    name: str = "same text"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """By the text, with or without its title."""
        seen = {same_text_key(query.text): "the query"}
        for positive in positives:
            both = (same_text_key(positive.document.content), same_text_key(positive.document.text))
            seen |= dict.fromkeys(both, f"positive {positive.document.id}")
        verdicts = []
        for candidate in candidates:
            content = same_text_key(candidate.document.content)
            copied = seen.get(content) or seen.get(same_text_key(candidate.document.text))
            verdicts.append(Verdict(copied is None, self.name, detail=f"copy of {copied}" if copied else ""))
            seen.setdefault(content, candidate.document.id)
        return verdicts


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Rejects near copies of a positive or of an earlier candidate: measured = largest Jaccard overlap of shingles, 0..1.

    Only overlaps that can reach the limit are worked out, so `measured` is 0 where none can.
    """

    limit: float
    name: str = "near copy"

    def judge(self, query: Query, positives: Sequence[Positive], candidates: Sequence[Candidate]) -> list[Verdict]:
        """Candidates are compared with the positives and with the candidates before them that this rule keeps."""
        seen = Seen(self.limit)
        for positive in positives:
            seen.add(positive.document.id, positive.document.content)
        verdicts = []
        for candidate in candidates:
            content = candidate.document.content
            measured, copied = seen.closest(content)
            kept = measured < self.limit
            verdicts.append(Verdict(kept, self.name, measured, self.limit, "" if kept else f"near copy of {copied}"))
            if kept:
                seen.add(candidate.document.id, content)
        return verdicts


class Seen:
    """Texts seen so far, found again by what a near copy must share with them."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._texts: list[tuple[str, str, int]] = []
        self._places: dict[int, list[int]] = {}

    def add(self, name: str, text: str) -> None:
        """Remembers a text under a name."""
        own, places, number = sketch(text, self.limit), self._places, len(self._texts)
        for hashed in own.prefix:
            if hashed in places:
                places[hashed].append(number)
            else:
                places[hashed] = [number]
        self._texts.append((name, text, own.size))

    def closest(self, text: str) -> tuple[float, str]:
        """(largest overlap with a text that may reach the limit, its name); (0, "") where there is none. Of equals the later name."""
        own = sketch(text, self.limit)
        found = {place for hashed in own.prefix for place in self._places.get(hashed, ())}
        compared = (self._texts[place] for place in found)
        return max(
            (
                (overlap(shingles(text), shingles(other)), name)
                for name, other, size in compared
                if min(size, own.size) >= self.limit * max(size, own.size) - ROUNDING
            ),
            default=(0.0, ""),
        )
