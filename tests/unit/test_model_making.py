"""Folders that sentence-transformers loads, made without torch: the 4-bit e5 format, and a masked language model read by mean pooling."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from negatron.errors import DataError
from negatron.models import assembly, e5

HIDDEN, LAYERS, INTERMEDIATE, POSITIONS = 32, 1, 64, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁dough", "▁rises", "▁stars", "s", "<mask>"]


def q4(weights: NDArray[np.float32]) -> bytes:
    """Q4_0 as llama.cpp writes it, for weights that are multiples of an eighth between -1 and 7/8."""
    parts = []
    for block in weights.reshape(-1, 32):
        nibbles = np.round(block * 8).astype(int) + 8
        parts.append(
            np.float16(0.125).tobytes() + bytes(int(low) | int(high) << 4 for low, high in zip(nibbles[:16], nibbles[16:], strict=True))
        )
    return b"".join(parts)


def tiny_tensors() -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(0)

    def some(*shape: int) -> NDArray[np.float32]:
        return (draw.integers(-8, 8, shape) / 8).astype(np.float32)

    tensors = {"emb.word": some(len(PIECES), HIDDEN), "emb.pos": some(POSITIONS, HIDDEN), "emb.type": some(2, HIDDEN)}
    tensors |= {"emb.ln.w": np.ones(HIDDEN, np.float32), "emb.ln.b": np.zeros(HIDDEN, np.float32)}
    for short, _, rows, columns in e5.MATRICES:
        shape = {"hidden": HIDDEN, "intermediate": INTERMEDIATE}
        tensors |= {f"l0.{short}.w": some(shape[rows], shape[columns]), f"l0.{short}.b": some(shape[rows])}
    for short, _ in e5.LAYER_NORMS:
        tensors |= {f"l0.{short}.w": np.ones(HIDDEN, np.float32), f"l0.{short}.b": np.zeros(HIDDEN, np.float32)}
    return tensors


def tiny_file() -> bytes:
    """A whole E5S1 file; matrices in Q4_0, vectors in fp32."""
    text = [piece.encode() for piece in PIECES]
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, 2, INTERMEDIATE, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(text)))
    head += np.cumsum([0, *map(len, text)]).astype("<u4").tobytes() + np.linspace(0, -5, len(text)).astype("<f4").tobytes() + b"".join(text)
    head += struct.pack("<iI", 0, 3) + b"xyz"
    stored = {name: (1, q4(t)) if t.ndim == 2 else (0, t.tobytes()) for name, t in tiny_tensors().items()}
    entries = [(name.encode(), kind, tiny_tensors()[name].size, data) for name, (kind, data) in stored.items()]
    offset = len(head) + 4 + sum(2 + len(name) + 1 + 4 + 16 for name, *_ in entries)
    directory, body = struct.pack("<i", len(entries)), b""
    for name, kind, values, data in entries:
        directory += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", kind, values, offset + len(body), len(data))
        body += data
    return head + directory + body


def wheel_of(folder: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "w.whl", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return folder / "w.whl"


def test_the_four_bit_weights_are_read_value_by_value() -> None:
    weights = e5.state_dict(e5.parse(tiny_file()))
    tensors = tiny_tensors()
    assert len(np.unique(tensors["l0.fi.w"])) == 16
    np.testing.assert_array_equal(weights["encoder.layer.0.intermediate.dense.weight"], tensors["l0.fi.w"])
    np.testing.assert_array_equal(weights["embeddings.word_embeddings.weight"], tensors["emb.word"])
    np.testing.assert_array_equal(weights["encoder.layer.0.attention.self.query.bias"], tensors["l0.q.b"])
    assert not weights["pooler.dense.weight"].any()


def test_pieces_and_special_tokens_are_read() -> None:
    source = e5.parse(tiny_file())
    assert source.pieces == PIECES
    assert source.special == {"bos": 0, "eos": 2, "pad": 1, "unk": 3}


def test_a_file_that_breaks_off_anywhere_is_refused() -> None:
    whole = tiny_file()
    for length in (0, 3, 10, 60, 120, 200, 400, len(whole) - 1):
        with pytest.raises(DataError):
            e5.parse(whole[:length])
    with pytest.raises(DataError, match="it begins with b'GGUF'"):
        e5.parse(b"GGUF" + whole[4:])


def test_a_tensor_of_another_shape_is_refused() -> None:
    source = e5.parse(tiny_file())
    with pytest.raises(DataError, match="has 288 values of kind 1, expected 320"):
        e5.read_tensor(source, "emb.word", 10, HIDDEN)
    with pytest.raises(DataError, match=r"no tensor 'l1\.q\.w'"):
        e5.read_tensor(source, "l1.q.w", HIDDEN, HIDDEN)


def test_the_converted_folder_loads_with_its_prompts_and_always_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="needs sentencepiece for the normalisation rules")
    torch = pytest.importorskip("torch", reason="needs negatron[train]")
    from sentence_transformers import SentenceTransformer

    (tmp_path / "out").mkdir()
    e5.convert(wheel_of(tmp_path, {"m.bin": tiny_file()}), "m.bin", tmp_path / "out")
    model, again = (SentenceTransformer(str(tmp_path / "out"), device="cpu") for _ in range(2))
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer("dough  rises")["input_ids"]) == ["<s>", "▁dough", "▁rises", "</s>"]
    states = [m.state_dict() for m in (model, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    vector = model.encode(["dough rises"])[0]
    assert vector.shape == (HIDDEN,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


def test_a_masked_language_model_becomes_a_mean_pooled_encoder(tmp_path: Path, tiny_encoder: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs negatron[train]")
    from safetensors.numpy import load_file, save
    from sentence_transformers import SentenceTransformer

    weights = load_file(tiny_encoder / "model.safetensors")
    # old names, as in early BERT checkpoints, with a head and without a pooler
    old = {
        f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in weights.items()
    }
    old = {name: value for name, value in old.items() if "pooler" not in name} | {"cls.predictions.bias": np.zeros(3, np.float32)}
    config = json.loads((tiny_encoder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    members = {"m/model.safetensors": save(old), "m/config.json": json.dumps(config).encode()}
    members |= {f"m/{name}": (tiny_encoder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    (tmp_path / "out").mkdir()
    assembly.mean_pooling(wheel_of(tmp_path, members), "m/", tmp_path / "out")
    made, again, first = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "out", tmp_path / "out", tiny_encoder))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    texts = ["yeast lifts the dough", "stars shine"]
    np.testing.assert_allclose(made.encode(texts), first.encode(texts), atol=1e-6)
    with pytest.raises(DataError, match=r"begins with 'bert\.'"):
        assembly.encoder_weights(save({"x": np.zeros(2, np.float32)}), 2)
