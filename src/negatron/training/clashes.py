"""Who may sit together in a batch, decided on numbers: which rows clash, and how often a text may be in a batch that cannot do without.

In: hashes of rows, the batch each row is meant for. Out: for each row, whether it has to go elsewhere because of a row before it.

1. `frequent_texts` finds the texts that are in more rows than there are batches: they must meet themselves.
2. `Quotas` gives them their fair share of each batch, and every other text one row.
3. `clashing` finds the rows that are too many, for any number of batches at once.

What stays true: a row never clashes with itself, nor with a row of another batch; the answer does not depend on how NumPy sorts.

What it does not know: who comes first and where the others go (`planning`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from negatron.training.shuffling import mixed
from negatron.training.text_hashes import TextHashes

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

ENTRIES_AT_A_TIME = 1 << 18
"""Hashes that are looked at together while counting."""
NOBODY = np.int64(1 << 62)
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that different texts stay different; without it, hashes made as the batches' keys are made could meet across batches."""


@dataclass(frozen=True, slots=True, eq=False)
class Quotas:
    """How many rows with a text may be in one batch: 1, but for texts that occur more often than there are full batches.

    Of such a text with f rows among n, the batch with the rows first .. end-1 of the plan may hold floor(f end / n) - floor(f first / n),
    its fair share, so that all shares make f.
    """

    texts: Hashes
    """[t]: the frequent ones, ascending."""
    rows: Ints
    """[t]: rows of the plan that have the text."""
    count: int
    """Rows of the plan."""
    batch_size: int

    def of(self, texts: Hashes, batches: Ints) -> Ints:
        """[n]: rows with texts[i] that may be in batch batches[i]; 0 for a text that is not frequent, and may be in one."""
        allowed = np.zeros(len(texts), np.int64)
        places = np.searchsorted(self.texts, texts)
        places[places == len(self.texts)] = 0
        frequent = np.flatnonzero(self.texts[places] == texts) if len(self.texts) else places[:0]
        if frequent.size:
            rows = self.rows[places[frequent]]
            first = batches[frequent] * self.batch_size
            end = np.minimum(first + self.batch_size, self.count)
            allowed[frequent] = np.maximum(rows * end // self.count - rows * first // self.count, 1)
        return allowed


def clashing(hashes: TextHashes, rows: Ints, texts: Hashes, batches: Ints, quotas: Quotas, *, seated: int = 0) -> Bools:
    """[n]: which rows may not sit in their batch because of rows before them in this list.

    rows [n]; texts [n, T], the rows' own; batches [n]. The first `seated` rows are known to meet nobody and are not asked.

    A row clashes with an earlier one of its batch when they share a text beyond its quota, or when one has a text that is a known positive
    of the other's query. (Two rows that only *know* the same positive are no clash: none of them holds it.) A frequent text is no reason
    to keep those away who know it: they would have nowhere to go.
    """
    width = texts.shape[1]
    held = np.flatnonzero(texts)
    owners, known = hashes.known_of(rows)
    values = np.concatenate([texts.reshape(-1)[held], known])
    holders = np.concatenate([held // width, owners])
    keys = keys_of(values, batches[holders])
    shared = shared_keys(keys, holders >= seated if seated else None)
    lost = np.zeros(len(rows), np.bool_)
    if not shared.size:
        return lost
    in_order = shared[np.argsort(keys[shared], kind="stable")]  # stable: within a key, those who hold it by row, then those who know it
    begins = np.flatnonzero(np.diff(keys[in_order], prepend=~keys[in_order[:1]]))
    sizes = np.diff(begins, append=len(in_order))
    group = np.repeat(np.arange(len(begins)), sizes)
    row, knows = holders[in_order], in_order >= len(held)
    turn = np.arange(len(in_order)) - begins[group]
    first_holder = np.where(knows[begins], NOBODY, row[begins])[group]
    first_knower = np.minimum.reduceat(np.where(knows, row, NOBODY), begins)[group]
    after_knowing = np.where(knows, first_holder, first_knower) < row
    asked = np.flatnonzero((after_knowing | (~knows & (turn > 0))) & (row >= seated))
    allowed = quotas.of(values[in_order[asked]], batches[row[asked]])
    refused = np.where(allowed == 0, True, ~knows[asked] & (turn[asked] >= allowed))
    lost[row[asked[refused]]] = True
    return lost


def keys_of(values: Hashes, batches: Ints) -> Hashes:
    """A number for each text in its batch: the same text in another batch is another key."""
    return values * SPREAD ^ mixed(batches.astype(np.uint64), 1)


def shared_keys(keys: Hashes, new: Bools | None = None) -> Ints:
    """The places of all keys that occur more than once, one of them at a place that is `new`, and of a few others; ascending.

    Without a sort: of a table with many more slots than keys, only slots that two keys fall into are of interest. Measured on 230,000
    keys: 3 ms against 10 ms for a sort of them all.
    """
    bits = max(8, len(keys).bit_length() + 2)
    slots = (keys >> np.uint64(64 - bits)).astype(np.intp)
    flags = np.zeros(1 << bits, np.bool_)
    near = np.arange(len(keys))
    if new is not None:
        flags[slots[new]] = True
        near = np.flatnonzero(flags[slots])
        slots = slots[near]
        flags[:] = False
    table = np.empty(1 << bits, np.int32)
    numbers = np.arange(len(near), dtype=np.int32)
    table[slots] = numbers
    flags[slots[table[slots] != numbers]] = True
    return near[flags[slots]]


def frequent_texts(hashes: TextHashes, limit: float) -> tuple[Hashes, Ints]:
    """All texts that are in more than `limit` rows, ascending, and the number of their rows; a part of the hashes in memory at a time.

    1. Count into slots by the leading bits: a slot that is not above the limit holds no such text. Mostly none is, and that was all.
    2. Of the texts in the other slots, keep a summary of so many counters that a text it loses cannot be above the limit (Misra and
       Gries 1982, merged part by part as in Agarwal et al. 2013, "Mergeable summaries").
    3. Count what the summary names.
    """
    room = int(hashes.texts.size / max(limit, 1.0)) + 1
    shift = np.uint64(64 - max(8, int(4 * room).bit_length()))
    loads = np.zeros(1 << (64 - int(shift)), np.int64)
    for part in parts_of(hashes.texts, len(loads)):
        loads += np.bincount((part >> shift).astype(np.intp), minlength=len(loads))
    full = loads > limit
    names, counts, lost = np.zeros(0, np.uint64), np.zeros(0, np.int64), 0
    if not full.any():
        return names, counts
    for part in parts_of(hashes.texts, len(loads)):
        part = part[full[(part >> shift).astype(np.intp)]]
        names, counts = added(np.concatenate([names, part]), np.concatenate([counts, np.ones(len(part), np.int64)]))
        if len(names) > room:
            least = int(np.partition(counts, len(counts) - room - 1)[len(counts) - room - 1])
            names, counts, lost = names[counts > least], counts[counts > least] - least, lost + least
    names = names[counts + lost > limit]
    counts = counts[counts + lost > limit] if not lost else counted(hashes.texts, names)
    return names[counts > limit], counts[counts > limit]


def counted(texts: Hashes, names: Hashes) -> Ints:
    """[n]: in how many rows each of the names is; names ascending, at least one."""
    counts = np.zeros(len(names), np.int64)
    for part in parts_of(texts, ENTRIES_AT_A_TIME):
        places = np.searchsorted(names, part)
        places[places == len(names)] = 0
        counts += np.bincount(places[names[places] == part], minlength=len(names))
    return counts


def parts_of(texts: Hashes, entries: int) -> Iterator[Hashes]:
    """The texts of all rows, in parts of about `entries`, or of ENTRIES_AT_A_TIME where that is more."""
    rows = max(1, max(entries, ENTRIES_AT_A_TIME) // max(texts.shape[1], 1))
    for first in range(0, len(texts), rows):
        part = np.asarray(texts[first : first + rows]).reshape(-1)
        yield part[part != 0]


def added(names: Hashes, counts: Ints) -> tuple[Hashes, Ints]:
    """Each name once, ascending, with the sum of its counts."""
    order = np.argsort(names, kind="stable")
    names, counts = names[order], counts[order]
    begins = np.flatnonzero(np.diff(names, prepend=~names[:1]))
    return names[begins], np.add.reduceat(counts, begins) if len(begins) else counts


def least_conflicts(hashes: TextHashes, batch_size: int) -> int:
    """A bound that no plan of an epoch can go below: the rows of the most frequent text, less one for each batch."""
    batches = -(-len(hashes) // batch_size)
    _, counts = frequent_texts(hashes, batches)
    return int(counts.max(initial=batches)) - batches
