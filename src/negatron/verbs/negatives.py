"""Verbs that make negatives: mine, filter, synthesize, mix, export, explain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from negatron import store
from negatron.data import formats
from negatron.data.collection import Collection
from negatron.errors import NegatronError, SettingError, nearest
from negatron.identity import file_sha256, fingerprint, stream
from negatron.models import batch_files
from negatron.models import catalog as model_catalog
from negatron.models.language_model import EndpointModel
from negatron.models.ledger import LedgeredModel
from negatron.negatives.filters import FilterSettings, chain, judge, judge_again
from negatron.negatives.mining import propose_all, scored, select
from negatron.negatives.mixing import MixReport, MixSettings, together
from negatron.negatives.mixing import mix as mix_queries
from negatron.negatives.records import KIND as NEGATIVES
from negatron.negatives.records import Negatives, write_negatives
from negatron.negatives.synthesis import Estimate, SynthesisSettings, SyntheticSource, estimate, plan
from negatron.progress import say
from negatron.seams import LanguageModel
from negatron.types import JudgedQuery, NegativeRequest, Origin, Verdict
from negatron.verbs.common import (
    DEFAULT_MODEL,
    ENCODING,
    LEXICAL,
    SOURCES,
    Data,
    EncodingSettings,
    MiningSettings,
    load,
    place,
    refuse_unused,
    settings_of,
    versions,
    workshop,
)
from negatron.wheels import cache_folder

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
    **changes: Any,
) -> Negatives:
    """Hard negatives of a split's queries from one or several sources, judged by the filters, the best kept, all on file."""
    settings = settings_of(MiningSettings, settings, changes)
    collection = load(data)
    check_sources(sources)
    collection.split(split)
    with_model = "dense" in sources or settings.needs_teacher
    refuse_unused(settings, LEXICAL if "bm25" not in sources else (), "the lexical index is not among the sources")
    refuse_unused(settings, ENCODING if not with_model else (), "no encoder is asked, neither as a source nor by a margin")
    shop = workshop(collection, model, settings, settings.bm25)
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
            requests, dropped = asked_for(collection, split, settings.pairs)
            candidates = propose_all([shop.source(name) for name in sorted(sources)], requests, settings.depth)
            items = judged_and_chosen(
                requests, candidates, shop.teacher if with_model else None, settings, settings.negatives, settings.choice, seed
            )
            summary = write_negatives(work.path, items)
            facts = {"summary": summary.as_json(), "model": str(model) if with_model else None, "teachers": teachers_in(inputs)}
            work.finish(**facts, dropped_queries=dropped, versions=versions())
        return Negatives.open(work.out)


def check_sources(names: Sequence[str]) -> None:
    """Raises SettingError for an unknown source, for one given twice, and for none."""
    for name in names:
        if name not in SOURCES:
            raise SettingError(f"there is no source {name!r}{nearest(name, SOURCES)}")
    if not names or len(set(names)) != len(names):
        raise SettingError(f"sources {list(names)}: give each of {', '.join(SOURCES)} at most once, and at least one")


def asked_for(collection: Collection, split: str, pairs: int | None) -> tuple[list[NegativeRequest], int]:
    """The queries of a split with their positives, and how many were left out, which is said aloud. Raises NegatronError for none."""
    requests = collection.requests(split, limit=pairs)
    dropped = collection.pairs(split, limit=pairs).dropped_queries
    if dropped:
        say(f"{dropped:,} queries of {split} are left out: a held-out split asks the same")
    if not requests:
        raise NegatronError(f"{collection.name} has no query in {split} with a positive that no held-out split asks too")
    return requests, dropped


