"""The whole way on real data, as one command: a search over the source code of two Python libraries.

Query = first sentence of a function's docstring, document = the function without it. A fixed subset, printed first, keeps it to minutes
on two cores. Each stage is a folder below OUT, made by the same verbs that users type; a killed demo goes on where it was.

    data/                      the subset, a BEIR folder
    negatives/{bm25,dense,written,mix}
    models/{none,bm25,dense,mix}
    evaluations/...            test queries, which no stage before has seen
    table.txt  report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from negatron import store
from negatron.data.beir import write_beir_files
from negatron.data.collection import Collection
from negatron.evaluation.benchmark import Evaluation
from negatron.evaluation.report import Arm, BrowsedQuery, LearningCurve, ReportData, write_report
from negatron.evaluation.significance import Comparison
from negatron.negatives.mixing import MixSettings
from negatron.negatives.records import Negatives
from negatron.progress import clock, say
from negatron.settings import Settings
from negatron.store import write_bytes, write_json
from negatron.training.recipe import TrainingSettings
from negatron.verbs.common import MiningSettings, load, versions
from negatron.verbs.evaluation import EvaluationSettings, evaluate
from negatron.verbs.negatives import WritingSettings, mine, mix, synthesize
from negatron.verbs.reporting import browsed, compared, distributions, intervals, text_table
from negatron.verbs.training import Trained, train

MEASURE, SECOND = "ndcg@10", "recall@100"
BEFORE, NONE = "before training", "no hard negatives"
ARMS = {"none": NONE, "bm25": "BM25 negatives", "dense": "dense negatives", "mix": "mix with written"}
REFERENCES = {"BM25": BEFORE, f"BM25 + {BEFORE}": BEFORE, NONE: BEFORE, **{name: NONE for arm, name in ARMS.items() if arm != "none"}}
"""What each row of the table is compared with."""


class DemoSettings(Settings):
    """Sizes of the demo. The defaults take under 8 minutes on two cores with AMX, under 20 on two without."""

    data: str = "code-search"
    """Name of a data set with the splits train, dev and test."""
    documents: int = Field(default=2400, ge=100)
    """Documents of the corpus: all that dev and test judge, the rest from the training part, by a hash of their ids."""
    pairs: int = Field(default=448, ge=10)
    """Training pairs."""
    negatives: int = Field(default=3, ge=1)
    """Hard negatives of each pair, the same number in every arm that has any."""
    written: int = Field(default=96, ge=1)
    """Queries that the language model writes a negative for."""
    ratio: float = Field(default=0.5, gt=0)
    """R = written : retrieved in the mix; 0.5 is 1 of 3."""
    prompt: str = "syneg-compact.v1"
    """Which prompt writes the negatives."""
    max_length: int = Field(default=128, ge=8)
    """Tokens at which a text is cut."""
    batch_size: int = Field(default=64, ge=2)
    """Queries in one optimiser step."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Highest learning rate."""
    model: str = "minilm"
    """The encoder."""
    llm: str = "smollm2-135m"
    """The language model, run embedded."""


