"""Approximate nearest neighbours by choice: faiss's inverted lists (ivf) or neighbour graph (hnsw), kept on disk with their recall.

An index is made once for an array of vectors, in one thread where the order of threads would change it, and stored beside the vectors;
what it finds is scored exactly by whoever asks. How many of the true neighbours it finds is measured on a sample when it is made, told,
and written into its manifest. What it does not know: documents, queries' texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from negatron.models.locks import entry
from negatron.models.topk import Engine, FaissEngine, Rows, exact_top, imported_faiss
from negatron.progress import say
from negatron.seams import Float32Array
from negatron.store import read_manifest

FILE = "index.faiss"
SAMPLE = 256
"""Vectors of the corpus asked for their neighbours to measure the recall."""
NEIGHBOURS = 100
LINKS = 32
"""Neighbours that each vector of an hnsw graph knows."""
TRAINING_POINTS = 64
"""Vectors a cluster of an ivf index is found from: faiss takes 39 to 256."""


@dataclass(frozen=True, slots=True, eq=False)
class ApproximateIndex:
    """A faiss index and the recall measured when it was made."""

    index: Any
    probes: int
    recall: float
    """Share of the true 100 nearest vectors that it finds, 0..1."""

    @classmethod
    def made(
        cls, out: Path, inputs: Mapping[str, Any], vectors: Float32Array, kind: Literal["ivf", "hnsw"], probes: int
    ) -> ApproximateIndex:
        """The index of the vectors [n, D] in the folder `out`, made there if it is not."""
        faiss = imported_faiss()
        with entry(out, kind="index", inputs=inputs, what=f"the {kind} index of the same vectors") as work:
            if work.finished is None:
                say(f"{kind}: making an index of {len(vectors):,} vectors")
                index = ivf(vectors, probes) if kind == "ivf" else hnsw(vectors)
                faiss.write_index(index, str(work.path / FILE))
                work.finish(recall=recall_of(cls(index, probes, 0.0), vectors, FaissEngine()))
        recall = float(read_manifest(out).facts["recall"])
        made = cls(faiss.read_index(str(out / FILE), faiss.IO_FLAG_MMAP if kind == "ivf" else 0), probes, recall)
        say(f"{kind}, {probes} probes: finds {made.recall:.1%} of the {NEIGHBOURS} nearest documents; the others are missed")
        return made

    def rows(self, queries: Float32Array, k: int) -> Rows:
        """[Q, k] rows that are near, ascending, -1 first where fewer were found."""
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = k + self.probes
        found: Rows = np.sort(self.index.search(queries, k)[1], axis=1)
        return found


def ivf(vectors: Float32Array, probes: int) -> Any:
    """Inverted lists over about 4 sqrt(n) clusters, of which a query looks into `probes`."""
    faiss = imported_faiss()
    clusters = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 39))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], clusters, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = TRAINING_POINTS
    step = max(1, len(vectors) // (clusters * TRAINING_POINTS))
    index.train(np.ascontiguousarray(vectors[::step]))
    for start in range(0, len(vectors), 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536]))
    index.nprobe = min(probes, clusters)
    return index


def hnsw(vectors: Float32Array) -> Any:
    """A graph of neighbours, built in one thread: several would link in an order of chance."""
    faiss = imported_faiss()
    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    with one_thread():
        for start in range(0, len(vectors), 65_536):
            index.add(np.ascontiguousarray(vectors[start : start + 65_536]))
    return index


@contextmanager
def one_thread() -> Iterator[None]:
    """faiss in one thread."""
    faiss = imported_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def recall_of(index: ApproximateIndex, vectors: Float32Array, engine: Engine) -> float:
    """Of the nearest 100 of a sample of the vectors themselves, the share that the index finds, 0..1."""
    k = min(NEIGHBOURS, len(vectors))
    asked = np.ascontiguousarray(vectors[:: max(1, len(vectors) // SAMPLE)][:SAMPLE])
    right, _ = exact_top(engine, asked, vectors, k)
    found = index.rows(asked, k)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(right, found, strict=True)]))
