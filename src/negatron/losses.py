"""The losses for other people's training loops: `TiledInfoNCE` for sentence-transformers' trainer, `info_nce` for vectors of your own.

`TiledInfoNCE` stands where MultipleNegativesRankingLoss or its cached form stands, and is called as they are. In one call:

1. the columns' distinct rows are found (`tokenised`), sorted by length, packed into chunks and encoded, with a graph as far as
   `keep_tokens` reaches (`gradients`, whose chunks these are);
2. the rows are laid out as the loss's queries and columns (`columns`), and the loss gives its gradient at the vectors (`tiled`);
3. what is returned is the mean, a scalar with a hook: backward pushes the gradient, times what comes from above, through each chunk.

What stays true: the gradient is that of the mean over the batch's rows, whatever the chunks; a chunk's second pass has the random state and
the precision of its first one. The *functions* of negatron.training return sums; here, as in torch, means are returned.

What it does not know: the optimiser, and what scales, accumulates or clips the gradient: all of that comes from above or after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from negatron.errors import NegatronError, SettingError, nearest
from negatron.training.columns import Layout, targets_of_columns
from negatron.training.gathered import Processes
from negatron.training.gradients import Again, Chunk, Kept, Side, Tower, first_passes, how_many_fit, what_is_kept
from negatron.training.losses import Direction, GuideVectors, HardnessOf, InfoNCE, Targets, TeacherScores
from negatron.training.objectives import CausalNegRegulariser, KLDistillation, MarginMSE, Matryoshka, Objective
from negatron.training.tokenised import Column, Padding, Rows

__all__ = [
    "CausalNegRegulariser",
    "GuideVectors",
    "InfoNCE",
    "KLDistillation",
    "MarginMSE",
    "Matryoshka",
    "Objective",
    "Targets",
    "TeacherScores",
    "TiledInfoNCE",
    "info_nce",
    "targets_of_columns",
]

SHARPEST = 100.0
"""Largest inverse of a learnt temperature, as in CLIP (Radford et al. 2021, arXiv 2103.00020), unless it begins above."""
LEAST = {"chunk_tokens": 1, "chunk_size": 1, "keep_tokens": 0, "keep_product_tokens": 0}
"""The options that decide over memory and speed, and the least that each may be."""
THEIR_WORDS = {
    "scale": "temperature = 1 / scale",
    "similarity_fct": "nothing: the cosine is what is compared",
    "mini_batch_size": "chunk_size, or rather chunk_tokens",
    "mini_batch_num_tokens": "chunk_tokens",
    "partition_mode": 'joint = True for "joint", False for "per_direction"',
    "hardness_mode": "hardness_of",
    "hardness_strength": "hardness",
    "show_progress_bar": "nothing: the trainer shows its own",
    "margin": "guide_absolute_margin or guide_relative_margin",
    "margin_strategy": "guide_absolute_margin or guide_relative_margin",
}
"""Keywords of sentence-transformers' losses, and what stands for each of them here."""


class MoreOptions(TypedDict, total=False):
    """The options of InfoNCE beside its temperature; defaults and meaning are those of `negatron.losses.InfoNCE`."""

    false_negative_margin: float | None
    guide_absolute_margin: float | None
    guide_relative_margin: float | None
    hardness: float
    hardness_of: HardnessOf
    own_weight: float
    in_batch_weight: float
    importance: float
    focal: float
    directions: tuple[Direction, ...]
    joint: bool


def options_of(temperature: float, given: Mapping[str, Any]) -> InfoNCE:
    """The loss with these options. Raises SettingError for an unknown one, with its name here where sentence-transformers has it."""
    known = {field.name for field in fields(InfoNCE)}
    for name in given:
        if name not in known:
            hint = f"; here it is {THEIR_WORDS[name]}" if name in THEIR_WORDS else nearest(name, known)
            raise SettingError(f"the loss has no option {name!r}{hint}")
    return InfoNCE(temperature, **given)


