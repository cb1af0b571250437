"""Verbs that make negatives: mine, filter, synthesize, mix, export, explain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
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
from negatron.types import JudgedQuery, NegativeRequest, Origin, Verdict
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


@dataclass(frozen=True)
class Biography:
    """What became of every candidate of a query."""

    item: JudgedQuery

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self.item)

    def __str__(self) -> str:
        lines = [f"query {self.item.query.id}: {self.item.query.text}"]
        for positive in self.item.positives:
            lines.append(f"  positive {positive.document.id}, teacher score {number(positive.teacher_score)}: {shortened(positive.document.content)}")
        for judged in self.item.judged:
            candidate = judged.candidate
            found = "; ".join(origin_in_words(origin) for origin in candidate.origins)
            lines.append(f"  {'KEPT    ' if judged.kept else 'rejected'} {candidate.document.id}: {shortened(candidate.document.content)}")
            lines.append(f"           {found}; teacher score {number(candidate.teacher_score)}")
            lines += [f"           {verdict_in_words(verdict)}" for verdict in judged.verdicts]
        return "\n".join(lines)


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def shortened(text: str, width: int = 90) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def origin_in_words(origin: Origin) -> str:
    """`bm25 rank 3, score 14.2000 (maker 9c1f...)`."""
    rank = f" rank {origin.rank}" if origin.rank is not None else ""
    score = f", score {origin.score:.4f}" if origin.score is not None else ""
    note = f", told {shortened(origin.note)}" if origin.note else ""
    return f"{origin.source}{rank}{score} (maker {origin.maker}, round {origin.round}){note}"


def verdict_in_words(verdict: Verdict) -> str:
    """`relative margin: keeps, 0.4100 against 0.7980`."""
    measured = f", {number(verdict.measured)} against {number(verdict.limit)}" if verdict.limit is not None else ""
    detail = f" ({verdict.detail})" if verdict.detail else ""
    return f"{verdict.rule}: {'keeps' if verdict.kept else 'rejects'}{measured}{detail}"


def explain(negatives: Negatives | Path | str, query_id: str) -> Biography:
    """The biography of each candidate of a query: origins, scores, verdicts."""
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    return Biography(source.find(query_id))
