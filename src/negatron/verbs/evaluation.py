"""Verbs that measure: evaluate, compare, search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from negatron import store
from negatron.data.collection import Collection
from negatron.errors import SettingError
from negatron.evaluation import benchmark, significance
from negatron.evaluation.benchmark import Evaluation
from negatron.evaluation.measures import Measure
from negatron.identity import file_sha256
from negatron.models.bm25 import BM25Settings
from negatron.types import Document, Query, ScoredDocument
from negatron.verbs.common import (
    DEFAULT_MODEL,
    ENCODING,
    Data,
    EncodingSettings,
    Workshop,
    load,
    place,
    refuse_unused,
    settings_of,
    versions,
    workshop,
)

KIND = "evaluation"
Run = Mapping[str, Sequence[ScoredDocument]]


class EvaluationSettings(EncodingSettings):
    """Settings of `evaluate`."""

    measures: tuple[str, ...] = ("ndcg@10", "mrr@10", "recall@10", "recall@100", "map@100")
    """Measures, as name@cut."""
    depth: int = Field(default=100, ge=1)
    """Documents searched for each query."""
    corpus_split: str | None = None
    """Search only the documents judged in this split; "off" = the whole corpus. For quick looks, never for figures."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and the folder it stands in."""

    path: Path
    evaluation: Evaluation
    fingerprint: str = field(default="")

    def __str__(self) -> str:
        return f"{self.evaluation}\n  in {self.path}"


def evaluate(
    model: str | Path = DEFAULT_MODEL,
    data: Data = "",
    *,
    split: str = "test",
    out: Path | str | None = None,
    settings: EvaluationSettings | None = None,
    name: str | None = None,
    **changes: Any,
) -> Evaluated:
    """Measures of a model, or of a TREC run, on the judged queries of a split, by exact search over the whole corpus.

    `model` is an encoder, "bm25", several of these joined by "+" (reciprocal rank fusion), or the file of a run. `name` is what
    tables call it. Writes scores.json, run.trec and per_query.parquet.
    """
    settings = settings_of(EvaluationSettings, settings, changes)
    collection = load(data)
    collection.split(split)
    if settings.corpus_split is not None:
        collection = judged_corpus(collection, settings.corpus_split)
    measures = [Measure.parse(text) for text in settings.measures]
    if not Path(model).is_file() and (deepest := max((one.cut or 0 for one in measures), default=0)) > settings.depth:
        raise SettingError(
            f"a measure looks at {deepest} documents of a query, but only {settings.depth} are searched; set depth = {deepest}"
        )
    shops = {} if Path(model).is_file() else searched_with(str(model), collection, settings)
    made_by = file_sha256(Path(model)) if not shops else {part: shop.searcher(kind_of(part)).fingerprint for part, shop in shops.items()}
    inputs = {"data": collection.fingerprint, "split": split, "model": made_by, "settings": settings.as_json(), "name": name}
    with store.begin(place(out, KIND, inputs), kind=KIND, inputs=inputs) as work:
        if work.finished is None:
            seconds: dict[str, float] = {}
            run = benchmark.read_run(Path(model)) if not shops else fused_run(shops, collection, split, settings.depth, seconds)
            scored = benchmark.score_run(
                run, collection.graded(split), measures, model=name or str(model), data=collection.name, split=split, seconds=seconds
            )
            scored = replace(scored, versions={**scored.versions, **versions()})
            texts = {query_id: collection.queries[query_id].text for query_id in scored.query_ids}
            benchmark.write_evaluation(work.path, run, scored, texts=texts)
            work.finish(model=name or str(model), data=collection.name, split=split)
        return Evaluated(work.out, benchmark.read_evaluation(work.out), store.read_manifest(work.out).fingerprint)


def refuse_unused_encoding(settings: EncodingSettings, *models: str | Path) -> None:
    """Raises SettingError for settings of `evaluate` or `search` that none of these models reads: neither BM25 nor a run's file encodes."""
    if all(Path(model).is_file() for model in models):
        refuse_unused(settings, {*ENCODING, "depth", "corpus_split"}, "the file of a run is measured as it is")
    elif all(str(model) == "bm25" for model in models):
        refuse_unused(settings, ENCODING, "bm25 has no encoder")


