"""The verb that mines: which sources and which teacher are asked, and the folder that comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negatron import store
from negatron.data.collection import Collection
from negatron.errors import DataError, NegatronError, SettingError, nearest
from negatron.identity import file_sha256
from negatron.negatives.filters import chain
from negatron.negatives.mining import QUERIES_AT_A_TIME, Reranking, decide, proposals
from negatron.negatives.records import KIND as NEGATIVES
from negatron.negatives.records import Negatives, write_negatives
from negatron.negatives.summary import Sieve
from negatron.progress import Meter, say
from negatron.seams import CrossScorer
from negatron.types import JudgedQuery, NegativeRequest
from negatron.verbs.common import (
    CROSS_ENCODER,
    DEFAULT_MODEL,
    ENCODING,
    EVERY_SOURCE,
    FILE,
    LEXICAL,
    RANDOM,
    SEARCH,
    SOURCES,
    Data,
    MiningSettings,
    Workshop,
    load,
    place,
    refuse_unused,
    settings_of,
    versions,
)

QUERIES_BY_CROSS_ENCODER = 16
"""Queries judged at a time where a cross-encoder scores: some thousand pairs, so that progress shows."""
COSINE, PROBABILITY = "cosine", "probability"
"""What a teacher's scores are."""


@dataclass(frozen=True)
class Plan:
    """What `mine` will ask, worked out from its options before anything is loaded.

    `sources` propose candidates that are chosen; the reserve is asked for what is missing; `teacher` is "encoder", "cross-encoder" or "".
    """

    sources: tuple[str, ...]
    teacher: str
    reserve: str | None
    reranked: bool

    @property
    def proposing(self) -> tuple[str, ...]:
        """Every source that proposes, the reserve last."""
        return (*self.sources, *([self.reserve] if self.reserve else []))

    @property
    def uses_encoder(self) -> bool:
        """True when the bi-encoder is asked for anything."""
        return "dense" in self.proposing or self.teacher == "encoder"

    @property
    def uses_cross_encoder(self) -> bool:
        """True when the cross-encoder is asked for anything."""
        return self.reranked or self.teacher == CROSS_ENCODER

    @property
    def scale(self) -> str | None:
        """What the teacher's scores are; None without a teacher."""
        return {"encoder": COSINE, CROSS_ENCODER: PROBABILITY}.get(self.teacher)


def mine(
    data: Data,
    *,
    sources: Sequence[str] = SOURCES,
    model: str | Path = DEFAULT_MODEL,
    cross_encoder: str | Path | None = None,
    round: int = 0,
    split: str = "train",
    out: Path | str | None = None,
    settings: MiningSettings | None = None,
    seed: int = 0,
    **changes: Any,
) -> Negatives:
    """Hard negatives of a split's queries from one or several sources, judged by the filters, the best kept, all on file.

    `sources`: "bm25", "dense" (the encoder `model`), "random", "file:PATH" (a TREC run, or JSON Lines of pairs), and "cross-encoder", which
    ranks what the others propose. `cross_encoder` is any sentence-transformers CrossEncoder with one score; it is the teacher too, unless
    `teacher` says otherwise. `round` is written into every origin: the turn of mining, for a checkpoint that mines again.
    """
    settings = settings_of(MiningSettings, settings, changes)
    collection = load(data)
    collection.split(split)
    planned = plan_of(sources, cross_encoder, settings)
    shop = workshop_of(collection, model, cross_encoder, settings, round, seed)
    inputs = inputs_of(planned, shop, split, settings)
    with store.begin(place(out, NEGATIVES, inputs), kind=NEGATIVES, inputs=inputs) as work:
        if work.finished is None:
            requests, dropped = asked_for(collection, split, settings.pairs)
            sieve = Sieve(chain(settings), settings, seed)
            summary = write_negatives(work.path, sieve.watch(mined(planned, shop, requests, settings)))
            work.finish(
                summary=summary.as_json(),
                sieve=sieve.as_json(),
                model=str(model) if planned.uses_encoder else None,
                cross_encoder=str(cross_encoder) if planned.uses_cross_encoder else None,
                teachers=[inputs["cross_encoder" if planned.teacher == CROSS_ENCODER else "encoder"]] if planned.teacher else [],
                teacher_scale=planned.scale,
                dropped_queries=dropped,
                versions=versions(),
            )
        return Negatives.open(work.out)


