import random
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.identity import same_words  # noqa: E402 - after the check for torch
from negatron.training.batches import collate, plan, same_words_classes  # noqa: E402
from negatron.types import Document, Negative, Origin, Query, TrainingExample  # noqa: E402


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


def scored(query, positive, negatives, score=1.0, weight=1.0):
    """negatives: (text, sources, teacher score)."""
    own = tuple(
        Negative(Document(text, text), tuple(Origin(source, "m") for source in sources), teacher) for text, sources, teacher in negatives
    )
    return TrainingExample(Query(query, query), Document(positive, positive), own, frozenset({positive}), 0, score, weight)


def test_a_negative_is_written_where_a_language_model_is_among_its_origins():
    first = scored("q", "a", [("n", ["bm25"], 0.1), ("w", ["synthetic:qwen"], 0.2), ("x", ["dense", "synthetic"], 0.3), ("y", [], 0.4)])
    second = scored("r", "b", [("w", ["bm25"], 0.5)])
    batch = collate([first, second])
    assert [(row, batch.document_texts[j]) for row, j in as_pairs(batch.targets.own)] == [(0, "n"), (0, "w"), (0, "x"), (0, "y"), (1, "w")]
    assert batch.targets.written.tolist() == [False, True, True, False, False]  # w is found text to the second query
    assert collate([first], written_sources=frozenset({"bm25"})).targets.written.tolist() == [True, False, False, False]
    assert collate([second]).targets.written is None


def test_a_negative_that_is_given_twice_is_written_if_either_is_and_keeps_its_first_score():
    batch = collate([scored("q", "a", [("n", ["bm25"], 0.1), ("m", ["bm25"], 0.2), ("n", ["synthetic"], 0.3)])])
    assert as_pairs(batch.targets.own) == [(0, 1), (0, 2)]
    assert batch.targets.written.tolist() == [True, False]
    assert batch.targets.teacher.own.tolist() == pytest.approx([0.1, 0.2])


def test_teacher_scores_stand_beside_their_pairs_and_only_where_every_pair_has_one():
    first = scored("q", "a", [("n", ["bm25"], 0.1), ("b", ["bm25"], 0.2)], score=0.9)
    second = scored("r", "b", [("m", ["bm25"], -3.0), ("a", ["bm25"], 0.4)], score=0.8)
    batch = collate([first, second])
    assert [(row, batch.document_texts[j]) for row, j in as_pairs(batch.targets.own)] == [(0, "n"), (0, "b"), (1, "a"), (1, "m")]
    assert batch.targets.teacher.positive.tolist() == pytest.approx([0.9, 0.8])
    assert batch.targets.teacher.own.tolist() == pytest.approx([0.1, 0.2, 0.4, -3.0])
    assert collate([first, scored("s", "c", [], score=None)]).targets.teacher is None
    assert collate([first, scored("s", "c", [("n", [], None)])]).targets.teacher is None
    assert collate([first, scored("s", "c", [("a", [], 0.0), ("c", [], None)])]).targets.teacher is not None  # c is no negative of it


def test_weights_are_there_where_one_differs_from_one():
    assert collate([scored("q", "a", []), scored("r", "b", [])]).targets.weights is None
    assert collate([scored("q", "a", []), scored("r", "b", [], weight=0.5)]).targets.weights.tolist() == [1.0, 0.5]


def test_texts_share_a_class_exactly_when_they_are_the_same_words():
    draw = random.Random(1)
    pieces = ["a", "A", "b", " ", "  ", "\u00a0", "\n", "ß", "ss", "ı", "é", ""]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(400)]
    classes = same_words_classes(texts)
    assert len(set(map(same_words, texts))) == len(set(classes.values())) < len(set(texts))
    for text in texts:
        assert same_words(text) == " ".join(text.casefold().split())  # the rule, without its short cut
        for other in texts[:50]:
            assert (classes[text] == classes[other]) == (same_words(text) == same_words(other)), (text, other)
