"""BM25 against bm25s: equal ranks, time from texts to results, and Chinese.

    python benchmarks/bm25.py [--data boolq msmarco-dl-pool] [--made 200000] [--queries 5000] [--repeat 3] [--json]

NEGATRON_DATA names the folder of BEIR data sets. Each run is a process of its own; timed is everything from texts to the 100 best of each
query: words, index, retrieval. Theirs: `bm25s.tokenize` with its English stop words and the Snowball stemmer, its NumPy backend (in one
thread or in all, whichever is faster) and, beside it, its numba backend, compilation included. `--made` adds a corpus of so many passages
whose words are drawn from a real one. First it is checked that bm25s, given our words, finds the same documents with the same scores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from negatron.data.beir import read_beir
from negatron.models.bm25 import BM25Searcher
from negatron.types import Document

K = 100
CHECKED = 300
"""Queries whose ranks are compared."""
CHINESE = {"qbqtc": ("test", 0.759), "dureader-robust-dev": ("test", 0.756)}
"""Data set -> split, nDCG@10 that must be reached."""
PEERS = ("numpy", "numpy, all threads", "numba")


def texts_of(name: str, made: int, queries: int) -> tuple[list[str], list[str]]:
    """Documents in the order of their ids, and queries."""
    collection = read_beir(Path(os.environ["NEGATRON_DATA"]) / name)
    documents = [collection.documents[id_].content for id_ in sorted(collection.documents)]
    asked = [query.text for query in collection.queries.values()][:queries]
    if not made:
        return documents, asked
    draw = np.random.default_rng(1)
    words = " ".join(documents).split()
    drawn = (draw.integers(0, len(words), length) for length in draw.poisson(60, made).tolist())
    return [" ".join([words[place] for place in own.tolist()]) for own in drawn], asked


def ours(documents: list[str], queries: list[str]) -> dict[str, float]:
    import scipy.sparse  # noqa: F401 - bm25s has imported it too when its clock starts

    described = [Document(f"{row:09d}", text) for row, text in enumerate(documents)]
    began = time.perf_counter()
    searcher = BM25Searcher(described, "corpus")
    searcher.index  # noqa: B018 - made when looked at
    indexed = time.perf_counter()
    for rows, _ in searcher.search_rows(queries, K):
        assert len(rows) <= K
    return {"words and index": indexed - began, "retrieval": time.perf_counter() - indexed}


def theirs(documents: list[str], queries: list[str], backend: str) -> dict[str, float]:
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    began = time.perf_counter()
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend=backend.split(",")[0])
    index.index(bm25s.tokenize(documents, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    indexed = time.perf_counter()
    asked = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, show_progress=False)
    index.retrieve(asked, k=min(K, len(documents)), show_progress=False, n_threads=-1 if "all" in backend else 0)
    return {"words and index": indexed - began, "retrieval": time.perf_counter() - indexed}


def check_equal(documents: list[str], queries: list[str]) -> int:
    """Number of queries compared: bm25s, given our words, has the same documents and the same scores, ties by row."""
    import bm25s

    searcher = BM25Searcher([Document(f"{row:09d}", text) for row, text in enumerate(documents)], "corpus")
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index([searcher.words.of(text) for text in documents], show_progress=False)
    compared = 0
    for query, (rows, scores) in zip(queries, searcher.search_rows(queries[:CHECKED], K), strict=False):
        words = [word for word in searcher.words.of(query) if word in index.vocab_dict]
        if not words:
            assert len(rows) == 0
            continue
        right = index.get_scores(words)
        best = np.lexsort((np.arange(len(right)), -right))[:K]
        best = best[right[best] > 0]
        assert np.array_equal(rows, best) and np.array_equal(scores, right[best]), f"{query!r} differs"
        compared += 1
    return compared


def chinese() -> dict[str, float]:
    """nDCG@10 of the Chinese sets; raises below what must be reached."""
    from negatron.evaluation.benchmark import evaluate

    found = {}
    for name, (split, least) in CHINESE.items():
        collection = read_beir(Path(os.environ["NEGATRON_DATA"]) / name)
        searcher = BM25Searcher(list(collection.documents.values()), "corpus")
        _, scored = evaluate(searcher, collection.queries, collection.graded(split), split=split)
        found[name] = next(value for measure, value in scored.means.items() if str(measure) == "ndcg@10")
        assert found[name] >= least, f"{name}: nDCG@10 {found[name]:.4f} is below {least}"
    return found


def run(role: str, data: str, given: argparse.Namespace, made: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--role", role, "--data", data, "--made", str(made), "--queries", str(given.queries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def measured(data: str, given: argparse.Namespace, made: int) -> dict[str, object]:
    documents, queries = texts_of(data, made, given.queries)
    compared = check_equal(documents[:20_000], queries)
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(given.repeat):  # in turn, so that a slow minute of the machine hits all alike
        for role in ("ours", *PEERS):
            runs.setdefault(role, []).append(run(role, data, given, made))
    totals = {role: [sum(own.values()) for own in of_role] for role, of_role in runs.items()}
    medians = {role: statistics.median(own) for role, own in totals.items()}
    best = min(PEERS[:2], key=medians.__getitem__)
    return {
        "documents": len(documents),
        "queries": len(queries),
        "queries_with_equal_ranks_and_scores": compared,
        "times_faster": medians[best] / medians["ours"],
        "times_faster_than_numba": medians["numba"] / medians["ours"],
        "ratios": [a / b for a, b in zip(totals[best], totals["ours"], strict=True)],
        "seconds": {role: runs[role][int(np.argsort(totals[role])[given.repeat // 2])] for role in runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["boolq", "msmarco-dl-pool"])
    parser.add_argument("--made", type=int, default=200_000, help="passages of a made corpus, 0 for none")
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-chinese", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        documents, queries = texts_of(given.data[0], given.made, given.queries)
        print(json.dumps(ours(documents, queries) if given.role == "ours" else theirs(documents, queries, given.role)))
        return
    figures: dict[str, object] = {data: measured(data, given, 0) for data in given.data}
    if given.made:
        figures["made"] = measured(given.data[0], given, given.made)
    if not given.no_chinese:
        figures["chinese ndcg@10"] = chinese()
    for name, value in figures.items():
        print(f"{name}: {value}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
