"""Processes = one (DESIGN invariant 2; rows 1 to 5 of the silent errors), in 1, 2 and 4 real gloo processes: gathered_worker.py.

1. Every process ends a step with the gradient and the loss that a single process has, in direction and in length: for each loss, chunked
   and whole, with exclusions and own negatives, with unequal and empty shares, with a learnt temperature, over older gradients.
2. No process encodes what another one encodes. With dropout the second pass draws what the first one drew.
3. A tensor that is not dense is summed as what it is; processes that were given different batches say so.
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
if not (hasattr(os, "fork") and torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("needs fork and torch with gloo", allow_module_level=True)

CHUNKS = ["whole", "3 texts", "12 tokens"]
LOSSES = ["written out", "plain", "joint", "apart", "options", "guided"]
EQUAL = [", ".join(pair) for pair in (*product(LOSSES, CHUNKS), *product(["1 queries", "3 queries"], CHUNKS))]
EQUAL += ["learnt temperature", "added to older gradients", "weights, own negatives only"]
NOT_COMPARED = {"dropout, all encoded again", "dropout, all graphs kept", "no dropout", "another batch in process 1", "strided sums"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(count, index) -> case -> what process `index` of `count` found."""
    folder = tmp_path_factory.mktemp("gathered")
    worker = Path(__file__).with_name("gathered_worker.py")
    ended = subprocess.run([sys.executable, str(worker), str(folder)], capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    read = {path.stem: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}
    return {tuple(map(int, stem.split("-"))): cases for stem, cases in read.items()}


def processes(count):
    return [(count, index) for index in range(count)]


def flat(gradients):
    return torch.cat([gradient.double().flatten() for gradient in gradients.values() if gradient is not None])


def assert_same(one, other):
    """The same parameters have a gradient; it has the same direction and the same length, to 1e-5."""
    assert {name: gradient is None for name, gradient in one.items()} == {name: gradient is None for name, gradient in other.items()}
    ours, theirs = flat(one), flat(other)
    assert theirs.norm() > 1e-3, "nothing to compare: the gradient is zero"
    assert ours.norm() / theirs.norm() == pytest.approx(1, abs=1e-5)
    assert ours @ theirs / (ours.norm() * theirs.norm()) == pytest.approx(1, abs=1e-9)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_every_case_is_compared(found):
    assert found.keys() == {(1, 0), *processes(2), *processes(4)}
    for cases in found.values():
        assert cases.keys() == {*EQUAL} | NOT_COMPARED


def test_the_cases_differ_from_each_other(found):
    """So that an option which is dropped on the way could be seen."""
    losses = {name: found[1, 0][name]["loss"] for name in EQUAL if name.endswith("whole") and "written" not in name}
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("case", EQUAL)
def test_several_processes_equal_one(found, case, count):
    one = found[1, 0][case]
    for process in processes(count):
        several = found[process][case]
        assert several["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert_same(several["gradients"], one["gradients"])


@pytest.mark.parametrize("loss", LOSSES[1:])
def test_chunks_equal_the_whole_in_one_process(found, loss):
    for chunks in CHUNKS[1:]:
        assert_same(found[1, 0][f"{loss}, {chunks}"]["gradients"], found[1, 0][f"{loss}, whole"]["gradients"])


def test_the_plain_loss_is_the_one_written_out(found):
    assert found[1, 0]["plain, whole"]["loss"] == pytest.approx(found[1, 0]["written out, whole"]["loss"], rel=1e-5)
    assert_same(found[1, 0]["plain, whole"]["gradients"], found[1, 0]["written out, whole"]["gradients"])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("case", ["plain, whole", "plain, 3 texts"])
def test_each_text_is_encoded_in_one_process_and_the_shares_are_even(found, case, count):
    alone = found[1, 0][case]
    shares = [found[process][case]["encoded"] for process in processes(count)]
    assert sorted(text for share in shares for text in share) == sorted(alone["encoded"])
    assert len(alone["encoded"]) == 6 + 15
    assert len({len(share) for share in shares}) > 1, "shares of equal size would not show what unequal ones do"
    tokens = [sum(1 + int(text.removeprefix("w")) % 7 for text in share) for share in shares]
    assert max(tokens) - min(tokens) <= 2 * 7, "at most the longest text, a side"
    assert all(found[process][case]["texts"] == 6 + 15 for process in processes(count)), "what is reported is the whole batch"


def test_a_gradient_that_nothing_reaches_stays_away(found):
    gradients = found[4, 0]["plain, 3 texts"]["gradients"]
    assert [name for name, gradient in gradients.items() if gradient is None] == [
        "log_inverse_temperature",
        *("unused.weight", "unused.bias"),
        *("frozen.weight", "frozen.bias"),
    ]
    assert found[4, 0]["learnt temperature"]["gradients"]["log_inverse_temperature"].abs() > 1e-3


def test_older_gradients_are_added_to_once(found):
    single, twice = (flat(found[2, 0][case]["gradients"]) for case in ("plain, 3 texts", "added to older gradients"))
    assert (twice - 2 * single).norm() <= 1e-5 * twice.norm()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_with_dropout_the_second_pass_draws_what_the_first_drew(found, count):
    for process in processes(count):
        again, kept, off = (found[process][case] for case in ("dropout, all encoded again", "dropout, all graphs kept", "no dropout"))
        assert (flat(off["gradients"]) - flat(kept["gradients"])).norm() > 0.05 * flat(kept["gradients"]).norm(), "dropout is off"
        assert_same(again["gradients"], kept["gradients"])


@pytest.mark.parametrize("count", [2, 4])
def test_another_batch_in_one_process_is_refused_in_all(found, count):
    for process in processes(count):
        assert found[process]["another batch in process 1"].startswith("processes [1] have another batch than process 0")


@pytest.mark.parametrize("count", [2, 4])
def test_tensors_that_are_not_dense_are_summed_as_they_are(found, count):
    for process in processes(count):
        for name, (expected, got) in found[process]["strided sums"].items():
            assert torch.equal(got, expected), name
