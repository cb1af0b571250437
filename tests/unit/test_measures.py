"""Measures on runs small enough to check by hand."""

from __future__ import annotations

import copy
import math

import pytest

from negatron.errors import DataError, SettingError
from negatron.evaluation.measures import DEFAULT_MEASURES, Measure, judged_queries, mean_over_judged, measure, ranked
from negatron.types import ScoredDocument

NDCG, MRR = Measure("ndcg", 10), Measure("mrr", 10)


def run_of(**scores: dict[str, float]) -> dict[str, list[ScoredDocument]]:
    return {query: [ScoredDocument(query, document, score) for document, score in found.items()] for query, found in scores.items()}


@pytest.mark.parametrize("text", ["ndcg@10", "recall@100", "precision@5", "map@100", "mrr@10", "success@1", "mrr", "map", "ndcg"])
def test_a_measure_prints_as_it_parses(text):
    assert str(Measure.parse(text)) == text
    assert {Measure.parse(text): 1}[Measure.parse(text.upper())] == 1


@pytest.mark.parametrize(
    ("foreign", "ours"), [("hit@3", "success@3"), ("P@10", "precision@10"), ("R@100", "recall@100"), ("RR@10", "mrr@10")]
)
def test_names_from_elsewhere_are_understood(foreign, ours):
    assert str(Measure.parse(foreign)) == ours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ndgc@10", "did you mean 'ndcg'"),
        ("recall", "recall@10"),
        ("ndcg@0", "at least one"),
        ("ndcg@ten", "not a measure"),
        ("", "not a measure"),
    ],
)
def test_what_is_no_measure_is_refused_in_words(text, said):
    with pytest.raises(SettingError, match=said):
        Measure.parse(text)


def test_the_measures_of_a_short_ranking_are_those_computed_by_hand():
    """Ranking: wrong, right (grade 1), wrong, right (grade 2); one more right document (grade 1) is not found."""
    run = run_of(q={"w1": 9.0, "r1": 8.0, "w2": 7.0, "r2": 6.0})
    grades = {"q": {"r1": 1, "r2": 2, "r3": 1, "w1": 0}}
    ideal = 2 / math.log2(2) + 1 / math.log2(3) + 1 / math.log2(4)
    by_hand = {
        "ndcg@10": (1 / math.log2(3) + 2 / math.log2(5)) / ideal,
        "ndcg@3": (1 / math.log2(3)) / ideal,
        "recall@4": 2 / 3,
        "recall@3": 1 / 3,
        "precision@2": 1 / 2,
        "precision@10": 2 / 10,
        "map@10": (1 / 2 + 2 / 4) / 3,
        "mrr@10": 1 / 2,
        "mrr@1": 0.0,
        "mrr": 1 / 2,
        "success@1": 0.0,
        "success@2": 1.0,
    }
    found = measure(run, grades, [Measure.parse(name) for name in by_hand])
    for name, value in by_hand.items():
        assert found[Measure.parse(name)]["q"] == pytest.approx(value, abs=1e-12), name


def test_mrr_is_cut_before_it_is_computed():
    run = run_of(q={f"w{i:02d}": 100.0 - i for i in range(10)} | {"right": 1.0})
    found = measure(run, {"q": {"right": 1}}, [MRR, Measure("mrr", 11), Measure("mrr")])
    assert found[MRR]["q"] == 0.0
    assert found[Measure("mrr", 11)]["q"] == found[Measure("mrr")]["q"] == pytest.approx(1 / 11)


@pytest.mark.parametrize("run", [{}, {"q2": []}, run_of(q9={"d1": 1.0})], ids=["empty run", "empty list", "another query"])
def test_a_query_without_results_scores_zero(run):
    run = {**run, **run_of(q1={"d1": 1.0})}
    grades = {"q1": {"d1": 1}, "q2": {"d2": 1}}
    found = measure(run, grades)
    assert found.keys() == set(DEFAULT_MEASURES)
    for values in found.values():
        assert values == {"q1": 1.0, "q2": 0.0}
        assert mean_over_judged(values, list(grades)) == 0.5


