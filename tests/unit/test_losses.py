import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.training.batches import pairs  # noqa: E402 - after the check for torch
from negatron.training.losses import GuideVectors, InfoNCE, Targets, info_nce  # noqa: E402

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
DOCUMENTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


def targets(excluded=(), own=(), in_batch=True):
    return Targets(torch.tensor([0, 1]), pairs(excluded), pairs(own), in_batch)


def test_the_loss_of_two_queries_is_what_one_computes_by_hand():
    # query 0 has cosines 1, 0, 0.6; query 1 has 0, 1, 0.8; temperature 1
    by_hand = math.log(math.e + 1 + math.exp(0.6)) - 1 + math.log(1 + math.e + math.exp(0.8)) - 1
    assert info_nce(QUERIES, DOCUMENTS, targets(), temperature=1.0).item() == pytest.approx(by_hand, rel=1e-6)


def test_an_excluded_column_leaves_no_trace_in_loss_and_gradient():
    def loss_and_gradient(documents, given):
        documents = documents.clone().requires_grad_()
        loss = info_nce(QUERIES, documents, given, temperature=0.5)
        loss.backward()
        return loss.item(), documents.grad

    without, _ = loss_and_gradient(DOCUMENTS[:2], targets())
    both, gradient = loss_and_gradient(DOCUMENTS, targets(excluded=[(0, 2), (1, 2)]))
    counted, _ = loss_and_gradient(DOCUMENTS, targets())
    assert counted > both, "the column would count if it were not excluded"
    assert both == pytest.approx(without, rel=1e-6)
    assert gradient[2].abs().max() == 0


def test_without_in_batch_negatives_only_the_positive_and_the_own_negatives_count():
    given = targets(own=[(0, 2)], in_batch=False)
    by_hand = math.log(math.e + math.exp(0.6)) - 1  # and query 1, which has no negative of its own, loses nothing
    assert info_nce(QUERIES, DOCUMENTS, given, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-6)


def test_an_own_negative_that_is_excluded_does_not_count():
    given = targets(excluded=[(0, 2)], own=[(0, 2)], in_batch=False)
    assert info_nce(QUERIES, DOCUMENTS, given, temperature=1.0).item() == 0


def test_a_smaller_temperature_gives_another_loss():
    losses = {info_nce(QUERIES, DOCUMENTS, targets(), temperature=t).item() for t in (0.02, 0.05, 1.0)}
    assert len(losses) == 3


def test_the_loss_is_in_fp32_also_under_autocast():
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.nn.functional.normalize(torch.randn(6, 32, generator=generator), dim=1) for _ in range(2))
    given = Targets(torch.arange(6), pairs([]), pairs([]))
    plain = info_nce(queries, documents, given, temperature=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (queries @ documents.T).dtype == torch.bfloat16, "autocast would round the cosines"
        assert info_nce(queries, documents, given, temperature=0.02).item() == plain.item()


def test_a_query_that_excludes_its_own_positive_is_refused():
    with pytest.raises(ValueError, match=r"query rows \[1\] exclude their own positive"):
        targets(excluded=[(0, 2), (1, 1)])


def test_pairs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \[Q\], \[E, 2\], \[H, 2\]"):
        Targets(torch.tensor([0]), torch.zeros(3, dtype=torch.long), pairs([]))


def test_the_excluded_share_is_of_the_pairs_that_could_be_negative():
    assert targets(excluded=[(0, 2)]).excluded_share(columns=3) == 1 / 4
    assert Targets(torch.tensor([0]), pairs([]), pairs([])).excluded_share(columns=1) == 0


def test_the_focal_factor_is_a_constant_to_the_gradient():
    plain, focal = (QUERIES.clone().requires_grad_() for _ in range(2))
    loss = InfoNCE(temperature=1.0)(plain, DOCUMENTS, targets(own=[(0, 2)]))
    loss.backward()
    InfoNCE(temperature=1.0, focal=2.0)(focal, DOCUMENTS, targets(own=[(0, 2)])).backward()
    first = math.log(math.e + 1 + math.exp(0.6)) - 1
    assert torch.allclose(focal.grad[0], plain.grad[0] * (1 - math.exp(-first)) ** 2)
    assert focal.grad[0].norm() > 0


def test_a_relative_guide_margin_is_below_the_positive_s_score_also_where_that_is_negative():
    # the guide gives query 0 the cosines -0.6 with its positive and -0.8 with document 1; a tenth of 0.6 below -0.6 is -0.66
    guide = GuideVectors(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-0.6, 0.8], [-0.8, 0.6], [-0.64, 0.76837]]))
    given = targets(own=[(0, 2)])
    options = {"temperature": 1.0, "guide_relative_margin": 0.1}
    by_hand = math.log(math.e + 1) - 1  # for query 0 only document 1 counts: the guide finds document 2 (-0.64) too close
    alone = replace(given, rows=(0, 1))
    assert InfoNCE(**options)(QUERIES, DOCUMENTS, alone, guide=guide).item() == pytest.approx(by_hand, rel=1e-6)