@dataclass(frozen=True)
class DemoResult:
    """The table, and where the report is."""

    table: str
    report: Path
    sides: Mapping[str, Evaluation]
    comparisons: Mapping[str, Comparison]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Means and comparisons."""
        return {
            "report": str(self.report),
            "measures": {name: {str(m): v for m, v in side.means.items()} for name, side in self.sides.items()},
            "comparisons": {name: comparison.as_json() for name, comparison in self.comparisons.items()},
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.report}  ({clock(self.seconds)})"


@dataclass
class Stages:
    """Counts and times the stages, aloud. Times of an interrupted demo add up in OUT/seconds.json."""

    path: Path
    count: int
    done: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage."""
        self.done += 1
        say(f"\n[{self.done}/{self.count}] {name}")
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds()
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - began, 1)
            write_json(self.path, seconds)

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far, over all runs."""
        found: dict[str, float] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return found


def subset(collection: Collection, documents: int) -> Collection:
    """A smaller collection: all documents that dev and test judge, and others by a hash of their ids; judgements of the rest go."""
    held_out = {row.document_id for split in ("dev", "test") for row in collection.split(split)}
    others = sorted(collection.documents.keys() - held_out, key=lambda id_: hashlib.sha256(id_.encode()).digest())
    kept = held_out | set(others[: max(0, documents - len(held_out))])
    judgements = {name: tuple(row for row in rows if row.document_id in kept) for name, rows in collection.judgements.items()}
    asked = {row.query_id for rows in judgements.values() for row in rows}
    return Collection(
        f"{collection.name}, {len(kept):,} documents",
        {id_: document for id_, document in collection.documents.items() if id_ in kept},
        {id_: query for id_, query in collection.queries.items() if id_ in asked},
        judgements,
    )


def make_data(out: Path, settings: DemoSettings) -> Collection:
    """The subset as a BEIR folder, read again as a user would."""
    whole = load(settings.data)
    inputs = {"data": whole.fingerprint, "documents": settings.documents}
    with store.begin(out, kind="data", inputs=inputs) as work:
        if work.finished is None:
            write_beir_files(subset(whole, settings.documents), work.path)
            work.finish()
    return load(out)


def make_negatives(out: Path, data: Collection, settings: DemoSettings, seed: int, stages: Stages) -> dict[str, Negatives]:
    """Mined, written and mixed negatives, by arm."""
    found = {}
    mining = MiningSettings(negatives=settings.negatives, pairs=settings.pairs, max_length=settings.max_length)
    for source in ("bm25", "dense"):
        with stages.stage(f"mine {source} negatives, filter the false ones"):
            found[source] = mine(data, sources=[source], model=settings.model, out=out / source, settings=mining, seed=seed)
            say(str(found[source]))
    with stages.stage(f"write negatives for {settings.written} queries with {settings.llm}"):
        writing = WritingSettings(
            prompt=settings.prompt,
            attributes="code",
            without=("reflection",),  # a model of this size reflects badly, and it takes half the time
            per_query=1,
            max_tokens=160,
            pairs=settings.pairs,
            queries=settings.written,
            max_length=settings.max_length,
        )
        written = synthesize(
            data, endpoint="embedded", llm=settings.llm, model=settings.model, out=out / "written", settings=writing, seed=seed
        )
        assert isinstance(written, Negatives)  # a plan comes back only where one was asked for
        found["written"] = written
        say(str(found["written"]))
    with stages.stage("mix written and retrieved negatives"):
        mixing = MixSettings(ratio=settings.ratio, negatives=settings.negatives)
        found["mix"] = mix([found["bm25"], found["dense"], found["written"]], out=out / "mix", settings=mixing, seed=seed)
        say(str(found["mix"]))
    return found


def make_models(
    out: Path, data: Collection, negatives: Mapping[str, Negatives], settings: DemoSettings, seed: int, stages: Stages
) -> dict[str, Trained]:
    """One model an arm, on the same pairs with the same recipe and seed."""
    recipe = TrainingSettings(
        batch_size=settings.batch_size, learning_rate=settings.learning_rate, max_length=settings.max_length, seed=seed, evaluate_every=3
    )
    found = {}
    for arm, name in ARMS.items():
        with stages.stage(f"train: {name}"):
            own = negatives.get(arm)
            found[arm] = train(data, own, model=settings.model, out=out / arm, settings=recipe, pairs=settings.pairs, dev_split="dev")
    return found


def make_evaluations(
    out: Path, data: Collection, models: Mapping[str, Trained], settings: DemoSettings, stages: Stages
) -> dict[str, Evaluation]:
    """Every row of the table, on test queries that no stage before has seen."""
    measured = EvaluationSettings(max_length=settings.max_length)
    specs: dict[str, tuple[str, str]] = {
        "BM25": ("bm25-search", "bm25"),
        BEFORE: ("before", settings.model),
        f"BM25 + {BEFORE}": ("bm25-search+before", f"bm25+{settings.model}"),
        **{name: (arm, str(models[arm].path)) for arm, name in ARMS.items()},
        f"BM25 + {ARMS['mix']}": ("bm25-search+mix", f"bm25+{models['mix'].path}"),
    }
    found = {}
    for name, (folder, spec) in specs.items():
        with stages.stage(f"evaluate: {name}"):
            own = EvaluationSettings() if spec == "bm25" else measured  # words are not cut
            found[name] = evaluate(spec, data, out=out / folder, settings=own, name=name).evaluation
    return found


def run_demo(out: Path, settings: DemoSettings, seed: int = 13) -> DemoResult:
    """All stages, in order; finished ones are found again."""
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out / "seconds.json", count=1 + 4 + len(ARMS) + len(ARMS) + 4 + 1)
    with stages.stage("data and models"):
        data = make_data(out / "data", settings)
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in data.judgements.items())
        say(f"corpus {len(data.documents):,} documents; judgements: {sizes}")
        say(f"training on {settings.pairs:,} pairs; texts cut at {settings.max_length} tokens")
    negatives = make_negatives(out / "negatives", data, settings, seed, stages)
    models = make_models(out / "models", data, negatives, settings, seed, stages)
    sides = make_evaluations(out / "evaluations", data, models, settings, stages)
    with stages.stage("compare and report"):
        comparisons = compared(sides, {**REFERENCES, f"BM25 + {ARMS['mix']}": f"BM25 + {BEFORE}"}, MEASURE)
        table = text_table(sides, comparisons, MEASURE, SECOND)
        write_bytes(out / "table.txt", (table + "\n").encode())
        page = report_data(out, data, negatives, models, sides, comparisons, settings, seed, stages.seconds())
        write_report(page, out / "report.html")
    return DemoResult(table, out / "report.html", sides, comparisons, sum(stages.seconds().values()))


def report_data(
    out: Path,
    data: Collection,
    negatives: Mapping[str, Negatives],
    models: Mapping[str, Trained],
    sides: Mapping[str, Evaluation],
    comparisons: Mapping[str, Comparison],
    settings: DemoSettings,
    seed: int,
    seconds: Mapping[str, float],
) -> ReportData:
    """Everything the page shows."""
    arm_of = {name: arm for arm, name in ARMS.items()}
    stored = {name: list(negatives[name]) for name in ("bm25", "dense", "written")}
    facts = {
        "data": f"{settings.data}: {len(data.documents):,} documents, {settings.pairs:,} training pairs, "
        f"{next(iter(sides.values())).queries:,} test queries",
        "texts cut at": f"{settings.max_length} tokens",
        "recipe": f"one epoch, batch {settings.batch_size}, learning rate {settings.learning_rate:g}, seed {seed}, "
        f"precision {models['none'].facts['precision']}",
        "language model": f"{settings.llm}, prompt {settings.prompt}; it proves the way, a larger one writes better",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "time": clock(sum(seconds.values())),
        **versions(),
    }
    arms = tuple(
        Arm(
            name,
            "model" if name in arm_of else "baseline",
            {str(measure): value for measure, value in side.means.items()},
            intervals(side),
            comparisons.get(name),
            negatives=models[arm_of[name]].facts["negatives"] if name in arm_of else None,
            seconds=seconds.get(f"train: {name}"),
        )
        for name, side in sides.items()
    )
    notes = [
        "Dev curves rank the dev queries against the documents of dev only, so their level is higher than the table's.",
        f"The embedded {settings.llm} writes weak negatives. Judge written negatives with an endpoint of your own before you decide.",
        "One seed: repeat with others before you trust a small difference.",
    ]
    return ReportData(
        title="Which negatives helped?",
        subtitle="Search over the source code of networkx and sympy: docstring to function",
        arms=arms,
        measure=MEASURE,
        facts=facts,
        curves=tuple(curve(models[arm], name) for arm, name in ARMS.items()),
        distributions=distributions(stored),
        browser=tuple(queries_to_browse(negatives["mix"])),
        notes=tuple(notes),
        command=f"negatron demo --out {out.name} --seed {seed}",
    )


def queries_to_browse(mixed: Negatives, count: int = 120) -> list[BrowsedQuery]:
    """The first queries of the mix, those with a written negative before the others."""
    items = sorted(mixed, key=lambda item: not any("synthetic" in j.candidate.sources for j in item.judged))
    return [browsed(item) for item in islice(items, count)]


def curve(model: Trained, name: str) -> LearningCurve:
    """A training's log as a curve."""
    lines = [json.loads(line) for line in (model.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    dev = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    return LearningCurve(name, tuple(line["step"] for line in lines), tuple(line["loss"] for line in lines), dev)
