from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.errors import NegatronError, SettingError  # noqa: E402 - after the check for torch
from negatron.training.curriculum import Curriculum, Defaults, Stage  # noqa: E402
from negatron.training.example_store import ExampleStore  # noqa: E402
from negatron.training.mixtures import ExampleSet, Feed, Piece, pieces, places_of_steps, refuse_bad_sets, shares  # noqa: E402
from negatron.training.workers import Workers  # noqa: E402
from negatron.types import Document, Query, TrainingExample  # noqa: E402


def examples(count, name="", same=None):
    return [
        TrainingExample(Query(f"{name}{n}", same or f"question {n} of {name}"), Document(f"{name}p{n}", f"answer {n} of {name}"))
        for n in range(count)
    ]


def feed(tmp_path, *sets, batch_size=4, epochs=1, exponent=1.0, seed=1, stages=()):
    curriculum = Curriculum(Defaults(batch_size), sum(len(one.examples) for one in sets), epochs, stages)
    return Feed(sets, curriculum, exponent=exponent, seed=seed, folder=tmp_path, workers=Workers.start("cpu")), curriculum.steps


def seen(feed, steps):
    return [(one.name, [example.query.id for example in found]) for one, found in (feed.at(step) for step in range(steps))]


def test_one_set_gives_each_example_once_an_epoch_in_another_order(tmp_path):
    found, steps = feed(tmp_path, ExampleSet("a", examples(10)), epochs=2)
    batches = [ids for _, ids in seen(found, steps)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    first, second = ([id_ for batch in part for id_ in batch] for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == sorted(map(str, range(10))) and first != second


def test_stages_of_other_batch_sizes_share_an_epoch_without_losing_an_example(tmp_path):
    stages = (Stage(share=0.3, batch_size=2), Stage(share=0.7, batch_size=5))
    found, steps = feed(tmp_path, ExampleSet("a", examples(20)), stages=stages)
    batches = [ids for _, ids in seen(found, steps)]
    assert [len(batch) for batch in batches] == [2, 2, 2, 5, 5, 4]
    assert sorted(id_ for batch in batches for id_ in batch) == sorted(map(str, range(20)))


def test_each_batch_is_of_one_set_and_the_shares_follow_size_and_exponent(tmp_path):
    sets = (ExampleSet("large", examples(90, "l")), ExampleSet("small", examples(10, "s")))
    for exponent, share in ((1.0, 0.1), (0.5, 0.25), (0.0, 0.5)):
        assert shares([90, 10], exponent)[1] == pytest.approx(share)
        found, steps = feed(tmp_path, *sets, exponent=exponent, epochs=4)
        batches = seen(found, steps)
        assert all(id_[0] == name[0] for name, ids in batches for id_ in ids)
        counts = Counter(name for name, ids in batches for _ in ids)
        assert abs(counts["small"] - share * 400) <= 4, "more than a batch from its share"


def test_no_example_is_seen_again_before_all_of_its_set_were_seen(tmp_path):
    sets = (ExampleSet("large", examples(33, "l")), ExampleSet("small", examples(6, "s")))
    found, steps = feed(tmp_path, *sets, exponent=0.3, epochs=5)
    batches = seen(found, steps)
    for name, size in (("large", 33), ("small", 6)):
        row = [id_ for other, ids in batches for id_ in ids if other == name]
        assert len(row) > size, "no second pass"
        for start in range(0, len(row) - size + 1, size):
            assert len(set(row[start : start + size])) == size


def test_the_sets_take_turns_evenly():
    places = places_of_steps([4] * 40, [0.75, 0.25], seed=3)
    behind = [abs(count - 0.25 * (n + 1)) for n, count in enumerate(accumulate(places))]
    assert max(behind) < 1.5


def test_the_same_seed_gives_the_same_batches_from_any_step_on_and_another_seed_others(tmp_path):
    sets = (ExampleSet("a", examples(12, "a")), ExampleSet("b", examples(9, "b")))
    whole, steps = feed(tmp_path, *sets, exponent=0.5, epochs=3)
    later, _ = feed(tmp_path, *sets, exponent=0.5, epochs=3)
    batches = seen(whole, steps)
    assert [later.at(step)[0].name for step in (7, 2, steps - 1)] == [batches[step][0] for step in (7, 2, steps - 1)]
    assert [[e.query.id for e in later.at(step)[1]] for step in (7, 2, steps - 1)] == [batches[step][1] for step in (7, 2, steps - 1)]
    assert seen(feed(tmp_path, *sets, exponent=0.5, epochs=3, seed=2)[0], steps) != batches


def test_a_stretch_is_cut_where_a_pass_ends_and_where_its_batch_ends():
    assert pieces(5, 3, 12, 4) == [Piece(0, 3, 2), Piece(1, 0, 2), Piece(1, 2, 3), Piece(2, 0, 1), Piece(2, 1, 1)]
    assert pieces(5, 0, 5, 2) == [Piece(0, 0, 5)]


def test_a_query_does_not_meet_itself_while_there_are_batches_enough(tmp_path):
    given = [*examples(9), *(TrainingExample(Query(f"t{n}", "the same"), Document(f"t{n}", f"other {n}")) for n in range(3))]
    found, steps = feed(tmp_path, ExampleSet("a", given))
    assert [sum(id_.startswith("t") for id_ in ids) for _, ids in seen(found, steps)] == [1, 1, 1]


def test_a_store_gives_the_batches_of_the_same_examples_in_memory(tmp_path):
    given = examples(25)
    store = ExampleStore.write(tmp_path / "examples.arrow", given)
    (from_memory, steps), (from_store, _) = (feed(tmp_path / "work", ExampleSet("a", one), epochs=2) for one in (given, store))
    assert seen(from_store, steps) == seen(from_memory, steps)
    assert [from_store.at(step)[1] for step in range(steps)] == [from_memory.at(step)[1] for step in range(steps)]


@dataclass
class Wrong:
    names: tuple[str, ...]
    counts: tuple[int, ...]
    prompts: tuple[str, ...]
    message: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(("a", "a"), (2, 2), (), "two sets of training examples are called 'a'"),
        Wrong(("a", "b"), (2, 0), (), "no training examples in b"),
        Wrong(("scifact", "b"), (2, 2), ("scifcat",), "prompts: there is no data set 'scifcat'; did you mean 'scifact'"),
    ],
)
def test_sets_that_cannot_be_told_apart_or_have_nothing_are_refused(wrong):
    sets = [ExampleSet(name, examples(count)) for name, count in zip(wrong.names, wrong.counts, strict=True)]
    with pytest.raises((NegatronError, SettingError), match=wrong.message):
        refuse_bad_sets(sets, wrong.prompts)