def mined(planned: Plan, shop: Workshop, requests: Sequence[NegativeRequest], settings: MiningSettings) -> Iterator[JudgedQuery]:
    """The queries, judged and chosen, one after the other."""
    # a random reserve is as good at its top as at its bottom: twice what may be missing is enough
    depths = [2 * settings.negatives if name == RANDOM == planned.reserve else settings.depth for name in planned.proposing]
    items = decide(
        requests,
        proposals([shop.source(name) for name in planned.proposing], requests, depths),
        teacher_of(planned, shop, requests),
        chain(settings),
        settings,
        shop.seed,
        reranking=Reranking(CROSS_ENCODER, shop.scorer, shop.round) if planned.reranked else None,
        at_a_time=QUERIES_BY_CROSS_ENCODER if planned.uses_cross_encoder else QUERIES_AT_A_TIME,
    )
    with Meter("judge", len(requests), "queries") as meter:
        for item in items:
            yield item
            meter.advance()


def workshop_of(
    collection: Collection, model: str | Path, cross_encoder: str | Path | None, settings: MiningSettings, round: int, seed: int
) -> Workshop:
    """The searchers and models of a mining."""
    if round < 0:
        raise SettingError(f"round = {round}: expected a turn of mining, from 0")
    named = str(cross_encoder) if cross_encoder is not None else None
    return Workshop(
        collection,
        str(model),
        settings.max_length,
        settings.precision,
        settings.bm25,
        settings.search,
        named,
        settings.pair_length,
        round,
        seed,
    )


def teacher_of(planned: Plan, shop: Workshop, requests: Sequence[NegativeRequest]) -> CrossScorer | None:
    """Who scores candidates and positives."""
    if planned.teacher == CROSS_ENCODER:
        return shop.scorer
    return shop.teacher_of([request.query for request in requests]) if planned.teacher else None


def inputs_of(planned: Plan, shop: Workshop, split: str, settings: MiningSettings) -> dict[str, Any]:
    """All that the result depends on."""
    files = {name: file_sha256(file_of(name)) for name in planned.proposing if name.startswith(FILE)}
    return {
        "data": shop.collection.fingerprint,
        "split": split,
        "sources": sorted([*(name for name in planned.sources), *([CROSS_ENCODER] if planned.reranked else [])]),
        "files": files,
        "encoder": shop.encoder.fingerprint if planned.uses_encoder else None,
        "cross_encoder": shop.scorer.fingerprint if planned.uses_cross_encoder else None,
        "round": shop.round,
        "settings": settings.as_json(),
        "seed": shop.seed,
    }


def plan_of(sources: Sequence[str], cross_encoder: str | Path | None, settings: MiningSettings) -> Plan:
    """What to ask. Raises SettingError for an unknown source, one given twice, and for whatever was given and would not be used."""
    check_sources(sources)
    reranked = CROSS_ENCODER in sources
    proposing = tuple(sorted(name for name in sources if name != CROSS_ENCODER))
    teacher = settings.teacher
    if teacher == "auto":
        by_encoder = "dense" in sources or settings.needs_teacher
        teacher = "cross-encoder" if cross_encoder is not None else "encoder" if by_encoder else "auto"
    planned = Plan(proposing, "" if teacher == "auto" else teacher, settings.reserve, reranked)
    refuse_bad_reserve(planned)
    refuse_bad_cross_encoder(planned, cross_encoder, settings)
    refuse_unused(settings, LEXICAL if "bm25" not in planned.proposing else (), "the lexical index is not among the sources")
    refuse_unused(settings, SEARCH if "dense" not in planned.proposing else (), "dense search is not among the sources")
    if not planned.uses_encoder:
        unread = ENCODING if not planned.uses_cross_encoder else {"max_length"}
        refuse_unused(settings, unread, "no encoder is asked, neither as a source nor by a margin")
    return planned


