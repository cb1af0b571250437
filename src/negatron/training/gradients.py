"""From a batch to gradients at the encoder's parameters: one formula, several routes, the same result.

1. Each side's distinct texts are sorted by length and packed into chunks of like length, so that little is padded (`pack`).
2. Each chunk is prepared (tokenised) and encoded, the longest first: with a graph as far as `keep_tokens` reaches, without one after that.
3. The loss gives the gradient at the vectors.
4. Each chunk's gradient is pushed through its graph; a chunk without one is encoded again, under its own random state (from the results
   of the first pass where these were kept, `remembered`).

So with every graph kept it is the plain route, with none kept it is GradCache (Gao et al. 2021, arXiv 2101.06983). Memory: the
activations of one chunk, those that are kept, and N x D numbers twice. With several processes, `gathered` says what each of them does.

What stays true: the gradient is that of the mean loss over the batch's queries, whatever the chunks, the graphs kept and the number of
processes. A text that occurs twice on a side is encoded once. The random generator is left where one pass over the chunks leaves it.

What it does not know: the optimiser, tokenizers, precision (a Tower's `forward` enters autocast itself, so it is on in both passes).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from negatron.training.batches import Batch
from negatron.training.gathered import Processes
from negatron.training.losses import Targets
from negatron.training.remembered import Recalling, Remembering, Result

Loss = Callable[[Tensor, Tensor, Targets], Tensor]
"""(queries [Q, D], documents [N, D], targets) -> the *sum* over the rows that the targets ask for, a scalar."""
Keep = Literal["graph", "products", "nothing"]
"""What of a chunk stays between the two passes."""


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
    """What one step's gradients were made of, over all processes but where it says otherwise."""

    loss: float
    """Mean over the queries."""
    texts: int
    """Distinct texts encoded, both sides."""
    tokens: int
    """Their tokens, without padding."""
    padded_tokens: int
    """Tokens that this process encoded in the first pass, padding among them."""
    tokens_again: int
    """Those of them that it encoded a second time, because their graph was not kept."""
    product_tokens: int
    """Those of these whose matrix products were kept from the first time."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The distinct texts of one tower, in the order of their first appearance, and which of them this process encodes."""

    tower: Tower
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of each text."""
    rows: Tensor | None
    """[Q] or [N] int64: which of `texts` each row of the batch is; None where row n is text n."""
    own: Sequence[int]
    """The texts that this process encodes, longest first."""

    @classmethod
    def of(cls, tower: Tower, texts: Sequence[str], processes: Processes | None) -> Side:
        """One side of a batch."""
        number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        lengths = tuple(map(tower.length, number))
        longest_first = sorted(range(len(number)), key=lengths.__getitem__, reverse=True)
        own = longest_first if processes is None else processes.share(longest_first)
        rows = None if len(number) == len(texts) else torch.tensor([number[text] for text in texts])
        return cls(tower, tuple(number), lengths, rows, own)

    def chunks(self, chunk_size: int | None, chunk_tokens: int | None) -> list[Chunk]:
        """What this process encodes, in chunks. Where that is nothing, one text is encoded for its shape, and no vector of it is kept."""
        packed = pack([self.lengths[n] for n in self.own], chunk_size=chunk_size, chunk_tokens=chunk_tokens)
        numbers = [[self.own[place] for place in places] for places in packed]
        return [Chunk(self, tuple(chunk), self.lengths[chunk[0]] * len(chunk)) for chunk in numbers] or [Chunk(self, (), 0)]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Texts that are encoded together."""

    side: Side
    numbers: tuple[int, ...]
    """Which of the side's texts, longest first."""
    padded_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of its longest text; 0 for an empty chunk."""
        return self.padded_tokens // max(1, len(self.numbers))

    def places(self, device: torch.device) -> Tensor:
        """[len(numbers)] int64: where its texts are among the side's."""
        return torch.tensor(self.numbers, dtype=torch.long, device=device)

    def prepared(self) -> Any:
        """Its texts, tokenised; of an empty chunk the side's shortest text."""
        numbers = self.numbers or (self.side.lengths.index(min(self.side.lengths)),)
        return self.side.tower.prepare([self.side.texts[n] for n in numbers])

    def encoded(self, features: Any) -> Tensor:
        """[len(numbers), D]."""
        return self.side.tower.forward(features)[: len(self.numbers)]

    def first_pass(self, keep: Keep, features: Any) -> tuple[Tensor, Kept | Again]:
        """Its vectors [n, D], detached, and how to come to their graph. features: what `prepared` gave."""
        if keep == "graph":
            vectors = self.encoded(features)
            return vectors.detach(), Kept(vectors)
        state, products = RandomState.now(), Remembering() if keep == "products" else None
        with torch.no_grad(), products or nullcontext():
            vectors = self.encoded(features)
        return vectors, Again(self, features, state, () if products is None else products.complete())


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A chunk whose graph was kept."""

    vectors: Tensor

    def with_graph(self) -> Tensor:
        """[n, D]."""
        return self.vectors


@dataclass(frozen=True, slots=True, eq=False)
class Again:
    """A chunk that is to be encoded again, under the random state of the first pass."""

    chunk: Chunk
    features: Any
    state: RandomState
    results: Sequence[Result]
    """Of the first pass, where they were kept."""

    def with_graph(self) -> Tensor:
        """[n, D]."""
        with self.state.replayed(), Recalling(self.results) if self.results else nullcontext():
            return self.chunk.encoded(self.features)


def step(
    queries: Tower,
    documents: Tower,
    batch: Batch,
    loss: Loss,
    *,
    chunk_size: int | None = None,
    chunk_tokens: int | None = None,
    keep_graphs: int = 0,
    keep_tokens: int = 0,
    keep_product_tokens: int = 0,
    processes: Processes | None = None,
) -> Step:
    """Adds the gradient of the batch's mean loss to the parameters behind the towers.

    Neither chunks nor kept graphs nor processes change the gradient but by rounding (and by the order in which dropout is drawn).

    Args:
        queries: tower of `batch.query_texts`.
        documents: tower of `batch.document_texts`.
        batch: from `batches.collate`; the same in every process.
        loss: sum over queries, such as `losses.InfoNCE`.
        chunk_size: texts encoded at a time, at most.
        chunk_tokens: tokens encoded at a time with their padding, at most; a longer text is encoded alone. Without this and without
            chunk_size, all of a side is encoded at once and every graph is kept.
        keep_graphs: chunks whose graph is kept from the first pass, which spares their second one and costs their activations.
        keep_tokens: the same in tokens with their padding: as many chunks as fit, the longest texts first.
        keep_product_tokens: of so many tokens more, with their padding, only the results of matrix products and random draws are kept, for
            a third of a graph's memory; the second pass takes them from there (`remembered`).
        processes: those that take the step together, from `Processes.now`; None = this one alone.

    Raises NegatronError where processes were given different batches, SettingError where a model does not allow keep_product_tokens.

    """
    if processes is not None:
        processes.refuse_other_batch((*batch.query_texts, *batch.document_texts))
    sides = [Side.of(queries, batch.query_texts, processes), Side.of(documents, batch.document_texts, processes)]
    chunks = [chunk for side in sides for chunk in side.chunks(chunk_size, chunk_tokens)]
    chunks.sort(key=lambda chunk: chunk.longest, reverse=True)  # a batch that does not fit into memory fails at its beginning
    padded = [chunk.padded_tokens for chunk in chunks]
    graphs = len(chunks) if chunk_size is None and chunk_tokens is None else max(keep_graphs, how_many_fit(padded, keep_tokens))
    keeps = what_is_kept(padded, min(graphs, len(chunks)), keep_product_tokens)
    with nullcontext() if processes is None else processes.one_gradient():
        tables, ways = first_passes(sides, chunks, keeps)
        # where the caller has autocast on: before pytorch/pytorch#165068 (end of 2025) weights that were cast without a graph were cached
        # so, and a second pass would have reached no weight
        torch.clear_autocast_cache()
        mean, wanted = at_vectors(sides, tables, batch.targets, loss, processes)
        for chunk, way in zip(chunks, ways, strict=True):
            gradient = wanted[sides.index(chunk.side)]
            way.with_graph().backward(gradient[chunk.places(gradient.device)])  # type: ignore[no-untyped-call]
    lengths = [length for side in sides for length in side.lengths]
    from_products = sum(tokens for tokens, keep in zip(padded, keeps, strict=True) if keep == "products")
    return Step(mean, len(lengths), sum(lengths), sum(padded), sum(padded[graphs:]), from_products)


def first_passes(sides: Sequence[Side], chunks: Sequence[Chunk], keeps: Sequence[Keep]) -> tuple[list[Tensor], list[Kept | Again]]:
    """Each side's table [len(texts), D] with the vectors of these chunks, zeros at all other texts; and each chunk's way to its graph.

    All is prepared before the first text is encoded, and vectors go straight into their table: what stays, left lying between activations
    that go, would break the memory up. Measured: 2 MiB a chunk, of 0.1 MiB of vectors, that the C library could not use again.
    """
    features = [chunk.prepared() for chunk in chunks]
    tables: list[Tensor] = []
    ways: list[Kept | Again] = []
    for chunk, keep, prepared in zip(chunks, keeps, features, strict=True):
        vectors, way = chunk.first_pass(keep, prepared)
        if not tables:
            tables = [vectors.new_zeros(len(side.texts), vectors.shape[1]) for side in sides]
        tables[sides.index(chunk.side)].index_copy_(0, chunk.places(vectors.device), vectors)
        ways.append(way)
    return tables, ways


def at_vectors(
    sides: Sequence[Side], tables: Sequence[Tensor], targets: Targets, loss: Loss, processes: Processes | None
) -> tuple[float, list[Tensor]]:
    """The mean loss over the queries of all processes, and its gradient [U, D] at each side's table."""
    queries = len(targets.positive)
    if processes is not None:
        tables = [processes.sum(table) for table in tables]
        targets = replace(targets, rows=processes.rows(queries))
    leaves = [table.requires_grad_() for table in tables]
    mean = torch.zeros((), device=leaves[0].device)
    if targets.rows is None or targets.rows[0] < targets.rows[1]:
        by_row = [leaf if side.rows is None else leaf[side.rows.to(leaf.device)] for side, leaf in zip(sides, leaves, strict=True)]
        mean = loss(by_row[0], by_row[1], targets.to(leaves[0].device)) / queries
        mean.backward()  # type: ignore[no-untyped-call]
    wanted = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    if processes is not None:
        mean, wanted = processes.sum(mean.detach()), [processes.sum(gradient) for gradient in wanted]
    return mean.item(), wanted


