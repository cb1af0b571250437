"""The formula against the sum written out in double precision, query by query, column by column."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.training.batches import pairs  # noqa: E402 - after the check for torch
from negatron.training.losses import Targets, info_nce  # noqa: E402


def small_batch(in_batch):
    generator = torch.Generator().manual_seed(5)
    queries, documents = (torch.nn.functional.normalize(torch.randn(n, 16, generator=generator), dim=1) for n in (6, 15))
    excluded, own = [(0, 7), (0, 9), (3, 1), (5, 14)], [(0, 6), (1, 8), (1, 9), (2, 10), (4, 11), (5, 12), (5, 13)]
    return queries, documents, Targets(torch.tensor([0, 1, 2, 3, 4, 4]), pairs(excluded), pairs(own), in_batch)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("temperature", [0.02, 0.05, 1.0])
def test_info_nce_equals_the_sum_written_out(temperature, in_batch):
    queries, documents, targets = small_batch(in_batch)
    barred, own = set(map(tuple, targets.excluded.tolist())), set(map(tuple, targets.own.tolist()))
    total = 0.0
    for i, positive in enumerate(targets.positive.tolist()):
        logits = {}
        for j in range(len(documents)):
            counts = j == positive or (in_batch and (i, j) not in barred) or (i, j) in own - barred
            if counts:
                logits[j] = float(queries[i].double() @ documents[j].double()) / temperature
        total += math.log(sum(map(math.exp, logits.values()))) - logits[positive]
    # fp32 logits of size 1 / temperature carry an error of about 1e-7 / temperature
    assert info_nce(queries, documents, targets, temperature=temperature).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("in_batch", [True, False])
def test_the_gradient_equals_finite_differences(in_batch):
    queries, documents, targets = small_batch(in_batch)

    def loss(values):
        return info_nce(queries, values, targets, temperature=0.5)

    values = documents.clone().requires_grad_()
    loss(values).backward()
    assert values.grad.norm() > 0, "nothing to compare: the gradient is zero"
    generator = torch.Generator().manual_seed(6)
    for _ in range(5):
        direction = torch.randn(documents.shape, generator=generator)
        ahead, behind = loss(documents + 1e-2 * direction).item(), loss(documents - 1e-2 * direction).item()
        assert (ahead - behind) / 2e-2 == pytest.approx((values.grad * direction).sum().item(), rel=1e-2, abs=1e-3)


def test_columns_in_another_order_give_the_same_loss_and_rows_in_another_order_permute_its_gradient():
    queries, documents, targets = small_batch(True)
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.randperm(len(documents), generator=torch.Generator().manual_seed(7))
    row_at, column_at = rows.argsort(), columns.argsort()

    def moved(both):
        return pairs(sorted((int(row_at[i]), int(column_at[j])) for i, j in both.tolist()))

    shuffled = Targets(column_at[targets.positive[rows]], moved(targets.excluded), moved(targets.own))
    plain_queries, shuffled_queries = queries.clone().requires_grad_(), queries[rows].clone().requires_grad_()
    plain = info_nce(plain_queries, documents, targets, temperature=0.05)
    other = info_nce(shuffled_queries, documents[columns], shuffled, temperature=0.05)
    plain.backward()
    other.backward()
    assert other.item() == pytest.approx(plain.item(), rel=1e-6)
    assert not torch.equal(shuffled_queries.grad, plain_queries.grad)
    torch.testing.assert_close(shuffled_queries.grad, plain_queries.grad[rows], rtol=1e-4, atol=1e-5)
