"""The report of a folder: counts by source and rule, shortage, and the estimate of false negatives."""

from __future__ import annotations

import pytest

from negatron.identity import stream
from negatron.negatives.filters import chain, judge
from negatron.negatives.selection import SelectionSettings, choose
from negatron.negatives.summary import Sieve, Summary, estimated_false, in_words
from negatron.types import Candidate, Document, JudgedQuery, Origin, Positive, Query

SETTINGS = SelectionSettings(negatives=2, relative_margin=0.0, near_copy=None, choice="hardest", margin_against="highest")


def item(
    id_: str, positives: dict[str, float], candidates: dict[str, float], settings: SelectionSettings = SETTINGS, source: str = "dense"
) -> JudgedQuery:
    """Positives and candidates by teacher score; a candidate that is named among the positives is one that the source found."""
    query = Query(id_, f"question {id_}")
    known = tuple(Positive(Document(name, f"{id_} {name}"), score) for name, score in positives.items())
    found = [
        Candidate(id_, Document(name, f"{id_} {name}"), (Origin(source, "m", rank=rank),), score)
        for rank, (name, score) in enumerate(candidates.items(), 1)
    ]
    return choose(JudgedQuery(query, known, judge(chain(settings), query, known, found)), settings, stream(0, "select", id_))


def sieve(*items: JudgedQuery) -> dict[str, int]:
    counted = Sieve(chain(SETTINGS), SETTINGS)
    assert list(counted.watch(items)) == list(items)
    return counted.as_json()


def test_a_hidden_positive_is_judged_and_chosen_like_an_unknown_one() -> None:
    """Limit 0.9. Hidden p2 (0.5) passes and is chosen before 0.4; hidden beside 0.6 and 0.7 it passes and is not chosen."""
    chosen = item("q1", {"p1": 0.9, "p2": 0.5}, {"p2": 0.5, "a": 0.4, "b": 0.3})
    beaten = item("q2", {"p1": 0.9, "p2": 0.5}, {"a": 0.7, "b": 0.6, "p2": 0.5})
    too_close = item("q3", {"p1": 0.5, "p2": 0.9}, {"p2": 0.9, "a": 0.1})
    assert sieve(chosen) == {"known": 1, "hidden": 1, "let_through": 1, "chosen": 1}
    assert sieve(beaten) == {"known": 1, "hidden": 1, "let_through": 1, "chosen": 0}
    assert sieve(too_close) == {"known": 1, "hidden": 1, "let_through": 0, "chosen": 0}
    assert sieve(chosen, beaten, too_close) == {"known": 3, "hidden": 3, "let_through": 2, "chosen": 1}


def test_nothing_is_hidden_where_a_query_has_one_positive_or_none_was_found() -> None:
    assert sieve(item("q1", {"p": 0.9}, {"p": 0.9, "a": 0.2}), item("q2", {"p": 0.9, "o": 0.5}, {"a": 0.2}))["hidden"] == 0


def test_one_positive_of_a_query_is_hidden_and_all_found_ones_count() -> None:
    counted = sieve(item("q", {"p1": 0.9, "p2": 0.5, "p3": 0.4, "p4": 0.3}, {"p2": 0.5, "p3": 0.4, "p4": 0.3, "a": 0.1}))
    assert (counted["known"], counted["hidden"]) == (3, 1)
    assert estimated_false(counted | {"chosen": 1}) == 3.0


def test_the_estimate_is_right_where_as_many_are_unknown_as_known() -> None:
    """100 queries with known positives at 0.9 and at x, and an unknown one at x', x and x' alike: both are chosen before the others."""
    draw = stream(0, "scores")
    items, false, kept = [], 0, 0
    for number in range(100):
        x, other = draw.random(), draw.random()
        made = item(f"q{number}", {"p1": 0.9, "p2": x}, {"p2": x, "unknown": other, "a": 0.5, "b": 0.4})
        items.append(made)
        false += sum(j.kept for j in made.judged if j.candidate.document.id == "unknown")
        kept += sum(j.kept for j in made.judged)
    assert 30 < false < 60 and kept > 150
    assert estimated_false(sieve(*items)) == pytest.approx(false, abs=15)


def report(*items: JudgedQuery, wanted: int | None = 2) -> str:
    summary = Summary()
    for one in items:
        summary.add(one)
    return in_words({"summary": summary.as_json(), "sieve": sieve(*items)}, wanted)


def test_the_report_counts_by_source_and_rule() -> None:
    text = report(
        item("q1", {"p1": 0.9, "p2": 0.5}, {"p2": 0.5, "a": 0.95, "b": 0.3, "c": 0.2, "d": 0.1}),
        item("q2", {"p1": 0.9, "p2": 0.5}, {"b": 0.6}, source="bm25"),
    )
    assert text.splitlines() == [
        "  source  proposed  kept  known positive  relative margin",
        "  bm25           1     1               0                0",
        "  dense          5     2               1                1",
        "  teacher score  lowest   25 %  median   75 %  highest",
        "  positives       0.500  0.500   0.700  0.900    0.900",
        "  candidates      0.100  0.225   0.400  0.575    0.950",
        "  kept            0.200  0.250   0.300  0.450    0.600",
        "1 of 2 queries have fewer than 2 negatives, 0 have none",
        "known positives, hidden one at a time: 100.0 % of 1 pass the filters, 100.0 % would have been chosen",
        "estimated false negatives: 33.3 % of 3, if as many positives are unknown as known",
        "1 of 3 negatives score at least as high as their query's weakest positive",
    ]


def test_the_report_counts_what_was_filled_dropped_and_marked() -> None:
    filling = SETTINGS.model_copy(update={"when_short": "fill:random"})
    dropping = SETTINGS.model_copy(update={"when_short": "drop"})
    marking = SelectionSettings(negatives=1, negative_below=0.1)
    filled = item("q1", {"p": 0.9}, {"r1": 0.1, "r2": 0.2, "r3": 0.3}, filling, source="random")
    dropped = item("q2", {"p": 0.9}, {"a": 0.1}, dropping)
    marked = item("q3", {"p": 0.99}, {"a": 0.93, "b": 0.5, "c": 0.05}, marking)
    summary = Summary()
    for one in (filled, dropped, marked):
        summary.add(one)
    facts = summary.as_json()
    assert (facts["filled"], facts["dropped_queries"], facts["pseudo_positives"]) == (2, 1, 1)
    assert facts["rejected"] == {"teacher threshold": 2} and facts["not_chosen"] == 2, "an unused reserve is no rejection"
    text = in_words({"summary": facts}, None)
    assert "1 queries were dropped, having too few" in text and "2 negatives were filled up from the reserve" in text
    assert "1 candidates look like positives to the teacher" in text and "estimated" not in text
