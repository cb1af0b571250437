"""Objectives: who receives a gradient; each number has an effect; a row knows nothing of its neighbours; parts make a whole."""

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from dataclasses import replace  # noqa: E402 - after the check for torch

from negatron.training.batches import pairs  # noqa: E402
from negatron.training.objectives import CausalNegRegulariser, KLDistillation, MarginMSE, Matryoshka, Objective  # noqa: E402
from negatron.training.targets import Targets, TeacherScores  # noqa: E402

POSITIVES, MINED, WRITTEN, MINED_AND_WRITTEN, NOBODYS = [0, 1, 2, 3], [4, 5, 6], [7, 8, 9, 10], [11], [12]
"""Columns of the batch; 11 is mined for query 2 and written for query 0."""
OWN = {(0, 4): False, (0, 7): True, (0, 8): True, (0, 11): True, (1, 5): False, (1, 8): True, (2, 6): False, (2, 9): True, (2, 10): True}
OWN |= {(2, 11): False, (3, 4): False, (3, 5): False}


def batch(queries=4, rows=None, weights=None):
    """The first `queries` of four queries; the fourth has mined negatives only."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.nn.functional.normalize(torch.randn(4 + 13, 8, generator=generator), dim=1)
    scores = {
        pair: score for pair, score in zip(OWN, torch.randn(len(OWN), generator=generator).tolist(), strict=True) if pair[0] < queries
    }
    teacher = TeacherScores(torch.tensor([2.0, 1.5, 3.0, 0.5])[:queries], torch.tensor(list(scores.values())))
    written = torch.tensor([OWN[pair] for pair in scores])
    targets = Targets(torch.tensor(POSITIVES[:queries]), pairs([]), pairs(list(scores)), True, written, weights, teacher, rows)
    return vectors[:queries], vectors[4:], targets


def gradients(loss, queries, documents, targets):
    queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    value = loss(queries, documents, targets)
    value.backward()
    return value.item(), torch.zeros_like(queries) if queries.grad is None else queries.grad, documents.grad


OBJECTIVES = {
    "causal_neg": CausalNegRegulariser(weight=1.0),
    "kl": KLDistillation(),
    "margin_mse": MarginMSE(scale=5.0),
    "matryoshka": Matryoshka(KLDistillation(), (8, 4, 2), (1.0, 0.5, 0.25)),
    "sum": Objective({"kl": (1.0, KLDistillation()), "causal_neg": (0.5, CausalNegRegulariser(weight=1.0))}),
}


def test_the_regulariser_moves_written_negatives_and_nothing_else():
    _, of_queries, of_documents = gradients(CausalNegRegulariser(), *batch())
    lengths = of_documents.norm(dim=1)
    assert (lengths[WRITTEN + MINED_AND_WRITTEN] > 1e-6).all(), "written ones are what it is for"
    assert of_queries.abs().max() == 0
    assert lengths[POSITIVES + MINED + NOBODYS].max() == 0


def test_a_text_that_is_written_for_one_query_and_mined_for_another_is_moved_by_the_first_only():
    queries, documents, targets = batch()
    _, _, both = gradients(CausalNegRegulariser(), queries, documents, targets)
    _, _, first = gradients(CausalNegRegulariser(), queries, documents, replace(targets, rows=(0, 1)))
    _, _, third = gradients(CausalNegRegulariser(), queries, documents, replace(targets, rows=(2, 3)))
    assert third[WRITTEN].norm() > 0
    assert third[11].norm() == 0
    torch.testing.assert_close(both[11], first[11], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["kl", "margin_mse"])
def test_distillation_moves_queries_positives_and_their_own_negatives_and_nothing_else(name):
    _, of_queries, of_documents = gradients(OBJECTIVES[name], *batch())
    assert (of_queries.norm(dim=1) > 1e-6).all()
    assert (of_documents[:12].norm(dim=1) > 1e-6).all()
    assert of_documents[NOBODYS].norm() == 0


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        (CausalNegRegulariser(), {"weight": 0.1, "temperature": 0.2}),
        (KLDistillation(), {"weight": 0.5, "teacher_temperature": 2.0, "student_temperature": 0.1}),
        (MarginMSE(), {"weight": 0.5, "scale": 2.0}),
        (Matryoshka(KLDistillation(), (8, 4)), {"loss": MarginMSE(), "dimensions": (8, 2), "weights": (1.0, 0.5)}),
        (Objective({"kl": (1.0, KLDistillation())}), {"terms": {"kl": (0.5, KLDistillation())}}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_number_of_an_objective_changes_its_value_and_gradient(loss, changes):
    value, _, of_documents = gradients(loss, *batch())
    assert set(changes) == set(loss.__slots__), "an option without a test here may have no effect"
    for name, other in changes.items():
        changed_value, _, changed = gradients(replace(loss, **{name: other}), *batch())
        assert changed_value != pytest.approx(value, rel=1e-3), name
        assert (changed - of_documents).norm() > 1e-3 * of_documents.norm(), name


@pytest.mark.parametrize("what", ["written", "teacher", "weights"])
def test_what_the_targets_say_changes_the_values(what):
    """Row weights count in every objective; who wrote a negative in the regulariser, what the teacher says in distillation."""
    queries, documents, targets = batch()
    other = {
        "written": replace(targets, written=~targets.written),
        "teacher": replace(targets, teacher=TeacherScores(targets.teacher.positive, targets.teacher.own.flip(0))),
        "weights": replace(targets, weights=torch.tensor([2.0, 1.0, 0.5, 1.0])),
    }[what]
    reads = {"written": ["causal_neg", "sum"], "teacher": ["kl", "margin_mse", "matryoshka", "sum"], "weights": list(OBJECTIVES)}[what]
    for name, loss in OBJECTIVES.items():
        same = loss(queries, documents, other).item() == pytest.approx(loss(queries, documents, targets).item(), rel=1e-4)
        assert same == (name not in reads), name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_another_row_in_the_batch_changes_nothing_for_the_rows_before(name):
    loss = OBJECTIVES[name]
    queries, documents, targets = batch()
    alone = gradients(loss, *batch(queries=2))
    together = gradients(loss, queries, documents, replace(targets, rows=(0, 2)))
    more = loss(queries, documents, targets).item()
    assert more != pytest.approx(alone[0], rel=1e-3), "the other rows would count if they were asked for"
    assert together[0] == pytest.approx(alone[0], rel=1e-6)
    torch.testing.assert_close(together[1][:2], alone[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together[2], alone[2], rtol=1e-5, atol=1e-7)
    assert together[1][2:].abs().max() == 0


@pytest.mark.parametrize("cut", [0, 1, 2, 4])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_on_half_of_the_rows_each_make_the_whole(name, cut):
    queries, documents, targets = batch(weights=torch.tensor([2.0, 1.0, 0.5, 3.0]))
    whole = gradients(OBJECTIVES[name], queries, documents, targets)
    halves = [gradients(OBJECTIVES[name], queries, documents, replace(targets, rows=rows)) for rows in ((0, cut), (cut, 4))]
    assert whole[2].norm() > 1e-3, "nothing to compare: the gradient is zero"
    assert sum(value for value, _, _ in halves) == pytest.approx(whole[0], rel=1e-6)
    for n in (1, 2):
        torch.testing.assert_close(halves[0][n] + halves[1][n], whole[n], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_and_columns_in_another_order_give_the_same_loss(name):
    queries, documents, targets = batch(weights=torch.tensor([2.0, 1.0, 0.5, 3.0]))
    rows, columns = torch.tensor([2, 0, 3, 1]), torch.randperm(13, generator=torch.Generator().manual_seed(1))
    row_at, column_at = rows.argsort(), columns.argsort()
    moved = torch.stack([row_at[targets.own[:, 0]], column_at[targets.own[:, 1]]], 1)
    order = torch.argsort(moved[:, 0] * 13 + moved[:, 1])
    teacher = TeacherScores(targets.teacher.positive[rows], targets.teacher.own[order])
    shuffled = Targets(
        column_at[targets.positive[rows]], pairs([]), moved[order], True, targets.written[order], targets.weights[rows], teacher
    )
    plain = gradients(OBJECTIVES[name], queries, documents, targets)
    other = gradients(OBJECTIVES[name], queries[rows], documents[columns], shuffled)
    assert not torch.equal(other[2], plain[2]), "the order is another"
    assert other[0] == pytest.approx(plain[0], rel=1e-5)
    torch.testing.assert_close(other[1], plain[1][rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other[2], plain[2][columns], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_autocast_does_not_round_the_scores(name):
    queries, documents, targets = batch()
    plain = OBJECTIVES[name](queries, documents, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (queries @ documents.T).dtype == torch.bfloat16, "autocast would round the cosines"
        assert OBJECTIVES[name](queries, documents, targets).item() == plain.item()


def test_nothing_of_the_size_of_all_own_vectors_is_kept_for_the_backward():
    """With 400 own negatives of 64 numbers, what autograd keeps is the vectors themselves and a few numbers a pair."""
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 64, generator=generator).requires_grad_() for n in (4, 40))
    own = pairs([(row, column) for row in range(4) for column in range(40) for _ in range(3) if column != row][:400])
    targets = Targets(
        torch.arange(4), pairs([]), own, written=torch.arange(400) % 2 == 0, teacher=TeacherScores(torch.ones(4), torch.arange(400.0))
    )
    kept = []

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        (queries[own[:, 0]] * documents[own[:, 1]]).sum()
        assert max(kept) == 400 * 64, "plain indexing would keep them"
        kept.clear()
        for name in ("causal_neg", "kl", "margin_mse"):
            OBJECTIVES[name](queries, documents, targets)
    assert max(kept) == documents.numel()
