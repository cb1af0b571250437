"""The smaller parts of a training: trackers, early ending, learnt temperature, memory, evaluations."""

import json
import math
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from sentence_transformers import SentenceTransformer  # noqa: E402 - after the check for torch

from negatron.errors import SettingError  # noqa: E402
from negatron.models.precision import autocast  # noqa: E402
from negatron.training import tracking  # noqa: E402
from negatron.training.recipe import TrainingSettings  # noqa: E402
from negatron.training.trainer import ExampleSet, train  # noqa: E402
from negatron.types import Document, Negative, Origin, Query, TrainingExample  # noqa: E402

FAST = {"batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "checkpoint_seconds": 1e9, "seed": 13}


def examples(count=8, source="bm25", name="q"):
    return [
        TrainingExample(
            Query(f"{name}{n}", f"what of {n} {name}"),
            Document(f"{name}p{n}", f"{n} it is {name}"),
            (Negative(Document(f"{name}n{n}", f"not {n + 50} {name}"), (Origin(source, "maker", rank=1),)),),
        )
        for n in range(count)
    ]


def run(model, work, given=None, *, on_step=None, evaluate=None, **changes):
    settings = TrainingSettings.checked(FAST | changes)
    return train(model, given or examples(), settings, work, autocast=autocast, device="cpu", on_step=on_step, evaluate=evaluate)


def log(work):
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


# ---- ending early ----------------------------------------------------------------------------------------------------------------------


def test_patience_ends_a_training_after_so_many_evaluations_without_a_new_best(tiny_encoder, tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9, 0.9])
    result = run(tiny_encoder, tmp_path, evaluate=lambda _: next(scores), evaluate_every=1, epochs=5, patience=2)
    assert [score for _, score in result.evaluations] == [0.1, 0.5, 0.4, 0.5], "a score that only equals the best is no new one"
    assert (result.steps, result.steps_kept) == (4, 4)


def test_an_evaluation_that_is_no_number_is_never_the_best(tiny_encoder, tmp_path):
    scores = iter([0.3, math.nan, 0.2, 0.0])
    result = run(tiny_encoder, tmp_path, evaluate=lambda _: next(scores), evaluate_every=1, epochs=2, keep="best")
    assert result.steps_kept == 1


# ---- the temperature -------------------------------------------------------------------------------------------------------------------


def test_a_learnt_temperature_starts_at_its_setting_and_stays_above_a_hundredth(tiny_encoder, tmp_path):
    words = ["stars", "bread", "ships", "rain", "birds", "rocks", "trees", "clouds"]
    easy = [TrainingExample(Query(word, word), Document(word, word)) for word in words]  # its own text is the nearest: lower is better
    run(tiny_encoder, tmp_path, easy, temperature=0.0125, temperature_learning_rate=0.5, epochs=4, warmup_share=0.0, learning_rate=1e-9)
    temperatures = [line["temperature"] for line in log(tmp_path)]
    assert temperatures[0] == pytest.approx(0.0125)
    assert min(temperatures) == pytest.approx(0.01), "it has not been held"


def test_a_temperature_that_begins_lower_is_not_lifted(tiny_encoder, tmp_path):
    run(tiny_encoder, tmp_path, temperature=0.005, temperature_learning_rate=1e-6, epochs=2)
    assert [line["temperature"] for line in log(tmp_path)] == pytest.approx([0.005] * 4, rel=1e-4)


# ---- adapters ------------------------------------------------------------------------------------------------------------------------


def test_adapters_are_merged_and_change_only_what_they_stand_beside(tiny_encoder, tmp_path):
    pytest.importorskip("peft", reason="needs negatron[lora]")
    result = run(tiny_encoder, tmp_path, lora={"rank": 2, "targets": ["query"]}, epochs=2)
    assert not list(result.model.rglob("adapter*")), "the saved model needs its base"
    before, after = (SentenceTransformer(str(folder), device="cpu").state_dict() for folder in (tiny_encoder, result.model))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("query.weight") for name in changed)


# ---- trackers --------------------------------------------------------------------------------------------------------------------------


