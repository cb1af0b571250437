"""Each objective against NumPy in double precision, row by row, and against sentence-transformers on the same vectors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.training.batches import pairs  # noqa: E402 - after the check for torch
from negatron.training.objectives import CausalNegRegulariser, KLDistillation, MarginMSE, Matryoshka  # noqa: E402
from negatron.training.targets import Targets, TeacherScores  # noqa: E402

OWN = [(0, 6), (0, 7), (0, 8), (0, 11), (1, 8), (1, 9), (2, 10), (4, 6), (4, 11), (4, 12), (5, 13)]
WRITTEN = [True, False, True, False, True, True, True, False, False, True, False]
TEMPERATURES = [0.02, 0.1, 1.0]


def unit(count, size, generator):
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


def small_batch(rows=None):
    """Six queries with 4, 2, 1, 0, 3, 1 own negatives; two share their positive, and some negatives are shared."""
    generator = torch.Generator().manual_seed(5)
    teacher = TeacherScores(3 * torch.randn(6, generator=generator), 3 * torch.randn(len(OWN), generator=generator))
    weights = torch.rand(6, generator=generator) + 0.5
    targets = Targets(torch.tensor([0, 1, 2, 3, 4, 4]), pairs([]), pairs(OWN), True, torch.tensor(WRITTEN), weights, teacher, rows)
    return unit(6, 16, generator), unit(15, 16, generator), targets


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def row_by_row(loss_of_row, rows=(0, 6)):
    """sum_i weight_i loss_of_row(own cosines, which are written, positive cosine, teacher of own, of positive), in double precision."""
    queries, documents, targets = small_batch()
    q, d, own = queries.double().numpy(), documents.double().numpy(), np.array(OWN)
    sums = 0.0
    for i in range(*rows):
        mine = own[:, 0] == i
        positive = int(targets.positive[i])
        of_own = targets.teacher.own.double().numpy()[mine]
        value = loss_of_row(d[own[mine, 1]] @ q[i], np.array(WRITTEN)[mine], q[i] @ d[positive], of_own, float(targets.teacher.positive[i]))
        sums += float(targets.weights[i]) * value
    return sums


def causal_neg(temperature):
    def of_row(cosines, written, *_):
        if not written.any():
            return 0.0
        p = softmax(cosines / temperature)
        share = p[written] / p[written].sum()
        return (share * np.log(share)).sum() + (p[written].sum() - written.sum() / len(written)) ** 2

    return of_row


def divergence(temperature, teacher_temperature):
    def of_row(cosines, written, positive, own_taught, positive_taught):
        s = softmax(np.append(cosines, positive) / temperature)
        t = softmax(np.append(own_taught, positive_taught) / teacher_temperature)
        return (t * np.log(t / s)).sum()

    return of_row


def margins(scale):
    def of_row(cosines, written, positive, own_taught, positive_taught):
        return ((scale * (positive - cosines) - (positive_taught - own_taught)) ** 2).mean() if len(cosines) else 0.0

    return of_row


@pytest.mark.parametrize("rows", [None, (0, 3), (3, 6)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_regulariser_equals_the_sum_written_out(temperature, rows):
    expected = row_by_row(causal_neg(temperature), rows or (0, 6))
    assert abs(expected) > 1e-4, "nothing to compare"
    # fp32 scores of size 1 / temperature carry an error of about 1e-7 / temperature
    found = CausalNegRegulariser(weight=1.0, temperature=temperature)(*small_batch(rows)).item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [None, (0, 3), (3, 6)])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_divergence_equals_the_sum_written_out(temperature, rows):
    expected = row_by_row(divergence(temperature, 2.0), rows or (0, 6))
    assert expected > 1e-2, "nothing to compare"
    found = KLDistillation(teacher_temperature=2.0, student_temperature=temperature)(*small_batch(rows)).item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [None, (0, 3), (3, 6)])
def test_the_margins_equal_the_sum_written_out(rows):
    expected = row_by_row(margins(7.0), rows or (0, 6))
    assert expected > 1, "nothing to compare"
    assert MarginMSE(scale=7.0)(*small_batch(rows)).item() == pytest.approx(expected, rel=1e-5)


WRITTEN_AND_NEVER_MINED = [8, 9, 10, 12]
LOSSES = {
    "regulariser": (CausalNegRegulariser(weight=1.0), WRITTEN_AND_NEVER_MINED),  # the others count as constants: no gradient of the sum
    "divergence": (KLDistillation(), list(range(15))),
    "margins": (MarginMSE(scale=5.0), list(range(15))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_equals_finite_differences(name):
    (loss, columns), (queries, documents, targets) = LOSSES[name], small_batch()
    values = documents.clone().requires_grad_()
    loss(queries, values, targets).backward()
    assert values.grad[columns].norm() > 0, "nothing to compare: the gradient is zero"
    generator = torch.Generator().manual_seed(6)
    for _ in range(5):
        direction = torch.zeros_like(documents)
        direction[columns] = torch.randn(len(columns), 16, generator=generator)
        ahead, behind = (loss(queries, documents + step * direction, targets).item() for step in (1e-3, -1e-3))
        assert (ahead - behind) / 2e-3 == pytest.approx((values.grad * direction).sum().item(), rel=2e-2, abs=2e-3)


# ---- sentence-transformers -----------------------------------------------------------------------------------------------------------


def rectangle(queries=5, negatives=3, size=12):
    """A batch as sentence-transformers has it: equally many negatives each. Columns: positives first, then each query's negatives."""
    generator = torch.Generator().manual_seed(8)
    q, d = unit(queries, size, generator), unit(queries * (1 + negatives), size, generator)
    labels = 4 * torch.randn(queries, 1 + negatives, generator=generator)
    own = [(i, queries + i * negatives + n) for i in range(queries) for n in range(negatives)]
    targets = Targets(torch.arange(queries), pairs([]), pairs(own), teacher=TeacherScores(labels[:, 0], labels[:, 1:].reshape(-1)))
    columns = [d[:queries], *d[queries:].reshape(queries, negatives, size).unbind(1)]
    return q, d, targets, [q, *columns], labels


