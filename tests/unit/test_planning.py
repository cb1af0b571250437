import random
from collections import Counter

import numpy as np
import pytest

from negatron.errors import DataError, NegatronError, SettingError
from negatron.training.clashes import ENTRIES_AT_A_TIME, Quotas, clashing, frequent_texts, shared_keys
from negatron.training.example_store import ROWS_IN_A_BLOCK, ExampleStore
from negatron.training.planning import Plan, TextHashes, least_conflicts, plan_epoch
from negatron.training.shuffling import Permutation
from negatron.training.text_hashes import ROWS_AT_A_TIME, digest_of
from negatron.types import Document, Negative, Origin, Query, TrainingExample


def example(query, positive, negatives=(), known=()):
    own = tuple(Negative(Document(text, text), ()) for text in negatives)
    return TrainingExample(Query(query, query), Document(positive, positive), own, frozenset({positive, *known}))


def number_of(text):
    return int.from_bytes(digest_of(text), "little")


def hashes_of(rows, known=()):
    """TextHashes of a table of small numbers; known: row -> numbers."""
    texts = np.array(rows, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values, ranges = [], np.zeros((len(rows), 2), np.int64)
    for row, numbers in dict(known).items():
        ranges[row] = len(values), len(values) + len(numbers)
        values += numbers
    return TextHashes(texts, ranges, np.array(values, np.uint64) * np.uint64(0x9E3779B97F4A7C15), "numbers")


NOTHING_FREQUENT = Quotas(np.zeros(0, np.uint64), np.zeros(0, np.int64), 100, 10)


def clashes(hashes, batches, quotas=NOTHING_FREQUENT, seated=0):
    rows = np.arange(len(hashes))
    return clashing(hashes, rows, hashes.texts, np.array(batches), quotas, seated=seated).tolist()


# -- the order of an epoch


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 1000, 12_345])
def test_a_shuffled_order_has_every_row_once_and_any_stretch_can_be_had_alone(count):
    order = Permutation.drawn(count, random.Random(count))
    whole = order.between(0, count)
    assert sorted(whole.tolist()) == list(range(count))
    assert whole.tolist() == [*order.between(0, count // 3), *order.between(count // 3, count)]


def test_every_order_of_four_comes_about_equally_often():
    found = Counter(tuple(Permutation.drawn(4, random.Random(seed)).between(0, 4)) for seed in range(1200))
    assert len(found) == 24
    assert all(20 <= count <= 80 for count in found.values())  # 50 expected; four standard deviations


# -- hashes


def test_texts_that_are_the_same_words_have_one_number_and_others_have_others():
    hashes = TextHashes.of([example("How?", "Cells  divide."), example("how? ", "cells divide."), example("Why?", "Stars shine.")])
    first, second, third = hashes.texts.tolist()
    assert first == second
    assert not set(first) & set(third)
    assert first == [number_of("how?"), number_of("CELLS divide.")]


def test_a_text_that_is_twice_in_a_row_is_there_once_and_a_row_with_fewer_texts_ends_in_nothing():
    rows = TextHashes.of([example("q", "p", ["n", "P", "m"]), example("r", "s")]).texts.tolist()
    assert [number != 0 for number in rows[0]] == [True, True, True, False, True]
    assert rows[1][2:] == [0, 0, 0]


def test_known_positives_are_kept_where_there_are_more_than_the_own_one():
    hashes = TextHashes.of(
        [example("q", "a"), example("r", "b", known=["c"]), example("r", "c", known=["b"]), example("s", "d", known=["e"])]
    )
    owners, values = hashes.known_of(np.array([3, 0, 2]))
    assert owners.tolist() == [0, 0, 2, 2]
    assert set(values.tolist()) == {number_of(text) for text in "debc"}
    assert hashes.known_ranges[1].tolist() == hashes.known_ranges[2].tolist()  # shared: both know b and c
    assert len(hashes.known_values) == 4


def test_hashes_written_to_a_folder_are_those_made_in_memory_whoever_hashes(tmp_path):
    rows = ROWS_AT_A_TIME + 40
    examples = [example(f"q{n}", f"p{n}", [f"n{n % 5}"], known=[f"k{n // 3}"] if n % 2 else []) for n in range(rows)]
    store = ExampleStore.write(tmp_path / "examples.arrow", examples)
    memory = TextHashes.of(examples)
    for name, source, workers in (("list", examples, 1), ("store", store, 1), ("two", store, 2)):
        written = TextHashes.write(tmp_path / name, source, fingerprint="these", workers=workers)
        assert np.array_equal(written.texts, memory.texts)
        owners, values = written.known_of(np.arange(rows))
        expected_owners, expected_values = memory.known_of(np.arange(rows))
        assert owners.tolist() == expected_owners.tolist() and len(owners) == rows
        assert values.tolist() == expected_values.tolist()
        assert written.fingerprint == TextHashes.open(tmp_path / name).fingerprint


def test_hashes_of_a_folder_are_not_taken_for_those_of_other_examples(tmp_path):
    TextHashes.write(tmp_path / "hashes", [example("q", "p")], fingerprint="one")
    with pytest.raises(NegatronError, match="already holds another result"):
        TextHashes.write(tmp_path / "hashes", [example("r", "p")], fingerprint="other")
    with pytest.raises(DataError, match="no such folder"):
        TextHashes.open(tmp_path / "nothing")


def test_several_workers_on_examples_in_memory_are_refused(tmp_path):
    with pytest.raises(SettingError, match="workers = 2"):
        TextHashes.write(tmp_path / "hashes", [example("q", "p")], fingerprint="one", workers=2)


# -- who clashes


def test_rows_clash_with_an_earlier_row_of_their_batch_that_shares_a_text():
    hashes = hashes_of([[1, 2], [3, 4], [5, 1], [2, 6], [7, 8]])
    assert clashes(hashes, [0, 0, 0, 0, 0]) == [False, False, True, True, False]
    assert clashes(hashes, [0, 0, 1, 2, 0]) == [False] * 5  # the same texts in other batches


def test_a_known_positive_clashes_with_the_row_that_holds_it_whoever_comes_first():
    knows_nine = {0: [1, 9]}
    assert clashes(hashes_of([[1, 2], [9, 4]], knows_nine), [0, 0]) == [False, True]
    assert clashes(hashes_of([[9, 4], [1, 2]], {1: [1, 9]}), [0, 0]) == [False, True]
    assert clashes(hashes_of([[1, 9], [3, 4]], knows_nine), [0, 0]) == [False, False]  # its own
    assert clashes(hashes_of([[1, 2], [3, 4]], {0: [1, 9], 1: [3, 9]}), [0, 0]) == [False, False]  # both know it, none holds it


def test_a_frequent_text_may_be_in_its_fair_share_of_each_batch():
    hashes = hashes_of([[1, 10 + n] for n in range(5)])
    quotas = Quotas(hashes.texts[:1, 0], np.array([4]), 10, 5)  # 4 of 10 rows: 2 in each batch of 5
    assert clashes(hashes, [0, 0, 0, 1, 1], quotas) == [False, False, True, False, False]


def test_rows_that_sit_already_are_not_asked():
    hashes = hashes_of([[1, 2], [1, 3], [4, 5], [5, 6]])
    assert clashes(hashes, [0, 0, 0, 0], seated=0) == [False, True, False, True]
    assert clashes(hashes, [0, 0, 0, 0], seated=2) == [False, False, False, True]


def test_keys_that_occur_twice_are_found_and_only_with_a_new_one_among_them():
    draw = np.random.default_rng(1)
    keys = draw.integers(1, 2**63, 3000).astype(np.uint64)
    keys[[5, 17, 2900]] = keys[[100, 2950, 40]]
    assert {5, 100, 17, 2950, 2900, 40} <= set(shared_keys(keys).tolist())
    assert len(shared_keys(keys)) < 3000
    assert {17, 2950, 2900, 40} <= set(shared_keys(keys, np.arange(3000) >= 2800).tolist())


def test_frequent_texts_are_all_those_above_the_limit_with_their_counts():
    draw = np.random.default_rng(2)
    rows = ENTRIES_AT_A_TIME + 1000  # two entries a row: several parts
    table = np.stack([np.minimum(draw.pareto(0.7, rows).astype(int), 10**6), 10**7 + np.arange(rows)], 1) + 1
    hashes = hashes_of(table)
    names, counts = np.unique(hashes.texts, return_counts=True)
    assert 1 < (counts > 500).sum() < 1000
    for limit in (500, 500.5, 3, rows):
        found, rows = frequent_texts(hashes, limit)
        assert found.tolist() == names[counts > limit].tolist()
        assert rows.tolist() == counts[counts > limit].tolist()


# -- plans


def test_batches_are_read_as_from_a_list():
    plan = Plan(np.array([4, 1, 0, 3, 2], np.int32), 2, 0)
    assert [batch.tolist() for batch in plan] == [[4, 1], [0, 3], [2]]
    assert plan[-1].tolist() == [2]
    assert [batch.tolist() for batch in plan[1:]] == [[0, 3], [2]]
    with pytest.raises(IndexError, match="batch 3 of 3"):
        plan[3]


def test_a_batch_size_that_does_not_divide_gives_a_last_smaller_batch():
    plan = plan_epoch(hashes_of([[n, 100 + n] for n in range(1, 11)]), 4, seed=1, epoch=0)
    assert [len(batch) for batch in plan] == [4, 4, 2]
    assert len(plan_epoch(hashes_of(np.zeros((0, 2))), 4, seed=1, epoch=0)) == 0


def test_another_seed_or_epoch_gives_other_batches():
    hashes = hashes_of([[n, 100 + n] for n in range(1, 31)])
    plans = {plan_epoch(hashes, 8, seed=seed, epoch=epoch).positions.tobytes() for seed in (1, 2) for epoch in (0, 1)}
    assert len(plans) == 4


def test_stages_with_batch_sizes_of_their_own_use_every_row_of_an_epoch_once():
    hashes = hashes_of([[n // 2, 1000 + n] for n in range(2, 202)])
    stages = [
        plan_epoch(hashes, 8, seed=1, epoch=0, count=80),
        plan_epoch(hashes, 32, seed=1, epoch=0, first=80, count=70),
        plan_epoch(hashes, 5, seed=1, epoch=0, first=150),
    ]
    assert [len(stage) for stage in stages] == [10, 3, 10]
    assert sorted(np.concatenate([stage.positions for stage in stages]).tolist()) == list(range(200))
    assert [stage.conflicts for stage in stages] == [0, 0, 0]


def test_what_is_no_epoch_is_refused():
    hashes = hashes_of([[1, 2], [3, 4]])
    with pytest.raises(SettingError, match="batch_size = 0"):
        plan_epoch(hashes, 0, seed=1, epoch=0)
    with pytest.raises(SettingError, match=r"rows 1 \.\. 3"):
        plan_epoch(hashes, 1, seed=1, epoch=0, first=1, count=2)


def test_a_plan_kept_in_a_folder_is_opened_instead_of_made_again_and_never_taken_for_another(tmp_path):
    hashes = hashes_of([[n // 3, 100 + n] for n in range(3, 33)])
    made = plan_epoch(hashes, 7, seed=1, epoch=0)
    kept = plan_epoch(hashes, 7, seed=1, epoch=0, folder=tmp_path / "plan")
    assert kept.positions.tolist() == made.positions.tolist()
    (written,) = (tmp_path / "plan").glob("*.npy")
    before = written.stat().st_mtime_ns
    again = plan_epoch(hashes, 7, seed=1, epoch=0, folder=tmp_path / "plan")
    assert (again.conflicts, again.batch_size, written.stat().st_mtime_ns) == (made.conflicts, 7, before)
    with pytest.raises(NegatronError, match="epoch"):
        plan_epoch(hashes, 7, seed=1, epoch=1, folder=tmp_path / "plan")


def test_the_least_number_of_conflicts_is_what_is_left_when_each_batch_has_one():
    assert least_conflicts(hashes_of([[1, 10 + n] for n in range(12)]), 4) == 9  # 12 rows, 3 batches
    assert least_conflicts(hashes_of([[n, 100 + n] for n in range(1, 13)]), 4) == 0


# -- examples at rest


def stored_examples():
    origins = (Origin("bm25", "m", 0, 3, 1.5), Origin("synthetic:x", "p", 1, None, None, "told"))
    return [
        TrainingExample(Query("q1", "how"), Document("d1", "Cells divide.", "Biology"), (), frozenset({"Biology Cells divide."})),
        TrainingExample(
            Query("q2", "为什么"),
            Document("d2", "ß, 星"),
            (Negative(Document("d3", "no"), origins, -2.5), Negative(Document("d4", ""), ())),
            frozenset({"b", "a"}),
            stage=2,
            positive_score=0.25,
            weight=0.5,
        ),
        *(example(f"q{n}", f"p{n}", [f"n{n}"] * (n % 3)) for n in range(3, 12)),
    ]


def test_examples_come_back_equal_by_position_in_slices_and_in_any_order(tmp_path):
    rows = 2 * ROWS_IN_A_BLOCK + 11
    examples = stored_examples() + [example(f"q{n}", f"p{n}", [f"n{n}"] * (n % 3)) for n in range(11, rows)]
    store = ExampleStore.write(tmp_path / "examples.arrow", iter(examples))
    assert (len(store), store.most_negatives) == (rows, 2)
    assert list(store) == examples
    assert [store[n] for n in (0, 1, 1500, -1)] == [examples[n] for n in (0, 1, 1500, -1)]
    assert store[2:1900:300] == examples[2:1900:300]
    positions = [9, 2000, 1, 1, ROWS_IN_A_BLOCK, 0, rows - 1]
    assert store.take(np.array(positions)) == [examples[n] for n in positions]
    assert store.take([]) == []
    for wrong in (rows, -rows - 1):
        with pytest.raises(IndexError):
            store[wrong]


def test_a_file_of_no_examples_is_an_empty_sequence(tmp_path):
    store = ExampleStore.write(tmp_path / "none.arrow", [])
    assert (len(store), list(store), store.most_negatives) == (0, [], 0)


def test_a_file_is_whole_or_not_there(tmp_path):
    def examples():
        yield from stored_examples()
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        ExampleStore.write(tmp_path / "examples.arrow", examples())
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_of_examples_is_refused(tmp_path):
    whole = ExampleStore.write(tmp_path / "examples.arrow", stored_examples()).path
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole Arrow file"):
        ExampleStore(cut)
    with pytest.raises(DataError, match="no such file"):
        ExampleStore(tmp_path / "nothing.arrow")
    with pytest.raises(DataError, match="no Unicode"):
        ExampleStore.write(tmp_path / "odd.arrow", [example("\ud800", "p")])


def test_other_examples_have_another_fingerprint(tmp_path):
    first = ExampleStore.write(tmp_path / "1.arrow", stored_examples())
    again = ExampleStore.write(tmp_path / "2.arrow", stored_examples())
    other = ExampleStore.write(tmp_path / "3.arrow", stored_examples()[::-1])
    assert first.fingerprint == again.fingerprint != other.fingerprint
