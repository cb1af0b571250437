"""A whole training step: load, tokenise, encode, loss, backward, clip, AdamW; ours against sentence-transformers' trainer.

    python benchmarks/training_step.py [--batch 256] [--steps 1] [--repeat 3] [--precision fp32 bf16] [--memory-gib 6] [--json]
    python benchmarks/training_step.py --batch 32 --repeat 1 --precision fp32 --mini-batches 32       # a trial

MiniLM, 128 tokens, batch x (query + positive + 5 negatives), dropout on, the same rows in the same order. Two kinds of text:
`distinct`: generated, all different, all longer than 128 tokens, so that there is nothing to gain from lengths or repetition;
`real`: training pairs of a BEIR folder (--data, below the folder that NEGATRON_DATA names) with BM25's best non-positives as negatives.

Sides: `theirs, N`: SentenceTransformerTrainer with CachedMultipleNegativesRankingLoss at mini_batch_size N (32 is its default); `drop-in`:
the same script with TiledInfoNCE; `ours`: negatron's own step. Then the levers: ours taken apart into rungs, each with one lever more.
Every figure is of a fresh process, after a small step that is not counted; sides take turns. First, gradients are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

LENGTH, NEGATIVES, TEMPERATURE, LEARNING_RATE = 128, 5, 0.05, 2e-5
GRAPH_KIB, PRODUCTS_KIB = 281, 85
"""Memory a token of MiniLM in fp32: its graph; the results of its matrix products (negatron.training.remembered). bf16 needs half."""
WARM = 4
"""Rows of the step that is not counted."""
RUNGS = ("nothing", "length sorting, token budget", "distinct texts once", "second forward spared", "loss in tiles", "freed memory kept")
CHECKED_ROWS = 8


# ---- texts -----------------------------------------------------------------------------------------------------------------------------


def generated(rows: int) -> list[list[str]]:
    """Query, positive and negatives of each row: 160 words, drawn anew for every text."""
    words = [word.strip() for word in (model_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()]
    words = [word for word in words if word.isalpha() and len(word) > 3]
    draw = random.Random(1)
    return [[" ".join(draw.choices(words, k=160)) for _ in range(2 + NEGATIVES)] for _ in range(rows)]


def real(rows: int, name: str) -> list[list[str]]:
    """Training pairs in a random order, each with the best documents of BM25 that are no positives of its query."""
    import bm25s

    folder = Path(os.environ["NEGATRON_DATA"]) / name
    documents, queries = (
        {
            line["_id"]: f"{line.get('title') or ''} {line['text']}".strip()
            for line in map(json.loads, (folder / file).open(encoding="utf-8"))
        }
        for file in ("corpus.jsonl", "queries.jsonl")
    )
    positives: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            positives.setdefault(query, set()).add(document)
    pairs = sorted((query, document) for query, found in positives.items() for document in found)
    random.Random(1).shuffle(pairs)
    ids = list(documents)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents.values()), show_progress=False), show_progress=False)
    made = []
    for query, document in pairs:
        asked = bm25s.tokenize([queries[query]], show_progress=False, return_ids=False)
        best, _ = index.retrieve(asked, k=min(len(ids), NEGATIVES + len(positives[query])), show_progress=False)
        found = [ids[n] for n in best[0] if ids[n] not in positives[query]][:NEGATIVES]
        if len(found) == NEGATIVES:
            made.append([queries[query], documents[document], *(documents[one] for one in found)])
        if len(made) == rows:
            return made
    sys.exit(f"{name} has {len(made)} usable pairs; {rows} are needed: lower --batch or --steps")


def model_folder() -> Path:
    from negatron.models.catalog import fetch_model

    return fetch_model("minilm")


# ---- one side, in a process of its own ---------------------------------------------------------------------------------------------------


def their_trainer(model, rows, batch, steps, precision, loss, clock):
    """Their script as it is, but for the order of the rows and what would only write files or lines."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            clock.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            clock.append(time.perf_counter())

    names = ["anchor", "positive", *(f"negative_{n}" for n in range(NEGATIVES))]
    dataset = Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            bf16=precision == "bf16",
            use_cpu=True,
            batch_sampler=lambda data, batch_size, drop_last, **_: DefaultBatchSampler(SequentialSampler(data), batch_size, drop_last),
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Clock()]).train()


