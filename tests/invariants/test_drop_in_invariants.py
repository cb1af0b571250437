"""What must stay true of TiledInfoNCE, and would not be seen if it did not.

1. Chunks, kept graphs and kept products change nothing: not with dropout, not under autocast, not when backward comes late.
2. What comes from above the loss (accumulation, a gradient scaler, a weight) reaches every parameter, also the temperature.
3. A text is encoded once a side and a batch, and a query's text and its equal document separately.
4. No copy of a positive, and no other positive of the same query, is ever a negative; every option has an effect.
5. Two processes equal one, in real gloo processes: dropin_worker.py.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from sentence_transformers import SentenceTransformer  # noqa: E402 - after the check for torch

from negatron.losses import TiledInfoNCE  # noqa: E402

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "seven", "dogs", "barked", "at", "ships", "and", "nobody", "knew", "why"]
ROUTES = {
    "all encoded again": {"chunk_tokens": 30, "keep_tokens": 0},
    "one by one": {"chunk_size": 1},
    "some kept": {"chunk_tokens": 30, "keep_tokens": 60},
    "products kept": {"chunk_tokens": 30, "keep_tokens": 0, "keep_product_tokens": 60},
    "all kept": {"chunk_tokens": 30, "keep_tokens": 10**6},
}
WHOLE = {"chunk_tokens": None}


def columns_of_texts(count=3, rows=5):
    draw = random.Random(3)
    return [[" ".join(draw.choices(WORDS, k=draw.randint(2, 14))) for _ in range(rows)] for _ in range(count)]


@pytest.fixture(scope="module")
def model(tiny_encoder):
    """Without dropout until a test wants it."""
    return SentenceTransformer(str(tiny_encoder), device="cpu").eval()


def features(model, columns):
    return [model.preprocess(column) for column in columns]


def flat(module):
    return torch.cat([p.grad.flatten().clone() for p in module.parameters() if p.grad is not None])


def gradient_of(model, columns, *, factor=1.0, **options):
    model.zero_grad()
    (factor * TiledInfoNCE(model, **options)(features(model, columns))).backward()
    return flat(model)


def assert_same(found, expected, tolerance=1e-5):
    assert expected.norm() > 1e-3, "nothing to compare: the gradient is zero"
    assert (found - expected).norm() <= tolerance * expected.norm()


# ---- 1. routes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_chunks_equal_the_whole(model, route):
    columns = columns_of_texts()
    assert_same(gradient_of(model, columns, **ROUTES[route]), gradient_of(model, columns, **WHOLE))


@pytest.mark.parametrize("route", ROUTES)
def test_with_dropout_the_second_pass_draws_what_the_first_drew(model, route):
    """All kept is the plain graph of the same chunks, which needs no second pass."""
    columns, chunks = columns_of_texts(), {name: value for name, value in ROUTES[route].items() if name.startswith("chunk")}
    model.train()
    try:
        found = []
        for options in (ROUTES[route], {**chunks, "keep_tokens": 10**6}, {**chunks, "keep_tokens": 10**6}):
            torch.manual_seed(4 + (len(found) > 1))
            found.append((gradient_of(model, columns, **options), torch.rand(1)))
    finally:
        model.eval()
    (ours, after), (graph, after_graph), (other, _) = found
    assert (other - graph).norm() > 0.05 * graph.norm(), "nothing to compare: there is no dropout"
    assert_same(ours, graph)
    assert torch.equal(after, after_graph), "the generator is left elsewhere"


def test_with_dropout_what_is_drawn_between_the_passes_changes_nothing(model):
    columns = columns_of_texts()
    model.train()
    try:
        found = []
        for draws in (0, 7):
            model.zero_grad()
            torch.manual_seed(4)
            value = TiledInfoNCE(model, **ROUTES["all encoded again"])(features(model, columns))
            torch.rand(draws)
            value.backward()
            found.append(flat(model))
    finally:
        model.eval()
    assert_same(found[1], found[0])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("late", [True, False], ids=["backward after the context", "backward inside"])
def test_autocast_is_on_in_both_passes_and_weights_learn(model, route, late):
    columns = columns_of_texts()
    plain, exact = gradient_of(model, columns, **WHOLE), gradient_of(model, columns, **ROUTES[route])
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value = TiledInfoNCE(model, **ROUTES[route])(features(model, columns))
        if not late:
            value.backward()
    if late:
        value.backward()
    found = flat(model)
    assert len(found) == len(plain)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        TiledInfoNCE(model, **{**ROUTES[route], "keep_tokens": 10**6})(features(model, columns)).backward()
    kept = flat(model)
    assert (kept - exact).norm() > 1e-4 * exact.norm(), "nothing to compare: autocast has no effect"
    assert_same(found, kept, 1e-5)
    assert_same(found, plain, 0.1)


def test_the_second_pass_has_the_precision_of_the_first_and_not_that_of_backward(model):
    """The products of backward itself are then in bf16, on every route; compared with the route that has no second pass."""
    columns, found = columns_of_texts(), []
    for keep in (0, 10**6):
        model.zero_grad()
        value = TiledInfoNCE(model, chunk_tokens=30, keep_tokens=keep)(features(model, columns))
        with torch.autocast("cpu", torch.bfloat16):
            value.backward()
        found.append(flat(model))
    assert_same(*found)


# ---- 2. from above ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
def test_a_factor_above_the_loss_reaches_every_gradient(model, route):
    columns = columns_of_texts()
    assert_same(gradient_of(model, columns, factor=0.25, **ROUTES[route]), 0.25 * gradient_of(model, columns, **ROUTES[route]))


def test_a_factor_above_the_loss_reaches_the_temperature(model):
    found = []
    for factor in (1.0, 0.25):
        loss = TiledInfoNCE(model, learn_temperature=True)
        (factor * loss(features(model, columns_of_texts()))).backward()
        found.append(loss.sharpening.grad.item())
    assert abs(found[0]) > 1e-3
    assert found[1] == pytest.approx(0.25 * found[0], rel=1e-5)


def test_the_temperatures_gradient_is_the_slope_of_the_loss(model):
    columns, values = columns_of_texts(), []
    loss = TiledInfoNCE(model, learn_temperature=True)
    loss(features(model, columns)).backward()
    for change in (-1e-2, 1e-2):
        loss.sharpening.data.fill_(change)
        with torch.no_grad():
            values.append(loss(features(model, columns)).item())
    assert loss.sharpening.grad.item() == pytest.approx((values[1] - values[0]) / 2e-2, rel=1e-2)


def test_gradients_add_up(model):
    columns = columns_of_texts()
    once = gradient_of(model, columns, **ROUTES["some kept"])
    loss = TiledInfoNCE(model, **ROUTES["some kept"])
    loss(features(model, columns)).backward()
    assert_same(flat(model), 2 * once)


def test_two_losses_before_one_backward_do_not_mix(model):
    one, other = columns_of_texts(), columns_of_texts(4)[1:]
    expected = gradient_of(model, one, **ROUTES["some kept"]) + gradient_of(model, other, **ROUTES["some kept"])
    model.zero_grad()
    loss = TiledInfoNCE(model, **ROUTES["some kept"])
    values = [loss(features(model, columns)) for columns in (one, other)]
    sum(values).backward()
    assert_same(flat(model), expected)


# ---- 3. once -----------------------------------------------------------------------------------------------------------------------------


def encoded_rows(model, columns, **options):
    """Token ids of all rows that the model was given without a graph or with one, in one call of the loss."""
    rows = []
    handle = model.register_forward_pre_hook(lambda _, given: rows.extend(map(tuple, given[0]["input_ids"].tolist())))
    try:
        with torch.no_grad():
            TiledInfoNCE(model, **options)(features(model, columns))
    finally:
        handle.remove()
    return rows


def test_each_distinct_text_is_encoded_once_a_side(model):
    columns = columns_of_texts()
    columns[1][2] = columns[2][0] = columns[2][3] = columns[1][0]
    columns[0][4] = columns[0][1]
    assert len(encoded_rows(model, columns, **ROUTES["all encoded again"])) == 15 - 4


def test_a_query_and_its_equal_positive_have_dropouts_of_their_own(model):
    """Otherwise learning from (text, same text) pairs, as SimCSE does, would learn nothing."""
    columns = [columns_of_texts()[0]] * 2
    assert len(encoded_rows(model, columns)) == 10
    loss = TiledInfoNCE(model)
    model.train()
    try:
        one = loss(features(model, columns)).item()
    finally:
        model.eval()
    assert one > TiledInfoNCE(model)(features(model, columns)).item() + 1e-3


def test_nothing_is_padded_beyond_the_longest_text_of_its_chunk(model):
    columns = [["cat", "dogs"], ["mat", " ".join(WORDS)]]
    widths = {len(row) for row in encoded_rows(model, columns, chunk_size=2)}
    assert widths == {3, 2 + len(WORDS)}


# ---- 4. what counts ----------------------------------------------------------------------------------------------------------------------


def value_of(model, columns, **options):
    with torch.no_grad():
        return TiledInfoNCE(model, **options)(features(model, columns)).item()


def test_a_copy_of_a_positive_is_no_negative(model):
    """Two queries with one positive and nothing else: no negative is left, the loss is 0."""
    columns = [["the cat sat", "a cat that sat"], ["on the mat", "on the mat"]]
    assert value_of(model, columns) == pytest.approx(0.0, abs=1e-6)
    assert value_of(model, columns, exclude_copies=False) == pytest.approx(0.6931, abs=1e-3)
    hard = [*columns, ["on the mat", "on the mat"]]
    assert value_of(model, hard) == pytest.approx(0.0, abs=1e-6)


def test_another_positive_of_the_same_query_is_no_negative(model):
    columns = [["the cat sat", "the cat sat"], ["on the mat", "while seven dogs barked"]]
    assert value_of(model, columns) == pytest.approx(0.0, abs=1e-6)
    assert value_of(model, columns, exclude_copies=False) > 0.1


def test_copies_are_known_across_columns_of_different_padding(model):
    long = " ".join(WORDS)
    columns = [["cat", "dogs"], ["on the mat", "on a mat"], ["on a mat", long]]
    assert value_of(model, columns) == pytest.approx(
        value_of(model, [*columns[:2], ["on a mat", long], ["on the mat", "on the mat"]]), rel=1e-5
    )


OPTIONS = {
    "false_negative_margin": -0.1,
    "hardness": 5.0,
    "own_weight": 3.0,
    "in_batch_weight": 3.0,
    "importance": 5.0,
    "focal": 2.0,
    "directions": ("query_to_document", "query_to_query"),
    "in_batch_negatives": False,
    "temperature": 0.1,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_changes_the_value(model, option):
    columns = columns_of_texts()
    assert value_of(model, columns, **{option: OPTIONS[option]}) != pytest.approx(value_of(model, columns), rel=1e-4)


def test_the_other_options_change_the_value_beside_one(model):
    columns = columns_of_texts()
    directions = {"directions": ("query_to_document", "document_to_query")}
    assert value_of(model, columns, joint=False, **directions) != pytest.approx(value_of(model, columns, **directions), rel=1e-4)
    assert value_of(model, columns, hardness=5.0, hardness_of="own") != pytest.approx(value_of(model, columns, hardness=5.0), rel=1e-4)


# ---- 5. processes ------------------------------------------------------------------------------------------------------------------------

CASES = ["gathered", "data-parallel", "uneven halves", "copies counted", "accumulated", "partly frozen", "all directions", "guided"]
CASES.append("learnt temperature")


@pytest.fixture(scope="module")
def found(tiny_encoder, tmp_path_factory):
    """(count, index) -> case -> what process `index` of `count` found."""
    if not (hasattr(os, "fork") and torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs fork and torch with gloo")
    folder = tmp_path_factory.mktemp("drop-in")
    command = [sys.executable, str(Path(__file__).with_name("dropin_worker.py")), str(tiny_encoder), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    read = {path.stem: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}
    return {tuple(map(int, stem.split("-"))): cases for stem, cases in read.items()}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_on_half_batches_equal_one_on_the_whole(found, case):
    one = found[1, 0][case]
    for index in range(2):
        several = found[2, index][case]
        assert several["value"] == pytest.approx(one["value"], rel=1e-5)
        assert several["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            assert (several["gradients"][name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-2), name
        assert sum(gradient.norm() for gradient in one["gradients"].values()) > 1e-2, "nothing to compare"


def test_the_cases_differ_from_each_other(found):
    same = {"gathered", "data-parallel", "uneven halves", "accumulated", "partly frozen", "learnt temperature"}
    values = {round(found[1, 0][case]["value"], 5) for case in CASES if case not in same}
    assert len(values) == len(CASES) - len(same)


def test_processes_with_different_columns_say_so(found):
    for index in range(2):
        assert "processes have batches of [3, 2] columns" in found[2, index]["other columns"]
