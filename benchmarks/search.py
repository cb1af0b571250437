"""Exact dense search against faiss's flat index: equal results, speed, memory, killed and resumed.

    python benchmarks/search.py [--documents 1000000 --queries 100000 --dimensions 384 --k 100 --repeat 1] [--json]

Each side runs in a process of its own, in turn. Theirs: all vectors in an `IndexFlatIP`, all queries in one call. Ours: `DenseSearcher`
over the vectors as stored, results on disk block by block. Timed is the search alone. First it is checked that every query gets the same
documents, but for neighbours whose scores fp32 cannot tell apart; then that ours, killed in the middle and started again, and ours with
small blocks of the corpus, write the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from negatron.models import dense_index, topk
from negatron.models.dense_index import DenseSearcher
from negatron.models.vectors import VectorStore
from negatron.types import Document, Query

TIED = 2e-6
"""Cosines closer than this may come in either order in fp32."""


class Table:
    """An Encoder whose texts are the numbers of rows: "d12" is row 12 of documents.npy."""

    fingerprint = "table"

    def __init__(self, folder: Path) -> None:
        self.tables = {kind: np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("documents", "queries")}

    def encode_documents(self, texts):
        return np.asarray(self.tables["documents"][[int(text[1:]) for text in texts]])

    def encode_queries(self, texts):
        return np.asarray(self.tables["queries"][[int(text[1:]) for text in texts]])


def write_vectors(folder: Path, documents: int, queries: int, dimensions: int) -> None:
    """Unit vectors around a thousand centres, as those of texts lie around topics."""
    draw = np.random.default_rng(5)
    centres = draw.standard_normal((1000, dimensions), dtype=np.float32)
    for name, count in (("documents", documents), ("queries", queries)):
        table = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, dimensions))
        for start in range(0, count, 65_536):
            own = slice(start, min(start + 65_536, count))
            rows = centres[draw.integers(0, 1000, own.stop - start)] + draw.standard_normal(
                (own.stop - start, dimensions), dtype=np.float32
            )
            table[own] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        table.flush()


def searcher_of(folder: Path) -> tuple[DenseSearcher, list[str]]:
    encoder = Table(folder)
    documents = [Document(f"{row:09d}", f"d{row}") for row in range(len(encoder.tables["documents"]))]
    return DenseSearcher(encoder, documents, VectorStore(folder / "store"), "corpus"), [
        f"q{n}" for n in range(len(encoder.tables["queries"]))
    ]


def ours(folder: Path, k: int, kill_at: int) -> dict[str, float | str]:
    """One search by us; kill_at: the block of queries before which this process kills itself, 0 for none."""
    searcher, texts = searcher_of(folder)
    searcher.vectors, searcher.copies, searcher.engine  # noqa: B018 - made here, so that the search alone is timed
    searcher.store.encode(searcher.encoder, texts, "query", "encode queries")
    calls = 0
    plain = searcher.found

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments)

    searcher.found = counted
    began = time.perf_counter()
    found = list(searcher.search_rows(texts, k))
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    for hits in searcher.search([Query(text, text) for text in texts], k):  # found on disk: what documents instead of rows cost
        assert len(hits) == k
    documents_seconds = time.perf_counter() - began
    np.save(folder / "ours.npy", np.stack([rows for rows, _ in found]))
    digest = hashlib.sha256(b"".join(rows.tobytes() + scores.tobytes() for rows, scores in found)).hexdigest()
    return {"seconds": seconds, "documents_seconds": documents_seconds, "peak_gb": peak_gb(), "sha256": digest}


def theirs(folder: Path, k: int) -> dict[str, float | str]:
    import faiss

    tables = Table(folder).tables
    index = faiss.IndexFlatIP(tables["documents"].shape[1])
    index.add(np.asarray(tables["documents"]))
    queries = np.asarray(tables["queries"])
    began = time.perf_counter()
    _, rows = index.search(queries, k)
    seconds = time.perf_counter() - began
    np.save(folder / "theirs.npy", rows)
    return {"seconds": seconds, "peak_gb": peak_gb()}


def peak_gb() -> float:
    return next(int(line.split()[1]) / 2**20 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def check_equal(folder: Path, queries: int) -> int:
    """Number of queries whose documents differ; raises where it is by more than ties."""
    mine, other = (np.load(folder / f"{name}.npy") for name in ("ours", "theirs"))
    tables = Table(folder).tables
    different = 0
    for query in range(queries):
        if np.array_equal(np.sort(mine[query]), np.sort(other[query])):
            continue
        different += 1
        left, right = (np.setdiff1d(a[query], b[query]) for a, b in ((mine, other), (other, mine)))
        scores = [tables["documents"][rows].astype(np.float64) @ tables["queries"][query].astype(np.float64) for rows in (left, right)]
        assert abs(scores[0].min() - scores[1].max()) < TIED, f"query {query}: ours has {left}, theirs {right}"
    return different


def run(folder: Path, role: str, k: int, *, kill_at: int = 0, block_bytes: int = 0, fresh: bool = True) -> tuple[dict, str]:
    """One side in a process of its own: what it measured, and what it said on stderr."""
    if fresh:
        for entry in (folder / "store").glob("*search-*"):
            subprocess.run(["rm", "-r", str(entry)], check=True)
    command = [
        sys.executable,
        __file__,
        "--role",
        role,
        str(folder),
        "--k",
        str(k),
        "--kill-at",
        str(kill_at),
        "--block-bytes",
        str(block_bytes),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if kill_at:
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        return {}, done.stderr
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"documents": 1_000_000, "queries": 100_000, "dimensions": 384, "k": 100, "repeat": 1, "kill-at": 0, "block-bytes": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=argparse.SUPPRESS if value == 0 else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        topk.BLOCK_BYTES = given.block_bytes or topk.BLOCK_BYTES
        folder = Path(given.role[1])
        print(json.dumps(ours(folder, given.k, given.kill_at) if given.role[0] == "ours" else theirs(folder, given.k)))
        return
    with tempfile.TemporaryDirectory(prefix="negatron-search-") as name:
        folder = Path(name)
        write_vectors(folder, given.documents, given.queries, given.dimensions)
        run(folder, "ours", given.k)  # stores the vectors
        figures = measured(folder, given)
    for name, value in figures.items():
        print(f"{name}: {value}")
    if given.json:
        print(json.dumps(figures))


def measured(folder: Path, given: argparse.Namespace) -> dict[str, object]:
    mine, other = [], []
    for _ in range(given.repeat):
        other.append(run(folder, "theirs", given.k)[0])
        result, said = run(folder, "ours", given.k)
        mine.append(result)
    different = check_equal(folder, given.queries)
    queries_blocks = -(-given.queries // dense_index.QUERIES_AT_A_TIME)
    stopped = max(2, queries_blocks // 2 + 1)
    run(folder, "ours", given.k, kill_at=stopped)
    resumed, said_then = run(folder, "ours", given.k, fresh=False)
    small, _ = run(folder, "ours", given.k, block_bytes=given.documents * given.dimensions * 4 // 7)
    assert "are already there" in said_then, "nothing was resumed"
    assert resumed["sha256"] == small["sha256"] == mine[0]["sha256"], "the bytes depend on blocks or on being killed"
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(other, mine, strict=True)]
    return {
        "documents": given.documents,
        "queries": given.queries,
        "k": given.k,
        "queries_that_differ_by_ties": different,
        "speed_over_faiss_flat": statistics.median(ratios),
        "ratios": ratios,
        "seconds": {"ours": [m["seconds"] for m in mine], "faiss flat": [o["seconds"] for o in other]},
        "seconds_as_documents": mine[-1]["documents_seconds"],
        "peak_gb": {"ours": max(m["peak_gb"] for m in mine), "faiss flat": max(o["peak_gb"] for o in other)},
        "killed_before_block": stopped,
        "of_blocks": queries_blocks,
        "bytes_equal_after_kill_and_with_other_blocks": True,
        "last_words": said.splitlines()[-1],
    }


if __name__ == "__main__":
    main()
