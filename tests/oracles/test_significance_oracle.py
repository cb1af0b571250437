"""Tests and intervals against scipy.stats, counting all patterns, and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from negatron.evaluation.significance import bootstrap_interval, pooled, randomisation_test, smallest_visible_difference, t_test


def differences(seed: int, count: int, shift: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    found = shift + 0.1 * draw.standard_normal(count)
    return np.where(draw.random(count) < 0.3, 0.0, found)


@pytest.mark.parametrize("count", [2, 5, 11])
def test_the_exact_p_value_equals_scipys(count):
    found = differences(count, count, shift=0.05)
    theirs = stats.permutation_test((found,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided")
    p, exact = randomisation_test([found])
    assert exact
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_the_drawn_p_value_is_near_the_one_of_all_patterns():
    found = differences(3, 26, shift=0.04)
    count = np.count_nonzero(found)
    assert 16 < count <= 20
    signs = np.array(list(itertools.product([-1, 1], repeat=count)))
    sums = np.abs(signs @ found[found != 0])
    every = float((sums >= abs(found.sum()) - 1e-12).mean())
    assert 0.005 < every < 0.6
    p, exact = randomisation_test([found])
    assert not exact
    assert p == pytest.approx(every, abs=4 * np.sqrt(every * (1 - every) / 100_000))


def test_the_pooled_p_value_equals_one_counted_set_by_set():
    sets = [differences(1, 6, 0.05), np.array([0.3, -0.1, 0.2, 0.25])]
    observed = abs(np.mean([one.mean() for one in sets]))
    assert observed > 0
    reached = [
        abs(np.mean([(np.array(signs[:6]) * sets[0]).mean(), (np.array(signs[6:]) * sets[1]).mean()])) >= observed - 1e-12
        for signs in itertools.product([-1, 1], repeat=10)
    ]
    assert np.mean(reached) != randomisation_test([np.concatenate(sets)])[0], "the weights of the sets do not matter here"
    assert randomisation_test(sets)[0] == pytest.approx(np.mean(reached), abs=1e-12)


def test_the_paired_t_test_equals_scipys():
    a, b = np.random.default_rng(1).random(50), np.random.default_rng(2).random(50)
    assert t_test([b - a]) == pytest.approx(stats.ttest_rel(b, a).pvalue, rel=1e-9)


def test_the_smallest_visible_difference_is_found_four_times_in_five():
    """Power of the two-sided t-test at that difference, by the non-central t distribution."""
    spread = differences(5, 300)
    size = smallest_visible_difference([spread])
    error = spread.std(ddof=1) / np.sqrt(300)
    limit = stats.t.ppf(0.975, 299)
    power = stats.nct.sf(limit, 299, size / error) + stats.nct.cdf(-limit, 299, size / error)
    assert power == pytest.approx(0.8, abs=0.005)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    held = 0
    for seed in range(200):
        found = np.random.default_rng(seed).standard_normal(60) + 0.3
        low, high, _ = bootstrap_interval([found], seed=seed, resamples=400)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_no_difference_is_called_visible_about_one_time_in_twenty():
    seen = 0
    for seed in range(300):
        p, _ = randomisation_test([differences(seed, 40)], seed=seed, permutations=2000)
        seen += p < 0.05
    assert 0.02 <= seen / 300 <= 0.09


def test_a_pooled_interval_resamples_within_each_set():
    """A set of two queries and one of 500: the width comes from the spread within each set, not from that of all queries together."""
    sets = [np.random.default_rng(1).standard_normal(500), np.random.default_rng(2).standard_normal(300) + 50.0]
    low, high, kind = bootstrap_interval(sets)
    expected = 2 * 1.96 * np.sqrt(sets[0].var(ddof=1) / 500 + sets[1].var(ddof=1) / 300) / 2
    assert kind == "percentile"
    assert high - low == pytest.approx(expected, rel=0.1)
    values = [({f"q{i}": 0.0 for i in range(len(one))}, {f"q{i}": float(x) for i, x in enumerate(one)}) for one in sets]
    found = pooled({str(n): ([a], [b]) for n, (a, b) in enumerate(values)}, "x")
    assert found.low < found.difference < found.high
