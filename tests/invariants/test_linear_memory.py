"""The tiled route gives what the plain one gives, whatever the tile, and never holds more than a few tiles of logits."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - after the check for torch

from negatron.errors import SettingError  # noqa: E402
from negatron.training import tiled as tiles  # noqa: E402
from negatron.training.formula import Options, plain  # noqa: E402
from negatron.training.losses import InfoNCE  # noqa: E402
from negatron.training.targets import GuideVectors, Targets  # noqa: E402
from negatron.training.tiled import tiled  # noqa: E402

QUERIES, DOCUMENTS, WIDTH = 37, 150, 24
ALL_DIRECTIONS = ("query_to_document", "query_to_query", "document_to_document", "document_to_query")
OPTIONS = {
    "plain": Options(),
    "sharp": Options(temperature=0.01),
    "margin": Options(false_negative_margin=0.1),
    "guide": Options(guide_absolute_margin=0.05),
    "hardness": Options(hardness=5.0, hardness_of="in_batch"),
    "weights": Options(own_weight=3.0, in_batch_weight=0.5),
    "importance": Options(importance=4.0),
    "focal": Options(focal=2.0),
    "joint": Options(directions=ALL_DIRECTIONS),
    "separate": Options(directions=ALL_DIRECTIONS, joint=False),
    "together": Options(0.1, 0.05, None, 0.1, 3.0, "all", 2.0, 0.5, 2.0, 1.0, ALL_DIRECTIONS),
}


def unit(rows, columns, generator):
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=1)


def batch():
    generator = torch.Generator().manual_seed(3)
    positive = torch.randint(0, 20, (QUERIES,), generator=generator)
    positive[:5] = 3  # five queries share a positive
    rows = torch.arange(QUERIES).repeat_interleave(4)
    own = torch.unique(torch.stack([rows, torch.randint(20, DOCUMENTS, (len(rows),), generator=generator)], 1), dim=0)
    excluded = torch.unique(torch.stack([rows, torch.randint(0, DOCUMENTS, (len(rows),), generator=generator)], 1), dim=0)
    excluded = excluded[excluded[:, 1] != positive[excluded[:, 0]]]
    targets = Targets(positive, excluded, own, weights=torch.rand(QUERIES, generator=generator))
    guide = GuideVectors(unit(QUERIES, 8, generator), unit(DOCUMENTS, 8, generator))
    return unit(QUERIES, WIDTH, generator), unit(DOCUMENTS, WIDTH, generator), targets, guide


def loss_and_gradients(route, options, targets, guide, **given):
    queries, documents = (part.clone().requires_grad_() for part in batch()[:2])
    inverse = torch.tensor(1 / options.temperature, requires_grad=True)
    loss = route(queries, documents, targets, options, guide=guide if options.guided else None, inverse_temperature=inverse, **given)
    (loss / 7).backward()
    return loss.detach(), queries.grad, documents.grad, inverse.grad


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", {"cpu": (5, 8)})
    monkeypatch.setattr(tiles, "TILE_COLUMNS", {"cpu": 32})


@pytest.mark.parametrize("rows", [None, (3, 20)])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("small_tiles")
def test_the_tiled_loss_and_gradient_equal_the_plain_ones(name, in_batch, rows):
    _, _, targets, guide = batch()
    given = replace(targets, in_batch=in_batch, rows=rows)
    expected = loss_and_gradients(plain, OPTIONS[name], given, guide)
    assert all(part.norm() > 0 for part in expected), "nothing to compare: a gradient is zero"
    for mebibytes in (0, 0.002, 1):  # no tile is kept, some are, all are
        found = loss_and_gradients(tiled, OPTIONS[name], given, guide, workspace_mib=mebibytes)
        for ours, right in zip(found[:3], expected[:3], strict=True):
            assert (ours - right).norm() <= 1e-5 * right.norm()
        # a sum of terms of both signs: its error is that of the terms
        assert abs(found[3] - expected[3]) <= 1e-5 * max(abs(expected[3]), expected[1].norm() * QUERIES**0.5 / 100)


@pytest.mark.usefixtures("small_tiles")
def test_rows_add_up_to_the_whole():
    _, _, targets, guide = batch()
    whole = loss_and_gradients(tiled, OPTIONS["together"], targets, guide)
    parts = [
        loss_and_gradients(tiled, OPTIONS["together"], replace(targets, rows=rows), guide) for rows in ((0, 11), (11, 12), (12, QUERIES))
    ]
    for right, *found in zip(whole[:3], *(part[:3] for part in parts), strict=True):
        torch.testing.assert_close(sum(found), right, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_a_query_without_any_negative_loses_nothing_and_spoils_nothing():
    queries, documents, _, _ = batch()
    everything = torch.tensor([[0, column] for column in range(1, DOCUMENTS)])
    targets = Targets(torch.arange(QUERIES), everything, torch.empty(0, 2, dtype=torch.long))
    queries.requires_grad_()
    loss = InfoNCE()(queries, documents, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert queries.grad[0].abs().max() == 0
    assert queries.grad[1:].norm(dim=1).min() > 0
    assert torch.isfinite(queries.grad).all()


@pytest.mark.usefixtures("small_tiles")
def test_logits_of_a_thousand_do_not_overflow():
    queries, documents, targets, _ = batch()
    queries.requires_grad_()
    loss = InfoNCE(temperature=0.001)(queries, documents, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(queries.grad).all()
    right = plain(queries.double(), documents.double(), targets, Options(temperature=0.001))
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("name", ["plain", "margin", "hardness", "weights", "focal", "importance", "together"])
def test_no_tensor_grows_with_queries_times_documents(monkeypatch, name):
    monkeypatch.setattr(tiles, "ROWS", {"cpu": (16, 16)})
    monkeypatch.setattr(tiles, "TILE_COLUMNS", {"cpu": 64})
    generator = torch.Generator().manual_seed(0)

    def largest(route, size):
        queries, documents = unit(size, 8, generator), unit(3 * size, 8, generator).requires_grad_()
        rows = torch.arange(size)
        targets = Targets(rows, torch.empty(0, 2, dtype=torch.long), torch.stack([rows, rows + size], 1), weights=torch.ones(size))
        guide = GuideVectors(queries, documents.detach()) if OPTIONS[name].guided else None
        with Largest() as seen:
            route(queries, documents, targets, OPTIONS[name], guide=guide).backward()
        return seen.numbers

    def lean(*given, **named):
        return tiled(*given, **named, workspace_mib=0.01)

    assert largest(plain, 256) >= 256 * 768, "the plain route holds the whole matrix, so this test can fail"
    assert largest(lean, 1024) <= max(1024 * 3 * 8, 16 * 64, 0.01 * 2**18) * 1.01


def test_a_second_backward_is_refused_with_what_to_do():
    queries, documents, targets, _ = batch()
    loss = InfoNCE()(queries.requires_grad_(), documents, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again"):
        loss.backward()


def test_without_gradients_the_loss_is_the_same():
    queries, documents, targets, _ = batch()
    alone = InfoNCE()(queries, documents, targets)
    assert not alone.requires_grad
    assert InfoNCE()(queries.requires_grad_(), documents, targets).item() == pytest.approx(alone.item(), rel=1e-6)


def test_the_learnt_temperature_has_the_gradient_of_finite_differences():
    queries, documents, targets, _ = batch()
    log_inverse = torch.tensor(2.5, requires_grad=True)
    InfoNCE()(queries, documents, targets, log_inverse_temperature=log_inverse).backward()
    ahead, behind = (InfoNCE(temperature=float(torch.exp(torch.tensor(-2.5 - h))))(queries, documents, targets) for h in (0.01, -0.01))
    assert log_inverse.grad.item() == pytest.approx((ahead - behind).item() / 0.02, rel=1e-3)
    assert abs(log_inverse.grad.item()) > 1


def test_a_guide_that_is_missing_or_idle_is_refused():
    queries, documents, targets, guide = batch()
    with pytest.raises(SettingError, match="guide"):
        InfoNCE(guide_absolute_margin=0.0)(queries, documents, targets)
    with pytest.raises(SettingError, match="guide"):
        InfoNCE()(queries, documents, targets, guide=guide)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.0},
        {"own_weight": 0.0},
        {"hardness": -1.0},
        {"guide_absolute_margin": 0.0, "guide_relative_margin": 0.0},
        {"directions": ("query_to_query",)},
        {"directions": ("query_to_document", "query_to_querry")},
    ],
)
def test_options_that_mean_nothing_are_refused(given):
    with pytest.raises(SettingError):
        InfoNCE(**given)


def test_the_loss_of_bf16_vectors_is_that_of_the_same_vectors_in_fp32():
    queries, documents, targets, _ = batch()
    rounded = queries.bfloat16().requires_grad_()
    loss = InfoNCE()(rounded, documents.bfloat16(), targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert rounded.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(InfoNCE()(queries.bfloat16().float(), documents.bfloat16().float(), targets).item(), rel=1e-6)
