"""The verb that trains."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negatron import store
from negatron.data.collection import Collection
from negatron.errors import MissingExtra, NegatronError, SettingError
from negatron.evaluation import benchmark
from negatron.evaluation.measures import Measure
from negatron.identity import same_words
from negatron.models import catalog as model_catalog
from negatron.models.encoder import SentenceEncoder, folder_fingerprint, local_folder, unit_length
from negatron.models.precision import autocast
from negatron.negatives.records import Negatives
from negatron.progress import say
from negatron.training.curriculum import answers
from negatron.types import Document, Judged, JudgedQuery, Negative, Query, ScoredDocument, TrainingExample
from negatron.verbs.common import DEFAULT_MODEL, Data, MiningSettings, load, place, settings_of, versions
from negatron.verbs.evaluation import judged_corpus
from negatron.verbs.negatives import mine

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from negatron.training.mixtures import ExampleSet
    from negatron.training.recipe import TrainingSettings

KIND = "model"


@dataclass(frozen=True)
class Trained:
    """A trained model's folder, which plain `SentenceTransformer(path)` loads."""

    path: Path
    manifest: store.Manifest

    @property
    def fingerprint(self) -> str:
        """Of the folder's contents."""
        return self.manifest.fingerprint

    @property
    def facts(self) -> dict[str, Any]:
        """Counts of the training: pairs, negatives, texts cut, steps, losses."""
        return dict(self.manifest.facts)

    def __str__(self) -> str:
        facts = self.facts
        return (
            f"trained on {facts['pairs']:,} pairs, {facts['most_negatives']} negatives each at most, {facts['steps']:,} steps, "
            f"last loss {facts['last_loss']:.4f}\n  SentenceTransformer({str(self.path)!r})"
        )


def examples_of(
    collection: Collection,
    split: str,
    negatives: Iterable[JudgedQuery] | None,
    *,
    limit: int | None = None,
    spare: frozenset[str] = frozenset(),
) -> tuple[list[TrainingExample], dict[str, int]]:
    """Training examples of a split's pairs with the kept negatives of their queries, and counts of what is missing.

    `spare`: sources whose negatives are there, too, that no filter rejects and only a choice left out, for a curriculum or re-mining.

    No known positive of a query, nor a copy of one, can be among its negatives, whoever wrote the file: raises NegatronError. So does a
    split without pairs, and a file that holds other queries under the same ids, or a negative for none of the pairs.
    """
    pairs = collection.pairs(split, limit=limit)
    if not pairs.pairs:
        raise NegatronError(
            f"{collection.name} has no pair to train on in {split}; a held-out split asks the same as {pairs.dropped_queries:,} queries"
        )
    positives = collection.positives(split)
    stored = {item.query.id: item for item in negatives} if negatives is not None else {}
    examples = []
    for query, positive in pairs.pairs:
        item = stored.get(query.id)
        own = kept_negatives(item, spare=spare) if item is not None else ()
        if item is not None and own:
            refuse_false_negatives(query, item.query, positives[query.id], own)
        known = frozenset(document.content for document in positives[query.id])
        scores = {} if item is None else {p.document.id: p.teacher_score for p in item.positives}
        examples.append(TrainingExample(query, positive, own, known, positive_score=scores.get(positive.id)))
    counts = Counter(len(example.negatives) for example in examples)
    most = max(counts)
    if negatives is not None and most == 0:
        found = sum(query.id in stored for query, _ in pairs.pairs)
        raise NegatronError(
            f"none of the {len(examples):,} pairs of {split} has a negative: the folder holds the queries of {found:,} of them and keeps "
            "no candidate; mine for this data set and split, loosen the filters, or train with in-batch negatives only (--negatives none)"
        )
    facts = {
        "pairs": len(examples),
        "dropped_queries": pairs.dropped_queries,
        "negatives": sum(len(example.negatives) for example in examples),
        "most_negatives": most,
        "pairs_with_fewer_negatives": sum(count for n, count in counts.items() if n < most),
        "pairs_without_negatives": counts[0] if most else 0,
    }
    return examples, facts


def refuse_false_negatives(query: Query, stored: Query, positives: Sequence[Document], negatives: Sequence[Negative]) -> None:
    """Raises NegatronError when a negative is a known positive of the query or a copy of one, or was made for another query."""
    if same_words(stored.text) != same_words(query.text):
        raise NegatronError(
            f"query {query.id} reads {stored.text[:80]!r} in the negatives and {query.text[:80]!r} in the data set; mine for this data set"
        )
    known = {document.id for document in positives}
    folded = {same_words(text) for document in positives for text in (document.content, document.text)}
    for negative in negatives:
        if negative.document.id in known or same_words(negative.document.content) in folded:
            raise NegatronError(
                f"the negatives of query {query.id} hold {negative.document.id}, a known positive of it or a copy; "
                "mine or filter them again for this data set"
            )


