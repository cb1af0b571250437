from __future__ import annotations

import pytest

from negatron.conformance import check_filter
from negatron.errors import SettingError
from negatron.negatives.bounds import RankWindow, ScoreRange, TeacherThreshold
from negatron.negatives.copies import NearCopy, SameText
from negatron.negatives.filters import (
    AbsoluteMargin,
    FilterSettings,
    KnownPositive,
    MinedFilterSettings,
    RelativeMargin,
    chain,
    judge,
    judge_again,
)
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict

QUERY = Query("q", "how do cells divide")
ANSWER = Document("d1", "Mitosis splits the nucleus before the body of the cell separates in two equal halves.", "Cells")


def candidate(id_: str, text: str, score: float | None = None) -> Candidate:
    return Candidate("q", Document(id_, text), (Origin("bm25", "m", rank=1),), score)


def kept(rule, positives, candidates) -> list[bool]:
    check_filter(rule, QUERY, positives, candidates)
    return [verdict.kept for verdict in rule.judge(QUERY, positives, candidates)]


def test_every_known_positive_is_rejected_not_only_the_examples_own() -> None:
    positives = [Positive(ANSWER), Positive(Document("d2", "another answer"))]
    assert kept(KnownPositive(), positives, [candidate("d2", "another answer"), candidate("d3", "x")]) == [False, True]


def test_copies_of_positive_query_and_earlier_candidate_are_rejected() -> None:
    copies = [
        "cells  MITOSIS splits the nucleus before the body of the cell separates in two equal halves.",
        ANSWER.text,
        "How do cells divide",
    ]
    candidates = [*(candidate(f"c{n}", text) for n, text in enumerate(copies)), candidate("e", "new"), candidate("f", "New ")]
    assert kept(SameText(), [Positive(ANSWER)], candidates) == [False, False, False, True, False]


def test_a_near_copy_is_rejected_with_its_overlap() -> None:
    near = ANSWER.content.replace("halves", "parts")
    verdicts = NearCopy(0.5).judge(
        QUERY, [Positive(ANSWER)], [candidate("c", near), candidate("e", "Stars shine because hydrogen fuses to helium in them.")]
    )
    assert [v.kept for v in verdicts] == [False, True]
    # 14 runs of three words in both texts; the last one differs: 13 shared of 15
    assert verdicts[0].measured == pytest.approx(13 / 15)
    assert verdicts[0].detail == "near copy of d1"


def test_two_candidates_that_are_near_copies_of_each_other_leave_the_first() -> None:
    text = "Stars shine because hydrogen fuses to helium in their hot and dense core."
    assert kept(NearCopy(0.8), [Positive(ANSWER)], [candidate("a", text), candidate("b", text + " Yes.")]) == [True, False]


def test_a_negative_closer_than_its_positive_is_rejected() -> None:
    positives = [Positive(ANSWER, 0.84)]
    verdicts = RelativeMargin(0.05).judge(QUERY, positives, [candidate("a", "a", 0.81), candidate("b", "b", 0.41)])
    assert [v.kept for v in verdicts] == [False, True]
    assert verdicts[0].limit == pytest.approx(0.798)
    assert kept(AbsoluteMargin(0.1), positives, [candidate("a", "a", 0.75), candidate("b", "b", 0.73)]) == [False, True]


def test_the_relative_margin_keeps_its_sense_below_zero() -> None:
    # limit = -0.2 - 0.05 * 0.2 = -0.21; 0.95 * -0.2 = -0.19 would let a candidate above the positive through
    assert kept(RelativeMargin(0.05), [Positive(ANSWER, -0.2)], [candidate("a", "a", -0.195), candidate("b", "b", -0.22)]) == [False, True]


def test_the_weakest_positive_sets_the_limit() -> None:
    positives = [Positive(ANSWER, 0.9), Positive(Document("d2", "x"), 0.5)]
    assert kept(RelativeMargin(0.0), positives, [candidate("a", "a", 0.6), candidate("b", "b", 0.49)]) == [False, True]


