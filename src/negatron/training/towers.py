"""A SentenceTransformer as the two towers that `gradients` encodes with: the same vectors as its `encode_query` and `encode_document`.

1. `load` reads the model in fp32 with its length limit.
2. `TokenCounts` counts texts' tokens a batch at a time, without a limit; `cut_texts` says how many are cut.
3. `tower` joins prompt, tokenizer, precision and forward pass.

What stays true: a text gets the vector that the saved model will give it (dropout and rounding aside): same prompt, same cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from negatron.errors import NegatronError, SettingError
from negatron.training.gradients import Tower

TEXTS_AT_A_TIME = 1024
TEXTS_REMEMBERED = 1_000_000
"""Whose counts are kept: some 200 bytes each with their text, so that a training of many examples does not grow."""
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Prompt names in the order in which sentence-transformers' encode_query and encode_document look for them."""


def load(model: str | Path, *, max_length: int | None, device: str | None) -> SentenceTransformer:
    """The model on its device, weights in fp32, texts cut at `max_length` tokens (None: its own limit).

    Raises NegatronError when it cannot be loaded or has no tokenizer to count with, SettingError when max_length is more than it can read.
    """
    disable_progress_bar()  # of loading and saving weights: less than a second
    try:
        loaded = SentenceTransformer(str(model), device=device)
    except (OSError, ValueError) as error:
        raise NegatronError(f"{model} does not load as a sentence-transformers model: {str(error).splitlines()[0]}") from error
    loaded.float()  # a folder saved in half precision loads in half precision, in which small updates are lost
    if not callable(getattr(loaded, "tokenizer", None)):
        raise NegatronError(f"{model}: its first module has no Hugging Face tokenizer; negatron trains transformer encoders")
    longest = getattr(loaded.config, "max_position_embeddings", None)
    if max_length is not None:
        if longest is not None and max_length > longest:
            raise SettingError(f"max_length = {max_length}, but {model} reads at most {longest} tokens")
        loaded.max_seq_length = max_length
    return loaded


def length_limit(model: SentenceTransformer) -> int:
    """Tokens at which the model cuts a text."""
    limits = (model.max_seq_length, getattr(model.config, "max_position_embeddings", None))
    return min(int(limit) for limit in limits if limit is not None)


def weights_fingerprint(model: SentenceTransformer) -> str:
    """16 hex digits of SHA-256 over the names, types, shapes and bytes of the parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def prompt_of(model: SentenceTransformer, names: Sequence[str]) -> str:
    """The first of the named prompts that the model has, else its default prompt, else "": what its encode methods put before a text."""
    name = next((name for name in names if name in model.prompts), model.default_prompt_name)
    return model.prompts[name] if name is not None else ""


def count_tokens(model: SentenceTransformer, texts: Iterable[str], prompt: str) -> dict[str, int]:
    """Tokens of each distinct text with its prompt and the special tokens, not cut."""
    distinct = list(dict.fromkeys(texts))
    counts: dict[str, int] = {}
    for start in range(0, len(distinct), TEXTS_AT_A_TIME):
        part = distinct[start : start + TEXTS_AT_A_TIME]
        ids = model.tokenizer([prompt + text for text in part], truncation=False, verbose=False)["input_ids"]
        counts |= {text: len(row) for text, row in zip(part, ids, strict=True)}
    return counts


class TokenCounts:
    """Tokens of texts with a prompt, counted a batch at a time. `ahead` counts those that `of` will be asked for; the latest are kept."""

    def __init__(self, model: SentenceTransformer, prompt: str) -> None:
        self._model, self._prompt = model, prompt
        self._limit = length_limit(model)
        self._counts: dict[str, int] = {}

    def ahead(self, texts: Sequence[str]) -> None:
        """Counts those of the texts that are not counted yet, in one go."""
        new = [text for text in texts if text not in self._counts]
        if len(self._counts) + len(new) > TEXTS_REMEMBERED:
            self._counts, new = {}, list(texts)
        self._counts |= count_tokens(self._model, new, self._prompt)

    def all(self, texts: Iterable[str]) -> dict[str, int]:
        """Tokens of each distinct text, not cut."""
        distinct = list(dict.fromkeys(texts))
        self.ahead(distinct)
        return {text: self._counts[text] for text in distinct}

    def of(self, text: str) -> int:
        """Tokens of a text, cut at the model's limit."""
        if text not in self._counts:
            self.ahead([text])
        return min(self._counts[text], self._limit)


@dataclass(frozen=True, slots=True)
class CutTexts:
    """How many distinct texts are longer than the limit, and so are read only in part."""

    limit: int
    queries_cut: int
    queries: int
    documents_cut: int
    documents: int

    @classmethod
    def together(cls, parts: Sequence[CutTexts]) -> CutTexts:
        """The sums over several sets."""
        sums = (sum(getattr(part, name) for part in parts) for name in ("queries_cut", "queries", "documents_cut", "documents"))
        return cls(parts[0].limit, *sums)

    def __str__(self) -> str:
        """In words, as said to the user.

        >>> print(CutTexts(128, 0, 917, 3412, 5100))
        cut at 128 tokens: 3,412 of 5,100 documents (67 %), 0 of 917 queries
        """
        share = f" ({self.documents_cut / self.documents:.0%})".replace("%", " %") if self.documents_cut else ""
        asked = f" ({self.queries_cut / self.queries:.0%})".replace("%", " %") if self.queries_cut else ""
        return (
            f"cut at {self.limit} tokens: {self.documents_cut:,} of {self.documents:,} documents{share}, "
            f"{self.queries_cut:,} of {self.queries:,} queries{asked}"
        )


def cut_texts(queries: dict[str, int], documents: dict[str, int], limit: int) -> CutTexts:
    """Counts those of the token counts that are above the limit."""
    over = [sum(count > limit for count in counts.values()) for counts in (queries, documents)]
    return CutTexts(limit, over[0], len(queries), over[1], len(documents))


def tower(
    model: SentenceTransformer, task: str, counts: TokenCounts, prompt: str, autocast: Callable[[], AbstractContextManager[Any]]
) -> Tower:
    """One side of the model. task: "query" or "document", for models that route the two differently."""

    def prepare(texts: Sequence[str]) -> dict[str, Any]:
        return dict(model.preprocess(list(texts), prompt=prompt or None, task=task))

    def forward(features: dict[str, Any]) -> Tensor:
        on_device = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in features.items()}
        # autocast begins and ends with the chunk: so it is on in both passes of the chunked route, and off in loss and backward
        with autocast():
            vectors = model(on_device, task=task)["sentence_embedding"]
        if model.truncate_dim is not None:
            vectors = vectors[:, : model.truncate_dim]
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    return Tower(prepare, forward, counts.of)
