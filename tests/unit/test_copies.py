"""Near copies are found without comparing every pair, and none is missed."""

from __future__ import annotations

import pytest

from negatron.identity import stream
from negatron.negatives.copies import NearCopy, overlap, shingles, sketch
from negatron.types import Candidate, Document, Origin, Positive, Query

WORDS = [f"{first}{second}" for first in "bdgk" for second in "aeiou"]


def texts(seed: int, count: int = 40) -> list[str]:
    """Long texts of which each repeats an earlier one but for some words, or none."""
    draw = stream(seed, "texts")
    found = [" ".join(draw.choices(WORDS, k=30))]
    while len(found) < count:
        words = draw.choice(found).split()
        for _ in range(draw.randrange(8)):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        found.append(" ".join(words[draw.randrange(3) :]))
    return found


@pytest.mark.parametrize("limit", [0.3, 0.56, 0.8, 0.9, 1.0])
def test_the_quick_way_rejects_what_comparing_every_pair_rejects(limit: float) -> None:
    rejected = 0
    for seed in range(8):
        found = texts(seed)
        candidates = [Candidate("q", Document(f"d{n}", text), (Origin("bm25", "m"),)) for n, text in enumerate(found[5:])]
        positives = [Positive(Document(f"p{n}", text)) for n, text in enumerate(found[:5])]
        quick = [verdict.kept for verdict in NearCopy(limit).judge(Query("q", "?"), positives, candidates)]
        seen, plain = [shingles(text) for text in found[:5]], []
        for text in found[5:]:
            plain.append(all(overlap(shingles(text), other) < limit for other in seen))
            seen += [shingles(text)] if plain[-1] else []
        assert quick == plain
        rejected += plain.count(False)
    assert rejected > 0, "there was something to find"


def test_a_sketch_holds_little_of_a_long_text() -> None:
    made = sketch(" ".join(f"w{n}" for n in range(202)), 0.9)
    assert (made.size, len(made.prefix)) == (200, 21)
    assert len(sketch("one two three four five six seven eight nine ten", 1.0).prefix) == 1
