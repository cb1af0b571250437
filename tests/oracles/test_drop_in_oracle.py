"""TiledInfoNCE against sentence-transformers' own losses: the same value, and the same gradient at every parameter of a real encoder.

The batch has no copies, as the definitions differ there on purpose; that they do is shown at the end. No dropout. Where the definitions
differ otherwise (docs/sentence-transformers.md) nothing is compared: `document_to_query` in a joint softmax, `query_to_query` and
`document_to_document` in softmaxes of their own.
"""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")
pytest.importorskip("sentence_transformers", reason="needs negatron[train]")

from sentence_transformers import SentenceTransformer  # noqa: E402 - after the check for torch
from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    GISTEmbedLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)

from negatron.losses import TiledInfoNCE  # noqa: E402

WORDS = "the cat sat on a mat while seven dogs barked at every ship and nobody knew why stars shine".split()  # noqa: SIM905 - so it can be read
ROWS = 5
CHUNKED = {"chunk_tokens": 30, "keep_tokens": 60}
"""Three chunks and more, two of which keep their graph."""


@pytest.fixture(scope="module")
def model(tiny_encoder):
    return SentenceTransformer(str(tiny_encoder), device="cpu").eval()


def columns_of_texts(negatives, rows=ROWS):
    draw = random.Random(3)
    return [[" ".join(draw.choices(WORDS, k=draw.randint(2, 14))) for _ in range(rows)] for _ in range(2 + negatives)]


def value_and_gradient(model, loss, columns):
    model.zero_grad()
    value = loss([model.preprocess(column) for column in columns], None)
    value.backward()
    gradients = [p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None and "pooler" not in name]
    return value.item(), torch.cat(gradients)


def assert_same(model, ours, theirs, columns):
    value, gradient = value_and_gradient(model, theirs, columns)
    assert gradient.norm() > 1e-3, "nothing to compare: the gradient is zero"
    found, mine = value_and_gradient(model, ours, columns)
    assert found == pytest.approx(value, rel=1e-5)
    assert (mine - gradient).norm() <= 1e-5 * gradient.norm()


@pytest.mark.parametrize(
    "route", [{}, CHUNKED, {"chunk_size": 3}, {"chunk_tokens": 30, "keep_tokens": 0, "exclude_copies": False}], ids=str
)
@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("peer", [MultipleNegativesRankingLoss, CachedMultipleNegativesRankingLoss])
def test_equals_their_losses(model, peer, negatives, route):
    assert_same(model, TiledInfoNCE(model, **route), peer(model), columns_of_texts(negatives))


def test_the_scale_is_the_inverse_of_the_temperature(model):
    columns = columns_of_texts(1)
    assert_same(model, TiledInfoNCE(model, 0.02, **CHUNKED), CachedMultipleNegativesRankingLoss(model, scale=50.0), columns)
    sharp, soft = (value_and_gradient(model, TiledInfoNCE(model, t), columns)[0] for t in (0.02, 0.05))
    assert sharp != pytest.approx(soft, rel=1e-2)


HARDNESS = {"in_batch_negatives": "in_batch", "hard_negatives": "own", "all_negatives": "all"}


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("mode", HARDNESS)
def test_hardness_is_theirs(model, mode, negatives):
    columns = columns_of_texts(negatives)
    theirs = CachedMultipleNegativesRankingLoss(model, hardness_mode=mode, hardness_strength=5.0)
    ours = TiledInfoNCE(model, hardness=5.0, hardness_of=HARDNESS[mode], **CHUNKED)
    assert_same(model, ours, theirs, columns)
    assert value_and_gradient(model, ours, columns)[0] != pytest.approx(value_and_gradient(model, TiledInfoNCE(model), columns)[0])


DIRECTIONS = [
    (("query_to_query",), "joint"),
    (("document_to_document",), "joint"),
    (("query_to_query", "document_to_document"), "joint"),
    (("document_to_query",), "per_direction"),
]


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize(("directions", "mode"), DIRECTIONS, ids=str)
def test_directions_are_theirs(model, directions, mode, negatives):
    columns, ours = columns_of_texts(negatives), ("query_to_document", *directions)
    theirs = tuple(direction.replace("document", "doc") for direction in ours)
    assert_same(
        model,
        TiledInfoNCE(model, directions=ours, joint=mode == "joint", **CHUNKED),
        CachedMultipleNegativesRankingLoss(model, directions=theirs, partition_mode=mode),
        columns,
    )


@pytest.fixture(scope="module")
def guide(tiny_encoder):
    """Another encoder, so that it has another opinion."""
    other = SentenceTransformer(str(tiny_encoder), device="cpu")
    torch.manual_seed(5)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return other


@pytest.mark.parametrize("peer", [GISTEmbedLoss, CachedGISTEmbedLoss])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.02), ("relative", 0.02)])
@pytest.mark.parametrize("negatives", [0, 1])
def test_a_guide_is_theirs(model, guide, peer, strategy, margin, negatives):
    """With negatives, theirs compares positives with positives only and ours with all documents, so that is left out."""
    columns, more = columns_of_texts(negatives, 8), not negatives
    theirs = peer(model, guide, temperature=0.05, margin_strategy=strategy, margin=margin, contrast_positives=more)
    directions = ("query_to_document", "query_to_query", *(["document_to_document"] if more else []))
    ours = TiledInfoNCE(model, guide=guide, directions=directions, **{f"guide_{strategy}_margin": margin}, **CHUNKED)
    assert_same(model, ours, theirs, columns)
    without = TiledInfoNCE(model, directions=directions)
    assert value_and_gradient(model, ours, columns)[0] < value_and_gradient(model, without, columns)[0], "the guide has no effect here"


def test_inside_their_matryoshka_loss_it_is_as_theirs(model):
    columns, sizes, weights = columns_of_texts(1), [64, 32, 8], [1.0, 0.5, 0.25]
    ours, theirs = (
        MatryoshkaLoss(model, loss, sizes, weights) for loss in (TiledInfoNCE(model, **CHUNKED), CachedMultipleNegativesRankingLoss(model))
    )
    assert_same(model, ours, theirs, columns)


def test_with_copies_it_equals_theirs_only_where_they_are_not_excluded(model):
    columns = columns_of_texts(1)
    columns[1][1] = columns[1][0]  # two queries share their positive
    columns[2][3] = columns[2][4]  # a negative occurs twice
    theirs = value_and_gradient(model, MultipleNegativesRankingLoss(model), columns)
    counted = value_and_gradient(model, TiledInfoNCE(model, exclude_copies=False, **CHUNKED), columns)
    excluded = value_and_gradient(model, TiledInfoNCE(model, **CHUNKED), columns)
    assert counted[0] == pytest.approx(theirs[0], rel=1e-5)
    assert (counted[1] - theirs[1]).norm() <= 1e-5 * theirs[1].norm()
    assert excluded[0] < theirs[0] - 0.1


def test_vectors_of_a_model_that_does_not_normalise_are_compared_by_their_cosine(model):
    without = SentenceTransformer(modules=list(model.children())[:2], device="cpu").eval()
    assert_same(without, TiledInfoNCE(without, **CHUNKED), CachedMultipleNegativesRankingLoss(without), columns_of_texts(1))
