"""From a batch to gradients at the encoder's parameters: one formula, several routes, the same result.

1. Each side's distinct texts are sorted by length and cut into chunks, so that little is padded, and prepared (tokenised) once.
2. Route `whole`: encode, loss, backward, in one graph. It needs the activations of all texts at once.
3. Route `chunked` (GradCache, Gao et al. 2021, arXiv 2101.06983): encode each chunk without a graph; the loss's gradient at the
   vectors; encode each chunk again, under its own random state, and push its gradient through. Memory: the activations of one chunk,
   plus those of the chunks whose graph is kept.

What stays true: the gradient is that of the mean loss over the batch's queries, whichever the route and the chunk size. A text that
occurs twice on a side is encoded once. The random generator is left where one pass over the chunks leaves it.

What it does not know: the optimiser, tokenizers, precision (a Tower's `forward` enters autocast itself, so it is on in both passes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negatron.training.batches import Batch
from negatron.training.losses import Targets

Loss = Callable[[Tensor, Tensor, Targets], Tensor]
"""(queries [Q, D], documents [N, D], targets) -> the *sum* over the queries, a scalar."""


@dataclass(frozen=True, slots=True)
class Tower:
    """How the texts of one side become vectors. Queries and documents have a tower each (their prompts differ), on the same weights."""

    prepare: Callable[[Sequence[str]], Any]
    """Texts -> whatever `forward` takes; called once for a chunk."""
    forward: Callable[[Any], Tensor]
    """-> [n, D] in fp32, of unit length, with a graph where gradients are enabled."""
    length: Callable[[str], int] = len
    """Tokens of a text; decides which texts share a chunk."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step's gradients were made of."""

    loss: float
    """Mean over the queries."""
    texts: int
    """Distinct texts encoded, both sides."""
    tokens: int
    """Their tokens, without padding."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The texts of one tower, prepared. `rows` [n] int64 leads from each text to its vector among those of all chunks."""

    forward: Callable[[Any], Tensor]
    chunks: tuple[Any, ...]
    rows: Tensor

    def vectors(self, parts: Sequence[Tensor]) -> Tensor:
        """[n, D], one row a text, from the vectors of the chunks."""
        joined = torch.cat(list(parts))
        return joined[self.rows.to(joined.device)]


def step(queries: Tower, documents: Tower, batch: Batch, loss: Loss, *, chunk_size: int | None, keep_graphs: int = 0) -> Step:
    """Adds the gradient of the batch's mean loss to the parameters behind the towers.

    Args:
        queries: tower of `batch.query_texts`.
        documents: tower of `batch.document_texts`.
        batch: from `batches.collate`.
        loss: sum over queries, such as `losses.info_nce` with its temperature filled in.
        chunk_size: texts encoded at a time; None = all of a side at once. Changes memory and speed; the gradient only by rounding.
        keep_graphs: chunks whose graph is kept from the first pass, which spares their second one and costs their activations.

    """
    chunks = [cut(texts, tower.length, chunk_size) for texts, tower in ((batch.query_texts, queries), (batch.document_texts, documents))]
    sides = [
        Side(tower.forward, tuple(tower.prepare(chunk) for chunk in parts), rows)
        for tower, (parts, rows) in zip((queries, documents), chunks, strict=True)
    ]
    mean = whole(sides, batch.targets, loss) if chunk_size is None else chunked(sides, batch.targets, loss, keep_graphs=keep_graphs)
    lengths = [
        tower.length(text) for tower, (parts, _) in zip((queries, documents), chunks, strict=True) for part in parts for text in part
    ]
    return Step(mean, len(lengths), sum(lengths))


def cut(texts: Sequence[str], length: Callable[[str], int], chunk_size: int | None) -> tuple[list[list[str]], Tensor]:
    """The distinct texts, longest first, in chunks; and [len(texts)] int64: the place of each text among them.

    Longest first, so that a batch which does not fit into memory fails at its beginning.

    >>> cut(["a", "ccc", "bb", "a"], len, 2)
    ([['ccc', 'bb'], ['a']], tensor([2, 0, 1, 2]))
    """
    distinct = sorted(dict.fromkeys(texts), key=length, reverse=True)
    place = {text: n for n, text in enumerate(distinct)}
    size = chunk_size or len(distinct)
    return [distinct[n : n + size] for n in range(0, len(distinct), size)], torch.tensor([place[text] for text in texts])


def whole(sides: Sequence[Side], targets: Targets, loss: Loss) -> float:
    """Everything in one graph; returns the mean loss over the queries."""
    queries, documents = (side.vectors([side.forward(chunk) for chunk in side.chunks]) for side in sides)
    mean = loss(queries, documents, targets.to(queries.device)) / len(queries)
    mean.backward()  # type: ignore[no-untyped-call]
    return mean.item()


def chunked(sides: Sequence[Side], targets: Targets, loss: Loss, *, keep_graphs: int = 0) -> float:
    """GradCache: the activations of one chunk at a time, and of `keep_graphs` chunks more; returns the mean loss over the queries."""
    chunks = [(side.forward, chunk) for side in sides for chunk in side.chunks]
    states, made = [], []
    for number, (forward, chunk) in enumerate(chunks):
        states.append(RandomState.now())
        with torch.set_grad_enabled(number < keep_graphs):
            made.append(forward(chunk))
    vectors = [part.detach().requires_grad_() for part in made]
    first = len(sides[0].chunks)
    queries, documents = sides[0].vectors(vectors[:first]), sides[1].vectors(vectors[first:])
    mean = loss(queries, documents, targets.to(queries.device)) / len(queries)
    mean.backward()  # type: ignore[no-untyped-call]
    for number, (forward, chunk) in enumerate(chunks):
        if number >= keep_graphs:
            with states[number].replayed():
                made[number] = forward(chunk)
        made[number].backward(vectors[number].grad)  # type: ignore[no-untyped-call]
    return mean.item()


@dataclass(frozen=True, slots=True, eq=False)
class RandomState:
    """Where torch's generators stand: the CPU's and, where there is a GPU in use, that of each."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> RandomState:
        """The present state."""
        return cls(torch.get_rng_state(), tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ())  # type: ignore[no-untyped-call]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside the block the generators draw what they drew from this state on; after it they stand where they stood before."""
        with torch.random.fork_rng(devices=range(len(self.cuda))):
            torch.set_rng_state(self.cpu)
            if self.cuda:
                torch.cuda.set_rng_state_all(list(self.cuda))
            yield
