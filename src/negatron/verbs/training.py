"""The verb that trains."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
from negatron.models.encoder import folder_fingerprint, local_folder, unit_length
from negatron.models.precision import autocast
from negatron.negatives.records import Negatives
from negatron.progress import say
from negatron.types import Document, JudgedQuery, Negative, Query, ScoredDocument, TrainingExample
from negatron.verbs.common import DEFAULT_MODEL, Data, MiningSettings, load, place, settings_of, versions
from negatron.verbs.evaluation import judged_corpus
from negatron.verbs.negatives import mine

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from negatron.training.trainer import TrainingSettings

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
    collection: Collection, split: str, negatives: Iterable[JudgedQuery] | None, *, limit: int | None = None
) -> tuple[list[TrainingExample], dict[str, int]]:
    """Training examples of a split's pairs with the kept negatives of their queries, and counts of what is missing.

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
        own = kept_negatives(stored[query.id]) if query.id in stored else ()
        if own:
            refuse_false_negatives(query, stored[query.id].query, positives[query.id], own)
        known = frozenset(document.content for document in positives[query.id])
        examples.append(TrainingExample(query, positive, own, known))
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


def kept_negatives(item: JudgedQuery) -> tuple[Negative, ...]:
    """The negatives of a stored query: what every verdict keeps."""
    return tuple(Negative(j.candidate.document, j.candidate.origins) for j in item.judged if j.kept)


def train(
    data: Data,
    negatives: Negatives | Path | str | None = "mine",
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
    from BM25 and from the model itself. `pairs` limits the training pairs; `dev_split` is measured during training, against its own
    documents only, for the learning curve.
    """
    try:
        from negatron.training import trainer
    except ImportError as error:
        raise MissingExtra(str(error.name), "train") from error
    settings = settings_of(trainer.TrainingSettings, settings, changes)
    if pairs is not None and pairs < 1:
        raise SettingError(f"pairs = {pairs}: expected a number of training pairs, at least 1")
    collection = load(data)
    for name in (split, dev_split):
        if name is not None:
            collection.split(name)
    folder = local_folder(model_catalog.resolve_model(str(model)))
    if negatives == "mine":
        given = {"negatives": 3, "max_length": settings.max_length, "pairs": pairs, "precision": settings.precision}
        recipe = MiningSettings.checked(given, place="mining for this training")
        negatives = mine(collection, model=model, split=split, settings=recipe, seed=settings.seed)
    source = Negatives.open(negatives) if isinstance(negatives, str | Path) else negatives
    inputs = {
        "data": collection.fingerprint,
        "split": split,
        "negatives": source.fingerprint if source is not None else None,
        "model": folder_fingerprint(folder),
        "settings": settings.as_json(),
        "pairs": pairs,
        "dev_split": dev_split,
    }
    with store.begin(place(out, KIND, inputs), kind=KIND, inputs=inputs) as work:
        if work.finished is None:
            examples, facts = examples_of(collection, split, source, limit=pairs)
            tell(facts, split)
            measure = dev_measure(collection, dev_split, settings.precision) if dev_split else None
            result = trainer.train(folder, examples, settings, work.path / "training", autocast=autocast, evaluate=measure)
            publish(result.model, work.path)
            work.finish(**facts, **result.facts(), base_model=str(model), data=collection.name, versions=versions())
        return Trained(work.out, store.read_manifest(work.out, KIND))


def tell(facts: dict[str, int], split: str) -> None:
    """What was left out of training, aloud."""
    if facts["dropped_queries"]:
        say(f"{facts['dropped_queries']:,} queries of {split} are left out: a held-out split asks the same")
    if facts["pairs_with_fewer_negatives"]:
        say(
            f"{facts['pairs_with_fewer_negatives']:,} of {facts['pairs']:,} pairs have fewer than {facts['most_negatives']} negatives, "
            f"{facts['pairs_without_negatives']:,} none: the filters left no more"
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


def dev_measure(collection: Collection, split: str, precision: str) -> Callable[[SentenceTransformer], float]:
    """nDCG@10 of a model on a split's queries against the documents that the split judges: for learning curves, not for figures."""
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