def check_sources(names: Sequence[str]) -> None:
    """Raises SettingError for an unknown source, for one given twice, and for none."""
    for name in names:
        check_source(name)
    files = [file_of(name).name for name in names if name.startswith(FILE)]
    if not names or len(set(names)) != len(names) or len(set(files)) != len(files):
        raise SettingError(f"sources {list(names)}: give each of {', '.join(EVERY_SOURCE)} at most once, and at least one")


def check_source(name: str) -> None:
    """Raises SettingError for an unknown source, DataError for a file that is not there."""
    if name.startswith(FILE) and len(name) > len(FILE):
        if not file_of(name).is_file():
            raise DataError("no such file; expected a TREC run or JSON Lines of query_id and document_id", file_of(name))
    elif name not in (*SOURCES, RANDOM, CROSS_ENCODER):
        raise SettingError(f"there is no source {name!r}{nearest(name, EVERY_SOURCE)}")


def file_of(name: str) -> Path:
    """The path in `file:PATH`."""
    return Path(name.removeprefix(FILE)).expanduser()


def refuse_bad_reserve(planned: Plan) -> None:
    """Raises SettingError where the source that fills up is unknown, or is asked for candidates of its own anyway."""
    reserve = planned.reserve
    if reserve is None:
        return
    if reserve == CROSS_ENCODER:
        raise SettingError(f"when_short = 'fill:{reserve}': it proposes nothing of its own; name another source, such as fill:random")
    check_source(reserve)
    if reserve in planned.sources:
        raise SettingError(
            f"when_short = 'fill:{reserve}' has no effect here: {reserve} is among the sources, so all that it found is chosen from; "
            f"leave it out of one of the two"
        )


def refuse_bad_cross_encoder(planned: Plan, cross_encoder: str | Path | None, settings: MiningSettings) -> None:
    """Raises SettingError where a cross-encoder is needed and not given, or given and not needed, or has nothing to rank."""
    if cross_encoder is None:
        refuse_unused(settings, {"pair_length"}, "no cross-encoder is given")
        if planned.uses_cross_encoder:
            wanted = "the source cross-encoder" if planned.reranked else "teacher = 'cross-encoder'"
            raise SettingError(f"{wanted} needs a model: add --cross-encoder M")
        if settings.negative_below is not None:
            raise SettingError(
                f"negative_below = {settings.negative_below} is a probability, and the scores of a bi-encoder are cosines; "
                "add --cross-encoder M, or use max_score"
            )
    elif not planned.uses_cross_encoder:
        raise SettingError("--cross-encoder has no effect here: teacher = 'encoder', and it is no source; leave it out")
    elif settings.negative_below is not None and planned.teacher != CROSS_ENCODER:
        raise SettingError("negative_below is a probability, and teacher = 'encoder' gives cosines; leave one of them out")
    if planned.reranked and not planned.sources:
        raise SettingError("the source cross-encoder ranks what other sources propose: add one, such as --source bm25")


def asked_for(collection: Collection, split: str, pairs: int | None) -> tuple[list[NegativeRequest], int]:
    """The queries of a split with their positives, and how many were left out, which is said aloud. Raises NegatronError for none."""
    requests = collection.requests(split, limit=pairs)
    dropped = collection.pairs(split, limit=pairs).dropped_queries
    if dropped:
        say(f"{dropped:,} queries of {split} are left out: a held-out split asks the same")
    if not requests:
        raise NegatronError(f"{collection.name} has no query in {split} with a positive that no held-out split asks too")
    return requests, dropped