def pack(lengths: Sequence[int], *, chunk_size: int | None, chunk_tokens: int | None) -> list[range]:
    """Places of texts sorted longest first, in chunks that stay within both limits; a text longer than `chunk_tokens` is alone.

    >>> pack([9, 4, 3, 1, 1], chunk_size=None, chunk_tokens=8)
    [range(0, 1), range(1, 3), range(3, 5)]
    """
    chunks, first = [], 0
    for end in range(1, len(lengths) + 1):
        texts = end + 1 - first  # with the next one
        in_size = chunk_size is None or texts <= chunk_size
        in_tokens = chunk_tokens is None or texts * lengths[first] <= chunk_tokens
        if end == len(lengths) or not (in_size and in_tokens):
            chunks.append(range(first, end))
            first = end
    return chunks


def what_is_kept(padded: Sequence[int], graphs: int, product_tokens: int) -> list[Keep]:
    """Of the first `graphs` chunks the graph, of as many of the next as the budget allows the products, of the others nothing.

    >>> what_is_kept([4, 4, 4, 4], 1, 9)
    ['graph', 'products', 'products', 'nothing']
    """
    products = how_many_fit(padded[graphs:], product_tokens)
    return ["graph" if n < graphs else "products" if n < graphs + products else "nothing" for n in range(len(padded))]


def how_many_fit(sizes: Sequence[int], budget: int) -> int:
    """How many of the first sizes have a sum within the budget.

    >>> how_many_fit([5, 3, 3], 8)
    2
    """
    return bisect_right(list(accumulate(sizes)), budget)


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
