"""The bi-encoder behind the Encoder seam: sentence-transformers does the work, this module gives it an identity.

A vector depends on the weights, the modules and prompts around them, the length at which texts are cut and the precision; the
fingerprint holds all of these, read from the *files* of the model's folder, so that a trained encoder gets a new name by itself.
(Hashing the loaded parameters would not do: a folder without pooler weights gets new random ones at every load.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from negatron.errors import MissingExtra, NegatronError, SettingError
from negatron.identity import file_sha256, fingerprint
from negatron.models.locks import note_use
from negatron.models.precision import autocast, choose_precision
from negatron.seams import Float32Array

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

IDENTITY_SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".txt", ".model", ".py"})
"""Files of a model folder that can change a vector: settings, weights, vocabularies, custom modules. Not cards and logs."""

TOKENS_OF_A_THREAD = 1024
"""Tokens in a batch for each thread of a CPU: what its caches like (measured for MiniLM on a Zen 4 core: docs/search.md)."""
MANY_TOKENS = 32_768
"""The same for accelerators, which must be kept busy."""
ANY_LENGTH = 1 << 20
"""Tokens at which a text is cut where a model knows no limit."""


def local_folder(model: str | Path) -> Path:
    """The folder of a model: a local one as it is, a Hugging Face name through the hub's own cache.

    Raises NegatronError when there is neither.
    """
    if Path(model).is_dir():
        return Path(model).resolve()
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "train") from error
    try:
        return Path(snapshot_download(str(model), ignore_patterns=["*.onnx", "*.h5", "*.msgpack", "openvino/*", "*.ot"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NegatronError(
            f"{model} is no folder, and the Hugging Face hub does not give it ({reason}); "
            "give the folder of a sentence-transformers model, or a name from `negatron models list`"
        ) from error


def folder_fingerprint(folder: Path) -> str:
    """Fingerprint of the files of a model folder that can change a vector."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in IDENTITY_SUFFIXES and not p.name.startswith("."))
    names = {p.relative_to(folder).as_posix(): file_sha256(p) for p in files if p.name not in ("manifest.json", "seconds.json")}
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise NegatronError(f"{folder} holds no weights (.safetensors or .bin); expected the folder of a sentence-transformers model")
    return fingerprint(names)


def refuse_more_than_positions(model: SentenceTransformer, max_length: int, folder: Path) -> None:
    """Raises SettingError where the model has fewer positions than tokens are asked for: the first long text would end the run."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise SettingError(f"max_length = {max_length}: the model in {folder} reads {positions} tokens at most")


class SentenceEncoder:
    """A SentenceTransformer as an Encoder.

    Args:
        model: folder, or name on the Hugging Face hub.
        max_length: tokens at which a text is cut; None = the model's own.
        precision: "auto", "fp32" or "bf16"; vectors are always returned in fp32, of unit length.
        batch_tokens: tokens computed at a time, padding counted; None = what suits the device. Changes memory and speed, never (beyond
            rounding) a vector.

    """

    def __init__(
        self,
        model: str | Path,
        *,
        max_length: int | None = None,
        precision: str = "auto",
        batch_tokens: int | None = None,
        device: str | None = None,
    ) -> None:
        self.folder = local_folder(model)
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self._device = device
        self._precision = precision
        note_use(self.folder)

    @cached_property
    def model(self) -> SentenceTransformer:
        """The loaded model, in evaluation mode."""
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra("sentence_transformers", "train") from error
        disable_progress_bar()  # loading weights takes less than a second; our own meters show what takes long
        model = SentenceTransformer(str(self.folder), device=self._device)
        if self.max_length is not None:
            refuse_more_than_positions(model, self.max_length, self.folder)
            model.max_seq_length = self.max_length
        return model.eval()

    @cached_property
    def precision(self) -> str:
        """What vectors are computed in, "fp32" or "bf16", as chosen for this machine."""
        return choose_precision(self._precision, self.model.device.type)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's files, the cut length and the precision."""
        return fingerprint("encoder.v1", folder_fingerprint(self.folder), self.max_length, self.precision)

    def encode_queries(self, texts: Sequence[str]) -> Float32Array:
        """[n, D], unit length, with the model's query prompt."""
        return self._encode(self.model.encode_query, texts)

    def encode_documents(self, texts: Sequence[str]) -> Float32Array:
        """[n, D], unit length, with the model's document prompt."""
        return self._encode(self.model.encode_document, texts)

    def _encode(self, encode: Any, texts: Sequence[str]) -> Float32Array:
        vectors = np.zeros((len(texts), self.model.get_embedding_dimension()), np.float32)
        budget = self.batch_tokens or tokens_for(self.model.device.type)
        with autocast(self.model.device.type, self.precision):
            for batch in batches(self.lengths(texts), budget):
                own = [texts[place] for place in batch]
                made = encode(own, batch_size=len(own), convert_to_tensor=True, show_progress_bar=False)
                vectors[batch] = made.float().cpu().numpy()
        return unit_length(vectors)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text without its prompt, as cut; by its characters where the model has no tokenizer for texts."""
        longest = self.model.max_seq_length or ANY_LENGTH
        tokenizer = getattr(self.model, "tokenizer", None)
        if not texts or not getattr(tokenizer, "is_fast", False):
            return [min(len(text), longest) for text in texts]
        assert tokenizer is not None
        found = tokenizer(list(texts), truncation=True, max_length=longest, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]


def tokens_for(device: str) -> int:
    """Tokens in a batch that suit a device: as many as keep the threads of a CPU busy and its caches cool, many for accelerators."""
    import torch

    return TOKENS_OF_A_THREAD * torch.get_num_threads() if device == "cpu" else MANY_TOKENS


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of texts to compute together, longest first: count x longest of a batch is at most `budget`, but for a single long text.

    >>> batches([3, 10, 4, 2], budget=8)
    [[1], [2, 0], [3]]
    """
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= budget:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def unit_length(vectors: Float32Array) -> Float32Array:
    """[n, D] -> [n, D], each row divided by its length in fp32; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths == 0, 1, lengths), dtype=np.float32)
