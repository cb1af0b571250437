"""The cross-encoder behind the CrossScorer seam: sentence-transformers does the work, this module gives it an identity.

A score is a probability, the sigmoid of the model's one output, in fp32. It depends on the weights and settings in the model's folder,
the length at which a pair is cut and the precision; the fingerprint holds all of these. The last layer computes in fp32 even where the
rest runs in bf16, because bf16 has so few values that most candidates of a query would tie.

`StoredScores` keeps what was computed. Pairs are scored in shards, and a shard is stored under the fingerprint of its pairs in their
order: so a killed run goes on after its last whole shard, and since a score differs in its last bits with the pairs computed beside it,
a stored score is always the one that the same pairs in the same company got.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from negatron.errors import MissingExtra, SettingError
from negatron.identity import fingerprint, fingerprint_texts
from negatron.models.encoder import folder_fingerprint, local_folder
from negatron.models.locks import note_use
from negatron.models.precision import autocast, choose_precision
from negatron.progress import Meter
from negatron.seams import CrossScorer, Float32Array
from negatron.store import write_bytes

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

SHARD = 1024
"""Pairs scored between two marks of progress on disk."""


class CrossEncoderScorer:
    """A sentence-transformers CrossEncoder with one output as a CrossScorer.

    Args:
        model: folder, or name on the Hugging Face hub.
        max_length: tokens at which a pair is cut; None = the model's own.
        precision: "auto", "fp32" or "bf16".
        batch_size: pairs computed at a time.

    """

    def __init__(
        self, model: str | Path, *, max_length: int | None = None, precision: str = "auto", batch_size: int = 32, device: str | None = None
    ) -> None:
        self.folder = local_folder(model)
        self.max_length = max_length
        self.batch_size = batch_size
        self._device = device
        self._precision = precision

    @cached_property
    def model(self) -> CrossEncoder:
        """The loaded model, in evaluation mode. Raises SettingError for one that does not give one score."""
        try:
            from sentence_transformers import CrossEncoder
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra("sentence_transformers", "train") from error
        disable_progress_bar()
        model = CrossEncoder(str(self.folder), max_length=self.max_length, device=self._device)
        refuse_what_scores_nothing(model, self.folder, self.max_length)
        model.eval()
        last_layer_in_fp32(model)
        return model

    @cached_property
    def precision(self) -> str:
        """What scores are computed in but for the last layer, "fp32" or "bf16", as chosen for this machine."""
        return choose_precision(self._precision, self.model.device.type)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's files, the cut length and the precision."""
        return fingerprint("cross-encoder.v1", folder_fingerprint(self.folder), self.max_length, self.precision)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Float32Array:
        """[n] probabilities of (query text, document content); batches hold pairs of like length."""
        if not pairs:
            return np.zeros(0, np.float32)
        import torch

        with autocast(self.model.device.type, self.precision):
            logits: Any = self.model.predict(
                list(pairs), batch_size=self.batch_size, activation_fn=torch.nn.Identity(), convert_to_tensor=True, show_progress_bar=False
            )
        scores: Float32Array = torch.sigmoid(logits.float()).cpu().numpy()
        return scores


def refuse_what_scores_nothing(model: CrossEncoder, folder: Path, max_length: int | None) -> None:
    """Raises SettingError for a model of several labels, of a head that the folder does not hold, or of fewer positions than asked for."""
    if model.num_labels != 1:
        raise SettingError(f"the model in {folder} gives {model.num_labels} labels; expected a cross-encoder with one score")
    config = model.config
    architectures = getattr(config, "architectures", None) or []
    if not any("Classification" in name or "CausalLM" in name for name in architectures):
        raise SettingError(
            f"the model in {folder} ({', '.join(architectures) or 'of no known kind'}) has no layer that scores a pair; "
            "train a cross-encoder first: negatron train-cross-encoder"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if max_length is not None and isinstance(positions, int) and max_length > positions:
        raise SettingError(f"pair_length = {max_length}: the model in {folder} reads {positions} tokens at most")


def last_layer_in_fp32(model: Any) -> None:
    """Takes the layer that makes the score out of autocast."""
    import torch

    def forward(layer: Any, hidden: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float())

    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1]
    for layer in layers[-1:]:
        layer.forward = partial(forward, layer)  # type: ignore[method-assign]


class StoredScores:
    """A CrossScorer that asks another one for what is not yet in a folder. Pairs that occur twice in a call are scored once."""

    def __init__(self, scorer: CrossScorer, root: Path, *, quiet: bool = False) -> None:
        self.scorer, self.root, self.quiet = scorer, root, quiet

    @property
    def fingerprint(self) -> str:
        """The scorer's own: where a score was kept is no part of it."""
        return self.scorer.fingerprint

    def score(self, pairs: Sequence[tuple[str, str]]) -> Float32Array:
        """[n] as the scorer gives them, shard by shard."""
        distinct = list(dict.fromkeys(pairs))
        made = np.zeros(len(distinct), np.float32)
        with Meter("score pairs", len(distinct), "pairs", quiet=self.quiet) as meter:
            for start, own in zip(range(0, len(distinct), SHARD), self._shards(distinct), strict=True):
                made[start : start + len(own)] = own
                meter.advance(len(own))
        row = {pair: n for n, pair in enumerate(distinct)}
        return made[[row[pair] for pair in pairs]]

    def _shards(self, pairs: Sequence[tuple[str, str]]) -> Iterator[Float32Array]:
        folder = self.root / self.fingerprint
        note_use(folder)
        for start in range(0, len(pairs), SHARD):
            shard = pairs[start : start + SHARD]
            place = folder / f"{fingerprint_texts(text for pair in shard for text in pair)}.npy"
            if not place.exists():
                file = io.BytesIO()
                np.save(file, self.scorer.score(shard))
                write_bytes(place, file.getvalue())
            stored: Float32Array = np.load(place)
            yield stored
