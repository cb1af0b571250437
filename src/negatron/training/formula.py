"""InfoNCE with all that negatron adds to it: its options, what a row's loss is made of, and the whole thing written plainly.

For each scored row i, with cosines c, inverse temperature k = 1/temperature and positive logit p = k c_i,positive:

    negative(i) = log sum_{j counts for i} w_ij exp(k c_ij + hardness_ij sg(c_ij))
    loss(i)     = weight_i (1 - e^-l)^focal l,      l = softplus(negative(i) - p) = -log softmax of the positive

1. `blocks` says which cosines those are: per direction the rows, the columns, and what does not count. Each is dense but for a few pairs.
2. `own_cosines` are those of the query's own negatives: a few a row, so they are gathered and not a matrix.
3. `row_losses` joins the parts of a row. It sees log-sum-exps and sparse cosines, never a matrix, so every route shares it.
4. `plain` computes the dense parts as whole matrices, in autograd: what `tiled` and `kernels` are compared with.

What it does not know: tiles, devices, encoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from negatron.errors import SettingError
from negatron.training.targets import GuideVectors, Targets

Direction = Literal["query_to_document", "query_to_query", "document_to_document", "document_to_query"]
HardnessOf = Literal["all", "own", "in_batch"]
LOWEST = -1e30
"""Stands for minus infinity where a difference of two of them would not be a number."""


@dataclass(frozen=True, slots=True)
class Options:
    """What InfoNCE adds up. The defaults are the plain one: van den Oord et al. 2018 (arXiv 1807.03748, eq. 4) on cosines.

    Raises SettingError for values that mean nothing.
    """

    temperature: float = 0.05
    """Cosines are divided by it."""
    false_negative_margin: float | None = None
    """A column whose cosine is more than this above the positive's does not count (Qwen3-Embedding, arXiv 2506.05176: 0.1)."""
    guide_absolute_margin: float | None = None
    """With guide vectors g: a column does not count if g_ij > g_positive - margin (GISTEmbed, arXiv 2402.16829: 0)."""
    guide_relative_margin: float | None = None
    """With guide vectors g: a column does not count if g_ij > g_positive - |g_positive| margin."""
    hardness: float = 0.0
    """alpha of the bonus alpha sg(c_ij) on the logit of a negative (LLaVE, arXiv 2503.04812: 9; EmbeddingGemma, arXiv 2509.20354: 5)."""
    hardness_of: HardnessOf = "all"
    """Which negatives get the bonus: EmbeddingGemma's are the query's own, LLaVE's those of the batch."""
    own_weight: float = 1.0
    """Factor of exp(logit) of the query's own negatives."""
    in_batch_weight: float = 1.0
    """Factor of exp(logit) of all other columns."""
    importance: float = 0.0
    """beta of weights proportional to exp(beta sg(c_ij)), mean 1 over the row's negatives (HCL, Robinson et al. 2021, not debiased)."""
    focal: float = 0.0
    """gamma of the factor sg(1 - softmax of the positive)^gamma of a row's loss (as in KaLM-Embedding-V2, arXiv 2506.20923)."""
    directions: tuple[Direction, ...] = ("query_to_document",)
    """What is compared with what; the others than the first compare the query or its positive with the other rows' queries or documents."""
    joint: bool = True
    """True: one denominator for all directions, as in Qwen3-Embedding. False: one softmax a direction, their losses averaged."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SettingError(f"temperature = {self.temperature}: expected more than 0")
        for name in ("own_weight", "in_batch_weight"):
            if not getattr(self, name) > 0:
                raise SettingError(
                    f"{name} = {getattr(self, name)}: expected more than 0; leave negatives out by in_batch_negatives or no negatives"
                )
        for name in ("hardness", "importance", "focal"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} = {getattr(self, name)}: expected 0 or more")
        if None not in (self.guide_absolute_margin, self.guide_relative_margin):
            raise SettingError("guide_absolute_margin and guide_relative_margin exclude each other; give one")
        if unknown := sorted(set(self.directions) - set(get_args(Direction))):
            raise SettingError(f"directions: there is no {unknown[0]!r}; there are {', '.join(get_args(Direction))}")
        if "query_to_document" not in self.directions or len(set(self.directions)) < len(self.directions):
            raise SettingError(f"directions = {self.directions}: expected each once, query_to_document among them")

    @property
    def guided(self) -> bool:
        """Whether guide vectors are needed."""
        return self.guide_absolute_margin is not None or self.guide_relative_margin is not None

    def bonus(self, group: Literal["own", "in_batch"]) -> float:
        """The coefficient of sg(c_ij) in the logits of a group of negatives."""
        return self.importance + (self.hardness if self.hardness_of in ("all", group) else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The dense part of one direction for R rows: all columns count but those that a rule leaves out."""

    direction: Direction
    rows: Tensor
    """[R, D]."""
    columns: Tensor
    """[C, D]."""
    bonus: float
    """Coefficient of sg(cosine) beside the inverse temperature."""
    skipped: Tensor
    """[S, 2] int64, sorted: (row in this block, column) pairs that do not count."""
    limits: Tensor | None = None
    """[R]: a column of a higher cosine does not count."""
    guide: tuple[Tensor, Tensor, Tensor] | None = None
    """[R, G], [C, G], [R]: the guide's rows and columns, and its limits."""
    keys: tuple[Tensor, Tensor] | None = None
    """[R], [C] int64: a column whose key is the row's does not count."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """What a block's cosines come down to, a number a row."""

    lse: Tensor
    """[R]: log of the sum of exp(logit) over the columns that count; -inf where none does."""
    importance_lse: Tensor | None = None
    """[R]: the same of exp(importance cosine); only where importances are asked for."""
    counted: Tensor | None = None
    """[R] int64: how many columns count; only where importances are asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch with its sparse parts in the order in which row ranges are cut from it."""

    queries: Tensor
    documents: Tensor
    targets: Targets
    guide: GuideVectors | None
    skipped_documents: Tensor
    """[S, 2] (row, document column): positives, excluded and own ones."""
    skipped_queries: Tensor
    """[S, 2] (row, query column): queries of which one's positive is a known positive of the other."""

    @classmethod
    def of(cls, queries: Tensor, documents: Tensor, targets: Targets, options: Options, guide: GuideVectors | None) -> Batch:
        """Sorts what does not count. Raises SettingError when a guide is asked for and not given, or given and not asked for."""
        if options.guided != (guide is not None):
            raise SettingError("a guide margin needs guide vectors, and guide vectors need guide_absolute_margin or guide_relative_margin")
        positive = targets.positive
        rows = torch.arange(len(positive), device=positive.device)
        documents_out = in_order(torch.cat([torch.stack([rows, positive], 1), targets.excluded, targets.own]), len(documents))
        with_queries = any(direction.endswith("_to_query") for direction in options.directions)
        queries_out = queries_of_known_positives(targets) if with_queries else targets.excluded[:0]
        return cls(queries, documents, targets, guide, documents_out, queries_out)

    @property
    def scored(self) -> tuple[int, int]:
        """First row and end of those whose loss is asked for."""
        return self.targets.rows or (0, len(self.queries))


