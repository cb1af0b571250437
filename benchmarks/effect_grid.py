"""What a model learns from the same number of examples: batch size x hard negatives, and curricula; test nDCG@10, several seeds.

    python benchmarks/effect_grid.py --data nl2bash code-search                                  the grid of the small encoder
    python benchmarks/effect_grid.py --data nl2bash --cells 256x5 256x5:easy-to-hard             some of its cells
    python benchmarks/effect_grid.py --data nl2bash --model minilm --cells 32x0 32x5 256x0 256x5
    python benchmarks/effect_grid.py --data nl2bash code-search --only-report --json             what the cells on file come to

A cell is BATCHxNEGATIVES or BATCHxNEGATIVES:CURRICULUM. All cells of a data set see the same examples equally often, so a batch eight
times as large takes an eighth of the steps. The learning rate is chosen for each batch size on the dev split, without hard negatives
and with a seed of its own, from one ladder of rates, and then holds for every cell of that batch size. Negatives are mined once a data
set, by the defaults of `mine` (BM25 and MiniLM, all filters); a cell of n takes the n that `mine` would keep for `negatives = n`. A
staged curriculum chooses five of the eighteen hardest at a time; `unordered` draws five of these at any time, and is what to compare
the order with.

Cells on file are not run again. A cell's values per query are kept, packed, so that seeds are averaged per query before a test.
Seconds are CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "effect_grid"
TUNING_SEED = 7
PLACES = 18
"""Negatives kept on file for each query, hardest first; at least nine of each source."""
TEMPERATURE, WARMUP = 0.05, 0.0
GRID = tuple(f"{batch}x{negatives}" for negatives in (0, 1, 5) for batch in (32, 256, 2048))


@dataclass(frozen=True)
class Size:
    """How much a model learns from, the same for all cells of a data set."""

    pairs: int
    epochs: int
    length: int
    rates: tuple[float, ...]
    """Learning rates to try first; others of the ladder follow while the best is at an end."""
    precision: str = "fp32"
    keep_graphs: int = 40
    """Chunks of 64 texts that are encoded only once; changes memory and speed alone."""
    whole_dev: bool = True
    """Whether learning rates are compared on the whole corpus; False: among the documents that dev judges, for a model that is slow."""


SMALL, LARGE = (1e-3, 3e-3), (3e-5, 1e-4)
SIZES = {
    ("splade-tiny", "nl2bash"): Size(4096, 1, 32, SMALL),
    ("splade-tiny", "code-search"): Size(4096, 1, 32, SMALL),
    ("minilm", "nl2bash"): Size(1024, 1, 32, LARGE, "auto", keep_graphs=2, whole_dev=False),
}
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIVE = {"bm25": 3, "dense": 2}


def stage(share: float, bm25: tuple[int, int], dense: tuple[int, int]) -> dict[str, Any]:
    """A part of the training that draws three BM25 and two dense negatives of these places, 1 the hardest."""
    return {"share": share, "quotas": FIVE, "bands": {"bm25": bm25, "dense": dense}}


def ordered(*first_places: int) -> tuple[dict[str, Any], ...]:
    """Three places of each source in a stage. Shares of 5, 5 and 6 sixteenths cut 4,096 examples in batches of 256 between two batches."""
    shares = (0.3125, 0.3125, 0.375)
    return tuple(stage(share, (first, first + 2), (first, first + 2)) for share, first in zip(shares, first_places, strict=True))


CURRICULA: dict[str, dict[str, Any]] = {
    "unordered": {"stages": (stage(1.0, (1, 9), (1, 9)),)},
    "easy-to-hard": {"stages": ordered(7, 4, 1)},
    "hard-to-easy": {"stages": ordered(1, 4, 7)},
    "focal": {"weighting": {"focal": {"from": 0.0, "to": 2.0}}},
    "importance": {"weighting": {"importance": {"from": 0.0, "to": 1.0}}},
    "importance-falling": {"weighting": {"importance": {"from": 1.0, "to": 0.0}}},
    "importance-constant": {"weighting": {"importance": 0.5}},
}
CONTRASTS = (
    ("32x0", "256x0"), ("32x0", "2048x0"), ("32x0", "32x1"), ("32x0", "32x5"), ("256x0", "256x1"), ("256x0", "256x5"),
    ("2048x0", "2048x1"), ("2048x0", "2048x5"), ("256x0", "32x5"), ("32x5", "256x5"), ("32x5", "2048x5"), ("untrained", "32x0"),
)  # fmt: skip
CURRICULUM_CONTRASTS = (
    *(("256x5:hardest", f"256x5:{name}") for name in CURRICULA),
    ("256x5:unordered", "256x5:easy-to-hard"), ("256x5:unordered", "256x5:hard-to-easy"), ("256x5:hard-to-easy", "256x5:easy-to-hard"),
    ("256x5:importance-constant", "256x5:importance"), ("256x5:importance-falling", "256x5:importance"),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """How one training differs from the others of its data set."""

    batch: int
    negatives: int
    curriculum: str = ""

    @classmethod
    def parse(cls, text: str) -> Cell:
        """`256x5`, `256x5:focal`; `256x5:hardest` is `256x5` trained beside the curricula."""
        found = re.fullmatch(r"(\d+)x(\d+)(?::([\w-]+))?", text)
        known = ("hardest", *CURRICULA)
        if not found or (found[3] and found[3] not in known):
            raise SystemExit(f"{text!r}: expected BATCHxNEGATIVES or BATCHxNEGATIVES:CURRICULUM; curricula: {', '.join(known)}")
        return cls(int(found[1]), int(found[2]), found[3] or "")


def packed(values: Sequence[float]) -> str:
    """Values 0..1 as ten-thousandths, compressed: seven thousand queries' nDCG in a few kilobytes."""
    return base64.b64encode(zlib.compress(np.round(np.array(values) * 10_000).astype("<u2").tobytes(), 9)).decode()