@pytest.mark.parametrize(
    ("against", "expected"), [("lowest", [False, False, True]), ("median", [False, True, True]), ("highest", [True, True, True])]
)
def test_a_margin_is_measured_from_the_positive_that_is_asked_for(against: str, expected: list[bool]) -> None:
    positives = [Positive(Document(str(n), str(n)), score) for n, score in enumerate((0.9, 0.5, 0.2))]
    candidates = [candidate("a", "a", 0.6), candidate("b", "b", 0.4), candidate("c", "c", 0.1)]
    assert kept(RelativeMargin(0.0, against), positives, candidates) == expected
    assert kept(AbsoluteMargin(0.0, against), positives, candidates) == expected
    assert [rule.against for rule in chain(FilterSettings(margin_against=against, absolute_margin=0.1))[-2:]] == [against, against]


def test_a_margin_without_scores_is_refused_not_ignored() -> None:
    with pytest.raises(SettingError, match="needs teacher scores"):
        RelativeMargin(0.05).judge(QUERY, [Positive(ANSWER)], [candidate("a", "a", 0.1)])
    with pytest.raises(SettingError, match="candidate a of query q has none"):
        RelativeMargin(0.05).judge(QUERY, [Positive(ANSWER, 0.5)], [candidate("a", "a")])


def test_a_rejected_candidate_is_not_shown_to_later_rules_and_keeps_its_reason() -> None:
    judged = judge(chain(FilterSettings()), QUERY, [Positive(ANSWER, 0.8)], [candidate("d1", "x", 0.8), candidate("e", "far away", 0.1)])
    assert [v.rule for v in judged[0].verdicts] == ["known positive"]
    assert [v.rule for v in judged[1].verdicts] == ["known positive", "same text", "near copy", "relative margin"]
    assert [j.kept for j in judged] == [False, True]


@pytest.mark.parametrize(
    ("change", "rule"), [("near_copy", "near copy"), ("relative_margin", "relative margin"), ("absolute_margin", "absolute margin")]
)
def test_every_filter_setting_has_an_effect(change: str, rule: str) -> None:
    everything = FilterSettings(near_copy=0.9, relative_margin=0.05, absolute_margin=0.1)
    without = everything.model_copy(update={change: None})
    assert {f.name for f in chain(everything)} - {f.name for f in chain(without)} == {rule}


def found(id_: str, *ranks: tuple[str, int | None], score: float | None = None) -> Candidate:
    return Candidate("q", Document(id_, id_), tuple(Origin(source, "m", rank=rank) for source, rank in ranks), score)


def test_the_rank_window_counts_the_best_rank_of_any_source() -> None:
    candidates = [
        found("a", ("bm25", 1)),
        found("b", ("bm25", 10)),
        found("c", ("bm25", 30), ("dense", 2)),
        found("d", ("bm25", 51), ("dense", 50)),
        found("e", ("dense", 51)),
        found("f", ("random", 1)),
        found("g", ("random", 1), ("bm25", 3)),
        found("h", ("imported", None)),
    ]
    assert kept(RankWindow(10, 50), [Positive(ANSWER)], candidates) == [False, True, False, True, False, True, False, True]
    assert kept(RankWindow(None, 50), [Positive(ANSWER)], candidates) == [True, True, True, True, False, True, True, True]
    verdicts = RankWindow(10, 50).judge(QUERY, [Positive(ANSWER)], candidates)
    assert [(v.measured, v.limit) for v in verdicts[:5]] == [(1, 10), (10, 10), (2, 10), (50, 50), (51, 50)]
    assert verdicts[0].detail == "rank from 10 to 50"


def test_the_rank_window_is_by_retrieval_whatever_the_other_filters_do() -> None:
    """The first two are rejected by other rules; the third keeps its rank 3 and is not the first of what is left."""
    candidates = [candidate("d1", "x"), candidate("c", ANSWER.text), candidate("e", "some other text")]
    ranked = [Candidate("q", c.document, (Origin("bm25", "m", rank=n),)) for n, c in enumerate(candidates, 1)]
    rules = chain(MinedFilterSettings(relative_margin=None, rank_from=3))
    assert [j.verdicts[-1].rule for j in judge(rules, QUERY, [Positive(ANSWER)], ranked)] == ["known positive", "same text", "rank window"]
    assert [j.kept for j in judge(rules, QUERY, [Positive(ANSWER)], ranked)] == [False, False, True]


