"""Verbs that make negatives: mine, filter, synthesize, mix, export, explain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from negatron import store
from negatron.errors import SettingError
from negatron.identity import stream
from negatron.negatives.filters import FilterSettings, chain, judge, judge_again
from negatron.negatives.mining import propose_all, scored, select
from negatron.negatives.records import KIND as NEGATIVES
from negatron.negatives.records import Negatives, write_negatives
from negatron.progress import say
from negatron.types import JudgedQuery, NegativeRequest
from negatron.verbs.common import DEFAULT_MODEL, SOURCES, Data, MiningSettings, load, place, versions, workshop

if TYPE_CHECKING:
    from negatron.models.dense_index import EncoderScorer


def mine(
    data: Data,
    *,
    sources: Sequence[str] = SOURCES,
    model: str | Path = DEFAULT_MODEL,
    split: str = "train",
    out: Path | str | None = None,
    settings: MiningSettings | None = None,
    seed: int = 0,
) -> Negatives:
    """Hard negatives of a split's queries from one or several sources, judged by the filters, the best kept, all on file."""
    settings = settings or MiningSettings()
    collection = load(data)
    if not sources or len(set(sources)) != len(sources):
        raise SettingError(f"sources {list(sources)}: give each of {', '.join(SOURCES)} at most once, and at least one")
    shop = workshop(collection, model, settings, settings.bm25)
    with_model = "dense" in sources or settings.needs_teacher
    inputs = {
        "data": collection.fingerprint,
        "split": split,
        "sources": sorted(sources),
        "encoder": shop.encoder.fingerprint if with_model else None,
        "settings": settings.as_json(),
        "seed": seed,
    }
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            requests = collection.requests(split, limit=settings.pairs)
            dropped = collection.pairs(split, limit=settings.pairs).dropped_queries
            if dropped:
                say(f"{dropped:,} queries of {split} are left out: a held-out split asks the same")
            candidates = propose_all([shop.source(name) for name in sorted(sources)], requests, settings.depth)
            items = judged_and_chosen(requests, candidates, shop.teacher if with_model else None, settings, seed)
            summary = write_negatives(work.path, items)
            facts = {"summary": summary.as_json(), "model": str(model), "dropped_queries": dropped, "versions": versions()}
            work.finish(**facts)
        return Negatives.open(work.out)


def judged_and_chosen(
    requests: Sequence[NegativeRequest],
    candidates: Sequence[Sequence[Any]],
    teacher: EncoderScorer | None,
    settings: MiningSettings,
    seed: int,
) -> Iterable[JudgedQuery]:
    """Proposals scored, judged by the filters, and chosen from; one query at a time."""
    filters = chain(settings)
    for request, (positives, own) in zip(requests, scored(requests, candidates, teacher), strict=True):
        item = JudgedQuery(request.query, positives, judge(filters, request.query, positives, own))
        yield select(item, settings.negatives, settings.choice, stream(seed, "select", request.query.id))


class RefilterSettings(FilterSettings):
    """Settings of `filter`."""

    negatives: int = Field(5, ge=1)
    """Negatives kept per query."""
    choice: Literal["top", "random"] = "top"
    """Which of the candidates no filter rejects: the best of each source in turn, or any."""


def filter_negatives(
    negatives: Negatives | Path | str, *, out: Path | str | None = None, settings: RefilterSettings | None = None, seed: int = 0
) -> Negatives:
    """Stored candidates judged again with other limits, from their stored scores: no model is asked, nothing is mined again."""
    settings = settings or RefilterSettings()
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    inputs = {"negatives": source.fingerprint, "settings": settings.as_json(), "seed": seed}
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            again = judge_again(source, chain(settings))
            chosen = (select(item, settings.negatives, settings.choice, stream(seed, "select", item.query.id)) for item in again)
            work.finish(**{**source.manifest.facts, "summary": write_negatives(work.path, chosen).as_json(), "versions": versions()})
        return Negatives.open(work.out)
