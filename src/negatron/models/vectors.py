"""Encoded texts on disk, memory-mapped, found by what they depend on.

The key of an array holds the encoder's fingerprint (weights, prompts, length, precision), the role and all texts in order, so the
vectors of an untrained encoder can never be taken for a trained one's. Texts are encoded in shards of similar length, straight into the
file; a killed run continues after its last whole shard and ends with the same bytes. A second process that wants the same vectors waits
for the first.

Nothing here holds all vectors in memory: the file is mapped, and its pages are the kernel's to drop.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from negatron.errors import NegatronError
from negatron.identity import fingerprint, fingerprint_texts
from negatron.models.locks import entry
from negatron.progress import Meter
from negatron.seams import Encoder, Float32Array
from negatron.store import write_json

SHARD = 512
"""Texts encoded between two marks of progress on disk."""
FILE = "vectors.npy"
PROGRESS = "progress.json"
Role = Literal["query", "document"]


class VectorStore:
    """A folder of encoded texts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def encode(self, encoder: Encoder, texts: Sequence[str], role: Role, label: str = "encode") -> Float32Array:
        """[n, D] vectors of `texts`, read-only and memory-mapped; row i belongs to text i. Equal texts are encoded once.

        Raises NegatronError when the encoder gives a vector that is not finite, and when another process takes too long with the same.
        """
        inputs = key(encoder, texts, role)
        out = self.root / fingerprint("vectors.v2", inputs)
        with entry(out, kind="vectors", inputs=inputs, what=f"the vectors of the same {len(texts):,} texts") as work:
            if work.finished is None:
                encode_shards(encoder, texts, role, work.path, label)
                (work.path / PROGRESS).unlink(missing_ok=True)
                work.finish()
        vectors: Float32Array = np.load(out / FILE, mmap_mode="r" if texts else None)
        return vectors


def key(encoder: Encoder, texts: Sequence[str], role: Role) -> dict[str, Any]:
    """All that an array of vectors depends on."""
    return {"encoder": encoder.fingerprint, "role": role, "texts": fingerprint_texts(texts), "count": len(texts)}


def encode_shards(encoder: Encoder, texts: Sequence[str], role: Role, folder: Path, label: str) -> None:
    """Writes vectors.npy [n, D] into `folder`, continuing after the last whole shard.

    Shards go from the longest texts to the shortest, so that a batch holds texts of like length and too little memory shows at once.
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    order = sorted(places, key=lambda text: (-len(text), places[text][0]))
    encode = encoder.encode_queries if role == "query" else encoder.encode_documents
    progress = folder / PROGRESS
    done = json.loads(progress.read_text())["done"] if progress.exists() else 0
    vectors: np.memmap | None = np.lib.format.open_memmap(folder / FILE, mode="r+") if done else None
    with Meter(label, len(order), "texts", skipped=done) as meter:
        for start in range(done, len(order), SHARD):
            shard = order[start : start + SHARD]
            made = finite(encode(shard), shard)
            if vectors is None:
                vectors = np.lib.format.open_memmap(folder / FILE, mode="w+", dtype=np.float32, shape=(len(texts), made.shape[1]))
            rows = [place for text in shard for place in places[text]]
            vectors[rows] = np.repeat(made, [len(places[text]) for text in shard], axis=0)
            vectors.flush()
            write_json(progress, {"done": start + len(shard)})
            meter.advance(len(shard))
    if vectors is None:
        np.save(folder / FILE, encode([]))


def finite(vectors: Float32Array, texts: Sequence[str]) -> Float32Array:
    """The vectors. Raises NegatronError for one that is not finite: no score could be compared with its scores."""
    if not np.isfinite(vectors).all():
        broken = texts[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise NegatronError(
            f"the encoder gives a vector that is not finite for {broken[:80]!r}; its weights are damaged, or use precision = fp32"
        )
    return vectors