def test_the_score_range_holds_both_bounds() -> None:
    candidates = [candidate(str(n), str(n), score) for n, score in enumerate((-0.1, 0.0, 0.5, 0.7, 0.71))]
    assert kept(ScoreRange(0.0, 0.7), [Positive(ANSWER, 0.9)], candidates) == [False, True, True, True, False]
    assert kept(ScoreRange(None, 0.5), [], candidates) == [True, True, True, False, False]
    with pytest.raises(SettingError, match="needs teacher scores"):
        ScoreRange(None, 0.5).judge(QUERY, [], [candidate("a", "a")])


def test_a_teachers_threshold_marks_what_looks_positive() -> None:
    candidates = [candidate(str(n), str(n), score) for n, score in enumerate((0.05, 0.1, 0.5, 0.9, 0.95))]
    verdicts = TeacherThreshold(0.1, 0.9).judge(QUERY, [Positive(ANSWER, 0.99)], candidates)
    assert [v.kept for v in verdicts] == [True, False, False, False, False]
    assert [v.detail for v in verdicts] == ["", "", "", "", "pseudo-positive"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank_from": 9, "rank_to": 3}, "rank_from = 9 lies above rank_to = 3"),
        ({"min_score": 0.5, "max_score": 0.4}, "min_score = 0.5 lies above max_score = 0.4"),
        ({"negative_below": 0.5, "positive_above": 0.4}, "positive_above = 0.4 lies below negative_below = 0.5"),
    ],
)
def test_a_range_that_holds_nothing_is_refused(given: dict, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        MinedFilterSettings.checked(given)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"rank_from": 5}, "rank window"),
        ({"rank_to": 5}, "rank window"),
        ({"min_score": 0.1}, "score range"),
        ({"max_score": 0.7}, "score range"),
        ({"negative_below": 0.1}, "teacher threshold"),
    ],
)
def test_a_rule_is_in_the_chain_when_its_number_is_given(change: dict, rule: str) -> None:
    usual = {f.name for f in chain(MinedFilterSettings())}
    assert {f.name for f in chain(MinedFilterSettings(**change))} - usual == {rule}
    off = MinedFilterSettings(relative_margin=None)
    assert not off.needs_teacher and MinedFilterSettings(relative_margin=None, **change).needs_teacher == (rule != "rank window")


def test_judging_again_trusts_what_was_decided_by_texts_only_under_the_same_limits() -> None:
    """The stored verdicts are made up, so that it shows which of them are believed."""
    rules = chain(FilterSettings(near_copy=0.9, relative_margin=0.05))
    lies = (Verdict(True, "known positive"), Verdict(False, "same text", detail="a stored verdict"), Verdict(False, "selection", 1.0, 5.0))
    item = JudgedQuery(QUERY, (Positive(ANSWER, 0.8),), (Judged(candidate("e", "far away", 0.1), lies),))
    (trusting,) = judge_again([item], rules, trust_texts=True)
    assert trusting.judged[0].verdicts == lies[:2], "and the choice is forgotten"
    (anew,) = judge_again([item], rules)
    assert [v.rule for v in anew.judged[0].verdicts] == ["known positive", "same text", "near copy", "relative margin"]
    near = (Verdict(True, "known positive"), Verdict(True, "same text"), Verdict(False, "near copy", 0.7, 0.6))
    stricter = JudgedQuery(QUERY, item.positives, (Judged(item.judged[0].candidate, near),))
    (moved,) = judge_again([stricter], rules, trust_texts=True)
    assert moved.judged[0].kept and moved.judged[0].verdicts[2].limit == 0.9, "another limit is another question"
