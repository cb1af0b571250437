"""Paired comparisons on values small enough to count by hand."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from negatron.errors import DataError, NegatronError
from negatron.evaluation.benchmark import Evaluation, score_run, write_evaluation
from negatron.evaluation.measures import Measure
from negatron.evaluation.significance import (
    Comparison,
    compare,
    correct,
    holm,
    mean_interval,
    pooled,
    randomisation_test,
    read_side,
    smallest_visible_difference,
)
from negatron.types import ScoredDocument

NDCG = Measure("ndcg", 10)


def values(seed: int, count: int = 200, shift: float = 0.0) -> dict[str, float]:
    draw = np.random.default_rng(seed)
    base = np.random.default_rng(99).random(count)
    return {f"q{i}": float(x) for i, x in enumerate(base + shift + 0.1 * draw.standard_normal(count))}


def evaluation_of(scores: dict[str, float], model: str = "m", data: str = "set", split: str = "test", fingerprint: str = "") -> Evaluation:
    return Evaluation(model, data, split, {NDCG: scores}, fingerprint=fingerprint)


def test_three_wins_of_three_queries_have_p_one_in_four():
    """Of the eight sign patterns, +++ and --- reach the observed sum: p = 2/8."""
    assert randomisation_test([np.array([0.1, 0.2, 0.3])]) == (0.25, True)


def test_a_tie_among_sign_patterns_counts_although_sums_round_differently():
    """0.1 + 0.2 - 0.3 is 5.6e-17 and not 0: all eight patterns are at least as far from 0 as an observed 0."""
    differences = np.array([0.1, 0.2, -0.3])
    assert differences.sum() != 0
    assert randomisation_test([differences]) == (1.0, True)


def test_queries_without_a_difference_do_not_change_the_test():
    assert randomisation_test([np.array([0.1, 0.2, 0.3] + [0.0] * 50)]) == (0.25, True)


def test_from_seventeen_differing_queries_on_patterns_are_drawn():
    assert randomisation_test([np.full(16, 0.1)]) == (2 / 2**16, True)
    p, exact = randomisation_test([np.full(17, 0.1)], permutations=1000)
    assert not exact
    assert p >= 1 / 1001, "a p-value of drawn patterns is never 0"


def test_the_same_values_on_both_sides_are_no_difference():
    one = values(1)
    found = pooled({"set": ([one], [one])}, "ndcg@10")
    assert (found.difference, found.low, found.high, found.p_value, found.p_t, found.ties) == (0, 0, 0, 1, 1, 200)
    assert "have the same ndcg@10 on each of the 200 queries" in found.sentence


def test_swapping_the_sides_swaps_the_sign_and_nothing_else():
    a, b = values(1), values(2, shift=0.02)
    ab, ba = pooled({"set": ([a], [b])}, "ndcg@10"), pooled({"set": ([b], [a])}, "ndcg@10")
    assert ab.difference == pytest.approx(-ba.difference)
    assert ab.difference != 0
    assert ab.p_value == ba.p_value
    assert (ab.wins, ab.losses) == (ba.losses, ba.wins)


def test_the_order_of_the_queries_moves_no_number():
    a, b = values(1), values(2, shift=0.02)
    order = random.Random(0).sample(list(a), len(a))
    assert pooled({"s": ([{q: a[q] for q in order}], [b])}, "ndcg@10") == pooled({"s": ([a], [b])}, "ndcg@10")


def test_another_seed_draws_other_patterns_and_the_same_seed_the_same():
    a, b = values(1), values(2, shift=0.015)
    first, again, other = (pooled({"s": ([a], [b])}, "ndcg@10", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first.p_value, first.low) != (other.p_value, other.low)
    assert first.p_value == pytest.approx(other.p_value, abs=0.01)


def test_seeds_are_averaged_per_query_before_testing():
    """Three seeds of one side are one value a query: n stays the number of queries, and their noise shrinks."""
    a = [values(seed) for seed in (1, 2, 3)]
    b = [values(seed, shift=0.01) for seed in (4, 5, 6)]
    found = compare([evaluation_of(one) for one in a], [evaluation_of(one) for one in b], NDCG)
    assert (found.queries, found.seeds_a, found.seeds_b) == (200, 3, 3)
    averaged = [{q: sum(one[q] for one in side) / 3 for q in side[0]} for side in (a, b)]
    alone = pooled({"set": ([averaged[0]], [averaged[1]])}, "ndcg@10")
    assert found.p_value == alone.p_value
    assert found.smallest_visible == pytest.approx(alone.smallest_visible)
    assert found.smallest_visible < pooled({"set": ([a[0]], [b[0]])}, "ndcg@10").smallest_visible
    assert "(mean of 3 seeds)" in str(found)


def test_different_queries_are_an_error_that_names_some():
    a, b = values(1), values(2)
    b["extra"] = b.pop("q7")
    with pytest.raises(NegatronError, match=r"1 only on the first side, such as 'q7'; 1 only on the second side, such as 'extra'"):
        compare([evaluation_of(a)], [evaluation_of(b)])
    with pytest.raises(NegatronError, match="'q7'"):
        compare([evaluation_of(a), evaluation_of(b)], [evaluation_of(a)])


@pytest.mark.parametrize(
    ("change", "said"), [({"split": "dev"}, "evaluated on test, .* on dev"), ({"fingerprint": "b"}, "judgements are not")]
)
def test_evaluations_of_other_judgements_are_not_compared(change, said):
    with pytest.raises(NegatronError, match=said):
        compare([evaluation_of(values(1), fingerprint="a")], [evaluation_of(values(2), **({"fingerprint": "a"} | change))])


def test_too_few_queries_are_an_error():
    with pytest.raises(NegatronError, match="at least two"):
        pooled({"set": ([{"q": 1.0}], [{"q": 0.5}])}, "ndcg@10")
    with pytest.raises(NegatronError, match="nothing to compare"):
        compare([], [])


def test_more_queries_can_show_smaller_differences():
    draw = np.random.default_rng(0).standard_normal(4000)
    few, many = (smallest_visible_difference([draw[:n]]) for n in (250, 4000))
    assert 3.5 < few / many < 4.5, "four times fewer standard errors for sixteen times the queries"


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_correction_can_take_visibility_away():
    a = values(1)
    alone = next(
        found
        for shift in np.arange(0.012, 0.03, 0.001)
        if 0.02 < (found := pooled({"s": ([a], [values(2, shift=float(shift))])}, "ndcg@10")).p_value < 0.05
    )
    assert alone.visible
    corrected = correct([alone, alone, alone])[0]
    assert corrected.p_holm == pytest.approx(3 * alone.p_value)
    assert not corrected.visible
    assert corrected.sentence.startswith("No visible difference")
    assert "p (Holm)" in corrected.sentence


def test_the_sentence_says_who_is_better_whichever_side_it_is():
    a, b = values(1), values(2, shift=0.05)
    better = pooled({"s": ([a], [b])}, "ndcg@10", name_a="before", name_b="after").sentence
    assert better.startswith("after is better than before on ndcg@10 by 0.0")
    worse = pooled({"s": ([b], [a])}, "ndcg@10", name_a="after", name_b="before").sentence
    assert worse.startswith("after is better than before on ndcg@10 by 0.0")
    for sentence in (better, worse):
        low, high = map(float, sentence.split("[")[1].split("]")[0].split(","))
        assert 0 < low < high
        assert "p < 0.0001, n = 200" in sentence
        assert "missed more than one time in five" in sentence


def test_a_comparison_comes_back_from_its_json():
    found = correct([pooled({"s": ([values(1)], [values(2, shift=0.02)])}, "ndcg@10")])[0]
    assert Comparison.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_every_data_set_weighs_the_same_in_a_pooled_comparison():
    large = ({f"q{i}": 0.0 for i in range(100)}, {f"q{i}": 0.0 for i in range(100)})
    small = ({"a": 0.0, "b": 0.0}, {"a": 0.2, "b": 0.4})
    found = pooled({"large": ([large[0]], [large[1]]), "small": ([small[0]], [small[1]])}, "ndcg@10")
    assert found.difference == pytest.approx((0.0 + 0.3) / 2)
    assert found.p_value == 0.5, "2 of the 4 sign patterns of the two queries that differ"
    assert (found.data, found.queries, found.interval_kind) == (("large", "small"), 102, "percentile")
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.2)


def test_pooling_sets_shows_what_one_set_cannot():
    sides = {f"set{n}": ([values(n)], [values(n + 50, shift=0.012)]) for n in range(6)}
    together = pooled(sides, "ndcg@10")
    alone = [pooled({name: side}, "ndcg@10") for name, side in sides.items()]
    assert together.visible
    assert together.smallest_visible < min(one.smallest_visible for one in alone) / 2


def test_an_interval_of_one_side_holds_its_mean():
    one = values(3)
    low, high = mean_interval(one)
    mean = sum(one.values()) / len(one)
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(list(one.values()), ddof=1) / np.sqrt(len(one)), rel=0.1)


def test_a_side_is_one_evaluation_or_a_folder_of_seeds(tmp_path):
    grades = {"q1": {"d": 1}, "q2": {"d": 1}}
    for seed, score in ((13, 1.0), (14, 2.0)):
        run = {"q1": [ScoredDocument("q1", "d", score), ScoredDocument("q1", "e", 1.5)]}
        write_evaluation(tmp_path / "arm" / f"seed-{seed}", run, score_run(run, grades, [Measure("mrr", 10)]))
    (tmp_path / "arm" / ".seed-15.partial").mkdir()
    (tmp_path / "arm" / ".seed-15.partial" / "scores.json").write_text("{")
    assert [one.of("mrr@10")["q1"] for one in read_side(tmp_path / "arm")] == [0.5, 1.0]
    assert len(read_side(tmp_path / "arm" / "seed-13")) == 1
    with pytest.raises(DataError, match="no such folder"):
        read_side(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folders inside"):
        read_side(tmp_path / "empty")
