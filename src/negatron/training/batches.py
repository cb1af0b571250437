"""Which examples are neighbours (`plan`), and how a batch is laid out (`collate`).

1. `plan` deals the examples of an epoch into batches, so that no query text meets itself where that can be avoided. It looks at queries
   only and holds all texts in memory; `planning.plan_epoch` looks at all texts and known positives, for any number of examples.
2. `collate` gives each distinct document text one column, and says in `Targets` which columns may not count against which query.

What stays true: both are pure. The same texts, seed and epoch give the same batches in any process, for any number of workers, and
every example is in exactly one batch of an epoch. No known positive of a query, and no copy of one, is ever a negative of it.

What it does not know: tokens, encoders, the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from negatron.identity import same_words, stream
from negatron.training.targets import Targets, TeacherScores
from negatron.types import TrainingExample

WRITTEN_SOURCES = frozenset({"synthetic"})
"""Sources that are language models, as synthesis names them: "synthetic", or "synthetic:NAME"."""


def plan(query_texts: Sequence[str], batch_size: int, *, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The batches of one epoch, as positions in `query_texts` (one text an example). The last batch may be smaller; none is dropped.

    The examples are shuffled and then dealt one by one to the batches in turn, like cards; those that share a query text (but for
    case and white space) are dealt one after the other, the most frequent texts first. So a text that occurs no more often than
    there are full batches never meets itself, and a more frequent one is spread evenly; `collate` masks what is left.

    >>> plan(["a", "A", "b", "c", "c"], 3, seed=1, epoch=0)
    [(0, 4, 2), (1, 3)]
    """
    draw = stream(seed, "batches", epoch)
    shuffled = list(range(len(query_texts)))
    draw.shuffle(shuffled)
    groups: dict[str, list[int]] = {}
    for position in shuffled:
        groups.setdefault(same_words(query_texts[position]), []).append(position)
    in_turn = (position for group in sorted(groups.values(), key=len, reverse=True) for position in group)
    count = math.ceil(len(query_texts) / batch_size)
    room = [min(batch_size, len(query_texts) - n * batch_size) for n in range(count)]
    batches: list[list[int]] = [[] for _ in room]
    turns = cycle(range(count))
    for position in in_turn:
        turn = next(n for n in turns if len(batches[n]) < room[n])
        batches[turn].append(position)
    full = batches[:-1]
    draw.shuffle(full)  # dealt one after the other, examples of one text would also be *learnt from* one after the other
    return [tuple(batch) for batch in (*full, *batches[-1:])]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Row i of the targets is `query_texts[i]`, column j is `document_texts[j]`; document texts are distinct."""

    query_texts: tuple[str, ...]
    document_texts: tuple[str, ...]
    targets: Targets


def collate(examples: Sequence[TrainingExample], *, in_batch: bool = True, written_sources: frozenset[str] = WRITTEN_SOURCES) -> Batch:
    """The batch made of the examples: row i is example i, columns are their documents' contents in the order of first appearance.

    Excluded for a query: every column, but its own positive's, that is the same text (but for case and white space) as a known positive
    of that query, or of any other example of this batch that asks the same. A negative that is another query's positive stays a
    negative. Raises ValueError for no examples.

    Args:
        examples: at least one.
        in_batch: goes into the targets.
        written_sources: an own negative counts as written by a language model (`targets.written`) where one of its origins has such a
            source, or one named "SOURCE:...", even if a search found the same text too.

    `targets.weights` are the examples' weights, None where all are 1. `targets.teacher` are the teacher's scores, None unless every
    positive and every own negative has one. Of own negatives with the same text the first one's score counts, and any one's author.

    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    column: dict[str, int] = {}
    columns_of_row: list[list[int]] = []
    for example in examples:
        contents = (example.positive.content, *(negative.document.content for negative in example.negatives))
        columns_of_row.append([column.setdefault(content, len(column)) for content in contents])
    barred = barred_columns(examples, column)
    excluded = [(row, j) for row, columns in enumerate(barred) for j in columns if j != columns_of_row[row][0]]
    own, written, scores = own_negatives(examples, columns_of_row, barred, written_sources)
    targets = Targets(
        torch.tensor([columns[0] for columns in columns_of_row]),
        pairs(excluded),
        pairs(own),
        in_batch,
        written=torch.tensor(written) if any(written) else None,
        weights=None if all(example.weight == 1 for example in examples) else torch.tensor([float(e.weight) for e in examples]),
        teacher=teacher_scores([example.positive_score for example in examples], scores),
    )
    return Batch(tuple(example.query.text for example in examples), tuple(column), targets)