def in_order(pairs: Tensor, columns: int) -> Tensor:
    """[S, 2] sorted by row, then column."""
    return pairs[torch.argsort(pairs[:, 0] * columns + pairs[:, 1])]


def queries_of_known_positives(targets: Targets) -> Tensor:
    """[S, 2] sorted (i, j): query i excludes the positive of query j, or j that of i. (The same positive shows by its key.)"""
    order = torch.argsort(targets.positive)
    columns = targets.positive[order]
    rows, excluded = (part.contiguous() for part in targets.excluded.unbind(1))
    first, end = (torch.searchsorted(columns, excluded, right=right) for right in (False, True))
    counts = end - first
    repeated = torch.repeat_interleave(rows, counts)
    offsets = torch.arange(len(repeated), device=rows.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    others = order[torch.repeat_interleave(first, counts) + offsets]
    both = torch.cat([torch.stack([repeated, others], 1), torch.stack([others, repeated], 1)])
    return in_order(both, len(targets.positive))


def between(pairs: Tensor, first: int, end: int) -> Tensor:
    """Those of the sorted pairs whose row is in first..end, rows counted from `first`."""
    low, high = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([first, end], device=pairs.device)).tolist()
    return pairs[low:high] - torch.tensor([first, 0], device=pairs.device)


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """The few cosines of each of R rows that are not part of a matrix."""

    positive: Tensor
    """[R]: cosines of the queries with their positives."""
    own: Tensor
    """[h]: cosines with their own negatives."""
    own_rows: Tensor
    """[h] int64: whose."""
    own_columns: Tensor
    """[h] int64: which document."""
    own_counts: Tensor
    """[h] bool: False where a rule leaves it out."""
    limits: Tensor | None
    """[R]: cosines above it do not count."""
    guide_limits: Tensor | None
    """[R]: the same for the guide's cosines."""


