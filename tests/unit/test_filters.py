from __future__ import annotations

import pytest

from negatron.conformance import check_filter
from negatron.errors import SettingError
from negatron.negatives.filters import AbsoluteMargin, FilterSettings, KnownPositive, NearCopy, RelativeMargin, SameText, chain, judge
from negatron.types import Candidate, Document, Origin, Positive, Query

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
