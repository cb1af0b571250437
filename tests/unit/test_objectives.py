import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.errors import NegatronError, SettingError  # noqa: E402 - after the check for torch
from negatron.training.batches import pairs  # noqa: E402
from negatron.training.objectives import (  # noqa: E402
    CausalNegRegulariser,
    KLDistillation,
    MarginMSE,
    Matryoshka,
    Objective,
    pair_blocks,
    pair_scores,
)
from negatron.training.targets import Targets, TeacherScores  # noqa: E402

QUERIES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
DOCUMENTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
NAN = float("nan")


def targets(own=(), written=None, teacher=None, weights=None, rows=None):
    return Targets(
        torch.tensor([0, 1]),
        pairs([]),
        pairs(own),
        written=None if written is None else torch.tensor(written, dtype=torch.bool),
        teacher=None if teacher is None else TeacherScores(*map(torch.tensor, teacher)),
        weights=weights,
        rows=rows,
    )


def total(queries, documents, given):
    """The plainest loss: the sum of all cosines of queries and documents."""
    return (queries @ documents.T).sum()


# ---- CausalNeg -----------------------------------------------------------------------------------------------------------------------


def test_the_regulariser_of_one_mined_and_two_written_negatives_is_what_one_computes_by_hand():
    # query 0 has cosine 0 with the mined one, 0.6 and 0.8 with the written ones; temperature 1. Query 1 has no written one
    given = targets(own=[(0, 1), (0, 2), (0, 3), (1, 0), (1, 2)], written=[False, True, True, False, False])
    a, b = math.exp(0.6), math.exp(0.8)
    entropy = -sum(x / (a + b) * math.log(x / (a + b)) for x in (a, b))
    mass = (a + b) / (1 + a + b)
    by_hand = -entropy + (mass - 2 / 3) ** 2
    assert CausalNegRegulariser(weight=0.05, temperature=1.0)(QUERIES, DOCUMENTS, given).item() == pytest.approx(0.05 * by_hand, rel=1e-6)
    parts = CausalNegRegulariser(temperature=1.0).parts(QUERIES, DOCUMENTS, given)
    assert parts.rows.tolist() == [0]
    assert [part.item() for part in parts[1:]] == pytest.approx([entropy, mass, 2 / 3], rel=1e-6)


@pytest.mark.parametrize(
    ("own", "written", "what"),
    [
        ([], None, "no negatives"),
        ([(0, 1), (0, 2)], None, "nobody said that any is written"),
        ([(0, 1), (0, 2)], [False, False], "mined ones only"),
        ([(0, 2)], [True], "a single written one and no mined: entropy 0, mass as expected"),
    ],
)
def test_a_query_without_written_negatives_or_with_a_single_one_alone_gives_nothing(own, written, what):
    documents = DOCUMENTS.clone().requires_grad_()
    loss = CausalNegRegulariser(weight=1.0)(QUERIES, documents, targets(own, written))
    loss.backward()  # a batch of such queries can still be learnt from by the other terms
    assert loss.item() == 0, what
    assert documents.grad.abs().max() == 0, what


def test_without_mined_negatives_only_the_entropy_counts():
    given = targets(own=[(0, 1), (0, 2)], written=[True, True])
    a, b = 1.0, math.exp(0.6)
    entropy = -sum(x / (a + b) * math.log(x / (a + b)) for x in (a, b))
    assert CausalNegRegulariser(weight=1.0, temperature=1.0)(QUERIES, DOCUMENTS, given).item() == pytest.approx(-entropy, rel=1e-6)


def test_the_regulariser_spreads_the_written_negatives_and_pulls_their_mass_to_its_share():
    given = targets(own=[(0, 1), (0, 2), (0, 3)], written=[False, True, True])
    documents = DOCUMENTS.clone().requires_grad_()
    CausalNegRegulariser(weight=1.0, temperature=1.0)(QUERIES, documents, given).backward()
    # column 3 is the likelier of the two written ones, and both have more than their share: its cosine must fall most
    assert documents.grad[3, 0] > documents.grad[2, 0]
    assert documents.grad[3, 0] > 0


# ---- distillation --------------------------------------------------------------------------------------------------------------------