def test_nothing_found_at_all_scores_zero_everywhere():
    assert measure({}, {"q1": {"d1": 1}}, [NDCG, MRR]) == {NDCG: {"q1": 0.0}, MRR: {"q1": 0.0}}


def test_queries_without_a_positive_are_left_out_and_counted():
    grades = {"q1": {"d1": 1}, "q2": {"d1": 0}, "q3": {}, "q4": {"d1": -1, "d2": 2}}
    assert judged_queries(grades) == (("q1", "q4"), 2)
    assert list(measure(run_of(q2={"d1": 1.0}), grades, [NDCG])[NDCG]) == ["q1", "q4"]


def test_no_judged_query_is_an_error_and_not_a_mean():
    with pytest.raises(DataError, match="grade above 0"):
        mean_over_judged({}, [])


def test_a_document_named_like_its_query_is_not_dropped():
    run = run_of(x={"x": 2.0, "d": 1.0})
    assert measure(run, {"x": {"x": 1}}, [MRR])[MRR]["x"] == 1.0
    assert measure(run, {"x": {"d": 1}}, [MRR])[MRR]["x"] == 0.5


def test_inputs_come_back_unchanged():
    run, grades = run_of(x={"x": 2.0, "d": 1.0}, y={"a": 1.0}), {"x": {"x": 1, "d": 0}, "z": {"a": 1}, "y": {}}
    before = copy.deepcopy((run, grades))
    measure(run, grades)
    assert (run, grades) == before


def test_ties_are_broken_by_document_id_descending_in_every_measure():
    """Equal scores: b is ranked before a. Both kinds of measures, the cut run of mrr and trec_eval's own order, must agree."""
    run = run_of(q={"a": 1.0, "b": 1.0})
    assert [document.document_id for document in ranked(run["q"])] == ["b", "a"]
    for right, rank in (("b", 1), ("a", 2)):
        found = measure(run, {"q": {right: 1}}, [Measure("mrr", 1), Measure("success", 1), Measure("mrr", 2), Measure("mrr")])
        first = 1.0 if rank == 1 else 0.0
        assert [value["q"] for value in found.values()] == [first, first, 1 / rank, 1 / rank]


def test_scores_that_are_equal_in_float32_are_ties():
    close = 1.0 + 1e-9
    assert close > 1.0
    run = run_of(q={"a": close, "b": 1.0})
    assert [document.document_id for document in ranked(run["q"])] == ["b", "a"]
    assert (
        measure(run, {"q": {"a": 1}}, [Measure("mrr", 10)])[MRR]["q"]
        == measure(run, {"q": {"a": 1}}, [Measure("mrr")])[Measure("mrr")]["q"]
        == 0.5
    )


def test_ids_beyond_ascii_are_ordered_as_trec_eval_orders_their_bytes():
    ids = ["é", "z", "中", "\U0001f600", "~", "ｚ"]
    assert [d.document_id for d in ranked(ScoredDocument("q", i, 1.0) for i in ids)] == sorted(ids, key=lambda i: i.encode(), reverse=True)
    for right in ids:
        run = {"q": [ScoredDocument("q", i, 1.0) for i in ids]}
        cut, whole = measure(run, {"q": {right: 1}}, [MRR, Measure("mrr")]).values()
        assert cut == whole


@pytest.mark.parametrize(
    ("run", "grades", "said"),
    [
        ({"q": [ScoredDocument("q", "d", 1.0), ScoredDocument("q", "d", 2.0)]}, {"q": {"d": 1}}, "'d' more than once"),
        ({"q": [ScoredDocument("p", "d", 1.0)]}, {"q": {"d": 1}}, "result of query 'p'"),
        ({"q": [ScoredDocument("q", "d", math.nan)]}, {"q": {"d": 1}}, "not a number"),
        ({"q": [ScoredDocument("q", "d", 1.0)]}, {"q": {"d": 0.5}}, "whole number"),
    ],
    ids=["doubled", "misfiled", "nan", "half a grade"],
)
def test_damage_is_refused_by_name(run, grades, said):
    with pytest.raises(DataError, match=said):
        measure(run, grades)
