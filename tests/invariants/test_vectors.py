"""A cached vector can never be taken for another model's (invariant 5); together = alone (invariant 3)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from negatron.conformance import TableEncoder, check_encoder
from negatron.models.vectors import VectorStore

TEXTS = ["short", "a somewhat longer text about cells", "stars shine " * 30, "x", "short"]


def test_a_trained_encoder_never_meets_an_untrained_encoders_vectors(tiny_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from negatron.models.encoder import SentenceEncoder

    before = SentenceEncoder(tiny_encoder, precision="fp32")
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    weight = next(p for n, p in model.named_parameters() if n.endswith("layer.1.output.dense.weight"))
    weight.data.mul_(3)
    model.save(str(tmp_path / "trained"))
    after = SentenceEncoder(tmp_path / "trained", precision="fp32")
    store = VectorStore(tmp_path / "vectors")
    first, second = store.encode(before, TEXTS, "document"), store.encode(after, TEXTS, "document")
    assert before.fingerprint != after.fingerprint
    assert np.abs(first - second).max() > 1e-3
    assert np.array_equal(second, store.encode(SentenceEncoder(tmp_path / "trained", precision="fp32"), TEXTS, "document"))


@pytest.mark.parametrize("change", ["length", "precision", "prompt"])
def test_whatever_moves_a_vector_moves_the_fingerprint(tiny_encoder: Path, tmp_path: Path, change: str) -> None:
    from negatron.models.encoder import SentenceEncoder

    usual = SentenceEncoder(tiny_encoder, precision="fp32")
    if change == "prompt":
        shutil.copytree(tiny_encoder, tmp_path / "m")
        path = tmp_path / "m" / "config_sentence_transformers.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"prompts": {"query": "question: ", "document": "passage: "}}))
        other = SentenceEncoder(tmp_path / "m", precision="fp32")
    else:
        other = SentenceEncoder(tiny_encoder, **({"max_length": 8, "precision": "fp32"} if change == "length" else {"precision": "bf16"}))
    assert usual.fingerprint != other.fingerprint
    assert np.abs(usual.encode_documents(TEXTS) - other.encode_documents(TEXTS)).max() > 1e-5


def test_two_looks_at_the_same_folder_give_the_same_fingerprint(tiny_encoder: Path, tmp_path: Path) -> None:
    from negatron.models.encoder import SentenceEncoder

    shutil.copytree(tiny_encoder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a card changes no vector")
    assert SentenceEncoder(tiny_encoder).fingerprint == SentenceEncoder(tmp_path / "copy").fingerprint


def test_encoding_together_gives_what_each_text_alone_gives(tiny_encoder: Path) -> None:
    from negatron.models.encoder import SentenceEncoder

    check_encoder(SentenceEncoder(tiny_encoder, precision="fp32", batch_tokens=16), TEXTS, tolerance=1e-5)
    check_encoder(SentenceEncoder(tiny_encoder, precision="bf16", batch_tokens=16), TEXTS, tolerance=1e-2)


def test_rows_belong_to_texts_whatever_their_length_and_repetition(tmp_path: Path) -> None:
    table = {text: np.eye(4)[n] for n, text in enumerate(dict.fromkeys(TEXTS))}
    vectors = VectorStore(tmp_path).encode(TableEncoder(table), TEXTS, "query")
    assert vectors.argmax(1).tolist() == [0, 1, 2, 3, 0]


def test_a_killed_encoding_continues_and_ends_byte_identical(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from negatron.identity import stream
        from negatron.models import vectors
        vectors.SHARD = 10
        class Encoder:
            fingerprint = "e"
            calls = 0
            def encode_documents(self, texts):
                self.calls += 1
                if self.calls == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
                return np.asarray([[stream(0, t).random() for _ in range(4)] for t in texts], np.float32)
        made = vectors.VectorStore(Path(sys.argv[1])).encode(Encoder(), [f"text {n}" * (n % 7) + str(n) for n in range(95)], "document")
        print(made.tobytes().hex())
    """
    run = lambda folder, die: subprocess.run(  # noqa: E731
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / folder), str(die)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    whole = run("whole", 0)
    assert whole.returncode == 0 and len(whole.stdout) > 1000
    assert run("killed", 5).returncode == -signal.SIGKILL
    resumed = run("killed", 0)
    assert resumed.stdout == whole.stdout
    assert "40 of 95 texts are already there" in resumed.stderr
