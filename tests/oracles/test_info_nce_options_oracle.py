"""InfoNCE with each option against the sum written out with loops, one pair at a time, in double precision."""

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.training.formula import Options, plain  # noqa: E402 - after the check for torch
from negatron.training.losses import InfoNCE  # noqa: E402
from negatron.training.targets import GuideVectors, Targets  # noqa: E402

ALL_DIRECTIONS = ("query_to_document", "query_to_query", "document_to_document", "document_to_query")


def unit(rows, columns, seed):
    vectors = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


QUERIES, DOCUMENTS = unit(5, 6, 1), unit(9, 6, 2)
GUIDE = GuideVectors(unit(5, 4, 3), unit(9, 4, 4))
# queries 1 and 4 share a positive; query 0 excludes the positive of query 2; query 3 excludes one of its own negatives
TARGETS = Targets(
    torch.tensor([0, 1, 2, 3, 1]),
    torch.tensor([[0, 2], [3, 8], [4, 6]]),
    torch.tensor([[0, 5], [0, 6], [1, 7], [3, 4], [3, 8]]),
    weights=torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0]),
)


def written_out(options, targets, guide):
    queries, documents = QUERIES.double().tolist(), DOCUMENTS.double().tolist()
    positive = targets.positive.tolist()
    excluded, own = (set(map(tuple, part.tolist())) for part in (targets.excluded, targets.own))
    first, end = targets.rows or (0, len(queries))

    def dot(a, b):
        return math.fsum(x * y for x, y in zip(a, b, strict=True))

    def shares_a_positive(i, j):
        return positive[i] == positive[j] or (i, positive[j]) in excluded or (j, positive[i]) in excluded

    def too_close(i, cosine, guided):
        if options.false_negative_margin is not None and cosine > dot(queries[i], documents[positive[i]]) + options.false_negative_margin:
            return True
        if guide is None:
            return False
        limit = dot(guide.queries[i].tolist(), guide.documents[positive[i]].tolist())
        absolute = options.guide_absolute_margin
        return guided > (limit - absolute if absolute is not None else limit - abs(limit) * options.guide_relative_margin)

    def negatives(i, direction):
        """(cosine, weight, hardness) of each negative that counts for row i."""
        from_query, to_query = direction.startswith("query"), direction.endswith("query")
        row = queries[i] if from_query else documents[positive[i]]
        for j, column in enumerate(queries if to_query else documents):
            is_own = (i, j) in own and direction == "query_to_document"
            if to_query and shares_a_positive(i, j):
                continue
            if not to_query and (j == positive[i] or (i, j) in excluded or ((i, j) in own and not is_own)):
                continue
            if not targets.in_batch and not is_own:
                continue
            cosine, guided = dot(row, column), None
            if guide is not None:
                guide_row = guide.queries[i] if from_query else guide.documents[positive[i]]
                guided = dot(guide_row.tolist(), (guide.queries if to_query else guide.documents)[j].tolist())
            if too_close(i, cosine, guided):
                continue
            harder = direction == "query_to_document" and options.hardness_of in ("all", "own" if is_own else "in_batch")
            yield cosine, options.own_weight if is_own else options.in_batch_weight, options.hardness if harder else 0.0

    total = 0.0
    for i in range(first, end):
        sums = []
        for direction in options.directions if targets.in_batch else ("query_to_document",):
            found = list(negatives(i, direction))
            importances = [math.exp(options.importance * c) if direction == "query_to_document" else 1.0 for c, _, _ in found]
            mean = math.fsum(importances) / max(1, len(found))
            terms = zip(found, importances, strict=True)
            sums.append(math.fsum(w * (m / mean) * math.exp(c / options.temperature + h * c) for (c, w, h), m in terms))
        e = math.exp(dot(queries[i], documents[positive[i]]) / options.temperature)
        groups = [sums] if options.joint else [[value] for value in sums]
        loss = math.fsum(-math.log(e / (e + math.fsum(group))) for group in groups) / len(groups)
        total += targets.weights[i].item() * (1 - math.exp(-loss)) ** options.focal * loss
    return total


OPTIONS = {
    "plain": Options(),
    "temperature": Options(temperature=0.3),
    "false negative margin": Options(false_negative_margin=0.05),
    "guide, absolute": Options(guide_absolute_margin=0.1),
    "guide, relative": Options(guide_relative_margin=0.2),
    "hardness of all": Options(hardness=5.0),
    "hardness of own": Options(hardness=5.0, hardness_of="own"),
    "hardness of in-batch": Options(hardness=5.0, hardness_of="in_batch"),
    "own weight": Options(own_weight=3.0),
    "in-batch weight": Options(in_batch_weight=0.25),
    "importance": Options(importance=4.0),
    "focal": Options(temperature=0.5, focal=2.0),
    "joint directions": Options(directions=ALL_DIRECTIONS),
    "separate directions": Options(directions=ALL_DIRECTIONS, joint=False),
    "query to query": Options(directions=ALL_DIRECTIONS[:2]),
    "document to query": Options(directions=(ALL_DIRECTIONS[0], ALL_DIRECTIONS[3])),
    "together": Options(0.2, 0.3, 0.05, None, 2.0, "own", 2.0, 0.5, 1.5, 1.0, ALL_DIRECTIONS),
}
SHAPES = {
    "all rows": TARGETS,
    "two rows": replace(TARGETS, rows=(1, 3)),
    "own negatives only": replace(TARGETS, in_batch=False),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_gives_the_sum_written_out(name, shape):
    options, targets = OPTIONS[name], SHAPES[shape]
    guide = GUIDE if options.guided else None
    expected = written_out(options, targets, guide)
    assert plain(QUERIES, DOCUMENTS, targets, options, guide=guide).item() == pytest.approx(expected, rel=1e-5)
    loss = InfoNCE(**{name: getattr(options, name) for name in Options.__dataclass_fields__})
    assert loss(QUERIES, DOCUMENTS, targets, guide=guide).item() == pytest.approx(expected, rel=1e-5)


def test_every_option_changes_the_sum():
    plain_sum = written_out(Options(), TARGETS, None)
    same = [name for name, o in OPTIONS.items() if name != "plain" and written_out(o, TARGETS, GUIDE if o.guided else None) == plain_sum]
    assert not same, "an option that changes nothing here is not tested here"


def test_every_rule_leaves_something_out_and_something_in():
    far = [Options(false_negative_margin=3.0), Options(guide_absolute_margin=-3.0), Options(false_negative_margin=-3.0)]
    nothing_out, no_guide_out, everything_out = (written_out(o, TARGETS, GUIDE if o.guided else None) for o in far)
    assert nothing_out == no_guide_out == written_out(Options(), TARGETS, None)
    assert everything_out == 0
    assert all(written_out(OPTIONS[name], TARGETS, GUIDE if OPTIONS[name].guided else None) > 0 for name in OPTIONS)