def sparse(batch: Batch, options: Options, first: int, end: int) -> Sparse:
    """The sparse cosines of rows first..end."""
    targets = batch.targets
    queries = batch.queries[first:end]
    positives = torch.stack([torch.arange(end - first, device=queries.device), targets.positive[first:end]], 1)
    positive = cosines_of(queries, batch.documents, positives)
    pairs = between(targets.own, first, end)
    own = cosines_of(queries, batch.documents, pairs)
    barred = between(targets.excluded, first, end)
    columns = len(batch.documents)
    counts = ~torch.isin(pairs[:, 0] * columns + pairs[:, 1], barred[:, 0] * columns + barred[:, 1])
    limits = guide_limits = None
    if options.false_negative_margin is not None:
        limits = positive.detach() + options.false_negative_margin
        counts &= own.detach() <= limits[pairs[:, 0]]
    if batch.guide is not None:
        asked, read = batch.guide.queries[first:end], batch.guide.documents
        guided = cosines_of(asked, read, positives)
        margin = options.guide_absolute_margin
        guide_limits = guided - (margin if margin is not None else guided.abs() * (options.guide_relative_margin or 0.0))
        counts &= cosines_of(asked, read, pairs) <= guide_limits[pairs[:, 0]]
    return Sparse(positive, own, pairs[:, 0], pairs[:, 1], counts, limits, guide_limits)


def cosines_of(rows: Tensor, columns: Tensor, pairs: Tensor) -> Tensor:
    """[S] fp32: the inner product of each (row, column) pair; a few pairs at a time, so that their vectors are never all there twice."""
    parts = torch.split(pairs, pairs_at_a_time(rows))
    return torch.cat([(rows[part[:, 0]].float() * columns[part[:, 1]].float()).sum(1) for part in parts])