def info_nce(
    queries: Tensor,
    documents: Tensor,
    targets: Targets | None = None,
    *,
    temperature: float = 0.05,
    guide: GuideVectors | None = None,
    log_inverse_temperature: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[MoreOptions],
) -> Tensor:
    """InfoNCE of vectors of any length, exact, in linear memory; a scalar in fp32, which can be differentiated once.

    Args:
        queries: [Q, D]; brought to unit length here.
        documents: [N, D]; brought to unit length here.
        targets: which column is whose positive, whose negative, and what does not count; None: the documents are the Q positives in the
            order of the queries, then every query's first negative in that order, every query's second, and so on.
        temperature: cosines are divided by it.
        guide: another encoder's vectors of the same texts, where a guide margin is set.
        log_inverse_temperature: a scalar, log(1 / temperature), in place of `temperature`; it gets a gradient if it wants one.
        reduction: over the scored queries.
        options: those of `InfoNCE`.

    Raises SettingError for options that mean nothing, or N that is no multiple of Q where there are no targets.

    >>> vectors = torch.eye(2)
    >>> round(info_nce(vectors, 3 * vectors, temperature=1.0).item(), 4)  # log(e + 1) - 1
    0.3133

    """
    if reduction not in ("mean", "sum"):
        raise SettingError(f"reduction = {reduction!r}{nearest(str(reduction), ('mean', 'sum'))}")
    loss = options_of(temperature, options)
    if targets is None:
        if len(documents) % len(queries):
            raise SettingError(f"{len(documents)} documents for {len(queries)} queries: expected as many for each; else give targets")
        targets = targets_of_columns(torch.arange(len(documents)).view(-1, len(queries)))
    vectors = normalize(queries.float(), dim=1), normalize(documents.float(), dim=1)
    total = loss(*vectors, targets.to(queries.device), guide=guide, log_inverse_temperature=log_inverse_temperature)
    first, end = targets.rows or (0, len(queries))
    return total / (end - first) if reduction == "mean" else total