def unpacked(text: str) -> list[float]:
    """What `packed` was given, to four decimals."""
    return (np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2") / 10_000).tolist()


class Bench:
    """One data set and one model: mined negatives, training, evaluation, and the file of results."""

    def __init__(self, data: str, model: str, work: Path, size: Size) -> None:
        import negatron as ng

        self.data, self.model, self.work, self.size = data, model, work, size
        self.collection = ng.load(data)
        longer = "" if size == SIZES[model, data] else f"-{size.epochs}-epochs"
        self.path = RESULTS / f"{data}-{model}{longer}.json"
        self.found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {"tuning": {}, "cells": {}}
        setting = {"data": data, "model": model, "pairs": size.pairs, "epochs": size.epochs, "max_length": size.length}
        if (before := self.found.setdefault("setting", setting)) != setting:
            raise SystemExit(f"{self.path} holds runs of {before}, these would be of {setting}; move it away")
        self.examples_of_count: dict[int, list[Any]] = {}

    # ---- data --------------------------------------------------------------------------------------------------------------------------

    def mined(self) -> Any:
        """The `PLACES` hardest negatives of each training query that no filter rejects, in the order in which `mine` would keep them."""
        import negatron as ng
        from negatron import store
        from negatron.negatives.records import KIND, Negatives, write_negatives

        folder = self.work / f"negatives-{self.data}"
        every = Negatives.open(folder) if folder.is_dir() else ng.mine(self.data, max_length=64, out=folder)
        inputs = {"negatives": every.fingerprint, "places": PLACES}
        with store.begin(self.work / f"hardest-{self.data}", kind=KIND, inputs=inputs) as work:
            if work.finished is None:
                summary = write_negatives(work.path, (hardest(item, PLACES) for item in every))
                work.finish(summary=summary.as_json())
            self.found["mined"] = {key: every.summary[key] for key in ("queries", "candidates", "rejected")}
            return Negatives.open(work.out)

    def examples(self, count: int) -> list[Any]:
        """The training examples with their `count` hardest negatives."""
        from negatron.verbs.training import examples_of

        if count not in self.examples_of_count:
            negatives = (replace(item, judged=item.judged[:count]) for item in self.mined()) if count else None
            examples, facts = examples_of(self.collection, "train", negatives, limit=self.size.pairs)
            self.found.setdefault("examples", {})[str(count)] = facts
            self.examples_of_count[count] = examples
        return self.examples_of_count[count]

    # ---- one run -----------------------------------------------------------------------------------------------------------------------

    def run(self, cell: Cell, seed: int, rate: float, split: str) -> dict[str, Any]:
        """Trains one model and measures it on a split."""
        from negatron.models.catalog import resolve_model
        from negatron.models.encoder import local_folder
        from negatron.models.precision import autocast
        from negatron.training import trainer

        given = {
            "batch_size": cell.batch, "learning_rate": rate, "epochs": self.size.epochs, "max_length": self.size.length,
            "temperature": TEMPERATURE, "warmup_share": WARMUP, "precision": self.size.precision, "seed": seed, "checkpoint_seconds": 1e9,
            "chunk_size": 64, "keep_graphs": self.size.keep_graphs, **CURRICULA.get(cell.curriculum, {}),
        }  # fmt: skip
        examples = self.examples(PLACES if "stages" in given else cell.negatives)
        folder = Path(tempfile.mkdtemp(dir=self.work))
        began = time.process_time()
        settings = trainer.TrainingSettings.checked(given)
        result = trainer.train(local_folder(resolve_model(self.model)), examples, settings, folder, autocast=autocast)
        trained = time.process_time()
        lines = [json.loads(line) for line in (folder / "log.jsonl").open(encoding="utf-8")]
        short = {"short": sum(line["short"] for line in lines)} if "stages" in given else {}
        values = self.measured(result.model, split)
        evaluated = time.process_time()
        shutil.rmtree(folder)
        return {
            "learning_rate": rate, "steps": result.steps, "examples": result.examples, "tokens": result.tokens,
            "last_loss": round(result.last_loss, 4), "train_seconds": round(trained - began, 1),
            "evaluate_seconds": round(evaluated - trained, 1), "ndcg@10": statistics.fmean(values), "per_query": packed(values),
            **short,
        }  # fmt: skip

    def measured(self, model: str | Path, split: str) -> list[float]:
        """nDCG@10 of each judged query of a split, in the order of the queries' ids, against the whole corpus."""
        from negatron.evaluation.benchmark import evaluate
        from negatron.evaluation.measures import Measure
        from negatron.models.bm25 import BM25Searcher, BM25Settings
        from negatron.models.dense_index import DenseSearcher
        from negatron.models.encoder import SentenceEncoder
        from negatron.models.vectors import VectorStore
        from negatron.verbs.evaluation import judged_corpus

        collection = self.collection if split == "test" or self.size.whole_dev else judged_corpus(self.collection, split)
        documents, of_corpus = list(collection.documents.values()), collection.corpus_fingerprint
        with tempfile.TemporaryDirectory(dir=self.work) as vectors:
            if model == "bm25":
                searcher: Any = BM25Searcher(documents, of_corpus, BM25Settings())
            else:
                encoder = SentenceEncoder(model, max_length=self.size.length, precision=self.size.precision)
                searcher = DenseSearcher(encoder, documents, VectorStore(Path(vectors)), of_corpus)
            _, found = evaluate(searcher, collection.queries, collection.graded(split), [Measure("ndcg", 10)], depth=10)
        per_query = found.of("ndcg@10")
        return [per_query[query_id] for query_id in sorted(per_query)]

    # ---- all of them -------------------------------------------------------------------------------------------------------------------

    def references(self) -> None:
        """BM25 and the model before training."""
        from negatron.models.catalog import resolve_model

        for name, model in (("bm25", "bm25"), ("untrained", resolve_model(self.model))):
            if name not in self.found["cells"]:
                values = self.measured(model, "test")
                self.keep(name, 0, {"ndcg@10": statistics.fmean(values), "per_query": packed(values)})

    def rate_of(self, batch: int) -> float:
        """The learning rate of a batch size: the best on dev without hard negatives, of those tried."""
        tried: dict[str, float] = self.found["tuning"].setdefault(str(batch), {})
        waiting = list(self.size.rates)
        while waiting:
            for rate in waiting:
                if f"{rate:g}" not in tried:
                    one = self.run(Cell(batch, 0), TUNING_SEED, rate, "dev")
                    tried[f"{rate:g}"] = one["ndcg@10"]
                    self.say(f"{batch}x0 at {rate:g} on dev: {one['ndcg@10']:.4f} ({one['train_seconds']:.0f} s)")
                    self.write()
            waiting = [rate for rate in beyond(tried) if f"{rate:g}" not in tried]
        return float(max(tried, key=lambda rate: tried[rate]))

    def cell(self, name: str, seeds: Sequence[int]) -> None:
        """Runs what is missing of a cell."""
        cell = Cell.parse(name)
        for seed in seeds:
            if str(seed) not in self.found["cells"].get(name, {}):
                one = self.run(cell, seed, self.rate_of(cell.batch), "test")
                self.keep(name, seed, one)
                self.say(f"{name} seed {seed}: {one['ndcg@10']:.4f} ({one['train_seconds']:.0f} + {one['evaluate_seconds']:.0f} s)")

    def keep(self, name: str, seed: int, one: dict[str, Any]) -> None:
        self.found["cells"].setdefault(name, {})[str(seed)] = one
        self.write()

    def write(self) -> None:
        from negatron.store import write_json

        write_json(self.path, self.found)

    def say(self, text: str) -> None:
        print(f"{self.data} {self.model} {text}", file=sys.stderr, flush=True)

    # ---- what it comes to --------------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Means, spreads and steps of all cells; paired tests of the contrasts, Holm-corrected within grid and curricula."""
        from negatron.evaluation.significance import correct, pooled

        cells = {name: summary(seeds) for name, seeds in self.found["cells"].items()}
        values = {
            name: [{str(n): value for n, value in enumerate(unpacked(one["per_query"]))} for one in seeds.values()]
            for name, seeds in self.found["cells"].items()
        }
        tests = []
        for contrasts in (CONTRASTS, CURRICULUM_CONTRASTS):
            pairs = [(a, b) for a, b in contrasts if a in cells and b in cells]
            family = [pooled({self.data: (values[a], values[b])}, "ndcg@10", name_a=a, name_b=b) for a, b in pairs]
            runs = self.found["cells"]
            tests += [{**test.as_json(), "by_seed": by_seed(runs[test.name_a], runs[test.name_b])} for test in correct(family)]
        return {**self.found["setting"], "tuning": self.found["tuning"], "cells": cells, "contrasts": tests}


def hardest(item: Any, count: int) -> Any:
    """A mined query with only those `count` negatives that `mine` would keep, in its order of choice."""
    from negatron.identity import stream
    from negatron.negatives.mining import SELECTION, select

    chosen = [judged for judged in select(item, count, "top", stream(0)).judged if judged.kept]
    place = {id(judged): next(v.measured for v in judged.verdicts if v.rule == SELECTION) for judged in chosen}
    return replace(item, judged=tuple(sorted(chosen, key=lambda judged: place[id(judged)])))


def beyond(tried: dict[str, float]) -> Iterator[float]:
    """The neighbours on the ladder of the best rate tried: both have been tried when the best is at no end."""
    best = LADDER.index(float(max(tried, key=lambda rate: tried[rate])))
    yield from (LADDER[n] for n in (best - 1, best + 1) if 0 <= n < len(LADDER))


def summary(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, steps and seconds of a cell."""
    scores = [one["ndcg@10"] for one in runs.values()]
    some = next(iter(runs.values()))
    means = {key: statistics.fmean(one[key] for one in runs.values()) for key in ("train_seconds", "tokens") if key in some}
    spread = statistics.stdev(scores) if len(scores) > 1 else None
    known = {key: some[key] for key in ("steps", "examples", "learning_rate", "short") if key in some}
    return {"ndcg@10": statistics.fmean(scores), "sd_of_seeds": spread, "seeds": len(scores), **known, **means}


def by_seed(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[float]:
    """B - A for each seed that both cells have: how far other trainings move it, which a test over queries cannot know."""
    return [round(b[seed]["ndcg@10"] - a[seed]["ndcg@10"], 4) for seed in a if seed in b]


def show(report: dict[str, Any]) -> None:
    """The report as text."""
    print(f"\n{report['data']}, {report['model']}: {report['pairs']:,} pairs x {report['epochs']} epochs, {report['max_length']} tokens")
    for batch, tried in report["tuning"].items():
        scores = ", ".join(f"{rate}: {tried[rate]:.4f}" for rate in sorted(tried, key=float))
        print(f"  batch {batch}: nDCG@10 on dev by learning rate: {scores}")
    for name, cell in report["cells"].items():
        spread = f" sd {cell['sd_of_seeds']:.4f} of {cell['seeds']} seeds" if cell["sd_of_seeds"] is not None else ""
        effort = f", {cell['steps']} steps, rate {cell['learning_rate']:g}, {cell['train_seconds']:.0f} s" if "steps" in cell else ""
        print(f"  {name:<22} {cell['ndcg@10']:.4f}{spread}{effort}")
    for test in report["contrasts"]:
        print(
            f"  {test['name_b']} - {test['name_a']}: {test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}], "
            f"p (Holm) {test['p_holm']:.4f}, smallest visible {test['smallest_visible']:.4f}, by seed {test['by_seed']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="nl2bash (a BEIR folder below NEGATRON_DATA), code-search")
    parser.add_argument("--model", default="splade-tiny")
    parser.add_argument("--cells", nargs="+", default=list(GRID))
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 14, 15])
    parser.add_argument("--epochs", type=int, help="of all cells, instead of the usual ones; kept in a file of their own")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "effect", help="for mined negatives and models")
    parser.add_argument("--only-report", action="store_true", help="run nothing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    options.work.mkdir(parents=True, exist_ok=True)
    reports = []
    for data in options.data:
        size = SIZES[options.model, data]
        bench = Bench(data, options.model, options.work, replace(size, epochs=options.epochs or size.epochs))
        if not options.only_report:
            bench.references()
            for name in options.cells:
                bench.cell(name, options.seeds)
        reports.append(bench.report())
        show(reports[-1])
    if options.json:
        print(json.dumps({"data_sets": reports}))


if __name__ == "__main__":
    main()