def test_the_divergence_of_two_candidates_is_what_one_computes_by_hand():
    # the student sees cosines 1 and 0.6 at temperature 0.5, the teacher 7 and 1 at temperature 2
    given = targets(own=[(0, 2)], teacher=([7.0, 0.0], [1.0]))
    s, t = (1 / (1 + math.exp(-difference)) for difference in (0.4 / 0.5, 6 / 2))
    by_hand = t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s))
    loss = KLDistillation(weight=2.0, teacher_temperature=2.0, student_temperature=0.5)
    assert loss(QUERIES, DOCUMENTS, given).item() == pytest.approx(2 * by_hand, rel=1e-5)


def test_a_student_that_agrees_with_its_teacher_loses_nothing_and_one_that_does_not_loses():
    own = [(0, 2), (0, 3), (1, 2)]
    agrees = targets(own, teacher=([5.0, 5.0], [3.0, 4.0, 4.0]))  # five times the cosines
    differs = targets(own, teacher=([5.0, 5.0], [4.0, 3.0, 4.0]))
    for loss in (KLDistillation(teacher_temperature=5.0, student_temperature=1.0), MarginMSE(scale=5.0)):
        assert loss(QUERIES, DOCUMENTS, differs).item() > 1e-3, "the teacher's scores matter"
        assert loss(QUERIES, DOCUMENTS, agrees).item() == pytest.approx(0, abs=1e-6)


def test_margins_of_the_mean_square_are_what_one_computes_by_hand():
    # query 0: margins 10 (1 - 0.6) = 4 and 10 (1 - 0.8) = 2, the teacher's are 3 and 4: mean of 1 and 4; query 1: 10 (1 - 0.8) = 2 and 2
    given = targets(own=[(0, 2), (0, 3), (1, 2)], teacher=([6.0, 3.0], [3.0, 2.0, 1.0]))
    assert MarginMSE(weight=0.5, scale=10.0)(QUERIES, DOCUMENTS, given).item() == pytest.approx(0.5 * 2.5, rel=1e-5)


@pytest.mark.parametrize("loss", [KLDistillation(), MarginMSE()])
def test_a_query_without_negatives_of_its_own_has_nothing_to_distil(loss):
    documents = DOCUMENTS.clone().requires_grad_()
    value = loss(QUERIES, documents, targets(teacher=([6.0, 3.0], [])))
    value.backward()
    assert value.item() == 0
    assert documents.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [KLDistillation(), MarginMSE()])
def test_a_missing_teacher_score_is_an_error_that_names_the_rows(loss):
    own = [(0, 2), (1, 2), (1, 3)]
    with pytest.raises(NegatronError, match="this batch has none"):
        loss(QUERIES, DOCUMENTS, targets(own))
    with pytest.raises(NegatronError, match=r"query rows \[0\] of the batch lack"):
        loss(QUERIES, DOCUMENTS, targets(own, teacher=([NAN, 1.0], [1.0, 1.0, 1.0])))
    with pytest.raises(NegatronError, match=r"query rows \[0, 1\] of the batch lack"):
        loss(QUERIES, DOCUMENTS, targets(own, teacher=([NAN, 1.0], [1.0, 1.0, math.inf])))
    with pytest.raises(NegatronError, match=r"query rows \[1\]"):  # also where another process scores row 1: all must stop
        loss(QUERIES, DOCUMENTS, targets(own, teacher=([1.0, 1.0], [1.0, NAN, 1.0]), rows=(0, 1)))


# ---- Matryoshka and sums -------------------------------------------------------------------------------------------------------------


def test_matryoshka_of_two_dimensions_is_what_one_computes_by_hand():
    queries, documents = torch.tensor([[0.6, 0.8]]), torch.tensor([[0.8, 0.6]])
    loss = Matryoshka(total, (2, 1), (1.0, 0.5))
    assert loss(queries, documents, targets()).item() == pytest.approx(0.96 + 0.5 * 1.0, rel=1e-6)  # the first numbers alone: both become 1
    assert Matryoshka(total, (2, 1))(queries, documents, targets()).item() == pytest.approx(1.96, rel=1e-6)


def test_matryoshka_of_the_full_size_alone_is_the_loss_itself():
    assert Matryoshka(total, (2,))(QUERIES, DOCUMENTS, targets()).item() == pytest.approx(total(QUERIES, DOCUMENTS, targets()).item())


