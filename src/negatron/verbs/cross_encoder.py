"""The verb that trains a cross-encoder, to be the teacher of a later mining."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from negatron import store
from negatron.models import catalog as model_catalog
from negatron.models.cross_encoder_training import CrossEncoderSettings
from negatron.models.cross_encoder_training import train_cross_encoder as train
from negatron.models.encoder import folder_fingerprint, local_folder
from negatron.negatives.records import Negatives
from negatron.verbs.common import DEFAULT_MODEL, Data, load, place, settings_of, versions
from negatron.verbs.training import examples_of

KIND = "cross-encoder"


@dataclass(frozen=True)
class TrainedCrossEncoder:
    """A trained cross-encoder's folder, which plain `CrossEncoder(path)` loads."""

    path: Path
    manifest: store.Manifest

    @property
    def fingerprint(self) -> str:
        """Of the folder's contents."""
        return self.manifest.fingerprint

    def as_json(self) -> dict[str, Any]:
        """Place, fingerprint and counts."""
        return {"model": str(self.path), "fingerprint": self.fingerprint, **self.manifest.facts}

    def __str__(self) -> str:
        facts = self.manifest.facts
        return f"cross-encoder trained on {facts['rows']:,} rows, {facts['steps']:,} steps\n  CrossEncoder({str(self.path)!r})"


def train_cross_encoder(
    data: Data,
    negatives: Negatives | Path | str,
    *,
    model: str | Path = DEFAULT_MODEL,
    split: str = "train",
    out: Path | str | None = None,
    settings: CrossEncoderSettings | None = None,
    pairs: int | None = None,
    seed: int = 13,
    **changes: Any,
) -> TrainedCrossEncoder:
    """A cross-encoder fine-tuned on the pairs of a split and their negatives, starting from an encoder's weights.

    The negatives teach it what is irrelevant, so they should have passed a filter, or be random ones beside mined ones: what they call
    false, it will call false.
    """
    settings = settings_of(CrossEncoderSettings, settings, changes)
    collection = load(data)
    source = negatives if isinstance(negatives, Negatives) else Negatives.open(negatives)
    folder = local_folder(model_catalog.resolve_model(str(model)))
    inputs = {
        "data": collection.fingerprint,
        "split": split,
        "negatives": source.fingerprint,
        "model": folder_fingerprint(folder),
        "settings": settings.as_json(),
        "pairs": pairs,
        "seed": seed,
    }
    with store.begin(place(out, KIND, inputs), kind=KIND, inputs=inputs) as work:
        if work.finished is None:
            examples, facts = examples_of(collection, split, source, limit=pairs)
            outcome = train(folder, examples, settings, work.path, seed)
            work.finish(**facts, **asdict(outcome), base_model=str(model), versions=versions())
        return TrainedCrossEncoder(work.out, store.read_manifest(work.out, KIND))
