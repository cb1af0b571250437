"""Which examples are neighbours: the plan of an epoch, for as many rows as fit on disk.

In: `TextHashes` of the examples, a batch size, a seed, an epoch. Out: a `Plan`, every row in exactly one batch.

1. The rows come in a shuffled order (`shuffling.Permutation`), a window of a few batches at a time.
2. Each row is offered a seat in a batch of the window. Where it would meet a text of its own, or a known positive of a neighbour, it
   steps back, is offered a seat in another batch, and in the end waits for the next window. Rows that wait go first.
3. At the end of the order some rows may still wait and as many seats be free. Windows of finished batches are opened again: a waiting
   row takes the seat of somebody in a batch where it meets nobody, and that one takes a free seat.
4. What cannot be seated so is seated anyway, spread evenly; `collate` masks it, and `Plan.conflicts` counts it.

A text that occurs more often than there are batches must meet itself. It may do so in its fair share of each batch and no more
(`Quotas`), so that it is spread evenly and the number of its meetings is the least possible.

What stays true: the rows out are the rows in, whatever the texts. The plan is a pure function of the hashes, the batch size, the seed
and the epoch: it is the same in any process, for any number of workers, on any machine. Memory grows with the batch size, not with the
rows, but for the arrays of hashes and positions, which may lie on disk; the time is linear in the rows.

What it does not know: texts, tokens, encoders; whether a known positive is also a good one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from negatron.errors import SettingError
from negatron.identity import stream
from negatron.store import begin, read_manifest
from negatron.training.clashes import Bools, Hashes, Ints, Quotas, clashing, frequent_texts, keys_of, least_conflicts
from negatron.training.shuffling import Permutation, mixed
from negatron.training.text_hashes import TextHashes

__all__ = ["Plan", "TextHashes", "least_conflicts", "plan_epoch"]

KIND = "plan"
POSITIONS = "positions.npy"
WINDOW_ROWS = 1 << 15
"""Rows that are seated at the same time; two batches at least."""
OFFERS = 24
"""How often a window offers its free seats."""
OFFERS_TO_THE_WAITING = 3
"""Of these, how many go to the rows that wait before new ones are drawn."""
SWAPS = 64
"""How often a window of finished batches is gone through at the end."""
PATIENCE = 6
"""A window is given up when more than FEW are left and have not become a tenth fewer in so many offers or turns."""
FEW = 16
FAILURES = 3
"""How many such windows may fail to part half of the rows that came to them; where more than FEW are left, one."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan(Sequence[NDArray[np.int64]]):
    """The batches of an epoch, or of a stretch of one: `plan[k]` are the rows of batch k, [batch_size] or, the last, fewer."""

    positions: NDArray[np.integer]
    """[rows]: batch after batch; may be memory-mapped."""
    batch_size: int
    conflicts: int
    """Rows that would have to leave their batch so that no text is in two rows of it, and no known positive beside its query."""

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    @overload
    def __getitem__(self, number: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, number: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, number: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        first = number % len(self) * self.batch_size
        return np.array(self.positions[first : first + self.batch_size], np.int64)

    @classmethod
    def open(cls, folder: Path) -> Plan:
        """A plan that `plan_epoch` left in a folder, memory-mapped. Raises DataError for anything else."""
        manifest = read_manifest(folder, KIND)
        positions = np.load(folder / POSITIONS, mmap_mode="r")
        return cls(positions, manifest.inputs["batch_size"], manifest.facts["conflicts"])


def plan_epoch(
    hashes: TextHashes,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    first: int = 0,
    count: int | None = None,
    folder: Path | None = None,
) -> Plan:
    """The batches of one epoch. Every row is in exactly one batch; the last batch may be smaller.

    Args:
        hashes: of the examples, which the positions of the plan mean.
        batch_size: rows in a batch, over all processes.
        seed: of the training.
        epoch: each has its own order.
        first: rows of the epoch's order that are left out, because a plan of another batch size has used them: stages of a curriculum
            that split an epoch plan (0, n), (n, m), ... and use every row once.
        count: rows of the order to plan from there; None = all that are left.
        folder: where to keep the plan, so that a later process, or a resumed one, opens it instead of planning again.

    Raises SettingError for a batch size below 1 or a stretch outside the epoch, NegatronError when the folder holds something else.

    """
    count = len(hashes) - first if count is None else count
    if batch_size < 1:
        raise SettingError(f"batch_size = {batch_size}: a batch needs at least one row")
    if first < 0 or count < 0 or first + count > len(hashes):
        raise SettingError(f"rows {first:,} .. {first + count:,} of an epoch's order that has {len(hashes):,}")
    kind = np.dtype(np.int32 if len(hashes) <= np.iinfo(np.int32).max else np.int64)
    if folder is None:
        positions = np.empty(count, kind)
        return Plan(positions, batch_size, Dealer(hashes, positions, batch_size, seed, epoch, first).deal())
    inputs = {"hashes": hashes.fingerprint, "batch_size": batch_size, "seed": seed, "epoch": epoch, "first": first, "count": count}
    with begin(folder, kind=KIND, inputs=inputs) as work:
        if work.finished is None:
            stored = np.lib.format.open_memmap(work.path / POSITIONS, "w+", kind, (count,))
            conflicts = Dealer(hashes, stored, batch_size, seed, epoch, first).deal()
            stored.flush()
            work.finish(conflicts=conflicts)
    return Plan.open(folder)


@dataclass(slots=True)
class Window:
    """The seats of a few batches. `rows` is -1 where a seat is free; seats of one batch stand together."""

    batches: Ints
    """[S]: the number of each seat's batch."""
    rows: Ints
    """[S]."""
    texts: Hashes
    """[S, T]: of the rows; 0 where a seat is free."""
    keys: Hashes
    """[S * T]: of the texts in their batches; anything where a seat is free."""

    def seat(self, seats: Ints, rows: Ints, texts: Hashes) -> None:
        """Puts rows on seats; whoever sat there has no seat any more."""
        self.rows[seats], self.texts[seats] = rows, texts
        self.keys.reshape(self.texts.shape)[seats] = keys_of(texts, self.batches[seats][:, None])

    def clear(self, seats: Ints) -> Ints:
        """Frees the seats; the rows that sat there."""
        rows = self.rows[seats]
        self.rows[seats], self.texts[seats] = -1, 0
        return rows


@dataclass(slots=True)
class Dealer:
    """Fills `positions` with the plan of the rows first .. first + len(positions) - 1 of an epoch's order."""

    hashes: TextHashes
    positions: NDArray[np.integer]
    batch_size: int
    seed: int
    epoch: int
    first: int
    order: Permutation = field(init=False)
    quotas: Quotas = field(init=False)
    key: int = field(init=False)
    drawn: int = field(init=False, default=0)
    unchecked: int = field(init=False, default=0)
    """Rows that got a seat although they meet someone there."""
    throws: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        draw = stream(self.seed, "batches", self.epoch)
        self.order = Permutation.drawn(len(self.hashes), draw)
        self.key = draw.getrandbits(63)
        count, total = len(self.positions), len(self.hashes)
        texts, rows = frequent_texts(self.hashes, total / self.batch_size)
        self.quotas = Quotas(texts, rows * count // max(total, 1), count, self.batch_size)

    @property
    def batches(self) -> int:
        """How many there are; the last one may be smaller."""
        return -(-len(self.positions) // self.batch_size)

    @property
    def in_a_window(self) -> int:
        """Batches that are filled at the same time."""
        return max(2, WINDOW_ROWS // self.batch_size)

    def deal(self) -> int:
        """Fills `positions`; returns the conflicts that are left."""
        waiting, unfinished = np.zeros(0, np.int64), self.batches
        for first in range(0, self.batches, self.in_a_window):
            window = self.opened(np.arange(first, min(first + self.in_a_window, self.batches)), empty=True)
            waiting = self.fill(window, waiting)
            self.close(window)
            if self.drawn == len(self.positions) and len(waiting):
                unfinished = min(unfinished, first)
        self.mend(waiting, unfinished)
        return self.conflicts()

    def opened(self, numbers: Ints, *, empty: bool = False) -> Window:
        """The seats of some batches, with the rows that `positions` holds, or empty."""
        first = numbers * self.batch_size
        counts = np.minimum(first + self.batch_size, len(self.positions)) - first
        batches = np.repeat(numbers, counts)
        shape = (len(batches), self.hashes.texts.shape[1])
        texts, keys = np.zeros(shape, np.uint64), np.zeros(shape[0] * shape[1], np.uint64)
        window = Window(batches, np.full(len(batches), -1, np.int64), texts, keys)
        if not empty:
            rows = self.positions[self.places_of(window)].astype(np.int64)
            taken = np.flatnonzero(rows >= 0)
            window.seat(taken, rows[taken], np.asarray(self.hashes.texts[rows[taken]]))
        return window

    def close(self, window: Window) -> None:
        """Writes the rows of a window to `positions`; -1 where a seat is free."""
        self.positions[self.places_of(window)] = window.rows

    def places_of(self, window: Window) -> Ints:
        """Where in `positions` the seats of a window stand."""
        begins = np.flatnonzero(np.diff(window.batches, prepend=-1))
        within = np.arange(len(window.batches)) - np.repeat(begins, np.diff(begins, append=len(window.batches)))
        return window.batches * self.batch_size + within

    def draw(self, count: int) -> Ints:
        """The next rows of the order, fewer at its end."""
        end = min(self.drawn + count, len(self.positions))
        rows = self.order.between(self.first + self.drawn, self.first + end)
        self.drawn = end
        return rows

    def welcome(self, window: Window, rows: Ints, batches: Ints) -> tuple[Hashes, Bools]:
        """[n, T] texts of rows that come to batches of the window, and [n] who of them meets nobody there nor among those before him."""
        texts = np.asarray(self.hashes.texts[rows])
        seated = self.concerned(window, texts, batches)
        lost = clashing(
            self.hashes,
            np.concatenate([window.rows[seated], rows]),
            np.concatenate([window.texts[seated], texts]),
            np.concatenate([window.batches[seated], batches]),
            self.quotas,
            seated=len(seated),
        )
        return texts, ~lost[len(seated) :]

    def concerned(self, window: Window, texts: Hashes, batches: Ints) -> Ints:
        """The seats whose rows the guests may meet, and a few others: texts [n, T] of guests who come to batches [n]."""
        if len(self.hashes.known_values) or 4 * len(batches) > len(window.rows):
            return np.flatnonzero((window.rows >= 0) & np.isin(window.batches, batches))
        shift = np.uint64(64 - max(8, texts.size.bit_length() + 3))
        expected = np.zeros(1 << (64 - int(shift)), np.bool_)
        expected[keys_of(texts, batches[:, None]) >> shift] = True
        near = np.flatnonzero(expected[window.keys >> shift]) // texts.shape[1]
        seats: Ints = near[np.diff(near, prepend=-1) > 0]
        return seats[window.rows[seats] >= 0]

    def fill(self, window: Window, waiting: Ints) -> Ints:
        """Seats waiting rows and new ones until the window is full or the order has ended; returns those who wait for the next window."""
        free = [len(window.rows)] * PATIENCE
        for offer in range(OFFERS):
            seats = self.in_turn(np.flatnonzero(window.rows < 0), window, offer)
            if not len(seats):
                return waiting
            free.append(len(seats))
            if hopeless(free, offer):
                break
            invited = len(seats)
            if offer >= OFFERS_TO_THE_WAITING and len(waiting) < len(window.rows):
                new = self.draw(invited)  # those who wait have been refused several times: new rows are more likely to fit
                waiting = np.concatenate([new, waiting])
            elif len(waiting) < invited:
                waiting = np.concatenate([waiting, self.draw(invited - len(waiting))])
            invited = min(invited, len(waiting))
            texts, fits = self.welcome(window, waiting[:invited], window.batches[seats[:invited]])
            window.seat(seats[:invited][fits], waiting[:invited][fits], texts[fits])
            waiting = np.concatenate([waiting[:invited][~fits], waiting[invited:]])
        return self.force(window, waiting)

    def force(self, window: Window, waiting: Ints) -> Ints:
        """Fills what is free with whoever waits; only while the order goes on, since at its end `mend` knows better."""
        seats = np.flatnonzero(window.rows < 0)
        if self.drawn == len(self.positions):
            return waiting
        waiting = np.concatenate([waiting, self.draw(max(len(seats) - len(waiting), 0))])
        rows = waiting[: len(seats)]
        window.seat(seats[: len(rows)], rows, np.asarray(self.hashes.texts[rows]))
        self.unchecked += len(rows)
        return waiting[len(seats) :]

    def in_turn(self, seats: Ints, window: Window, offer: int) -> Ints:
        """Free seats as they are offered: at first one of each batch in turn, so that rows that wait together part; then by chance."""
        if offer:
            return seats[np.argsort(self.dice(seats), kind="stable")]
        batches = window.batches[seats]
        begins = np.flatnonzero(np.diff(batches, prepend=-1))
        within = np.arange(len(seats)) - np.repeat(begins, np.diff(begins, append=len(seats)))
        return seats[np.argsort(within, kind="stable")]

    def mend(self, waiting: Ints, unfinished: int) -> None:
        """Gives a seat to all who wait at the end, and parts who was seated unchecked: see `swap`.

        It ends when nobody is left who meets anybody, or when windows part fewer than half of those who did: the rest cannot be parted.
        """
        # A frequent text's shares are filled to the last seat now, and it does no harm to have a few more in a batch than in another.
        self.quotas = replace(self.quotas, rows=self.quotas.rows * 33 // 32 + self.batches)
        finished = Permutation.drawn(unfinished, stream(self.key, "mend")).between(0, unfinished)
        last_ones = np.arange(unfinished, self.batches)
        others = [finished[first : first + self.in_a_window] for first in range(0, max(len(finished), 1), self.in_a_window)]
        failures = 0
        for attempt in range(max(len(others), FAILURES)):
            window = self.opened(np.sort(np.concatenate([others[attempt % len(others)], last_ones])))
            came, stuck = self.swap(window, waiting, look=attempt > 0 or self.unchecked > 0)
            self.close(window)
            waiting = waiting[:0]
            if 2 * stuck > came:
                failures += FAILURES if stuck > FEW else 1
            if failures >= FAILURES or not (stuck or self.unchecked):
                return

    def swap(self, window: Window, waiting: Ints, *, look: bool) -> tuple[int, int]:
        """Seats rows in a window of mostly full batches, which is full afterwards.

        Returns how many waited or met somebody before, and how many of them still meet somebody.

        By turns, who waits is offered a free seat, or the seat of somebody in any batch where he meets nobody, who then waits himself:
        he met nobody where he sat, so he will hardly do so elsewhere. Who is refused to the end sits down on any seat that is free.
        `look`: whether somebody may sit in the window who meets somebody; he gives up his seat at first.
        """
        if look:
            seated = np.flatnonzero(window.rows >= 0)
            lost = clashing(self.hashes, window.rows[seated], window.texts[seated], window.batches[seated], self.quotas)
            waiting = np.concatenate([waiting, window.clear(seated[lost])])
        came = len(waiting)
        left = [came] * PATIENCE
        for turn in range(SWAPS):
            left.append(len(waiting))
            if not len(waiting) or hopeless(left, turn):
                break
            free = np.flatnonzero(window.rows < 0)
            seats = self.in_turn(free, window, turn) if turn % 2 else self.by_chance(window, waiting)
            waiting = self.exchange(window, seats, waiting)
        stuck = len(waiting)
        self.exchange(window, np.flatnonzero(window.rows < 0), waiting, checked=False)
        return came, stuck

    def by_chance(self, window: Window, waiting: Ints) -> Ints:
        """Distinct seats of the window, free or not, at most one for each who waits."""
        wanted = (self.dice(waiting) % np.uint64(len(window.rows))).astype(np.int64)
        seats, firsts = np.unique(wanted, return_index=True)
        return seats[np.argsort(firsts, kind="stable")]

    def dice(self, values: Ints) -> Hashes:
        """64 random bits for each value; others each time."""
        self.throws += 1
        return mixed(values.astype(np.uint64), self.key + self.throws)

    def exchange(self, window: Window, seats: Ints, waiting: Ints, *, checked: bool = True) -> Ints:
        """Offers seats[i] to waiting[i]; returns who waits then: who lost his seat, who was refused, who got no offer."""
        guests = waiting[: len(seats)]
        texts, fits = self.welcome(window, guests, window.batches[seats])
        fits |= not checked
        ejected = window.clear(seats[fits])
        window.seat(seats[fits], guests[fits], texts[fits])
        return np.concatenate([ejected[ejected >= 0], guests[~fits], waiting[len(guests) :]])

    def conflicts(self) -> int:
        """Counted in the finished plan: rows that clash with one before them in their batch, no text being allowed twice."""
        strict = Quotas(np.zeros(0, np.uint64), np.zeros(0, np.int64), len(self.positions), self.batch_size)
        found = 0
        for first in range(0, self.batches, self.in_a_window):
            window = self.opened(np.arange(first, min(first + self.in_a_window, self.batches)))
            found += int(clashing(self.hashes, window.rows, window.texts, window.batches, strict).sum())
        return found


def hopeless(counts: Sequence[int], turn: int) -> bool:
    """Whether those who are left, counts[-1] after `turn` turns, are more than FEW and hardly fewer than PATIENCE turns ago."""
    return turn >= PATIENCE and counts[-1] > max(0.9 * counts[-1 - PATIENCE], FEW)
