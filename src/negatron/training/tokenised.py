"""Columns of a batch as a tokenizer has left them, padded: their distinct rows, and any of these again as features for the encoder.

1. `Column.of` finds out how long each row is without its padding.
2. `Rows.of` numbers the distinct rows of a side's columns; rows are the same where all that the encoder sees of them is.
3. `Rows.features` puts any of them together again, padded to the longest of them and no further.

What stays true: a row gets the tokens, in the order, that the tokenizer gave it, and padding on the side where the tokenizer puts it.
`features` makes new tensors each time, so a module that writes into them cannot change what the next pass sees.

What it does not know: the encoder, texts, who is whose positive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negatron.errors import NegatronError


@dataclass(frozen=True, slots=True)
class Padding:
    """How a tokenizer pads."""

    id: int = 0
    left: bool = False
    """Whether before the text."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One column: B padded rows."""

    features: Mapping[str, Any]
    lengths: tuple[int, ...]
    """Tokens of each row, counted from the side without padding to the last that is read."""
    padding: Padding
    """As this column shows it; the tokenizer's where it has none."""
    kind: str
    """All by which the encoder may treat this column's rows in a way of their own: rows of different kinds never share a chunk."""

    @classmethod
    def of(cls, features: Mapping[str, Any], number: int, padding: Padding) -> Column:
        """Column `number` of a batch; `padding`: the tokenizer's. Raises NegatronError where it cannot be cut into rows."""
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if not (isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.dim() == 2 and ids.shape == mask.shape):
            raise NegatronError(
                f"column {number} of the batch has {described(features)}; expected padded texts, input_ids and attention_mask of one shape "
                "[rows, tokens]. Flattened ones come from flash attention: set model[0].unpad_inputs = False"
            )
        for name, value in features.items():
            if isinstance(value, Tensor) and value.numel() > 1 and len(value) != len(ids):
                raise NegatronError(
                    f"column {number} of the batch: {name} has {len(value)} rows, input_ids {len(ids)}; only texts can be cut"
                )
        active = mask.detach().cpu().bool()
        width = active.shape[1]
        if not bool(active.all()):
            padding = Padding(int(ids[mask == 0][0]), bool((active[:, -1] & ~active[:, 0]).any()))
        unread = (active if padding.left else active.flip(1)).int().argmax(1)
        by_row = sorted(name for name, value in features.items() if by_rows(value, len(ids)))
        shapes = [(name, str(features[name].dtype), tuple(features[name].shape[2:])) for name in by_row]
        others = sorted((name, plain_value(value)) for name, value in features.items() if name not in by_row)
        return cls(features, tuple((width - unread).tolist()), padding, repr((shapes, others)))

    @property
    def width(self) -> int:
        """Tokens of a row with its padding."""
        return int(self.features["input_ids"].shape[1])

    @property
    def row_names(self) -> list[str]:
        """The features that have a part for each row, sorted."""
        return sorted(name for name, value in self.features.items() if by_rows(value, len(self.lengths)))

    def along_tokens(self, name: str) -> bool:
        """Whether a feature has a value for each token of a row."""
        value = self.features[name]
        return bool(value.dim() > 1 and value.shape[1] == self.width)

    def window(self, length: int) -> slice:
        """Where the tokens of rows of at most this length stand."""
        return slice(self.width - length, None) if self.padding.left else slice(0, length)

    def digests(self) -> list[bytes]:
        """16 bytes for each row: equal where the encoder would see the same."""
        tables = [(self.along_tokens(name), self.features[name].detach().cpu().numpy()) for name in self.row_names]
        kind = self.kind.encode()
        digests = []
        for row, length in enumerate(self.lengths):
            digest = hashlib.blake2b(kind, digest_size=16)
            for along_tokens, table in tables:
                digest.update((table[row, self.window(length)] if along_tokens else table[row]).tobytes())
            digests.append(digest.digest())
        return digests

    def cut(self, name: str, rows: Tensor, width: int) -> Tensor:
        """[len(rows), width, ...] of a feature along tokens, else [len(rows), ...]; new memory."""
        value: Tensor = self.features[name]
        picked = value[rows.to(value.device)]
        if not self.along_tokens(name):
            return picked
        picked = picked[:, self.window(min(width, self.width))]
        if (missing := width - picked.shape[1]) <= 0:
            return picked.contiguous()
        more = picked.new_full((len(picked), missing, *picked.shape[2:]), self.padding.id if name == "input_ids" else 0)
        return torch.cat([more, picked] if self.padding.left else [picked, more], 1)


def by_rows(value: Any, rows: int) -> bool:
    """Whether a feature is a tensor with a part for each row."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows


def plain_value(value: Any) -> str:
    """A feature that is not by rows, as text that is equal where the feature is."""
    return repr(value.tolist() if isinstance(value, Tensor) else value)


def described(features: Mapping[str, Any]) -> str:
    """What a column holds, for a message."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in features.items() if isinstance(value, Tensor)) or "no tensors"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The distinct rows of one side's columns: those of a kind together, within a kind in the order of their first appearance."""

    columns: tuple[Column, ...]
    places: tuple[tuple[int, int], ...]
    """Of each distinct row: (column, row) where it first appears."""
    digests: tuple[bytes, ...]
    """16 bytes each."""
    numbers: Tensor
    """[columns, B] int64: which distinct row each one is."""

    @classmethod
    def of(cls, columns: Sequence[Column]) -> Rows:
        """Those of columns of equally many rows."""
        digests = [column.digests() for column in columns]
        first: dict[bytes, tuple[int, int]] = {}
        for number in sorted(range(len(columns)), key=lambda n: first_of_kind(columns, n)):  # stable: columns of a kind keep their order
            for row, digest in enumerate(digests[number]):
                first.setdefault(digest, (number, row))
        number_of = {digest: number for number, digest in enumerate(first)}
        numbers = torch.tensor([[number_of[digest] for digest in column] for column in digests])
        return cls(tuple(columns), tuple(first.values()), tuple(first), numbers)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each distinct row."""
        return [self.columns[column].lengths[row] for column, row in self.places]

    @property
    def kinds(self) -> list[range]:
        """The distinct rows of each kind."""
        found: dict[str, list[int]] = {}
        for number, (column, _) in enumerate(self.places):
            found.setdefault(self.columns[column].kind, []).append(number)
        return [range(numbers[0], numbers[-1] + 1) for numbers in found.values()]

    def features(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The features of distinct rows of one kind, in the order given, as wide as the longest of them."""
        places = [self.places[number] for number in numbers]
        width = max(self.columns[column].lengths[row] for column, row in places)
        used = sorted({column for column, _ in places})
        in_column = {column: [n for n, (other, _) in enumerate(places) if other == column] for column in used}
        back = torch.tensor([n for column in used for n in in_column[column]]).argsort()
        one = self.columns[used[0]]
        features = dict(one.features)
        for name in one.row_names:
            parts = [self.columns[c].cut(name, torch.tensor([places[n][1] for n in in_column[c]]), width) for c in used]
            joined = torch.cat(parts)
            features[name] = joined[back.to(joined.device)]
        return features


def first_of_kind(columns: Sequence[Column], number: int) -> int:
    """The first column that is of the same kind."""
    return next(n for n, column in enumerate(columns) if column.kind == columns[number].kind)