def kind_of(part: str) -> str:
    """The source that searches with it: "bm25" is itself, a model is "dense"."""
    return "bm25" if part == "bm25" else "dense"


def searched_with(model: str, collection: Collection, settings: EncodingSettings) -> dict[str, Workshop]:
    """The searchers that `model` names: one, or several joined by "+"."""
    parts = [model] if Path(model).exists() else [part.strip() for part in model.split("+")]
    if "" in parts or len(set(parts)) != len(parts):
        raise SettingError(f"{model!r}: expected different names joined by +, such as bm25+minilm")
    return {part: workshop(collection, part, settings, BM25Settings()) for part in parts}


def fused_run(shops: Mapping[str, Workshop], collection: Collection, split: str, depth: int, seconds: dict[str, float]) -> Run:
    """The run of one searcher, or the fusion of several; `seconds` receives what was timed."""
    runs = []
    for part, shop in shops.items():
        began = time.perf_counter()
        runs.append(benchmark.search_run(shop.searcher(kind_of(part)), collection.queries, collection.graded(split), depth=depth))
        named = kind_of(part) if len({kind_of(other) for other in shops}) == len(shops) else part
        seconds[f"search {named}"] = round(time.perf_counter() - began, 3)
    return runs[0] if len(runs) == 1 else benchmark.fuse(runs, depth=depth)


def judged_corpus(collection: Collection, split: str) -> Collection:
    """The collection with only those documents that a split judges: a smaller, easier corpus."""
    judged = {row.document_id for row in collection.split(split)}
    documents = {id_: document for id_, document in collection.documents.items() if id_ in judged}
    rows = {name: tuple(row for row in rows if row.document_id in judged) for name, rows in collection.judgements.items()}
    return Collection(f"{collection.name}, documents of {split} only", documents, collection.queries, rows)


def compare(a: Path | str, b: Path | str, *, measure: str = "ndcg@10", seed: int = 0) -> significance.Comparison:
    """Whether B differs from A on the same queries: paired randomisation test and bootstrap interval.

    Each side is a folder that `evaluate` wrote, or a folder of such folders (seeds), which are averaged per query before testing.
    """
    sides = [significance.read_side(Path(side)) for side in (a, b)]
    return significance.compare(sides[0], sides[1], measure, seed=seed)


def search(model: str | Path, data: Data, text: str, *, count: int = 10, settings: EncodingSettings | None = None) -> list[ScoredDocument]:
    """The `count` best documents of a data set for a question, by a model, "bm25", or several joined by "+"."""
    settings = settings or EncodingSettings()
    collection = load(data)
    query = Query("question", text)
    runs = [
        {query.id: next(iter(shop.searcher(kind_of(part)).search([query], count)))}
        for part, shop in searched_with(str(model), collection, settings).items()
    ]
    found = runs[0] if len(runs) == 1 else benchmark.fuse(runs, depth=count)
    return list(found[query.id])


def side_by_side(found: Mapping[str, Sequence[ScoredDocument]], documents: Mapping[str, Document], *, width: int = 140) -> str:
    """The results of one or two models as a table; `+3` says how many places higher the second model ranks a document than the first."""
    names = list(found)
    column = (width - 4) // len(names) - 2
    places = {name: {hit.document_id: place for place, hit in enumerate(hits, 1)} for name, hits in found.items()}
    lines = ["    " + "  ".join(f"{name[-column:]:<{column}}" for name in names)]
    for row in range(max(map(len, found.values()), default=0)):
        cells = []
        for name, hits in found.items():
            if row >= len(hits):
                cells.append(" " * column)
                continue
            hit = hits[row]
            move = moved(row + 1, places[names[0]].get(hit.document_id)) if name != names[0] else ""
            text = " ".join(documents[hit.document_id].content.split())
            cells.append(f"{f'{hit.score:.3f} {move}{text}':<{column}.{column}}")
        lines.append(f"{row + 1:>2}  " + "  ".join(cells))
    return "\n".join(lines)


def moved(place: int, before: int | None) -> str:
    """`[+3] ` three places up, `[=] ` the same place, `[new] ` not among the first model's.

    >>> moved(1, 4), moved(2, 2), moved(3, None)
    ('[+3] ', '[=] ', '[new] ')
    """
    if before is None:
        return "[new] "
    return "[=] " if before == place else f"[{before - place:+d}] "
