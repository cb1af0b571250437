"""What a training has in its hands: the model and its towers, the optimiser, the feed, the curriculum; and the recipe, all it depends on.

1. `prepared` makes them out of a loaded model and settings. Nothing of it is learnt yet.
2. `recipe_of` writes down all that the trained weights depend on, as JSON values; two trainings with one recipe end alike.

What it does not know: steps, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from negatron.errors import SettingError, nearest
from negatron.identity import fingerprint, fingerprint_texts, stream
from negatron.seams import Encoder
from negatron.training import adapters, towers
from negatron.training.batches import WRITTEN_SOURCES
from negatron.training.curriculum import Curriculum, answers, refuse_unknown_sources, sources_of
from negatron.training.example_store import ExampleStore
from negatron.training.gathered import Processes
from negatron.training.gradients import Tower
from negatron.training.mixtures import ExampleSet, Feed, refuse_bad_sets
from negatron.training.recipe import Prompts, TrainingSettings
from negatron.training.remining import ConanReplacement, Remine
from negatron.training.towers import CutTexts, TokenCounts
from negatron.training.workers import Workers
from negatron.types import TrainingExample

Autocast = Callable[[str, str], AbstractContextManager[Any]]
"""(device, "auto" | "fp32" | "bf16") -> the context in which a model on that device computes so: models.precision.autocast."""
LOOKED_AT = 100_000
"""Examples of a set that are looked at before the training, for cut texts and sources; of a larger set, evenly spread ones."""
NOT_LEARNT_FROM = ("checkpoint_seconds", "trackers", "keep_graphs", "keep_tokens", "keep_product_tokens")
"""Settings that change nothing of what is learnt."""


class TowersOfSet(NamedTuple):
    """The two towers of a data set, with its prompts, and the counts of tokens behind each."""

    queries: Tower
    documents: Tower
    of_queries: TokenCounts
    of_documents: TokenCounts


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """All of it."""

    model: SentenceTransformer
    optimiser: torch.optim.Optimizer
    towers: dict[str, TowersOfSet]
    """By the name of the set."""
    settings: TrainingSettings
    feed: Feed
    curriculum: Curriculum
    log_inverse_temperature: Tensor | None
    """A scalar parameter; None where the temperature is not learnt."""
    remine: Remine | None
    guide: Encoder | None
    processes: Processes | None
    workers: Workers
    epoch_ends: frozenset[int]
    """Steps done at the end of each epoch."""

    @property
    def steps(self) -> int:
        """In all epochs."""
        return self.curriculum.steps

    def examples_in(self, steps: int) -> int:
        """Examples in the first `steps` steps."""
        if steps == self.steps:
            return self.curriculum.examples * self.curriculum.epochs
        span = self.curriculum.span_at(steps)
        return span.first_example + span.batch_at(steps)[0]


def refuse_what_teaches_nothing(sets: Sequence[ExampleSet], settings: TrainingSettings, *, evaluated: bool, guided: bool) -> None:
    """Raises NegatronError for no examples, SettingError for settings under which nothing can be learnt, or that nothing could honour."""
    refuse_bad_sets(sets, settings.prompts)
    for one in sets:
        if any(example.negatives for example in looked_at(one)):
            continue
        if not settings.in_batch_negatives:
            raise SettingError(
                "in_batch_negatives = false, but no example has a negative of its own, so there is nothing to learn; mine some first"
            )
        if settings.batch_size == 1 or len(one.examples) == 1:
            raise SettingError(
                "batches of one example without negatives of its own teach nothing; use a larger batch_size, or mine negatives"
            )
    if settings.keep == "best" and not evaluated:
        raise SettingError('keep = "best", but there is nothing to evaluate on; give queries for it (a dev split), or set keep = "last"')
    if settings.patience is not None and not evaluated:
        raise SettingError(f"patience = {settings.patience}, but there is nothing to evaluate on; give queries for it (a dev split)")
    if (settings.guide is not None) != guided:
        raise SettingError("a guide needs both the setting `guide` with a margin and the encoder itself")
    if settings.remine is not None and len(sets) > 1:
        raise SettingError("remine works with one data set, whose queries it tells apart by id; leave it out")
    if "mixing_exponent" in settings.model_fields_set and len(sets) == 1:
        raise SettingError(f"mixing_exponent = {settings.mixing_exponent:g} has no effect with one data set; leave it out")


def refuse_without_effect(sets: Sequence[ExampleSet], settings: TrainingSettings) -> None:
    """Raises SettingError for a setting about own negatives that no example looked at has: it would teach without, unsaid."""
    asks = settings.stages or settings.remine or settings.causalneg_weight or "own_weight" in settings.model_fields_set
    if not asks:
        return
    sources = sources_of(chain.from_iterable(map(looked_at, sets)))
    refuse_unknown_sources(settings.stages, sources)
    if "own_weight" in settings.model_fields_set and not sources:
        raise SettingError(f"own_weight = {settings.own_weight:g} has no effect: no example has a negative of its own; mine some first")
    if settings.causalneg_weight and not any(answers(source, name) for source in sources for name in WRITTEN_SOURCES):
        raise SettingError(f"causalneg_weight = {settings.causalneg_weight:g} has no effect: no negative was written by a language model")
    if settings.remine is not None and not any(answers(source, settings.remine.source) for source in sources):
        raise SettingError(f"remine: no example has a negative of {settings.remine.source!r}{nearest(settings.remine.source, sources)}")


def prepared(
    model: SentenceTransformer,
    sets: Sequence[ExampleSet],
    settings: TrainingSettings,
    context: Callable[[], AbstractContextManager[Any]],
    workers: Workers,
    folder: Path,
    *,
    guide: Encoder | None,
    remine: Remine | None,
) -> tuple[Learner, CutTexts]:
    """The learner, at its beginning; and how many texts are cut, counted once on distinct texts. `folder`: for what may be made again."""
    if settings.lora is not None:
        torch.manual_seed(drawn_seed(settings.seed, "lora"))
        adapters.add_lora(model, settings.lora)
        model.to(workers.device)
    curriculum = Curriculum(
        settings.defaults(), sum(len(one.examples) for one in sets), settings.epochs, settings.stages, settings.weighting
    )
    refuse_without_effect(sets, settings)
    temperature = None
    if settings.temperature_learning_rate:
        start = torch.tensor(-math.log(curriculum.at(0).temperature), device=workers.device)
        temperature = torch.nn.Parameter(start)
    both = {one.name: towers_of(model, settings.prompts.get(one.name, Prompts()), context) for one in sets}
    learner = Learner(
        model,
        adamw(model, temperature, settings),
        both,
        settings,
        Feed(sets, curriculum, exponent=settings.mixing_exponent, seed=settings.seed, folder=folder, workers=workers),
        curriculum,
        temperature,
        ConanReplacement(settings.remine) if settings.remine is not None else remine,
        guide,
        Processes.now([*model.parameters(), *([] if temperature is None else [temperature])]),
        workers,
        frozenset([*(span.first_step for span in curriculum.spans if span.first_of_epoch == 0), curriculum.steps]) - {0},
    )
    return learner, counted(learner, sets)


def towers_of(model: SentenceTransformer, prompts: Prompts, context: Callable[[], AbstractContextManager[Any]]) -> TowersOfSet:
    """The two towers of a set, with its own prompts where it has some."""
    made = []
    for task, given, names in (
        ("query", prompts.query, towers.QUERY_PROMPTS),
        ("document", prompts.document, towers.DOCUMENT_PROMPTS),
    ):
        prompt = towers.prompt_of(model, names) if given is None else given
        counts = TokenCounts(model, prompt)
        made.append((towers.tower(model, task, counts, prompt, context), counts))
    (queries, of_queries), (documents, of_documents) = made
    return TowersOfSet(queries, documents, of_queries, of_documents)


def counted(learner: Learner, sets: Sequence[ExampleSet]) -> CutTexts:
    """How many distinct texts of the examples looked at are cut."""
    found = []
    for one in sets:
        both = learner.towers[one.name]
        examples = list(looked_at(one))
        asked = both.of_queries.all(example.query.text for example in examples)
        read = both.of_documents.all(d.content for e in examples for d in (e.positive, *(negative.document for negative in e.negatives)))
        found.append(towers.cut_texts(asked, read, towers.length_limit(learner.model)))
    return CutTexts.together(found)


def looked_at(one: ExampleSet) -> Iterator[TrainingExample]:
    """All examples of a set, or LOOKED_AT of them, evenly spread."""
    count = len(one.examples)
    rows = range(count) if count <= LOOKED_AT else (n * count // LOOKED_AT for n in range(LOOKED_AT))
    return (one.examples[row] for row in rows)


def adamw(model: torch.nn.Module, temperature: torch.nn.Parameter | None, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW as the Trainer of transformers sets it up: no decay on vectors, that is, on biases and the weights of norms.

    Each group has its own highest learning rate under "peak".
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay, "peak": settings.learning_rate},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0, "peak": settings.learning_rate},
    ]
    if temperature is not None:
        groups.append({"params": [temperature], "weight_decay": 0.0, "peak": settings.temperature_learning_rate})
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def recipe_of(
    model: SentenceTransformer,
    sets: Sequence[ExampleSet],
    settings: TrainingSettings,
    precision: str,
    workers: Workers,
    guide: Encoder | None,
) -> dict[str, Any]:
    """All that the trained weights depend on, as JSON values."""
    chosen = {key: value for key, value in settings.as_json().items() if key not in NOT_LEARNT_FROM}
    start = {"weights": towers.weights_fingerprint(model), "prompts": fingerprint(model.prompts, model.default_prompt_name)}
    examples = fingerprint([[one.name, examples_fingerprint(one.examples)] for one in sets])
    guided = {"guide_fingerprint": guide.fingerprint} if guide is not None else {}
    return {
        **start,
        "examples": examples,
        **chosen,
        **guided,
        "precision": precision,
        "device": str(model.device),
        "processes": workers.count,
    }


def examples_fingerprint(examples: Sequence[TrainingExample]) -> str:
    """Of the texts that training reads and of what chooses among them, in order; of a store its own."""
    if isinstance(examples, ExampleStore):
        return str(examples.fingerprint)
    return fingerprint_texts(text for example in examples for text in texts_and_numbers(example))


def texts_and_numbers(example: TrainingExample) -> Iterable[str]:
    """All of an example that changes what is learnt from it."""
    yield from (example.query.id, example.query.text, example.positive.content, repr((example.positive_score, example.weight)))
    yield str(len(example.negatives))
    for negative in example.negatives:
        origins = [(origin.source, origin.rank, origin.score) for origin in negative.origins]
        yield from (negative.document.id, negative.document.content, repr((origins, negative.teacher_score)))
    yield str(len(example.known_positives))
    yield from sorted(example.known_positives)


def precision_of(context: Callable[[], AbstractContextManager[Any]], device: torch.device) -> str:
    """Which of "bf16" and "fp32" is really on inside the context, whatever was asked for."""
    with context():
        if not torch.is_autocast_enabled(device.type):
            return "fp32"
        return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.").replace("bfloat", "bf")


def drawn_seed(seed: int, *names: str | int) -> int:
    """A seed for torch's generator out of the stream of (seed, names)."""
    return stream(seed, *names).getrandbits(63)