def our_step(
    model,
    rows,
    batch,
    steps,
    precision,
    clock,
    *,
    sort=True,
    once=True,
    keep=(0, 0),
    tiled=True,
    chunk_size=None,
    chunk_tokens=None,
    shorten=None,
):
    """negatron's step over the rows: collate, count tokens, chunks, loss, clip, AdamW."""
    import torch

    from negatron.models.precision import autocast
    from negatron.training import gradients, towers
    from negatron.training.batches import collate
    from negatron.training.losses import InfoNCE, info_nce
    from negatron.types import Document, Negative, Query, TrainingExample

    counts = towers.TokenCounts(model, "")
    tower = towers.tower(model, "document", counts, "", partial(autocast, "cpu", precision))
    if not once:
        tower = apart(tower)
    if not sort:
        tower = gradients.Tower(tower.prepare, tower.forward, lambda text: 1)
    loss = InfoNCE(TEMPERATURE) if tiled else partial(info_nce, temperature=TEMPERATURE)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    model.train()
    clock.append(time.perf_counter())
    for step in range(steps):
        some = rows[step * batch : (step + 1) * batch]
        if not once:
            some = [[f"{n}.{m}\0{text}" for m, text in enumerate(row)] for n, row in enumerate(some)]
        laid_out = collate(
            [
                TrainingExample(Query(str(n), row[0]), Document("p", row[1]), tuple(Negative(Document("n", text), ()) for text in row[2:]))
                for n, row in enumerate(some)
            ]
        )
        if sort and once:
            counts.ahead([*laid_out.query_texts, *laid_out.document_texts])
        optimiser.zero_grad()
        gradients.step(
            tower,
            tower,
            laid_out,
            loss,
            chunk_size=chunk_size,
            chunk_tokens=chunk_tokens,
            keep_tokens=keep[0],
            keep_product_tokens=keep[1],
        )
        (shorten or torch.nn.utils.clip_grad_norm_)(model.parameters(), 1.0)
        optimiser.step()
        clock.append(time.perf_counter())


def apart(tower):
    """The tower for texts that carry a mark in front, which makes equal ones different."""
    from negatron.training.gradients import Tower

    def bare(text):
        return text.rpartition("\0")[2]

    return Tower(lambda texts: tower.prepare([bare(text) for text in texts]), tower.forward, lambda text: tower.length(bare(text)))


def measure(side: str, given: argparse.Namespace) -> dict[str, float]:
    """Examples a second and MiB of a side, in this process."""
    import torch

    from negatron.losses import TiledInfoNCE
    from negatron.training.allocator import keep_freed_memory
    from negatron.training.towers import load

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    kind, precision = given.kinds[0], given.precision[0]
    rows = generated(given.batch * given.steps) if kind == "distinct" else real(given.batch * given.steps, given.data)
    model = load(model_folder(), max_length=LENGTH, device="cpu")
    keep = budget(given, precision)
    name, _, value = side.partition(", ")
    if name == "theirs":
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        work = partial(their_trainer, loss=CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=int(value)))
    elif name == "drop-in":
        work = partial(
            their_trainer,
            loss=TiledInfoNCE(model, TEMPERATURE, chunk_tokens=given.chunk_tokens, keep_tokens=keep[0], keep_product_tokens=keep[1]),
        )
    else:
        rung = RUNGS.index(value) if name == "rung" else len(RUNGS) - 1
        levers = {"sort": rung >= 1, "once": rung >= 2, "keep": keep if rung >= 3 else (0, 0), "tiled": rung >= 4}
        chunks = {"chunk_tokens": given.chunk_tokens} if rung >= 1 else {"chunk_size": 32}
        work = partial(our_step, **levers, **chunks)
        if rung >= 5:
            keep_freed_memory()
    work(model, rows[:WARM], WARM, 1, precision, clock=[])
    Path("/proc/self/clear_refs").write_text("5")
    clock: list[float] = []
    work(model, rows, given.batch, given.steps, precision, clock=clock)
    return {"examples_per_second": given.batch * given.steps / (clock[-1] - clock[0]), "peak_mib": peak_mib()}


def budget(given: argparse.Namespace, precision: str) -> tuple[int, int]:
    """Tokens of kept graphs, and of kept products: one chunk's graph, and products, which spare more for their memory, for the rest."""
    share, room = 0.5 if precision == "bf16" else 1.0, given.memory_gib * 2**20
    graph = given.chunk_tokens if given.chunk_tokens * GRAPH_KIB * share <= room else 0
    return graph, int((room - graph * GRAPH_KIB * share) / (PRODUCTS_KIB * share))


def peak_mib() -> float:
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def check() -> dict[str, float]:
    """The relative difference of our gradients to theirs: few rows without copies, fp32, no dropout."""
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    from negatron.losses import TiledInfoNCE
    from negatron.training.towers import load

    rows = [[text[: 30 + 20 * (n % 7)] for n, text in enumerate(row)] for row in generated(CHECKED_ROWS)]
    model = load(model_folder(), max_length=LENGTH, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    columns = list(map(list, zip(*rows, strict=True)))

    def of_loss(loss) -> torch.Tensor:
        model.zero_grad()
        loss([model.preprocess(column) for column in columns], None).backward()
        return gradient()

    def gradient() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None and "pooler" not in name])

    def of_step() -> torch.Tensor:
        seen: list[torch.Tensor] = []
        our_step(model, rows, CHECKED_ROWS, 1, "fp32", [], keep=(0, 2000), shorten=lambda *_: seen.append(gradient()))
        return seen[0]

    theirs = of_loss(CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE))
    found = {"drop-in": of_loss(TiledInfoNCE(model, TEMPERATURE, keep_tokens=0, keep_product_tokens=2000)), "ours": of_step()}
    return {name: ((mine - theirs).norm() / theirs.norm()).item() for name, mine in found.items()}