class TiledInfoNCE(nn.Module):
    """InfoNCE for sentence-transformers' trainer: the batch as large as you like, exact, encoded in chunks and scored in tiles.

        loss = TiledInfoNCE(model, temperature=0.05)
        SentenceTransformerTrainer(model=model, train_dataset=dataset, loss=loss).train()

    The columns of the data set are read by position: queries, positives, then any number of hard negatives. Labels are ignored.

    Beside the formula (see `InfoNCE`) it differs from MultipleNegativesRankingLoss in this: each distinct text is encoded once a batch;
    a text that occurs several times is one column; a copy of a query's positive, or another positive of the same query, is no negative of
    it (`exclude_copies`). Without copies in the batch the gradient is the same, to 1e-5 in fp32.
    """

    uses_gradient_cache = True
    """Asked by sentence-transformers' MatryoshkaLoss: it then shortens the vectors on their way into `calculate_loss`."""

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        temperature: float = 0.05,
        *,
        chunk_tokens: int | None = 8192,
        chunk_size: int | None = None,
        keep_tokens: int | None = None,
        keep_product_tokens: int = 0,
        exclude_copies: bool = True,
        in_batch_negatives: bool = True,
        gather_across_devices: bool = False,
        learn_temperature: bool = False,
        guide: nn.Module | None = None,
        **options: Unpack[MoreOptions],
    ) -> None:
        """Raises SettingError for options that mean nothing, have no effect, or bear another name here.

        Args:
            model: a SentenceTransformer that reads texts.
            temperature: cosines are divided by it; 1 / scale.
            chunk_tokens: tokens encoded at a time with their padding, at most; None: no limit. Memory and speed, not the gradient.
            chunk_size: texts encoded at a time, at most; None: no limit.
            keep_tokens: tokens whose activations are kept between the two passes, which spares their second forward; None: as many as
                `chunk_tokens`, which takes little more memory than the chunk that is pushed back anyway; 0: none.
            keep_product_tokens: of so many tokens more, only the results of matrix products and random draws are kept, for a third of that
                memory, which spares most of their second forward.
            exclude_copies: False: as MultipleNegativesRankingLoss, where each occurrence of a text is a negative.
            in_batch_negatives: False: only a query's own negatives count.
            gather_across_devices: the documents of all processes are negatives, as of one process with the batch of all.
            learn_temperature: the parameter `sharpening` is log(`temperature` / temperature now), and starts at 0, to which weight decay
                draws it. Give it a learning rate of its own: learning_rate_mapping={"sharpening": 1e-3} in the trainer's arguments.
            guide: another SentenceTransformer, neither trained nor saved, by whose opinion a document may not count (GISTEmbed); needs
                `guide_absolute_margin` or `guide_relative_margin`.
            options: the others of `InfoNCE`.

        """
        super().__init__()
        self.options = options_of(temperature, options)
        if self.options.guided != (guide is not None):
            raise SettingError("a guide and a guide margin need each other: give guide and guide_absolute_margin or guide_relative_margin")
        self.model = model
        self.chunk_tokens, self.chunk_size = chunk_tokens, chunk_size
        self.keep_tokens, self.keep_product_tokens = keep_tokens, keep_product_tokens
        for name, least in LEAST.items():
            if (limit := getattr(self, name)) is not None and limit < least:
                raise SettingError(f"{name} = {limit}: expected {least} or more")
        self.exclude_copies, self.in_batch_negatives = exclude_copies, in_batch_negatives
        self.gather_across_devices = gather_across_devices
        self.sharpening = nn.Parameter(torch.zeros(())) if learn_temperature else None
        self.guide = None if guide is None else Guide.of(guide)

    def forward(self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The mean loss over the batch's rows, a scalar in fp32.

        Args:
            sentence_features: a column each, as the trainer's collator makes them: queries, positives, then hard negatives.
            labels: ignored.

        Raises NegatronError for columns that are no padded texts, or of different lengths.

        """
        if self.sharpening is not None and "calculate_loss" in vars(self):
            raise SettingError(
                "learn_temperature does not work inside MatryoshkaLoss, which would not weigh its gradient; leave one of them out"
            )
        encoder = unwrapped(self.model)
        padding = padding_of(encoder)
        columns = [Column.of(features, number, padding) for number, features in enumerate(sentence_features)]
        if len(columns) < 2 or len({len(column.lengths) for column in columns}) > 1:
            found = [len(column.lengths) for column in columns]
            raise NegatronError(f"columns of {found} rows; expected queries, positives and any number of negatives, of equally many rows")
        sides = [Rows.of(some) for some in (columns[:1], columns[1:])]
        encoded = self.encoded(encoder, sides)
        processes = self.processes() if self.gather_across_devices else None
        layout = Layout.of(*sides, exclude_copies=self.exclude_copies, in_batch=self.in_batch_negatives, processes=processes)
        guide = None if self.guide is None else GuideVectors(*layout.picked(*(self.guide.vectors(encoder, rows, self) for rows in sides)))
        batch = Scored(layout, guide, self.log_inverse_temperature())
        if not torch.is_grad_enabled():
            return self.calculate_loss([[table] for table in encoded.tables], batch)
        leaves = [table.requires_grad_() for table in encoded.tables]
        loss = self.calculate_loss([[leaf] for leaf in leaves], batch, with_backward=True).detach().requires_grad_()
        wanted = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        loss.register_hook(lambda asked: self.push(encoded, wanted, batch, asked))  # type: ignore[no-untyped-call]
        return loss

    def calculate_loss(self, reps: Sequence[Sequence[Tensor]], batch: Scored, *, with_backward: bool = False) -> Tensor:
        """The mean loss from the tables of distinct queries and documents, each in one part or more.

        with_backward: adds the gradient to the parts, and returns the loss without one. The name and this order of arguments are what
        sentence-transformers' MatryoshkaLoss expects.
        """
        queries, documents = batch.layout.picked(*(torch.cat(list(parts)) for parts in reps))
        targets = batch.layout.targets.to(queries.device)
        total = self.options(queries, documents, targets, guide=batch.guide, log_inverse_temperature=batch.log_inverse_temperature)
        loss = total / batch.layout.divisor
        if with_backward:
            loss.backward()  # type: ignore[no-untyped-call]
            loss = loss.detach()
        return loss

    def encoded(self, encoder: nn.Module, sides: Sequence[Rows]) -> Encoded:
        """The distinct rows of both sides after their first pass."""
        autocast = Autocast.now(next(encoder.parameters()).device.type)
        tables = [sides_of(tower(encoder, rows, autocast), rows) for rows in sides]
        return Encoded.first(tables, self.chunk_size, self.chunk_tokens, self.graph_tokens, self.keep_product_tokens)

    @property
    def graph_tokens(self) -> int | None:
        """Tokens whose graph is kept from the first pass; None: all, which is so where nothing limits the chunks."""
        if self.keep_tokens is not None or self.chunk_tokens is not None:
            return self.chunk_tokens if self.keep_tokens is None else self.keep_tokens
        return None if self.chunk_size is None else 0

    def push(self, encoded: Encoded, wanted: Sequence[Tensor], batch: Scored, asked: Tensor) -> None:
        """Adds the gradient to the parameters: `wanted` at the tables, times `asked`, what comes from above the loss."""
        with torch.enable_grad():
            encoded.push([gradient * asked for gradient in wanted])
        learnt = batch.log_inverse_temperature
        if self.sharpening is not None and learnt is not None and learnt.grad is not None:
            gradient = learnt.grad * asked
            if (processes := self.processes()) is not None:  # nobody else averages a parameter that is not the model's
                gradient = processes.sum(gradient) / processes.count
            self.sharpening.backward(gradient)  # type: ignore[no-untyped-call]
        wrapper = data_parallel(self.model)
        if wrapper is not None and wrapper.require_backward_grad_sync and (processes := self.processes()) is not None:
            average_gradients(processes)

    def processes(self) -> Processes | None:
        """Those that run together; None where this one is alone."""
        return Processes.now(self.model.parameters())

    def log_inverse_temperature(self) -> Tensor | None:
        """A scalar whose gradient is that of `sharpening`; None where the temperature is not learnt."""
        if self.sharpening is None:
            return None
        start = math.log(self.options.temperature)
        with torch.no_grad():
            self.sharpening.clamp_(max=max(0.0, math.log(SHARPEST) + start))
        return (self.sharpening.detach() - start).requires_grad_(torch.is_grad_enabled())

    @property
    def temperature(self) -> float:
        """The one of now."""
        return self.options.temperature * (1.0 if self.sharpening is None else math.exp(-self.sharpening.item()))

    def get_config_dict(self) -> dict[str, Any]:
        """All options, for the model card."""
        own = (*LEAST, "exclude_copies", "in_batch_negatives", "gather_across_devices")
        return {
            **asdict(self.options),
            **{name: getattr(self, name) for name in own},
            "learn_temperature": self.sharpening is not None,
            "guide": None if self.guide is None else self.guide.model,
        }

    @property
    def citation(self) -> str:
        """BibTeX, for the model card: the loss, the chunks, the tiles."""
        return CITATION


# ---- encoding ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a batch is scored by beside its vectors."""

    layout: Layout
    guide: GuideVectors | None
    log_inverse_temperature: Tensor | None


@dataclass(frozen=True, slots=True)
class Autocast:
    """The precision that is on at a time, to be put on again: backward runs outside of the caller's context."""

    kind: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, kind: str) -> Autocast:
        """That of a device's kind, such as "cpu"."""
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def again(self) -> torch.autocast:
        """The context."""
        return torch.autocast(self.kind, self.dtype, self.enabled)