def kept_negatives(item: JudgedQuery, *, spare: frozenset[str] = frozenset()) -> tuple[Negative, ...]:
    """The negatives of a stored query: what every verdict keeps, and of `spare` sources what no filter rejects."""

    def wanted(judged: Judged) -> bool:
        return judged.kept or (judged.spare and any(answers(name, one) for name in judged.candidate.sources for one in spare))

    chosen = filter(wanted, item.judged)
    return tuple(Negative(j.candidate.document, j.candidate.origins, j.candidate.teacher_score) for j in chosen)


Source = Negatives | Path | str | None


def train(
    data: Data | Sequence[Data],
    negatives: Source | Sequence[Source] = "mine",
    *,
    model: str | Path = DEFAULT_MODEL,
    split: str = "train",
    out: Path | str | None = None,
    settings: TrainingSettings | None = None,
    pairs: int | None = None,
    dev_split: str | None = None,
    **changes: Any,
) -> Trained:
    """A bi-encoder fine-tuned on the pairs of a split with the given negatives.

    `negatives` is a folder of ours, None for in-batch negatives only, or "mine" for the default recipe: three hard negatives a query
    from BM25 and from the model itself. `data` may be several data sets, one of which gives each batch; then `negatives` is one for each,
    or "mine" or None for all. `pairs` limits the training pairs of each; `dev_split` is measured during training, against its own
    documents only, for the learning curve and for `keep` and `patience`.

    Started by `accelerate launch` or torchrun, all processes train together; the first one mines and writes.
    """
    try:
        from negatron.training import trainer
        from negatron.training.workers import Workers
    except ImportError as error:
        raise MissingExtra(str(error.name), "train") from error
    settings = settings_of(trainer.TrainingSettings, settings, changes)
    if pairs is not None and pairs < 1:
        raise SettingError(f"pairs = {pairs}: expected a number of training pairs, at least 1")
    collections = [load(one) for one in several(data)]
    for collection in collections:
        for name in (split, dev_split):
            if name is not None:
                collection.split(name)
    given = one_for_each(negatives, [collection.name for collection in collections])
    folder = local_folder(model_catalog.resolve_model(str(model)))
    guide = guide_of(settings)
    workers = Workers.start()
    sources = workers.in_turn(lambda: [negatives_of(c, n, model, split, settings, pairs) for c, n in zip(collections, given, strict=True)])
    inputs = {
        "data": together([collection.fingerprint for collection in collections]),
        "split": split,
        "negatives": together([source.fingerprint if source is not None else None for source in sources]),
        "model": folder_fingerprint(folder),
        "settings": settings.as_json(),
        "pairs": pairs,
        "dev_split": dev_split,
        **({"guide": guide.fingerprint} if guide is not None else {}),
    }
    target = place(out, KIND, inputs).absolute()
    with ExitStack() as opened:
        work = opened.enter_context(store.begin(target, kind=KIND, inputs=inputs)) if workers.first else None
        if workers.agree(work is not None and work.finished is None):
            sets, facts = sets_of(collections, sources, split, settings, pairs, aloud=workers.first)
            measure = dev_measure(collections, dev_split, settings.precision) if dev_split else None
            training = store.partial_path(target) / "training"
            result = trainer.train(
                folder, sets, settings, training, autocast=autocast, evaluate=measure, guide=guide,
                trackers_at=target.with_name(f"{target.name}.trackers"),
            )  # fmt: skip
            if work is not None:
                publish(result.model, work.path)
                names = together([collection.name for collection in collections])
                work.finish(**facts, **result.facts(), base_model=str(model), data=names, versions=versions())
        workers.wait()
    return Trained(target, store.read_manifest(target, KIND))


def sets_of(
    collections: Sequence[Collection],
    sources: Sequence[Negatives | None],
    split: str,
    settings: TrainingSettings,
    pairs: int | None,
    *,
    aloud: bool,
) -> tuple[list[ExampleSet], dict[str, int]]:
    """The training examples of each data set, and counts over all of them; `aloud`: what was left out is said."""
    from negatron.training.mixtures import ExampleSet

    sets, facts = [], []
    for collection, source in zip(collections, sources, strict=True):
        examples, counts = examples_of(collection, split, source, limit=pairs, spare=spare_sources(settings))
        sets.append(ExampleSet(collection.name, examples))
        facts.append(counts)
        if aloud:
            tell(counts, split, f"{collection.name}: " if len(collections) > 1 else "")
    return sets, summed(facts)