# ---- all of them -------------------------------------------------------------------------------------------------------------------------


def in_a_process(given: argparse.Namespace, *more: str) -> dict[str, float]:
    """What a fresh process prints as its last line."""
    same = [
        f"--{name.replace('_', '-')}={getattr(given, name)}" for name in ("batch", "steps", "threads", "data", "memory_gib", "chunk_tokens")
    ]
    ended = subprocess.run([sys.executable, __file__, *same, *more], check=False, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{' '.join(more)} failed:\n{ended.stderr[-3000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def compared(kind: str, precision: str, given: argparse.Namespace) -> dict[str, object]:
    """All sides on one kind of text in one precision, in turn, `repeat` times."""
    theirs = [f"theirs, {size}" for size in given.mini_batches]
    sides = [*theirs, "drop-in", "ours", *([f"rung, {rung}" for rung in RUNGS[:-1]] if given.levers else [])]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(given.repeat):
        for side in sides:
            found[side].append(in_a_process(given, "--kinds", kind, "--precision", precision, "--measure", side))
            figures = found[side][-1]
            said = f"{kind}, {precision}, {turn + 1}/{given.repeat}, {side}: {figures['examples_per_second']:.3f} examples/s, "
            print(f"{said}{figures['peak_mib']:.0f} MiB", file=sys.stderr, flush=True)
    rates = {side: [one["examples_per_second"] for one in turns] for side, turns in found.items()}
    best = max(theirs, key=lambda side: statistics.median(rates[side]))
    ladder = [*(rates[f"rung, {rung}"] for rung in RUNGS[:-1]), rates["ours"]] if given.levers else []
    return {
        "examples_per_second": {side: spread(values) for side, values in rates.items()},
        "peak_mib": {side: max(one["peak_mib"] for one in turns) for side, turns in found.items()},
        "best_of_theirs": best,
        "times_faster_than_default": ratio(rates["ours"], rates[theirs[0]]),
        "times_faster_than_best": ratio(rates["ours"], rates[best]),
        "drop_in_times_faster_than_best": ratio(rates["drop-in"], rates[best]),
        "levers": {rung: ratio(after, before) for rung, before, after in zip(RUNGS[1:], ladder, ladder[1:], strict=False)},
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of examples a second, turn by turn."""
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="queries in a step")
    parser.add_argument("--steps", type=int, default=1, help="steps of a measurement, after the one that is not counted")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", default="nfcorpus", help="a BEIR folder below NEGATRON_DATA")
    parser.add_argument("--kinds", nargs="+", choices=("distinct", "real"), default=["distinct", "real"])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=None, help="default: fp32, and bf16 where it is fast")
    parser.add_argument("--mini-batches", nargs="+", type=int, default=[32, 64, 128], help="of theirs; the first is the default one")
    parser.add_argument("--memory-gib", type=float, default=6.0, help="for what is kept between our two passes")
    parser.add_argument("--chunk-tokens", type=int, default=8192, help="of ours: tokens encoded at a time")
    parser.add_argument("--no-levers", dest="levers", action="store_false", help="do not take ours apart")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        return print(json.dumps(check() if given.measure == "check" else measure(given.measure, given)))
    from negatron.models.precision import fast_in_bf16

    kinds = [kind for kind in given.kinds if kind == "distinct" or "NEGATRON_DATA" in os.environ]
    differences = in_a_process(given, "--measure", "check")
    assert max(differences.values()) <= 1e-5, f"gradients differ: {differences}"
    figures: dict[str, object] = {
        "batch": given.batch,
        "texts_in_a_row": 2 + NEGATIVES,
        "tokens": LENGTH,
        "steps": given.steps,
        "threads": given.threads,
        "data": given.data,
        "memory_gib": given.memory_gib,
        "chunk_tokens": given.chunk_tokens,
        "largest_relative_gradient_difference": differences,
    }
    for precision in given.precision or (["fp32", "bf16"] if fast_in_bf16("cpu") else ["fp32"]):
        for kind in kinds:
            figures[f"{kind}, {precision}"] = compared(kind, precision, given)
    for name, value in figures.items():
        for line in json.dumps(value, indent=1).splitlines() if isinstance(value, dict) else [value]:
            print(f"{name}: {line}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