def teachers_in(inputs: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the encoders whose scores a folder holds: scores of two encoders have no common scale."""
    return [inputs["encoder"]] if inputs["encoder"] is not None else []


def judged_and_chosen(
    requests: Sequence[NegativeRequest],
    candidates: Sequence[Sequence[Any]],
    teacher: EncoderScorer | None,
    settings: FilterSettings,
    count: int,
    how: Literal["top", "random"],
    seed: int,
) -> Iterable[JudgedQuery]:
    """Proposals scored, judged by the filters, and chosen from; one query at a time."""
    filters = chain(settings)
    for request, (positives, own) in zip(requests, scored(requests, candidates, teacher), strict=True):
        item = JudgedQuery(request.query, positives, judge(filters, request.query, positives, own))
        yield select(item, count, how, stream(seed, "select", request.query.id))


class RefilterSettings(FilterSettings):
    """Settings of `filter`."""

    negatives: int = Field(default=5, ge=1)
    """Negatives kept per query."""
    choice: Literal["top", "random"] = "top"
    """Which of the candidates no filter rejects: the best of each source in turn, or any."""


def filter_negatives(
    negatives: Negatives | Path | str,
    /,  # a setting has the same name
    *,
    out: Path | str | None = None,
    settings: RefilterSettings | None = None,
    seed: int = 0,
    **changes: Any,
) -> Negatives:
    """Stored candidates judged again with other limits, from their stored scores: no model is asked, nothing is mined again.

    What is not given stays as it was when the folder was made.
    """
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    settings = as_made(source, settings_of(RefilterSettings, settings, changes))
    if settings.needs_teacher and len(source.manifest.facts.get("teachers", ())) > 1:
        raise SettingError(
            f"{source.path} mixes scores of several encoders, which no margin can compare; filter its parts before they are mixed, "
            "or turn the margins off"
        )
    inputs = {"negatives": source.fingerprint, "settings": settings.as_json(), "seed": seed}
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            again = judge_again(source, chain(settings))
            chosen = (select(item, settings.negatives, settings.choice, stream(seed, "select", item.query.id)) for item in again)
            kept_facts = {name: fact for name, fact in source.manifest.facts.items() if name != "mix"}  # the mixture's choice is gone
            work.finish(**{**kept_facts, "summary": write_negatives(work.path, chosen).as_json(), "versions": versions()})
        return Negatives.open(work.out)


def as_made(source: Negatives, given: RefilterSettings) -> RefilterSettings:
    """The settings given, completed by those that the folder was made with, and only then by the defaults."""
    stored = {key: value for key, value in source.manifest.inputs.get("settings", {}).items() if key in RefilterSettings.model_fields}
    wanted = {**stored, **given.model_dump(exclude_unset=True)}
    margins = [wanted.get(key, RefilterSettings.model_fields[key].default) for key in ("relative_margin", "absolute_margin")]
    if margins == [None, None] and "margin_against" not in given.model_fields_set:
        wanted.pop("margin_against", None)
    return RefilterSettings.checked(wanted)


class WritingSettings(SynthesisSettings, EncodingSettings, FilterSettings):
    """Settings of `synthesize`."""

    pairs: int | None = Field(default=None, ge=1)
    """Training pairs to write for, taken by a hash of their ids; "off" = all."""
    queries: int | None = Field(default=None, ge=1)
    """Write for this many of the queries only, taken by a hash of their ids; "off" = all."""
    concurrency: int = Field(default=8, ge=1)
    """Requests in flight at an endpoint; without effect on what is written. The embedded model has one a core."""
    price_sent: float = Field(default=0.0, ge=0)
    """Price of a million tokens sent, for --dry-run."""
    price_written: float = Field(default=0.0, ge=0)
    """Price of a million tokens written, for --dry-run."""


NOT_WHAT_IS_WRITTEN = frozenset({"concurrency", "price_sent", "price_written"})
"""Settings that leave the result as it is."""


@dataclass(frozen=True)
class Planned:
    """What `synthesize` would ask, or has put into a batch file."""

    estimate: Estimate
    batch: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return {**asdict(self.estimate), "batch": str(self.batch) if self.batch else None}

    def __str__(self) -> str:
        return f"{self.estimate}" + (f"; written to {self.batch}" if self.batch else "; nothing was asked")


def synthesize(
    data: Data,
    *,
    endpoint: str = "embedded",
    llm: str = "smollm2-135m",
    split: str = "train",
    model: str | Path = DEFAULT_MODEL,
    out: Path | str | None = None,
    settings: WritingSettings | None = None,
    seed: int = 0,
    export_batch: Path | None = None,
    import_batch: Path | None = None,
    dry_run: bool = False,
    **changes: Any,
) -> Negatives | Planned:
    """Hard negatives that a language model writes for a split's queries, judged by the same filters as mined ones.

    `endpoint` is the address of any OpenAI-compatible server, or "embedded" for a small model that is started and stopped here.
    Replies are kept in a ledger in the cache: the same request is never asked twice. `export_batch` writes the requests as a batch file
    and asks nothing, `import_batch` reads the replies of such a batch, `dry_run` only counts.
    """
    settings = settings_of(WritingSettings, settings, changes)
    refuse_unused_writing(settings, endpoint, export_batch, import_batch, dry_run)
    collection = load(data)
    requests, dropped = asked_for(collection, split, settings.pairs)
    requests = by_hash(requests, settings.queries)
    planned = plan(requests, settings, seed)
    if dry_run or export_batch is not None:
        if export_batch is not None:
            batch_files.export_batch(planned, export_batch, llm)
        prices = (settings.price_sent, settings.price_written)
        return Planned(estimate(planned, prices if any(prices) else None), export_batch)
    shop = workshop(collection, model, settings)
    writer = writer_of(endpoint, llm, settings, seed, import_batch)
    inputs = {
        "data": collection.fingerprint,
        "split": split,
        "prompt": planned.prompt.fingerprint,
        "llm": writer.name,
        "batch": file_sha256(import_batch) if import_batch is not None else None,
        "encoder": shop.encoder.fingerprint if settings.needs_teacher else None,
        "settings": {key: value for key, value in settings.as_json().items() if key not in NOT_WHAT_IS_WRITTEN},
        "seed": seed,
    }
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            with writer if isinstance(writer, AbstractContextManager) else nullcontext():
                source = SyntheticSource(LedgeredModel(writer, cache_folder() / "ledger.sqlite"), settings, seed=seed)
                candidates = list(source.propose(requests, settings.per_query))
            say(str(source.report))
            teacher = shop.text_teacher if settings.needs_teacher else None
            items = judged_and_chosen(requests, candidates, teacher, settings, settings.per_query, "top", seed)
            summary = write_negatives(work.path, items)
            facts = {"summary": summary.as_json(), "writing": source.report.as_json(), "teachers": teachers_in(inputs)}
            work.finish(**facts, model=str(model) if teacher is not None else None, dropped_queries=dropped, versions=versions())
        return Negatives.open(work.out)


def refuse_unused_writing(
    settings: WritingSettings, endpoint: str, export_batch: Path | None, import_batch: Path | None, dry_run: bool
) -> None:
    """Raises SettingError for what `synthesize` was given and would not use."""
    planned = dry_run or export_batch is not None
    if import_batch is not None and (planned or endpoint != "embedded"):
        raise SettingError("--import-batch reads replies that are there: it goes with neither --endpoint, --export-batch nor --dry-run")
    if not settings.needs_teacher:
        refuse_unused(settings, ENCODING, "no margin is asked for, so no encoder scores what is written")
    if planned:
        refuse_unused(settings, {"concurrency"}, "nothing is asked")
    else:
        refuse_unused(settings, {"price_sent", "price_written"}, "prices belong to --dry-run and --export-batch")
    if not planned and (endpoint == "embedded" or import_batch is not None):
        refuse_unused(settings, {"concurrency"}, "only an --endpoint of your own takes requests in flight")


def by_hash(requests: Sequence[NegativeRequest], count: int | None) -> list[NegativeRequest]:
    """`count` of the requests by a hash of their query's id, in their own order; all for None."""
    if count is None or count >= len(requests):
        return list(requests)
    chosen = {r.query.id for r in sorted(requests, key=lambda r: fingerprint("queries", r.query.id))[:count]}
    return [request for request in requests if request.query.id in chosen]


def writer_of(endpoint: str, llm: str, settings: WritingSettings, seed: int, import_batch: Path | None) -> LanguageModel:
    """The language model that `endpoint` and `llm` name."""
    if import_batch is not None:
        return batch_files.BatchReplies(import_batch, llm)
    if endpoint != "embedded":
        return EndpointModel(endpoint, llm, concurrency=settings.concurrency, seed=seed)
    from negatron.models.embedded import EmbeddedModel

    return EmbeddedModel(Path(llm) if Path(llm).is_file() else model_catalog.fetch_model(llm))


def mix(
    folders: Sequence[Negatives | Path | str],
    *,
    out: Path | str | None = None,
    settings: MixSettings | None = None,
    seed: int = 0,
    **changes: Any,
) -> Negatives:
    """Written and retrieved negatives of the same queries in one folder, chosen per example or per query. R = written : retrieved."""
    settings = settings_of(MixSettings, settings, changes)
    sources = [folder if isinstance(folder, Negatives) else Negatives.open(folder) for folder in folders]
    inputs = {"negatives": [source.fingerprint for source in sources], "settings": settings.as_json(), "seed": seed}
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            report = MixReport()
            mixed = mix_queries(together(*sources), settings, seed, report)
            summary = write_negatives(work.path, mixed)
            say(str(report))
            teachers = sorted({teacher for source in sources for teacher in source.manifest.facts.get("teachers", ())})
            work.finish(summary=summary.as_json(), mix=report.as_json(), teachers=teachers, versions=versions())
        return Negatives.open(work.out)


def export(negatives: Negatives | Path | str, format: str, out: Path | str) -> dict[str, int]:
    """The kept negatives in another tool's format; returns counts of what was written."""
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    return formats.export(source, format, Path(out))


def import_training_file(file: Path, format: str, out: Path, negatives: Path | None = None) -> dict[str, int]:
    """Another tool's training file as a data set and, where `negatives` is given, its negatives as a folder of ours; returns counts."""
    found = formats.read(file, format)
    formats.write_beir(found.collection, out)
    counts = {
        "documents": len(found.collection.documents),
        "queries": len(found.collection.queries),
        "negatives": sum(len(item.judged) for item in found.judged),
    }
    if negatives is not None:
        inputs = {"data": found.collection.fingerprint, "format": format}
        with store.begin(negatives, kind=NEGATIVES, inputs=inputs) as work:
            if work.finished is None:
                work.finish(summary=write_negatives(work.path, found.judged).as_json(), versions=versions())
    return counts


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
            lines.append(
                f"  positive {positive.document.id}, teacher score {number(positive.teacher_score)}: {shortened(positive.document.content)}"
            )
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
