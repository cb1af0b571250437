"""Which examples are neighbours (`plan`), and how a batch is laid out (`collate`).

1. `plan` deals the examples of an epoch into batches, so that no query text meets itself where that can be avoided.
2. `collate` gives each distinct document text one column, and says in `Targets` which columns may not count against which query.

What stays true: both are pure. The same texts, seed and epoch give the same batches in any process, for any number of workers, and
every example is in exactly one batch of an epoch. No known positive of a query, and no copy of one, is ever a negative of it.

What it does not know: tokens, encoders, the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from negatron.identity import same_words, stream
from negatron.training.losses import Targets
from negatron.types import TrainingExample


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


def collate(examples: Sequence[TrainingExample], *, in_batch: bool = True) -> Batch:
    """The batch made of the examples: row i is example i, columns are their documents' contents in the order of first appearance.

    Excluded for a query: every column, but its own positive's, that is the same text (but for case and white space) as a known positive
    of that query, or of any other example of this batch that asks the same. A negative that is another query's positive stays a
    negative. `in_batch` goes into the targets. Raises ValueError for no examples.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    column: dict[str, int] = {}
    for example in examples:
        for document in (example.positive, *(negative.document for negative in example.negatives)):
            column.setdefault(document.content, len(column))
    columns_of: dict[str, list[int]] = {}
    for content, number in column.items():
        columns_of.setdefault(same_words(content), []).append(number)
    known = known_positives(examples)
    positive, excluded, own = [], [], []
    for row, example in enumerate(examples):
        own_positive = column[example.positive.content]
        barred = {j for words in known[same_words(example.query.text)] for j in columns_of.get(words, ())}
        negatives = {column[negative.document.content] for negative in example.negatives}
        positive.append(own_positive)
        excluded += [(row, j) for j in sorted(barred - {own_positive})]
        own += [(row, j) for j in sorted(negatives - barred)]
    targets = Targets(torch.tensor(positive), pairs(excluded), pairs(own), in_batch)
    return Batch(tuple(example.query.text for example in examples), tuple(column), targets)


def known_positives(examples: Sequence[TrainingExample]) -> dict[str, set[str]]:
    """Query text -> all known positives of the examples that ask it, own positives among them; texts in the form in which they compare."""
    known: dict[str, set[str]] = {}
    for example in examples:
        contents = {same_words(content) for content in (example.positive.content, *example.known_positives)}
        known.setdefault(same_words(example.query.text), set()).update(contents)
    return known


def pairs(values: Sequence[tuple[int, int]]) -> Tensor:
    """[len(values), 2] int64, also for no values."""
    return torch.tensor(values, dtype=torch.long).reshape(-1, 2)