def tower(encoder: nn.Module, rows: Rows, autocast: Autocast) -> Tower:
    """Encodes distinct rows by their numbers, written as texts. The features are made anew in each pass: modules write into theirs."""

    def forward(numbers: list[int]) -> Tensor:
        with autocast.again():
            vectors = encoder(rows.features(numbers))["sentence_embedding"]
        unit = normalize(vectors.float(), dim=1)
        if torch.is_grad_enabled() and not unit.requires_grad:
            unit.requires_grad_()  # of a frozen encoder: the gradient ends here
        return unit

    lengths = rows.lengths
    return Tower(lambda texts: [int(text) for text in texts], forward, lambda text: lengths[int(text)])


def sides_of(tower: Tower, rows: Rows) -> list[Side]:
    """The distinct rows as texts of `gradients`, which are their numbers; each kind alone, as no two may share a chunk."""
    return [Side.of(tower, [str(number) for number in kind], None) for kind in rows.kinds]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The chunks of both sides after the first pass."""

    tables: tuple[Tensor, ...]
    """[U, D] for queries and for documents: the vectors of their distinct rows, without a graph."""
    sides: list[list[Side]]
    """Of each table, whose rows are those of its sides one after the other."""
    chunks: list[Chunk]
    ways: list[Kept | Again]
    """Of each chunk, to its graph."""

    @classmethod
    def first(
        cls, sides: list[list[Side]], chunk_size: int | None, chunk_tokens: int | None, keep_tokens: int | None, product_tokens: int
    ) -> Encoded:
        """Encodes all of it, the longest chunks first; where gradients are on, keeps what the two budgets (None: without limit) allow."""
        chunks = [chunk for table in sides for side in table for chunk in side.chunks(chunk_size, chunk_tokens)]
        chunks.sort(key=lambda chunk: chunk.longest, reverse=True)
        padded = [chunk.padded_tokens for chunk in chunks]
        graphs = len(chunks) if keep_tokens is None else how_many_fit(padded, keep_tokens)
        learning = torch.is_grad_enabled()
        keeps = what_is_kept(padded, graphs if learning else 0, product_tokens if learning else 0)
        every = [side for table in sides for side in table]
        parts, ways = first_passes(every, chunks, keeps)
        torch.clear_autocast_cache()  # assumed of older torch, not so in 2.13: a weight cast without a graph is used again
        in_turn = iter(parts)
        tables = tuple(torch.cat([next(in_turn) for _ in table]) for table in sides)
        return cls(tables, sides, chunks, ways)

    def push(self, gradients: Sequence[Tensor]) -> None:
        """Adds to the parameters' gradients what the gradients [U, D] at the tables ask for; those with a graph first, to be rid of it."""
        of_side: dict[int, Tensor] = {}
        for sides, gradient in zip(self.sides, gradients, strict=True):
            parts = torch.split(gradient, [len(side.texts) for side in sides])
            of_side |= {id(side): part for side, part in zip(sides, parts, strict=True)}
        for chunk, way in zip(self.chunks, self.ways, strict=True):
            gradient = of_side[id(chunk.side)]
            places = torch.tensor(chunk.numbers, device=gradient.device)
            way.with_graph().backward(gradient[places])  # type: ignore[no-untyped-call]