def own_negatives(
    examples: Sequence[TrainingExample],
    columns_of_row: Sequence[Sequence[int]],
    barred: Sequence[Sequence[int]],
    written_sources: frozenset[str],
) -> tuple[list[tuple[int, int]], list[bool], list[float | None]]:
    """[H] (row, column) of the own negatives, row after row, columns ascending; whether written; the teacher's score."""
    own, written, scores = list[tuple[int, int]](), list[bool](), list[float | None]()
    by_model = {source: source.partition(":")[0] in written_sources for source in sources_of(examples)}
    for row, (example, columns) in enumerate(zip(examples, columns_of_row, strict=True)):
        out, before = {columns[0], *barred[row]}, -1
        for j, negative in sorted(zip(columns[1:], example.negatives, strict=True), key=itemgetter(0)):
            if j in out:
                continue
            by_a_model = any(by_model[origin.source] for origin in negative.origins)
            if j == before:  # the same text again, which sorting put behind the first one
                written[-1] = written[-1] or by_a_model
                continue
            before = j
            own.append((row, j))
            written.append(by_a_model)
            scores.append(negative.teacher_score)
    return own, written, scores


def sources_of(examples: Sequence[TrainingExample]) -> set[str]:
    """The names of all sources of the examples' negatives."""
    return {origin.source for example in examples for negative in example.negatives for origin in negative.origins}


def teacher_scores(positive: Sequence[float | None], own: Sequence[float | None]) -> TeacherScores | None:
    """The scores of all pairs of a batch; None where the teacher has not scored every one of them."""
    known = [[score for score in scores if score is not None] for scores in (positive, own)]
    if len(known[0]) < len(positive) or len(known[1]) < len(own):
        return None
    return TeacherScores(torch.tensor(known[0], dtype=torch.float32), torch.tensor(known[1], dtype=torch.float32))


def barred_columns(examples: Sequence[TrainingExample], column: Mapping[str, int]) -> list[list[int]]:
    """For each example the columns, ascending, that are known positives of its query; those with its own text among them."""
    words = same_words_classes(chain(column, chain.from_iterable(example.known_positives for example in examples)))
    columns_of: dict[int, list[int]] = {}
    for content, j in column.items():
        columns_of.setdefault(words[content], []).append(j)
    asks = same_words_classes(example.query.text for example in examples)
    known: dict[int, set[int]] = {}
    for example in examples:
        texts = known.setdefault(asks[example.query.text], set())
        texts.add(words[example.positive.content])
        texts.update([words[content] for content in example.known_positives])
    barred = {query: sorted(chain.from_iterable(columns_of.get(word, ()) for word in texts)) for query, texts in known.items()}
    return [barred[asks[example.query.text]] for example in examples]


def same_words_classes(texts: Iterable[str]) -> dict[str, int]:
    """Text -> a number that two texts share exactly when they are the same words (identity.same_words).

    >>> same_words_classes(["How do cells divide?", "why", "how  do cells divide?"])
    {'How do cells divide?': 0, 'why': 1, 'how  do cells divide?': 0}
    """
    folded: dict[str, int] = {}
    return {text: folded.setdefault(same_words(text), len(folded)) for text in dict.fromkeys(texts)}


def pairs(values: Sequence[tuple[int, int]]) -> Tensor:
    """[len(values), 2] int64, also for no values."""
    flat = np.fromiter(chain.from_iterable(values), np.int64, 2 * len(values))
    return torch.from_numpy(flat.reshape(-1, 2))
