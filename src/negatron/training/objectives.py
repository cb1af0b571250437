"""What may be learnt beside InfoNCE: the CausalNeg regulariser, distillation from stored scores, Matryoshka; and their weighted sum.

In: queries [Q, D], documents [N, D], unit length, and `Targets`. Out: the *sum* over the rows that this process scores, a scalar in fp32.

1. `pair_scores` gives the dot products of (row, column) pairs, a block of pairs at a time in both directions.
2. The objectives are made of these few numbers: softmaxes over the pairs of one row, of which rows may have any number.
3. `Matryoshka` asks a loss again on shorter vectors; `Objective` adds several losses up and gives the value of each for the log.

What stays true: nothing of size Q x N or H x D is made, H being the number of own negatives. What belongs to one row does not depend on the
other rows. `targets.weights` multiplies each row's loss, here as in InfoNCE.

What it does not know: encoders, chunks, processes, where a teacher's scores come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from negatron.errors import NegatronError, SettingError
from negatron.training.targets import Targets, TeacherScores

Loss = Callable[[Tensor, Tensor, Targets], Tensor]
"""(queries [Q, D], documents [N, D], targets) -> the *sum* over the scored rows, a scalar."""

NUMBERS_IN_A_BLOCK = 2**19
"""Of gathered vectors, a side: 2 MiB. Measured with 20,000 pairs of 768 dimensions on one CPU thread: 2**17 to 2**21 take about the same
time, 2**25 one and a half to three times as long."""


@dataclass(frozen=True, slots=True)
class CausalNegRegulariser:
    """Keeps a query's written negatives spread out, and their share of the probability where their number warrants it.

        L_i = weight ( -H(p_gen / sum p_gen) + (sum_gen p - N_gen / (N_mined + N_gen))^2 ),     p = softmax(q . d / temperature)

    p is over the query's own negatives, N_mined mined and N_gen written ones. Only the written ones receive the gradient: the query and the
    mined ones count as constants. Source: CausalNeg (arXiv 2606.01304), weight 0.05 and temperature 0.1 as published, used with InfoNCE.

    A query without written negatives gives 0. The formula itself gives 0 for the entropy of a single written one, and 0 for the mass of a
    query without mined ones. The authors' code divides by the number of queries that have written negatives; here as everywhere the caller
    divides by that of all queries, so that a query's share does not depend on its neighbours.
    """

    weight: float = 0.05
    """Factor of the whole."""
    temperature: float = 0.1
    """Cosines are divided by it; its own, not InfoNCE's."""

    def __post_init__(self) -> None:
        refuse_outside(weight=(self.weight, 0), temperature=(self.temperature, None))

    def __call__(self, queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        """The sum over the scored rows, times `weight`."""
        parts = self.parts(queries, documents, targets)
        return self.weight * (row_weights(targets, parts.rows) * ((parts.mass - parts.expected) ** 2 - parts.entropy)).sum()

    def parts(self, queries: Tensor, documents: Tensor, targets: Targets) -> WrittenParts:
        """What the regulariser is made of, for each scored row that has written negatives."""
        pairs, written = own_with_written(targets)
        rows, group = torch.unique(pairs[:, 0], return_inverse=True)
        scores = pair_scores(queries.detach(), documents, pairs) / self.temperature
        scores = torch.where(written, scores, scores.detach())
        inside = group[written]
        of_all, of_written = log_sum_exp(scores, group, len(rows)), log_sum_exp(scores[written], inside, len(rows))
        log_share = scores[written] - of_written[inside]
        return WrittenParts(
            rows,
            -sum_by(log_share.exp() * log_share, inside, len(rows)),
            (of_written - of_all).exp(),
            torch.bincount(inside, minlength=len(rows)) / torch.bincount(group, minlength=len(rows)),
        )


class WrittenParts(NamedTuple):
    """Of the R scored rows that have written negatives."""

    rows: Tensor
    """[R] int64."""
    entropy: Tensor
    """[R]: of the distribution over the written negatives alone, in nats."""
    mass: Tensor
    """[R]: what share of the softmax over all own negatives the written ones have."""
    expected: Tensor
    """[R]: the share they have by number."""


@dataclass(frozen=True, slots=True)
class KLDistillation:
    """The student's distribution over a query's positive and own negatives is drawn to the teacher's.

        L_i = weight sum_j t_j (log t_j - log s_j),   t = softmax(teacher / teacher_temperature), s = softmax(cosine / student_temperature)

    Source: Hinton et al. 2015 (arXiv 1503.02531); for retrieval Lin et al. 2020 (arXiv 2010.11386). sentence-transformers' DistillKLDivLoss
    multiplies this by student_temperature^2, which makes a temperature of 0.05 a factor of 1/400: for its numbers give that as `weight`.
    Without it the gradient at a cosine is (s_j - t_j) / student_temperature, of the size of InfoNCE's at the same temperature.

    A query without own negatives gives 0. Raises NegatronError at the call when a query has no teacher scores.
    """

    weight: float = 1.0
    """Factor of the whole."""
    teacher_temperature: float = 1.0
    """The teacher's scores are divided by it: in the teacher's unit, such as 1 for the logits of a cross-encoder."""
    student_temperature: float = 0.05
    """Cosines are divided by it."""

    def __post_init__(self) -> None:
        refuse_outside(
            weight=(self.weight, 0),
            teacher_temperature=(self.teacher_temperature, None),
            student_temperature=(self.student_temperature, None),
        )

    def __call__(self, queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        """The sum over the scored rows, times `weight`."""
        teacher = teacher_of(targets)
        first, end = scored_rows(targets)
        mine = in_scored_rows(targets)
        rows = torch.arange(first, end, device=targets.positive.device)
        positives = torch.stack([rows, targets.positive[first:end]], 1)
        pairs = torch.cat([positives, targets.own[mine]])
        group = pairs[:, 0] - first
        student = log_softmax_by(pair_scores(queries, documents, pairs) / self.student_temperature, group, len(rows))
        asked = torch.cat([teacher.positive[first:end], teacher.own[mine]]).float() / self.teacher_temperature
        taught = log_softmax_by(asked, group, len(rows))
        divergence = sum_by(taught.exp() * (taught - student), group, len(rows))
        return self.weight * (row_weights(targets, rows) * divergence).sum()


@dataclass(frozen=True, slots=True)
class MarginMSE:
    """The student's margins between a query's positive and its own negatives are drawn to the teacher's.

        L_i = weight mean_j ( scale (cos(q, d+) - cos(q, d_j)) - (teacher(q, d+) - teacher(q, d_j)) )^2

    The mean is over the query's own negatives, so that a query counts the same however many it has, and so does the batch's mean.
    Source: Hofstätter et al. 2020 (arXiv 2010.02666). With `scale` 1 and equally many negatives each, the mean over the batch is that of
    sentence-transformers' MarginMSELoss on unit vectors.

    A query without own negatives gives 0. Raises NegatronError at the call when a query has no teacher scores.
    """

    weight: float = 1.0
    """Factor of the whole."""
    scale: float = 1.0
    """Of the student's cosines, which lie within -1..1, to the teacher's unit: a teacher whose margins reach 10 needs about 10."""

    def __post_init__(self) -> None:
        refuse_outside(weight=(self.weight, 0), scale=(self.scale, None))

    def __call__(self, queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        """The sum over the scored rows, times `weight`."""
        teacher = teacher_of(targets)
        mine = in_scored_rows(targets)
        pairs = targets.own[mine]
        rows, group = torch.unique(pairs[:, 0], return_inverse=True)
        positives = torch.stack([rows, targets.positive[rows]], 1)
        scores = self.scale * pair_scores(queries, documents, torch.cat([positives, pairs]))
        margins = scores[: len(rows)][group] - scores[len(rows) :]
        taught = (teacher.positive[pairs[:, 0]] - teacher.own[mine]).float()
        means = sum_by((margins - taught) ** 2, group, len(rows)) / torch.bincount(group, minlength=len(rows))
        return self.weight * (row_weights(targets, rows) * means).sum()


@dataclass(frozen=True, slots=True)
class Matryoshka:
    """A loss on the first k dimensions of the vectors, brought to unit length again, for several k: the weighted sum.

        L = sum_k weight_k loss(q[:k] / |q[:k]|, d[:k] / |d[:k]|)

    Source: Matryoshka Representation Learning, Kusupati et al. 2022 (arXiv 2205.13147), as sentence-transformers' MatryoshkaLoss. The
    model's full size is one of the dimensions only if it is named. A loss with a gradient that is kept (InfoNCE, tiled) keeps one for each
    k: the memory for vectors grows with the sum of the dimensions, that for logits does not grow.

    Raises SettingError for dimensions or weights that mean nothing, at the call for a dimension above D.
    """

    loss: Loss
    dimensions: tuple[int, ...]
    """Each once, in any order."""
    weights: tuple[float, ...] | None = None
    """One a dimension; None = 1 each."""

    def __post_init__(self) -> None:
        if not self.dimensions or min(self.dimensions) < 1 or len(set(self.dimensions)) < len(self.dimensions):
            raise SettingError(f"dimensions = {self.dimensions}: expected at least one, each above 0 and once")
        if self.weights is not None and len(self.weights) != len(self.dimensions):
            raise SettingError(f"weights = {self.weights}: expected {len(self.dimensions)}, one for each of dimensions = {self.dimensions}")
        for weight in self.weights or ():
            refuse_outside(weights=(weight, 0))

    def __call__(self, queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        """The weighted sum over the dimensions of the loss's sums over the scored rows."""
        size = queries.shape[1]
        if (longest := max(self.dimensions)) > size:
            raise SettingError(f"dimensions = {self.dimensions}: {longest} is more than the {size} that the model's vectors have")
        values = (
            weight * self.loss(normalize(queries[:, :k].float(), dim=1), normalize(documents[:, :k].float(), dim=1), targets)
            for k, weight in zip(self.dimensions, self.weights or (1.0,) * len(self.dimensions), strict=True)
        )
        return torch.stack(list(values)).sum()


@dataclass(frozen=True, slots=True)
class Objective:
    """Several losses under a name each, as one: L = sum_name weight_name loss_name.

    It keeps nothing between calls. A trainer that logs the terms asks for `values` once and for the `total` of them.
    """

    terms: Mapping[str, tuple[float, Loss]]
    """Name -> (weight, loss). The weight comes on top of one that the loss has itself."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise SettingError("an objective needs at least one term")
        for name, (weight, _) in self.terms.items():
            refuse_outside(**{f"weight of {name}": (weight, 0)})

    def __call__(self, queries: Tensor, documents: Tensor, targets: Targets) -> Tensor:
        """The weighted sum of the terms' sums over the scored rows."""
        return self.total(self.values(queries, documents, targets))

    def values(self, queries: Tensor, documents: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Each term's sum over the scored rows, before its weight, with its graph; in the order of `terms`."""
        return {name: loss(queries, documents, targets) for name, (_, loss) in self.terms.items()}

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `values` gave."""
        return torch.stack([weight * values[name] for name, (weight, _) in self.terms.items()]).sum()


# ---- which rows and pairs ------------------------------------------------------------------------------------------------------------


def scored_rows(targets: Targets) -> tuple[int, int]:
    """First row and end of those whose loss is summed up."""
    return targets.rows or (0, len(targets.positive))


def in_scored_rows(targets: Targets) -> Tensor:
    """[H] bool: which own pairs belong to a scored row."""
    first, end = scored_rows(targets)
    rows = targets.own[:, 0]
    return (rows >= first) & (rows < end)


def own_with_written(targets: Targets) -> tuple[Tensor, Tensor]:
    """[h, 2] own pairs of the scored rows that have at least one written negative, and [h] bool, which are written."""
    rows = targets.own[:, 0]
    written = torch.zeros_like(rows, dtype=torch.bool) if targets.written is None else targets.written
    has = torch.zeros_like(targets.positive, dtype=torch.bool)
    has[rows[written]] = True
    kept = in_scored_rows(targets) & has[rows]
    return targets.own[kept], written[kept]


def row_weights(targets: Targets, rows: Tensor) -> Tensor:
    """[len(rows)] fp32: what the rows' losses are multiplied by."""
    return torch.ones_like(rows, dtype=torch.float32) if targets.weights is None else targets.weights[rows].float()


def teacher_of(targets: Targets) -> TeacherScores:
    """The teacher's scores. Raises NegatronError, on every process alike, when they are missing or one of them is not a finite number."""
    if (teacher := targets.teacher) is None:
        raise NegatronError("distillation needs a teacher's scores of positives and own negatives, and this batch has none")
    missing = torch.cat(
        [(~teacher.positive.isfinite()).nonzero()[:, 0], targets.own[~teacher.own.isfinite(), 0]],
    )
    if len(missing):
        rows = sorted(set(missing.tolist()))
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise NegatronError(
            f"query rows {rows[:5]}{more} of the batch lack a teacher's score of their positive or of an own negative; "
            "score these pairs, or leave the queries out of the distillation"
        )
    return teacher


def refuse_outside(**values: tuple[float, float | None]) -> None:
    """Raises SettingError unless each value is a finite number, at least its limit, or above 0 where the limit is None."""
    for name, (value, least) in values.items():
        if not (math.isfinite(value) and (value > 0 if least is None else value >= least)):
            raise SettingError(f"{name} = {value}: expected {'more than 0' if least is None else f'{least} or more'}")


# ---- sums and softmaxes over the pairs of a row ----------------------------------------------------------------------------------------


def sum_by(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] sums of the values [P] of each group.

    >>> sum_by(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]), 2)
    tensor([5., 2.])
    """
    return values.new_zeros(groups).index_add(0, group, values)


def log_sum_exp(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] log of the sums of exp(value) over each group; none may be empty."""
    top = values.new_full((groups,), -math.inf).scatter_reduce(0, group, values.detach(), "amax")
    return top + sum_by((values - top[group]).exp(), group, groups).log()


def log_softmax_by(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[P] logarithms of the softmax of the values within each group; none may be empty."""
    return values - log_sum_exp(values, group, groups)[group]


# ---- dot products of pairs -------------------------------------------------------------------------------------------------------------


def pair_scores(queries: Tensor, documents: Tensor, pairs: Tensor, *, numbers_in_a_block: int = NUMBERS_IN_A_BLOCK) -> Tensor:
    """[P] fp32: the dot products of the (row, column) pairs [P, 2], with a gradient at both.

    Neither pass gathers more than a block of vectors at a time, where plain indexing would keep both sides, P x D, for the backward.
    """
    pairs_in_a_block = max(1, numbers_in_a_block // queries.shape[1])
    scores: Tensor = PairScores.apply(queries, documents, pairs, pairs_in_a_block)  # type: ignore[no-untyped-call]
    return scores


class PairScores(torch.autograd.Function):
    """See `pair_scores`."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, pairs: Tensor, pairs_in_a_block: int) -> Tensor:
        """Block by block."""
        ctx.save_for_backward(queries, documents, pairs)
        ctx.pairs_in_a_block = pairs_in_a_block
        scores = torch.empty(len(pairs), dtype=torch.float32, device=queries.device)
        for part, rows, columns in pair_blocks(pairs, pairs_in_a_block):
            scores[part] = (queries[rows].float() * documents[columns].float()).sum(1)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, asked: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Block by block, added up in fp32."""
        queries, documents, pairs = ctx.saved_tensors
        of_queries, of_documents = (
            torch.zeros_like(vectors, dtype=torch.float32) if needed else None
            for vectors, needed in zip((queries, documents), ctx.needs_input_grad[:2], strict=True)
        )
        for part, rows, columns in pair_blocks(pairs, ctx.pairs_in_a_block):
            factors = asked[part, None]
            if of_queries is not None:
                of_queries.index_add_(0, rows, factors * documents[columns].float())
            if of_documents is not None:
                of_documents.index_add_(0, columns, factors * queries[rows].float())
        return (
            None if of_queries is None else of_queries.to(queries.dtype),
            None if of_documents is None else of_documents.to(documents.dtype),
            None,
            None,
        )


def pair_blocks(pairs: Tensor, length: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The place, the rows and the columns of `length` pairs at a time."""
    for start in range(0, len(pairs), length):
        part = slice(start, start + length)
        yield part, pairs[part, 0], pairs[part, 1]