def test_dimensions_that_mean_nothing_are_refused():
    for dimensions in ((), (2, 0), (2, 2)):
        with pytest.raises(SettingError, match="expected at least one, each above 0 and once"):
            Matryoshka(total, dimensions)
    with pytest.raises(SettingError, match="expected 2, one for each"):
        Matryoshka(total, (2, 1), (1.0,))
    with pytest.raises(SettingError, match="3 is more than the 2 that the model's vectors have"):
        Matryoshka(total, (3, 1))(QUERIES, DOCUMENTS, targets())


def test_an_objective_is_the_weighted_sum_of_its_terms_and_tells_each():
    given = targets(own=[(0, 1), (0, 2), (0, 3)], written=[False, True, True])
    objective = Objective({"total": (2.0, total), "causal_neg": (3.0, CausalNegRegulariser())})
    values = objective.values(QUERIES, DOCUMENTS, given)
    assert {name: value.item() for name, value in values.items()} == {
        "total": total(QUERIES, DOCUMENTS, given).item(),
        "causal_neg": CausalNegRegulariser()(QUERIES, DOCUMENTS, given).item(),
    }
    assert values["causal_neg"].item() != 0
    by_hand = 2 * values["total"].item() + 3 * values["causal_neg"].item()
    assert objective(QUERIES, DOCUMENTS, given).item() == pytest.approx(by_hand)
    assert objective.total(values).item() == pytest.approx(by_hand)


def test_objectives_nest():
    objective = Objective({"short": (0.5, Matryoshka(Objective({"total": (2.0, total)}), (1,)))})
    assert objective(QUERIES, QUERIES, targets()).item() == pytest.approx(1.0)  # only (1, 0) is left of itself; (0, 1) has no direction


@pytest.mark.parametrize(
    "make",
    [
        partial(CausalNegRegulariser, temperature=0.0),
        partial(CausalNegRegulariser, weight=-1.0),
        partial(CausalNegRegulariser, weight=NAN),
        partial(KLDistillation, student_temperature=0.0),
        partial(KLDistillation, teacher_temperature=math.inf),
        partial(MarginMSE, scale=0.0),
        partial(Matryoshka, total, (1,), (-1.0,)),
        partial(Objective, {}),
        partial(Objective, {"total": (-1.0, total)}),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make):
    with pytest.raises(SettingError, match=r"expected|needs"):
        make()


# ---- dot products of pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [1, 8, 16, 1000])  # of vectors of size 4: blocks of 1, 2, 4 and all of the six pairs
def test_pair_scores_and_their_gradients_do_not_depend_on_the_block(numbers):
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 4, generator=generator).requires_grad_() for n in (3, 5))
    own = pairs([(0, 1), (0, 4), (1, 1), (2, 0), (2, 0), (2, 3)])
    factors = torch.randn(len(own), generator=generator)
    plain = (queries[own[:, 0]] * documents[own[:, 1]]).sum(1)
    expected = torch.autograd.grad((plain * factors).sum(), (queries, documents))
    assert all(part.norm() > 0 for part in expected), "nothing to compare: the gradient is zero"
    scores = pair_scores(queries, documents, own, numbers_in_a_block=numbers)
    torch.testing.assert_close(scores, plain)
    torch.testing.assert_close(torch.autograd.grad((scores * factors).sum(), (queries, documents)), expected)


def test_blocks_hold_all_pairs_once_and_the_last_may_be_smaller():
    own = pairs([(n, 10 + n) for n in range(5)])
    blocks = [(rows.tolist(), columns.tolist()) for _, rows, columns in pair_blocks(own, 2)]
    assert blocks == [([0, 1], [10, 11]), ([2, 3], [12, 13]), ([4], [14])]


def test_scores_and_sums_are_in_fp32_whatever_the_vectors_are():
    generator = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 64, generator=generator).bfloat16().requires_grad_() for n in (2, 4))
    own = pairs([(0, 1), (1, 3)])
    plain = (queries.float()[own[:, 0]] * documents.float()[own[:, 1]]).sum(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = pair_scores(queries, documents, own)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, plain)
    scores.sum().backward()
    assert queries.grad.dtype == torch.bfloat16


def test_the_example_of_the_page_prints_what_the_page_shows():
    page = (Path(__file__).parent.parent.parent / "docs" / "objectives.md").read_text(encoding="utf-8")
    code, shown = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE).groups()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == shown
