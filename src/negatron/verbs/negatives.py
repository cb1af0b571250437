"""Verbs that make negatives: synthesize, mix, export; mine, filter and explain have modules of their own and are found here too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from negatron import store
from negatron.data import formats
from negatron.errors import SettingError
from negatron.identity import file_sha256, fingerprint
from negatron.models import batch_files
from negatron.models import catalog as model_catalog
from negatron.models.language_model import EndpointModel
from negatron.models.ledger import LedgeredModel
from negatron.negatives.filters import FilterSettings, chain
from negatron.negatives.mining import decide
from negatron.negatives.mixing import MixReport, MixSettings, together
from negatron.negatives.mixing import mix as mix_queries
from negatron.negatives.records import KIND as NEGATIVES
from negatron.negatives.records import Negatives, write_negatives
from negatron.negatives.selection import Choice, SelectionSettings
from negatron.negatives.synthesis import Estimate, SynthesisSettings, SyntheticSource, estimate, plan
from negatron.progress import say
from negatron.seams import CrossScorer, LanguageModel
from negatron.types import Candidate, JudgedQuery, NegativeRequest
from negatron.verbs.biography import Biography, explain, number, origin_in_words, verdict_in_words
from negatron.verbs.common import (
    DEFAULT_MODEL,
    ENCODING,
    Data,
    EncodingSettings,
    load,
    place,
    refuse_unused,
    settings_of,
    versions,
    workshop,
)
from negatron.verbs.mining import COSINE, asked_for, mine
from negatron.verbs.refiltering import RefilterSettings, filter_negatives
from negatron.wheels import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "Biography",
    "Planned",
    "RefilterSettings",
    "WritingSettings",
    "dataset",
    "explain",
    "export",
    "filter_negatives",
    "import_training_file",
    "judged_and_chosen",
    "mine",
    "mix",
    "number",
    "origin_in_words",
    "synthesize",
    "verdict_in_words",
    "writer_of",
]


def judged_and_chosen(
    requests: Sequence[NegativeRequest],
    candidates: Iterable[Sequence[Candidate]],
    teacher: CrossScorer | None,
    settings: FilterSettings,
    count: int,
    how: Choice,
    seed: int,
) -> Iterator[JudgedQuery]:
    """Proposals scored, judged by the filters, and chosen from; one query at a time."""
    yield from decide(requests, candidates, teacher, chain(settings), SelectionSettings(negatives=count, choice=how), seed)


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
            scored_by = {"model": str(model), "teacher_scale": COSINE} if teacher is not None else {"model": None, "teacher_scale": None}
            work.finish(**facts, **scored_by, dropped_queries=dropped, versions=versions())
        return Negatives.open(work.out)


def teachers_in(inputs: Mapping[str, Any]) -> list[str]:
    """Fingerprints of the encoders whose scores a folder holds: scores of two encoders have no common scale."""
    return [inputs["encoder"]] if inputs["encoder"] is not None else []


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
            scales = {source.manifest.facts.get("teacher_scale") for source in sources}
            scale = scales.pop() if len(scales) == 1 else None
            work.finish(summary=summary.as_json(), mix=report.as_json(), teachers=teachers, teacher_scale=scale, versions=versions())
        return Negatives.open(work.out)


def export(negatives: Negatives | Path | str, format: str, out: Path | str) -> dict[str, int]:
    """The kept negatives in another tool's format; returns counts of what was written."""
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    return formats.export(source, format, Path(out))


def dataset(negatives: Negatives | Path | str, format: str = "sentence-transformers") -> Dataset:
    """The kept negatives as a `datasets.Dataset` that SentenceTransformerTrainer and CrossEncoderTrainer take.

    `format` is sentence-transformers (anchor, positive, negative_1 ... negative_n; queries with fewer than n are left out), triplets, or
    labelled (query, docs, labels). All candidates with origins and verdicts are in `Negatives.dataset()`.
    """
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    return formats.as_dataset(source, format)


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