@pytest.fixture(scope="module")
def model(tiny_encoder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(tiny_encoder), device="cpu").eval()


@pytest.mark.parametrize(("student", "teacher"), [(1.0, 1.0), (0.05, 2.0), (2.0, 2.0)])
def test_distillation_equals_that_of_sentence_transformers(model, student, teacher):
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

    q, d, targets, columns, labels = rectangle()
    theirs = DistillKLDivLoss(model, student_temperature=student, teacher_temperature=teacher)
    expected = theirs.compute_loss_from_embeddings(columns, labels).item()
    ours = KLDistillation(weight=student**2, teacher_temperature=teacher, student_temperature=student)
    assert expected > 1e-3, "nothing to compare"
    assert ours(q, d, targets).item() / len(q) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_margins_equal_those_of_sentence_transformers(model, scale):
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss
    from sentence_transformers.util import pairwise_dot_score

    q, d, targets, columns, labels = rectangle()
    theirs = MarginMSELoss(model, similarity_fct=lambda a, b: scale * pairwise_dot_score(a, b))
    expected = theirs.compute_loss_from_embeddings(columns, labels).item()
    assert expected > 1, "nothing to compare"
    assert MarginMSE(scale=scale)(q, d, targets).item() / len(q) == pytest.approx(expected, rel=1e-5)


def in_batch_softmax(queries, documents, targets):
    """-log softmax of the positive over all columns, summed."""
    return torch.nn.functional.cross_entropy(queries @ documents.T / 0.05, targets.positive, reduction="sum")


def test_matryoshka_and_its_gradient_equal_those_of_sentence_transformers(model):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    texts = [["a cell", "a star", "a ship"], ["cells divide", "stars shine", "ships float"], ["cells rest", "stars fall", "ships sink"]]
    dimensions, weights = [8, 64, 24], [0.5, 1.0, 2.0]
    features = [model.preprocess(column) for column in texts]

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    theirs = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model, scale=20), dimensions, weights)([dict(f) for f in features], None)
    expected = gradient(theirs)
    queries, *documents = (model(dict(f))["sentence_embedding"] for f in features)
    targets = Targets(torch.arange(3), pairs([]), pairs([(i, 3 + i) for i in range(3)]))
    ours = Matryoshka(in_batch_softmax, tuple(dimensions), tuple(weights))(queries, torch.cat(documents), targets) / 3
    found = gradient(ours)
    assert expected.norm() > 1e-3, "nothing to compare: the gradient is zero"
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    full = in_batch_softmax(queries, torch.cat(documents), targets).item() / 3
    assert abs(full * sum(weights) - theirs.item()) > 1e-3, "the shorter vectors make no difference"
