from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.training.batches import collate, plan  # noqa: E402 - after the check for torch
from negatron.types import Document, Negative, Query, TrainingExample  # noqa: E402


def example(query, positive, negatives=(), known=()):
    own = tuple(Negative(Document(text, text), ()) for text in negatives)
    return TrainingExample(Query(query, query), Document(positive, positive), own, frozenset({positive, *known}))


def as_pairs(tensor):
    return list(map(tuple, tensor.tolist()))


def test_an_epoch_has_every_example_exactly_once_and_the_last_smaller_batch_too():
    batches = plan([f"query {n}" for n in range(10)], 4, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(position for batch in batches for position in batch) == list(range(10))


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_give_others():
    texts = [f"query {n}" for n in range(30)]
    assert plan(texts, 8, seed=1, epoch=0) == plan(texts, 8, seed=1, epoch=0)
    assert len({str(plan(texts, 8, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_a_query_text_does_not_meet_itself_while_there_are_full_batches_enough():
    texts = ["How?", "how? ", "HOW?"] + ["why"] * 3 + [f"query {n}" for n in range(8)]
    for seed in range(20):
        for batch in plan(texts, 4, seed=seed, epoch=0):
            counts = Counter(texts[n].casefold().strip() for n in batch)
            assert max(counts.values()) == 1, (seed, batch)


def test_a_text_that_is_too_frequent_is_spread_evenly():
    texts = ["same"] * 50 + [f"query {n}" for n in range(50)]
    shares = [sum(texts[n] == "same" for n in batch) for batch in plan(texts, 10, seed=3, epoch=0)]
    assert shares == [5] * 10


def test_no_examples_make_no_batches():
    assert plan([], 4, seed=1, epoch=0) == []


def test_a_text_that_occurs_twice_is_one_column():
    batch = collate([example("q0", "a", ["n"]), example("q1", "b", ["n", "a"])])
    assert batch.document_texts == ("a", "n", "b")
    assert batch.targets.positive.tolist() == [0, 2]
    assert as_pairs(batch.targets.own) == [(0, 1), (1, 0), (1, 1)]
    assert as_pairs(batch.targets.excluded) == []


def test_another_known_positive_is_excluded_for_its_query_and_stays_a_negative_of_the_others():
    batch = collate([example("q0", "a", known=["b"]), example("q1", "b"), example("q2", "c")])
    assert batch.document_texts == ("a", "b", "c")
    assert as_pairs(batch.targets.excluded) == [(0, 1)]


def test_a_copy_that_differs_in_case_or_white_space_is_excluded():
    batch = collate([example("q0", "Cells divide."), example("q1", "x", ["cells  divide.", "y"]), example("q2", "y", known=["X "])])
    assert batch.document_texts == ("Cells divide.", "x", "cells  divide.", "y")
    assert as_pairs(batch.targets.excluded) == [(0, 2), (2, 1)]


def test_a_known_positive_among_the_own_negatives_is_excluded_and_no_own_negative():
    batch = collate([example("q0", "a", ["b", "A", "n"], known=["b"])])
    assert batch.document_texts == ("a", "b", "A", "n")
    assert as_pairs(batch.targets.excluded) == [(0, 1), (0, 2)]
    assert as_pairs(batch.targets.own) == [(0, 3)]


def test_two_examples_of_one_query_text_share_their_positives():
    batch = collate([example("How?", "a"), example("how? ", "b"), example("other", "c")])
    assert as_pairs(batch.targets.excluded) == [(0, 1), (1, 0)]


def test_title_and_text_together_are_what_is_compared_and_encoded():
    positive = Document("d", "Cells divide.", "Biology")
    batch = collate([TrainingExample(Query("q", "q"), positive, (), frozenset({positive.content})), example("r", "Cells divide.")])
    assert batch.document_texts == ("Biology Cells divide.", "Cells divide.")
    assert as_pairs(batch.targets.excluded) == []


def test_a_batch_of_no_examples_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        collate([])