def spare_sources(settings: TrainingSettings) -> frozenset[str]:
    """Sources of which not only the kept negatives are wanted: those that re-mining or the quotas of every stage choose from."""
    remined = {settings.remine.source} if settings.remine is not None else set()
    quotas = [stage.quotas for stage in settings.stages]
    chosen = {source for own in quotas for source in own or ()} if None not in quotas else set()
    return frozenset(remined | chosen)


def several(data: Data | Sequence[Data]) -> list[Data]:
    """The data sets, also where there is only one."""
    return [data] if isinstance(data, Collection | str | Path) else list(data)


def one_for_each(negatives: Source | Sequence[Source], names: Sequence[str]) -> list[Source]:
    """The negatives of each data set. Raises SettingError where it is not clear whose they are."""
    given = [negatives] if negatives is None or isinstance(negatives, Negatives | str | Path) else list(negatives)
    if len(given) == 1 and given[0] in (None, "mine"):
        return given * len(names)
    if len(given) != len(names):
        raise SettingError(
            f"{len(given)} negatives for {len(names)} data sets ({', '.join(names)}): expected one for each in their order, "
            "or `mine` or `none` for all"
        )
    return given


def negatives_of(
    collection: Collection, given: Source, model: str | Path, split: str, settings: TrainingSettings, pairs: int | None
) -> Negatives | None:
    """The negatives of a data set: mined, read, or none."""
    if given == "mine":
        own = {"negatives": 3, "max_length": settings.max_length, "pairs": pairs, "precision": settings.precision}
        recipe = MiningSettings.checked(own, place="mining for this training")
        return mine(collection, model=model, split=split, settings=recipe, seed=settings.seed)
    return Negatives.open(given) if isinstance(given, str | Path) else given


def guide_of(settings: TrainingSettings) -> SentenceEncoder | None:
    """The encoder that the settings name as a guide, in evaluation mode."""
    if settings.guide is None:
        return None
    return SentenceEncoder(model_catalog.resolve_model(settings.guide), max_length=settings.max_length, precision=settings.precision)


def together(values: Sequence[Any]) -> Any:
    """The only value itself, several as a list."""
    return values[0] if len(values) == 1 else list(values)


def summed(facts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Counts of several data sets as one; `most_negatives` is the largest."""
    return {key: (max if key == "most_negatives" else sum)(one[key] for one in facts) for key in facts[0]}


def tell(facts: Mapping[str, int], split: str, which: str = "") -> None:
    """What was left out of training, aloud."""
    if facts["dropped_queries"]:
        say(f"{which}{facts['dropped_queries']:,} queries of {split} are left out: a held-out split asks the same")
    if facts["pairs_with_fewer_negatives"]:
        say(
            f"{which}{facts['pairs_with_fewer_negatives']:,} of {facts['pairs']:,} pairs have fewer than {facts['most_negatives']} "
            f"negatives, {facts['pairs_without_negatives']:,} none: the filters left no more"
        )


def publish(model: Path, folder: Path) -> None:
    """Puts the saved model's files and the log where plain `SentenceTransformer(folder)` finds them; can be repeated after a stop."""
    for entry in sorted(model.iterdir()):
        target = folder / entry.name
        if entry.is_dir():
            shutil.copytree(entry, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(entry, target)
    shutil.copyfile(model.parent / "log.jsonl", folder / "log.jsonl")
    shutil.rmtree(model.parent)


def dev_measure(collections: Sequence[Collection], split: str, precision: str) -> Callable[[SentenceTransformer], float]:
    """nDCG@10 of a model on a split's queries, the mean over the data sets: for learning curves, not for figures."""
    measures = [measure_of(collection, split, precision) for collection in collections]
    return lambda model: math.fsum(measure(model) for measure in measures) / len(measures)


def measure_of(collection: Collection, split: str, precision: str) -> Callable[[SentenceTransformer], float]:
    """nDCG@10 of a model on a split's queries against the documents that the split judges."""
    small = judged_corpus(collection, split)
    grades = small.graded(split)
    queries = [small.queries[query_id] for query_id in grades]
    documents = sorted(small.documents.values(), key=lambda document: document.id)

    def measured(model: SentenceTransformer) -> float:
        with autocast(model.device.type, precision):
            asked, read = (
                unit_length(encode(texts, batch_size=64, convert_to_tensor=True, show_progress_bar=False).float().cpu().numpy())
                for encode, texts in (
                    (model.encode_query, [query.text for query in queries]),
                    (model.encode_document, [document.content for document in documents]),
                )
            )
        scores = asked @ read.T
        best = (-scores).argsort(axis=1, kind="stable")[:, :10]
        run = {
            query.id: [ScoredDocument(query.id, documents[column].id, float(scores[row, column])) for column in best[row]]
            for row, query in enumerate(queries)
        }
        return benchmark.score_run(run, grades, [Measure("ndcg", 10)]).means[Measure("ndcg", 10)]

    return measured
