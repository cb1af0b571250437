"""Encoded texts on disk, memory-mapped, found by what they depend on.

The key of an array holds the encoder's fingerprint (weights, prompts, length, precision), the role and all texts in order, so the
vectors of an untrained encoder can never be taken for a trained one's. Arrays are written in shards of texts of similar length; a
killed run continues after its last whole shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from negatron.identity import fingerprint, fingerprint_texts
from negatron.progress import Meter
from negatron.seams import Encoder, Float32Array
from negatron.store import begin, write_json

SHARD = 512
"""Texts encoded between two marks of progress on disk."""


class VectorStore:
    """A folder of encoded texts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def encode(self, encoder: Encoder, texts: Sequence[str], role: Literal["query", "document"], label: str = "encode") -> Float32Array:
        """[n, D] vectors of `texts`, read-only and memory-mapped; row i belongs to text i. Equal texts are encoded once."""
        inputs = {"encoder": encoder.fingerprint, "role": role, "texts": fingerprint_texts(texts), "count": len(texts)}
        out = self.root / fingerprint("vectors.v1", inputs)
        self.root.mkdir(parents=True, exist_ok=True)
        with begin(out, kind="vectors", inputs=inputs) as work:
            if work.finished is None:
                encode_shards(encoder, texts, role, work.path, label)
                (work.path / "progress.json").unlink(missing_ok=True)
                work.finish()
        distinct: Float32Array = np.load(out / "vectors.npy", mmap_mode="r")
        rows = np.load(out / "rows.npy")
        return distinct if np.array_equal(rows, np.arange(len(rows))) else distinct[rows]


def encode_shards(encoder: Encoder, texts: Sequence[str], role: str, folder: Path, label: str) -> None:
    """Writes vectors.npy [distinct, D] and rows.npy [n] into `folder`, continuing after the last whole shard.

    Shards go from the longest texts to the shortest, so that a batch holds texts of like length and too little memory shows at once.
    """
    distinct = list(dict.fromkeys(texts))
    row = {text: n for n, text in enumerate(distinct)}
    save(folder / "rows.npy", np.fromiter((row[text] for text in texts), np.int64, len(texts)))
    order = sorted(range(len(distinct)), key=lambda n: (-len(distinct[n]), n))
    encode = encoder.encode_queries if role == "query" else encoder.encode_documents
    progress = folder / "progress.json"
    done = json.loads(progress.read_text())["done"] if progress.exists() else 0
    vectors: np.memmap | None = np.lib.format.open_memmap(folder / "vectors.npy", mode="r+") if done else None
    with Meter(label, len(distinct), "texts", skipped=done) as meter:
        for start in range(done, len(order), SHARD):
            shard = order[start : start + SHARD]
            made = encode([distinct[n] for n in shard])
            if vectors is None:
                vectors = np.lib.format.open_memmap(
                    folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(len(distinct), made.shape[1])
                )
            vectors[shard] = made
            vectors.flush()
            write_json(progress, {"done": start + len(shard)})
            meter.advance(len(shard))
    if vectors is None:
        save(folder / "vectors.npy", encode([]))


def save(path: Path, array: np.ndarray) -> None:
    """np.save, whole or not at all."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        np.save(file, array)
    beside.replace(path)
