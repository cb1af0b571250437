"""A shuffled order of 0 .. count-1 that is never held in memory: any stretch of it can be computed alone.

In: a count and a random stream. Out: `Permutation.between(first, end)`, positions first .. end-1 of the order.

A Feistel network over pairs (left, right), left < a, right < b, a * b just above the count, with as many rounds as make it look random
(eight; four are enough in theory for strong round functions: Luby and Rackoff 1988; over a x b: Black and Rogaway 2002, "Ciphers with
arbitrary finite domains"). Values at or above the count walk on through the network until they fall below ("cycle walking" in that paper).

Why not a shuffled array: it would take 8 bytes a row, 800 MB at 100 million rows. Why not shuffled blocks: neighbours on file would meet
in one batch again and again.

What stays true: every stretch together is a permutation; it depends on the stream alone, not on the machine or the version of NumPy.
What it does not know: rows, texts, batches. It is no cipher.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Permutation:
    """A pseudorandom order of 0 .. count-1; `keys` choose which."""

    count: int
    keys: tuple[int, ...]

    @classmethod
    def drawn(cls, count: int, draw: random.Random) -> Permutation:
        """The order that the next draws of a stream choose."""
        return cls(count, tuple(draw.getrandbits(64) for _ in range(ROUNDS)))

    def between(self, first: int, end: int) -> NDArray[np.int64]:
        """[end - first]: what stands at the positions first .. end-1 of the order, 0 <= first <= end <= count.

        >>> order = Permutation.drawn(5, random.Random(1))
        >>> order.between(0, 5).tolist(), order.between(3, 5).tolist()
        ([4, 2, 1, 0, 3], [0, 3])
        """
        values = self._through(np.arange(first, end, dtype=np.uint64))
        while (outside := np.flatnonzero(values >= self.count)).size:
            values[outside] = self._through(values[outside])
        return values.astype(np.int64)

    def _through(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Once through the network: a bijection of 0 .. a*b - 1."""
        side = max(1, math.isqrt(max(self.count - 1, 0)) + 1)
        a, b = np.uint64(side), np.uint64(max(1, -(-self.count // side)))
        left, right = values // b, values % b
        for number, key in enumerate(self.keys):
            if number % 2:
                right = (right + mixed(left, key) % b) % b
            else:
                left = (left + mixed(right, key) % a) % a
        return left * b + right


def mixed(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """64 well mixed bits of each (value, key): the output function of SplitMix64 (Steele, Lea and Flood 2014), the same on any machine."""
    bits = values + np.uint64(key)  # arrays of uint64 wrap round, which is meant
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
