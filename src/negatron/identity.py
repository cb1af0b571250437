"""What a thing *is*: fingerprints made from contents, and random streams made from names.

Two things have the same fingerprint exactly when their contents are the same, on any machine and in any process; a stream
gives the same draws for the same (seed, names), whatever was drawn before, in any worker or order.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path


def fingerprint(*parts: object) -> str:
    """16 hex digits of SHA-256 over the parts as canonical JSON.

    Raises TypeError for a part that JSON cannot write: its `repr` could differ between runs.

    >>> fingerprint("a", 1) == fingerprint("a", 1), fingerprint("a", 1) == fingerprint("a1")
    (True, False)
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_texts(texts: Iterable[str]) -> str:
    """Fingerprint of a sequence of texts, in order, without holding them together in memory.

    >>> fingerprint_texts(["ab", "c"]) == fingerprint_texts(["a", "bc"])
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """64 hex digits: SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stream(seed: int, *names: str | int) -> random.Random:
    """The random stream of (seed, names): the same draws in any process, worker or order.

    >>> stream(7, "mix", "q1").random() == stream(7, "mix", "q1").random()
    True
    """
    return random.Random(int(fingerprint(seed, *names), 16))


def same_words(text: str) -> str:
    """The form in which two texts count as the same: case folded, runs of white space as one space.

    >>> same_words(" What  is DNA?") == same_words("what is dna?")
    True
    """
    folded = text.casefold()
    if folded.isprintable() and "  " not in folded:  # then its only white space are single blanks; three times as fast, same answer
        return folded.strip(" ")
    return " ".join(folded.split())
