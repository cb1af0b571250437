"""The cross-encoder as a scorer of pairs, what is stored of its scores, and its training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs negatron[train]")

import torch

from negatron.errors import NegatronError, SettingError
from negatron.models.cross_encoder import SHARD, CrossEncoderScorer, StoredScores
from negatron.models.cross_encoder_training import CrossEncoderSettings, rows_of, train_cross_encoder
from negatron.types import Document, Negative, Query, TrainingExample

PAIRS = [(f"why do {word} float", text) for word in ("ships", "kites") for text in ("a hull displaces water", "yeast", "sugar " * 90)]


def test_a_score_is_a_probability_and_the_same_alone_and_in_company(tiny_cross_encoder: Path) -> None:
    scorer = CrossEncoderScorer(tiny_cross_encoder, precision="fp32")
    together = scorer.score(PAIRS)
    assert together.dtype == np.float32 and together.shape == (6,) and len(set(together.tolist())) == 6
    assert 0 < together.min() < 0.3 and 0.7 < together.max() < 1, "not all alike"
    alone = np.concatenate([scorer.score([pair]) for pair in PAIRS])
    np.testing.assert_allclose(together, alone, atol=1e-3)  # the fixture's last layer magnifies rounding a thousandfold
    np.testing.assert_allclose(scorer.score(PAIRS[::-1])[::-1], together, atol=1e-3)
    assert scorer.score([]).shape == (0,)


def test_a_score_is_that_of_the_plain_model(tiny_cross_encoder: Path) -> None:
    from sentence_transformers import CrossEncoder

    plain = CrossEncoder(str(tiny_cross_encoder), device="cpu").predict(PAIRS, show_progress_bar=False)
    np.testing.assert_allclose(CrossEncoderScorer(tiny_cross_encoder, precision="fp32").score(PAIRS), plain, atol=1e-6)


def test_in_bf16_the_last_layer_still_tells_scores_apart(tiny_cross_encoder: Path) -> None:
    """In bf16 all through, 400 scores take some dozen values."""
    pairs = [(f"question {n}", f"answer number {n * n}") for n in range(400)]
    scores = CrossEncoderScorer(tiny_cross_encoder, precision="bf16").score(pairs)
    exact = CrossEncoderScorer(tiny_cross_encoder, precision="fp32").score(pairs)
    assert len(set(scores.tolist())) > 350 and not np.array_equal(scores, exact)


def test_a_fingerprint_holds_all_that_a_score_depends_on(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    def of(model: Path, **given) -> str:
        return CrossEncoderScorer(model, **({"precision": "fp32"} | given)).fingerprint

    copy = shutil.copytree(tiny_cross_encoder, tmp_path / "copy")
    assert of(copy) == of(tiny_cross_encoder)
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert len({of(tiny_cross_encoder), of(copy), of(tiny_cross_encoder, max_length=32), of(tiny_cross_encoder, precision="bf16")}) == 4


def test_what_gives_no_score_is_refused(tiny_encoder: Path, tiny_cross_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    with pytest.raises(SettingError, match="has no layer that scores a pair"):
        CrossEncoderScorer(tiny_encoder).score(PAIRS)
    CrossEncoder(str(tiny_encoder), num_labels=3, device="cpu").save_pretrained(str(tmp_path / "three"), create_model_card=False)
    with pytest.raises(SettingError, match="gives 3 labels"):
        CrossEncoderScorer(tmp_path / "three").score(PAIRS)
    with pytest.raises(SettingError, match=r"pair_length = 4096.* reads 128 tokens at most"):
        CrossEncoderScorer(tiny_cross_encoder, max_length=4096).score(PAIRS)
    with pytest.raises(NegatronError, match="no folder"):
        CrossEncoderScorer("nobody/nothing")


class Counting:
    """A scorer whose score depends on the company: what resuming could get wrong."""

    fingerprint = "counting"

    def __init__(self, fail_after: int = 10**9) -> None:
        self.asked, self.fail_after = 0, fail_after

    def score(self, pairs):
        if self.asked >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += len(pairs)
        return np.array([len(text) + len(pairs) / 7 for _, text in pairs], np.float32)


def test_stored_scores_are_those_of_one_go_after_any_interruption(tmp_path: Path) -> None:
    pairs = [(f"q{n % 7}", "x" * (n % 900)) for n in range(3 * SHARD + 5)]
    whole = StoredScores(Counting(), tmp_path / "whole", quiet=True).score(pairs)
    with pytest.raises(KeyboardInterrupt):
        StoredScores(Counting(fail_after=2 * SHARD), tmp_path / "parts", quiet=True).score(pairs)
    rest = Counting()
    np.testing.assert_array_equal(StoredScores(rest, tmp_path / "parts", quiet=True).score(pairs), whole)
    assert rest.asked == len(set(pairs)) - 2 * SHARD, "what was stored is not asked again"
    again = Counting()
    np.testing.assert_array_equal(StoredScores(again, tmp_path / "parts", quiet=True).score(pairs), whole)
    assert again.asked == 0
    other = Counting()
    StoredScores(other, tmp_path / "parts", quiet=True).score(pairs[1:])
    assert other.asked > 0, "another list is other company"


def example(topic: str, other: str, *, negatives: int = 2) -> TrainingExample:
    found = tuple(Negative(Document(f"{other}-{n}", f"{other} {other} number {n}"), ()) for n in range(negatives))
    return TrainingExample(Query(topic, f"tell me of {topic}"), Document(topic, f"{topic} are {topic}"), found)


TOPICS = ("ships", "stars", "bread", "cells", "kites", "birds")
EXAMPLES = [example(topic, TOPICS[(n + k) % len(TOPICS)]) for n, topic in enumerate(TOPICS) for k in range(1, 5)]


def test_rows_are_pairs_with_labels_and_a_positive_is_never_labelled_0() -> None:
    known = TrainingExample(Query("q", "q"), Document("a", "a"), (Negative(Document("b", "b"), ()), Negative(Document("c", "c"), ())))
    other = TrainingExample(Query("q", "q"), Document("b", "b"), (Negative(Document("c", "c"), ()),))
    rows = rows_of([known, other], CrossEncoderSettings())
    assert list(zip(*rows.values(), strict=True)) == [("q", "a", 1.0), ("q", "b", 1.0), ("q", "c", 0.0)]
    assert len(rows_of([known], CrossEncoderSettings(negatives=1))["label"]) == 2
    lists = rows_of([known, other], CrossEncoderSettings(loss="listwise"))
    assert lists == {"query": ["q", "q"], "documents": [["a", "b", "c"], ["b", "c"]], "labels": [[1.0, 0.0, 0.0], [1.0, 0.0]]}


@pytest.mark.parametrize("loss", ["binary", "listwise"])
def test_training_tells_positives_from_negatives_and_the_plain_model_loads(loss: str, tiny_cross_encoder: Path, tmp_path: Path) -> None:
    settings = CrossEncoderSettings(loss=loss, epochs=6, batch_size=8, learning_rate=2e-3, max_length=32, precision="fp32")
    before = torch.random.get_rng_state()
    outcome = train_cross_encoder(tiny_cross_encoder, EXAMPLES, settings, tmp_path / "model", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's draws change"
    assert outcome.steps == -(-outcome.rows // 8) * 6
    scorer = CrossEncoderScorer(tmp_path / "model", precision="fp32")
    right = scorer.score([(e.query.text, e.positive.content) for e in EXAMPLES])
    wrong = scorer.score([(e.query.text, e.negatives[0].document.content) for e in EXAMPLES])
    assert (right > wrong).mean() > 0.9
    if loss == "binary":
        assert right.mean() > 0.5 > wrong.mean(), "probabilities"
    assert scorer.model.max_seq_length == 32


def test_every_setting_and_the_seed_change_the_weights_and_nothing_else_does(tiny_encoder: Path, tmp_path: Path) -> None:
    def weights(place: str, seed: int, **given) -> bytes:
        settings = CrossEncoderSettings(**({"batch_size": 16, "max_length": 16, "precision": "fp32", "learning_rate": 1e-3} | given))
        train_cross_encoder(tiny_encoder, EXAMPLES[:8], settings, tmp_path / place, seed)
        return (tmp_path / place / "model.safetensors").read_bytes()

    usual = weights("a", 1)
    assert weights("b", 1) == usual
    changes = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "max_length": 8,
        "negatives": 1,
        "loss": "listwise",
        "precision": "bf16",
    }
    assert changes.keys() == CrossEncoderSettings.model_fields.keys()
    others = [weights(name, 1, **{name: value}) for name, value in changes.items()]
    assert len({usual, weights("c", 2), *others}) == 2 + len(others)


def test_a_pooler_of_zeros_is_drawn_anew(tiny_cross_encoder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_cross_encoder, tmp_path / "zeros")
    state = load_file(folder / "model.safetensors")
    (name,) = (key for key in state if key.endswith("pooler.dense.weight"))
    save_file(state | {name: torch.zeros_like(state[name])}, folder / "model.safetensors", metadata={"format": "pt"})
    settings = CrossEncoderSettings(batch_size=8, max_length=32, precision="fp32", learning_rate=1e-9)
    train_cross_encoder(folder, EXAMPLES[:2], settings, tmp_path / "model", seed=1)
    assert load_file(tmp_path / "model" / "model.safetensors")[name].std().item() == pytest.approx(0.02, rel=0.1)
    train_cross_encoder(tiny_cross_encoder, EXAMPLES[:2], settings, tmp_path / "other", seed=1)
    trained = load_file(tmp_path / "other" / "model.safetensors")[name]
    assert torch.allclose(trained, load_file(tiny_cross_encoder / "model.safetensors")[name], atol=1e-5), "one that was used stays"


def test_without_negatives_there_is_nothing_to_learn(tiny_encoder: Path, tmp_path: Path) -> None:
    bare = [example(topic, "x", negatives=0) for topic in TOPICS]
    for loss in ("binary", "listwise"):
        with pytest.raises(SettingError, match="hold no negatives"):
            train_cross_encoder(tiny_encoder, bare, CrossEncoderSettings(loss=loss), tmp_path / "m", seed=0)
