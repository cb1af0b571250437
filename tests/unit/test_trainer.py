import json
import math

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

import numpy as np  # noqa: E402 - after the check for torch
from sentence_transformers import SentenceTransformer  # noqa: E402

from negatron.errors import NegatronError, SettingError  # noqa: E402
from negatron.identity import file_sha256  # noqa: E402
from negatron.models.precision import autocast  # noqa: E402
from negatron.training import towers  # noqa: E402
from negatron.training.trainer import TrainingSettings, train  # noqa: E402
from negatron.types import Document, Negative, Query, TrainingExample  # noqa: E402

WORDS = ["cells", "divide", "stars", "shine", "bread", "rises", "ships", "float", "rain", "falls", "birds", "sing"]
FAST = {"batch_size": 4, "chunk_size": 3, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_seconds": 1e9}


def examples(count=10, negatives=2):
    """Query n asks for two words; its positive says them; its negatives say one of them and something else."""
    made = []
    for n in range(count):
        one, other = WORDS[n % len(WORDS)], WORDS[(n * 5 + 1) % len(WORDS)]
        positive = Document(f"p{n}", f"it is known that {one} and {other} go together " * (1 + n % 3), f"Title {n}")
        own = tuple(Negative(Document(f"n{n}-{k}", f"number {k}: {one} without anything {n}"), ()) for k in range(negatives))
        made.append(TrainingExample(Query(f"q{n}", f"how do {one} and {other} relate {n}"), positive, own, frozenset({positive.content})))
    return made


def run(model, work, given=None, *, on_step=None, evaluate=None, **changes):
    settings = TrainingSettings(**(FAST | changes))
    return train(
        model, examples() if given is None else given, settings, work, autocast=autocast, device="cpu", on_step=on_step, evaluate=evaluate
    )


def weights(result):
    return file_sha256(result.model / "model.safetensors")


def log(work):
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def test_the_saved_encoder_loads_plainly_differs_from_the_start_and_is_the_one_that_was_trained(tiny_encoder, tmp_path):
    seen = []

    def evaluate(model):
        seen.append(model.encode(["stars shine"], normalize_embeddings=True))
        return 0.0

    result = run(tiny_encoder, tmp_path, evaluate=evaluate)
    saved = SentenceTransformer(str(result.model), device="cpu").encode(["stars shine"], normalize_embeddings=True)
    before = SentenceTransformer(str(tiny_encoder), device="cpu").encode(["stars shine"], normalize_embeddings=True)
    assert np.abs(saved - before).max() > 1e-3
    np.testing.assert_allclose(saved, seen[-1], atol=1e-6)


def test_training_brings_the_loss_down(tiny_encoder, tmp_path):
    result = run(tiny_encoder, tmp_path, epochs=16, batch_size=10, keep_graphs=99)
    assert result.last_loss < 0.5 * result.first_loss


def test_the_log_has_a_line_a_step_and_no_time_in_it(tiny_encoder, tmp_path):
    lines = []
    result = run(tiny_encoder, tmp_path, epochs=2, on_step=lambda line: lines.append(dict(line)))
    assert lines == log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["examples"] for line in lines] == [4, 4, 2] * 2
    assert [line["learning_rate"] for line in lines] == pytest.approx([0, 1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    numbers = ["loss", "learning_rate", "temperature", "gradient_length", "excluded_share", "examples", "texts", "tokens"]
    assert lines[0].keys() == {"step", *numbers}
    assert (result.steps, result.examples, result.tokens) == (6, 20, sum(line["tokens"] for line in lines))


def test_a_finished_training_is_not_done_again(tiny_encoder, tmp_path):
    first = run(tiny_encoder, tmp_path)
    stamp = (first.model / "model.safetensors").stat().st_mtime_ns
    steps = []
    again = run(tiny_encoder, tmp_path, on_step=steps.append)
    assert again == first
    assert steps == [] and (first.model / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_folder_of_another_training_is_refused_and_the_difference_named(tiny_encoder, tmp_path):
    run(tiny_encoder, tmp_path)
    with pytest.raises(NegatronError, match=r"another training \(temperature: 0.05 there, 0.1 now\)"):
        run(tiny_encoder, tmp_path, temperature=0.1)
    with pytest.raises(NegatronError, match="examples: "):
        run(tiny_encoder, tmp_path, examples(9))


def test_the_callers_random_state_is_left_alone(tiny_encoder, tmp_path):
    before = torch.get_rng_state()
    run(tiny_encoder, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_cut_at_the_limit_are_counted_once_each_and_said(tiny_encoder, tmp_path, capsys):
    long = Document("long", "word " * 100)
    given = [TrainingExample(e.query, e.positive, (*e.negatives, Negative(long, ())), e.known_positives) for e in examples(4, negatives=1)]
    result = run(tiny_encoder, tmp_path, given)
    assert (result.cut.limit, result.cut.queries_cut, result.cut.queries, result.cut.documents_cut, result.cut.documents) == (
        64,
        0,
        4,
        1,
        9,
    )
    assert "cut at 64 tokens: 1 of 9 documents (11 %), 0 of 4 queries" in capsys.readouterr().err


def test_a_text_of_exactly_the_limit_is_not_cut(tiny_encoder):
    model = towers.load(tiny_encoder, max_length=12, device="cpu")
    counts = towers.count_tokens(model, ["word " * 10, "word " * 11], "")  # and two special tokens each
    assert list(counts.values()) == [12, 13]
    assert towers.cut_texts(counts, {}, 12).queries_cut == 1


def test_towers_give_the_vectors_of_encode_query_and_encode_document(tiny_encoder):
    model = towers.load(tiny_encoder, max_length=16, device="cpu").eval()
    model.prompts = {"query": "ask: ", "passage": "read: "}
    texts = ["stars shine", "bread rises " * 30]
    for task, names, encode in (
        ("query", towers.QUERY_PROMPTS, model.encode_query),
        ("document", towers.DOCUMENT_PROMPTS, model.encode_document),
    ):
        prompt = towers.prompt_of(model, names)
        tower = towers.tower(model, task, towers.TokenCounts(model, prompt), prompt, lambda: autocast("cpu", "fp32"))
        vectors = tower.forward(tower.prepare(texts)).detach().numpy()
        np.testing.assert_allclose(vectors, encode(texts, normalize_embeddings=True), atol=1e-6)
        assert np.abs(vectors - model.encode(texts, normalize_embeddings=True)).max() > 1e-3, "the prompt makes no difference"
        assert [tower.length(text) for text in texts] == [6, 16]  # two words, two of the prompt, two special tokens; cut


def test_the_best_evaluation_chooses_the_weights(tiny_encoder, tmp_path):
    def scores(model):
        score = next(values)
        if score == 0.9:
            best.append(model.encode(["stars shine"]))
        return score

    best, values = [], iter([0.3, 0.9, 0.5])
    result = run(tiny_encoder, tmp_path, evaluate=scores, evaluate_every=1, keep="best")
    assert result.evaluations == ((1, 0.3), (2, 0.9), (3, 0.5)) and result.steps_kept == 2
    np.testing.assert_allclose(SentenceTransformer(str(result.model), device="cpu").encode(["stars shine"]), best[0], atol=1e-6)


def test_dropout_is_off_in_an_evaluation_and_on_again_afterwards(tiny_encoder, tmp_path):
    modes = []
    seen = []
    result = run(
        tiny_encoder,
        tmp_path / "evaluated",
        evaluate=lambda model: modes.append(model.training) or torch.rand(1).item(),
        evaluate_every=1,
        on_step=lambda line: seen.append(line["loss"]),
    )
    assert modes == [False] * 3
    assert weights(result) == weights(run(tiny_encoder, tmp_path / "plain")), "an evaluation changed what is learnt"


def test_a_loss_that_is_no_number_stops_with_the_step_and_what_to_try(tiny_encoder, tmp_path):
    broken = SentenceTransformer(str(tiny_encoder), device="cpu")
    next(broken.parameters()).data.fill_(math.nan)
    broken.save(str(tmp_path / "broken"))
    with pytest.raises(NegatronError, match=r"step 1: the loss is nan.*lower learning_rate"):
        run(tmp_path / "broken", tmp_path / "work")


def test_no_examples_are_refused(tiny_encoder, tmp_path):
    with pytest.raises(NegatronError, match="no training examples"):
        run(tiny_encoder, tmp_path, [])


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"in_batch_negatives": False}, examples(negatives=0), "no example has a negative of its own"),
        ({"batch_size": 1}, examples(negatives=0), "teach nothing"),
        ({"keep": "best"}, examples(), "nothing to evaluate on"),
        ({"max_length": 500}, examples(), "at most 128 tokens"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(tiny_encoder, tmp_path, changes, given, message):
    with pytest.raises(SettingError, match=message):
        run(tiny_encoder, tmp_path, given, **changes)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NegatronError, match="does not load"):
        run(tmp_path / "empty", tmp_path / "work")