# ---- the guide -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """Another encoder. No module of the loss's: it is neither trained nor saved nor moved, but where its vectors are needed."""

    model: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Guide:
        """Without dropout."""
        return cls(model.eval())

    def vectors(self, encoder: nn.Module, rows: Rows, loss: TiledInfoNCE) -> Tensor:
        """[U, G], unit length: of the distinct rows; tokenised anew where the guide has another vocabulary or reads less."""
        device = next(encoder.parameters()).device
        self.model.to(device)
        ours, theirs = getattr(encoder, "tokenizer", None), getattr(self.model, "tokenizer", None)
        again = ours is not None and theirs is not None and ours.get_vocab() != theirs.get_vocab()

        def forward(numbers: list[int]) -> Tensor:
            features = rows.features(numbers)
            if again:
                texts = ours.batch_decode(features["input_ids"], skip_special_tokens=True)  # type: ignore[union-attr]
                prepared: Mapping[str, Any] = self.model.preprocess(texts)  # type: ignore[operator]
                features = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in prepared.items()}
            return normalize(self.model(features)["sentence_embedding"].float(), dim=1)

        plain = tower(encoder, rows, Autocast.now(device.type))
        sides = sides_of(Tower(plain.prepare, forward, plain.length), rows)
        with torch.no_grad():
            return Encoded.first([sides], loss.chunk_size, loss.chunk_tokens, 0, 0).tables[0]


# ---- what a trainer wraps around the model ---------------------------------------------------------------------------------------------


def data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper that averages gradients over processes, where there is one."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    return model if isinstance(model, DistributedDataParallel) else None


def unwrapped(model: nn.Module) -> nn.Module:
    """What encodes. The wrapper averages what one backward adds, and gets confused by one for each chunk: see `average_gradients`."""
    wrapper = data_parallel(model)
    inner: nn.Module = model if wrapper is None else wrapper.module
    return inner


def average_gradients(processes: Processes) -> None:
    """The mean over the processes of the whole gradient at each parameter, earlier batches' part included, as the wrapper does."""
    local = [parameter.grad for parameter in processes.parameters]
    for parameter in processes.parameters:
        parameter.grad = None
    with processes.one_gradient():
        for parameter, gradient in zip(processes.parameters, local, strict=True):
            parameter.grad = None if gradient is None else gradient / processes.count


def padding_of(encoder: nn.Module) -> Padding:
    """How its tokenizer pads, where that is known."""
    tokenizer = getattr(encoder, "tokenizer", None)
    id_ = getattr(tokenizer, "pad_token_id", None)
    return Padding(0 if id_ is None else int(id_), getattr(tokenizer, "padding_side", "right") == "left")


CITATION = """
@misc{oord2018representation,
    title={Representation Learning with Contrastive Predictive Coding},
    author={Aaron van den Oord and Yazhe Li and Oriol Vinyals},
    year={2018},
    eprint={1807.03748},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
@misc{gao2021scaling,
    title={Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup},
    author={Luyu Gao and Yunyi Zhang and Jiawei Han and Jamie Callan},
    year={2021},
    eprint={2101.06983},
    archivePrefix={arXiv},
    primaryClass={cs.LG}
}
@misc{cheng2024breaking,
    title={Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss},
    author={Zesen Cheng and Hang Zhang and Kehan Li and Sicong Leng and Zhiqiang Hu and Fei Wu and Deli Zhao and Xin Li and Lidong Bing},
    year={2024},
    eprint={2410.17243},
    archivePrefix={arXiv},
    primaryClass={cs.CV}
}
"""