def test_a_tracker_that_nobody_knows_or_that_is_not_installed_is_refused_by_name(tiny_encoder, tmp_path):
    with pytest.raises(SettingError, match="there is no 'tensorbord'; did you mean 'tensorboard'"):
        run(tiny_encoder, tmp_path, trackers=("tensorbord",))
    missing = sorted(set(tracking.known()) - set(tracking.installed()))
    assert missing, "all of accelerate's trackers are installed"
    with pytest.raises(SettingError, match=f"{missing[0]} is not installed"):
        run(tiny_encoder, tmp_path, trackers=(missing[0],))


def test_tensorboard_gets_the_numbers_of_every_line(tiny_encoder, tmp_path):
    if "tensorboard" not in tracking.installed():
        pytest.skip("needs tensorboardX or tensorboard")
    run(tiny_encoder, tmp_path, epochs=2, trackers=("tensorboard",))
    files = [path for path in tmp_path.rglob("events.out.*") if path.stat().st_size > 0]
    assert files and any(b"train/loss" in path.read_bytes() for path in files)


def test_nested_numbers_of_a_line_are_tracked_under_their_path():
    line = {"step": 3, "loss": 0.5, "quotas": {"bm25": 2}, "set": "a", "false_negative_margin": None}
    assert dict(tracking.numbers(line)) == {"step": 3, "loss": 0.5, "quotas/bm25": 2}


# ---- what would have no effect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causalneg_weight": 0.05}, "no negative was written by a language model"),
        ({"remine": {"source": "dence"}}, "no example has a negative of 'dence'"),
        ({"stages": [{"share": 1.0, "quotas": {"dense": 1}}]}, "asks for negatives of 'dense', but no example has one"),
        ({"mixing_exponent": 0.5}, "has no effect with one data set"),
        ({"prompts": {"elsewhere": {"query": "ask: "}}}, "there is no data set 'elsewhere'"),
        ({"patience": 2}, "nothing to evaluate on"),
        ({"guide": "minilm", "guide_absolute_margin": 0.0}, "the encoder itself"),
        ({"dimensions": [65]}, "more than the 64"),
    ],
)
def test_a_setting_that_nothing_could_honour_is_refused_before_the_first_step(tiny_encoder, tmp_path, changes, message):
    with pytest.raises(SettingError, match=message):
        run(tiny_encoder, tmp_path, **changes)
    assert not (tmp_path / "log.jsonl").is_file() or log(tmp_path) == []


def test_remining_of_two_sets_is_refused(tiny_encoder, tmp_path):
    sets = (ExampleSet("a", examples()), ExampleSet("b", examples(name="r")))
    with pytest.raises(SettingError, match="remine works with one data set"):
        run(tiny_encoder, tmp_path, sets, remine={"source": "bm25"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guide": "minilm"}, "guide and a guide margin need each other"),
        ({"guide_absolute_margin": 0.1}, "guide and a guide margin need each other"),
        ({"guide": "minilm", "guide_absolute_margin": 0.1, "guide_relative_margin": 0.1}, "exclude each other"),
        ({"temperature_learning_rate": 1e-3, "temperature": {"from": 0.1, "to": 0.05}}, "has no ramp"),
        ({"distillation_weight": 2.0}, "no effect without distillation"),
        ({"info_nce_weight": 0.0}, "nothing else to learn from"),
        ({"joint_directions": False}, "no effect with one direction"),
        ({"in_batch_weight": 2.0, "in_batch_negatives": False}, "no effect with in_batch_negatives = false"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(SettingError, match=message):
        TrainingSettings.checked(given)


# ---- memory ----------------------------------------------------------------------------------------------------------------------------


def test_freed_memory_is_kept_on_glibc_so_that_touching_it_again_faults_no_page():
    """In a process of its own, since it cannot be undone: 64 MiB taken and given back many times."""
    code = """
import resource, sys, torch
from negatron.training.allocator import keep_freed_memory
torch.set_num_threads(1)
def faults():
    for _ in range(10): torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
agreed = keep_freed_memory()
print(agreed, plain, faults())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    agreed, plain, kept = ended.stdout.split()
    if agreed == "False":
        pytest.skip("not glibc")
    assert int(plain) > 100, "nothing to spare: this machine does not give memory back"
    assert int(kept) < int(plain) / 5, "memory is still given back"