def pairs_at_a_time(vectors: Tensor) -> int:
    """So many pairs that their vectors take 8 MiB."""
    return max(1, 2**21 // vectors.shape[1])


def blocks(batch: Batch, options: Options, rest: Sparse, first: int, end: int) -> Iterator[Block]:
    """The dense parts of rows first..end, one a direction; none where only own negatives count."""
    if not batch.targets.in_batch:
        return
    positive = batch.targets.positive
    asked, answered = slice(first, end), positive[first:end]
    for direction in options.directions:
        of_query, to_query = direction.startswith("query"), direction.endswith("query")
        rows = batch.queries[asked] if of_query else batch.documents[answered]
        columns = batch.queries if to_query else batch.documents
        guide = None
        if batch.guide is not None and rest.guide_limits is not None:
            guide_rows = batch.guide.queries[asked] if of_query else batch.guide.documents[answered]
            guide = (guide_rows, batch.guide.queries if to_query else batch.guide.documents, rest.guide_limits)
        yield Block(
            direction,
            rows,
            columns,
            bonus=options.bonus("in_batch") if direction == "query_to_document" else 0.0,
            skipped=between(batch.skipped_queries if to_query else batch.skipped_documents, first, end),
            limits=rest.limits,
            guide=guide,
            keys=(answered, positive) if to_query else None,
        )


def row_losses(
    options: Options, rest: Sparse, dense: Mapping[Direction, Reduced], inverse_temperature: Tensor, weights: Tensor | None
) -> Tensor:
    """[R]: each row's loss, from its sparse cosines and the log-sum-exps of its dense parts.

    Differentiable in `rest.positive`, `rest.own`, each `lse` and the inverse temperature.
    """
    positive = rest.positive * inverse_temperature
    logits = rest.own * inverse_temperature + options.bonus("own") * rest.own.detach() + math.log(options.own_weight)
    own = segment_lse(logits.masked_fill(~rest.own_counts, -math.inf), rest.own_rows, len(positive))
    lses = {direction: part.lse + math.log(options.in_batch_weight) for direction, part in dense.items()}
    main = logaddexp(own, lses["query_to_document"]) if lses else own
    if options.importance:
        main = main - log_mean_importance(options, rest, dense.get("query_to_document"))
    lses["query_to_document"] = main
    if options.joint:
        total = main
        for direction, lse in lses.items():
            total = total if direction == "query_to_document" else logaddexp(total, lse)
        losses = softplus(total - positive)
    else:
        losses = torch.stack([softplus(lse - positive) for lse in lses.values()]).mean(0)
    if options.focal:
        losses = losses * (-torch.expm1(-losses.detach())) ** options.focal
    return losses if weights is None else losses * weights


def log_mean_importance(options: Options, rest: Sparse, dense: Reduced | None) -> Tensor:
    """[R]: log of the mean of exp(importance cosine) over the row's counted negatives, own ones and others; 0 where there are none."""
    cosines = (rest.own.detach() * options.importance).masked_fill(~rest.own_counts, -math.inf)
    rows = len(rest.positive)
    total = segment_lse(cosines, rest.own_rows, rows)
    counted = torch.zeros(rows, dtype=torch.long, device=total.device).index_add_(0, rest.own_rows, rest.own_counts.long())
    if dense is not None and dense.importance_lse is not None and dense.counted is not None:
        total = logaddexp(total, dense.importance_lse)
        counted = counted + dense.counted
    return torch.where(counted > 0, total - counted.clamp(min=1).log(), torch.zeros_like(total))


def segment_lse(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """[count]: log-sum-exp of the values of each segment; -inf for a segment without any (and a zero gradient, not nan)."""
    peak = values.new_full((count,), LOWEST).scatter_reduce(0, segments, values.detach(), "amax")
    total = values.new_zeros(count).index_add(0, segments, (values - peak[segments]).exp())
    return torch.where(total > 0, total.clamp(min=torch.finfo(total.dtype).tiny).log() + peak, -math.inf)


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b), whose gradient is 0 and not nan where both are -inf."""
    peak = torch.maximum(a.detach(), b.detach()).clamp(min=LOWEST)
    total = (a - peak).exp() + (b - peak).exp()
    return torch.where(total > 0, total.clamp(min=torch.finfo(total.dtype).tiny).log() + peak, -math.inf)


def left_out(block: Block) -> Tensor:
    """[R, C] bool: the pairs that do not count."""
    out = torch.zeros(len(block.rows), len(block.columns), dtype=torch.bool, device=block.rows.device)
    out[block.skipped.unbind(1)] = True
    if block.limits is not None:
        out |= (block.rows @ block.columns.T).detach() > block.limits[:, None]
    if block.guide is not None:
        rows, columns, limits = block.guide
        out |= rows @ columns.T > limits[:, None]
    if block.keys is not None:
        out |= block.keys[0][:, None] == block.keys[1]
    return out


def reduce(block: Block, options: Options, inverse_temperature: Tensor) -> Reduced:
    """A block's log-sum-exps, from its whole matrix, in autograd."""
    cosines = block.rows @ block.columns.T
    out = left_out(block)
    logits = cosines * inverse_temperature + block.bonus * cosines.detach()
    lse = torch.logsumexp(logits.masked_fill(out, LOWEST), 1)
    counted = (~out).sum(1)
    lse = torch.where(counted > 0, lse, -math.inf)
    if not options.importance or block.direction != "query_to_document":
        return Reduced(lse)
    importances = (cosines.detach() * options.importance).masked_fill(out, -math.inf)
    return Reduced(lse, torch.logsumexp(importances, 1), counted)


def plain(
    queries: Tensor,
    documents: Tensor,
    targets: Targets,
    options: Options,
    *,
    guide: GuideVectors | None = None,
    inverse_temperature: Tensor | None = None,
) -> Tensor:
    """The loss as it is written: whole matrices, in autograd; a scalar in fp32, the sum over the scored rows.

    Args:
        queries: [Q, D], unit length.
        documents: [N, D], unit length.
        targets: for the same Q rows and N columns, on the same device.
        options: of the loss.
        guide: vectors of the same texts, where a guide margin is set.
        inverse_temperature: a scalar tensor in place of 1 / options.temperature, for one that is learnt.

    """
    with torch.autocast(queries.device.type, enabled=False):  # bf16 cosines take some 1,350 values only: measured, scores must be fp32
        batch = Batch.of(queries.float(), documents.float(), targets, options, guide)
        inverse = queries.new_tensor(1 / options.temperature, dtype=torch.float32) if inverse_temperature is None else inverse_temperature
        first, end = batch.scored
        rest = sparse(batch, options, first, end)
        dense = {block.direction: reduce(block, options, inverse) for block in blocks(batch, options, rest, first, end)}
        weights = None if targets.weights is None else targets.weights[first:end]
        return row_losses(options, rest, dense, inverse, weights).sum()
