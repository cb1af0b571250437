"""Which of the candidates that no filter rejects are chosen, and what happens where there are too few."""

from __future__ import annotations

from collections import Counter

import pytest

from negatron.errors import SettingError
from negatron.identity import stream
from negatron.negatives.selection import DROPPED, SelectionSettings, choose, interleaved
from negatron.types import Candidate, Document, Judged, JudgedQuery, Origin, Positive, Query, Verdict


def judged(id_: str, score: float | None, *origins: tuple[str, int], rejected: bool = False) -> Judged:
    made = tuple(Origin(source, "m", rank=rank) for source, rank in origins or (("dense", 1),))
    return Judged(Candidate("q", Document(id_, id_), made, score), (Verdict(not rejected, "near copy"),))


def query(*candidates: Judged, positives: tuple[float, ...] = (0.8,), id_: str = "q") -> JudgedQuery:
    return JudgedQuery(Query(id_, "?"), tuple(Positive(Document(f"p{n}", "p"), score) for n, score in enumerate(positives)), candidates)


def chosen(item: JudgedQuery) -> list[str]:
    """Ids of the negatives, in the order of their places."""
    places = {v.measured: j.candidate.document.id for j in item.judged if j.kept for v in j.verdicts if v.rule == "selection"}
    return [places[place] for place in sorted(places)]


def drawn(item: JudgedQuery, seed: int = 0, **settings) -> list[str]:
    return chosen(choose(item, SelectionSettings(**settings), stream(seed, "select", item.query.id)))


LADDER = query(*(judged(f"d{n:02d}", n / 100, ("dense", 100 - n)) for n in range(60)))


def test_the_hardest_are_the_highest_teacher_scores_whoever_found_them() -> None:
    item = query(
        judged("a", 0.1, ("bm25", 1)), judged("b", 0.7, ("bm25", 9)), judged("c", 0.5, ("dense", 1)), judged("x", 0.9, rejected=True)
    )
    assert drawn(item, negatives=2, choice="hardest") == ["b", "c"]
    assert drawn(item, negatives=2, choice="top") == ["a", "c"]


def test_a_tie_of_scores_goes_by_id() -> None:
    assert drawn(query(judged("b", 0.5), judged("a", 0.5), judged("c", 0.4)), negatives=2, choice="hardest") == ["a", "b"]


def test_quantiles_take_one_from_each_slice_of_the_scores() -> None:
    for seed in range(20):
        ids = drawn(LADDER, seed, negatives=3, choice="quantiles")
        assert [int(id_[1:]) // 20 for id_ in ids] == [2, 1, 0]
    assert len({tuple(drawn(LADDER, seed, negatives=3, choice="quantiles")) for seed in range(20)}) > 10
    assert drawn(query(judged("a", 0.1), judged("b", 0.2)), negatives=3, choice="quantiles") == ["b", "a"]


def test_simans_prefers_scores_near_the_positives() -> None:
    near = query(*LADDER.judged, positives=(0.30,))
    counts = Counter(id_ for seed in range(300) for id_ in drawn(near, seed, negatives=3, choice="simans", simans_a=20.0))
    means = sum(int(id_[1:]) * count for id_, count in counts.items()) / sum(counts.values())
    assert means == pytest.approx(30, abs=1.5)
    above = Counter(id_ for seed in range(300) for id_ in drawn(near, seed, negatives=3, choice="simans", simans_a=20.0, simans_b=1.0))
    sigma = (sum((n - 29.5) ** 2 for n in range(60)) / 60) ** 0.5  # of the candidates' scores, in hundredths: 17.3
    assert sum(int(id_[1:]) * count for id_, count in above.items()) / sum(above.values()) == pytest.approx(30 + sigma, abs=2.5)


def test_simans_draws_by_the_formula() -> None:
    """Two candidates, sigma = 0.1: z = 0 and -2, so the first is taken exp(-0.5 x 0) / (1 + exp(-0.5 x 4)) = 88.1 % of the time."""
    item = query(judged("near", 0.8), judged("far", 0.6), positives=(0.8,))
    first = Counter(drawn(item, seed, negatives=1, choice="simans")[0] for seed in range(4000))
    assert first["near"] / 4000 == pytest.approx(0.881, abs=0.02)


def test_simans_measures_from_the_positive_that_is_named_and_in_any_unit() -> None:
    two = query(*LADDER.judged, positives=(0.1, 0.5))
    low, high = (drawn(two, 1, negatives=5, choice="simans", simans_a=50.0, margin_against=name) for name in ("lowest", "highest"))
    assert max(low) < min(high)
    stretched = [judged(j.candidate.document.id, 7 + 40 * (j.candidate.teacher_score or 0)) for j in LADDER.judged]
    same = query(*stretched, positives=(7 + 40 * 0.8,))
    assert drawn(same, 3, negatives=5, choice="simans") == drawn(LADDER, 3, negatives=5, choice="simans")


def test_candidates_of_one_score_are_drawn_alike() -> None:
    item = query(*(judged(id_, 0.5) for id_ in "abcd"), positives=(0.5,))
    assert set(Counter(drawn(item, seed, negatives=1, choice="simans")[0] for seed in range(100))) == set("abcd")


@pytest.mark.parametrize("choice", ["random", "simans", "quantiles"])
def test_a_draw_depends_on_seed_and_query_and_not_on_the_order_of_candidates(choice: str) -> None:
    turned = query(*reversed(LADDER.judged))
    other = query(*LADDER.judged, id_="other")
    assert drawn(LADDER, 1, choice=choice) == drawn(turned, 1, choice=choice)
    assert drawn(LADDER, 1, choice=choice) != drawn(LADDER, 2, choice=choice)
    assert drawn(LADDER, 1, choice=choice) != drawn(other, 1, choice=choice)


def test_among_draws_from_the_best_only() -> None:
    best = set(drawn(LADDER, negatives=10))
    found = {id_ for seed in range(50) for id_ in drawn(LADDER, seed, negatives=4, choice="random", among=10)}
    assert found == best
    with pytest.raises(ValueError, match="among = 4 leaves nothing to choose for negatives = 5"):
        SelectionSettings(choice="random", among=4)


SHORT = (judged("a", 0.5, ("bm25", 1)), judged("r1", 0.1, ("random", 1)), judged("r2", 0.2, ("random", 2)))


def test_a_reserve_fills_what_is_missing_and_no_more() -> None:
    assert drawn(query(*SHORT), negatives=2, when_short="fill:random") == ["a", "r1"]
    assert drawn(query(*SHORT), negatives=1, when_short="fill:random") == ["a"]
    assert drawn(query(*SHORT), negatives=2) == ["a", "r1"], "without a reserve, random is a source like another"
    found_by_both = (judged("b", 0.4, ("bm25", 2), ("random", 3)), *SHORT)
    assert drawn(query(*found_by_both), negatives=2, when_short="fill:random") == ["a", "b"]


def test_an_unused_reserve_is_no_spare_and_is_used_when_more_is_wanted() -> None:
    item = choose(query(*SHORT), SelectionSettings(negatives=2, when_short="fill:random"), stream(0))
    assert {j.candidate.document.id: j.spare for j in item.judged} == {"a": True, "r1": True, "r2": False}
    assert chosen(choose(item, SelectionSettings(negatives=3, when_short="fill:random"), stream(0))) == ["a", "r1", "r2"]


def test_a_query_that_is_short_is_kept_or_dropped_as_asked() -> None:
    assert drawn(query(*SHORT), negatives=5, when_short="keep") == ["a", "r1", "r2"]
    dropped = choose(query(*SHORT), SelectionSettings(negatives=5, when_short="drop"), stream(0))
    assert chosen(dropped) == [] and {v.detail for j in dropped.judged for v in j.verdicts if v.rule == "selection"} == {DROPPED}
    assert drawn(query(*SHORT), negatives=3, when_short="drop") == ["a", "r1", "r2"]


def test_a_choice_by_scores_without_scores_is_refused() -> None:
    for choice in ("hardest", "simans", "quantiles"):
        with pytest.raises(SettingError, match="needs teacher scores"):
            drawn(query(judged("a", None), judged("b", None)), negatives=1, choice=choice)
        assert SelectionSettings(choice=choice, relative_margin=None).needs_teacher
    assert not SelectionSettings(choice="random", relative_margin=None).needs_teacher


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"simans_a": 1.0}, "simans_a = 1.0 has no effect here: choice = 'top'"),
        ({"among": 9}, "among = 9 has no effect here: choice = 'top' takes the best anyway"),
        ({"when_short": "fill"}, "expected keep, drop or fill:SOURCE"),
        ({"when_short": "fill:"}, "expected keep, drop or fill:SOURCE"),
        ({"margin_against": "lowest", "relative_margin": None}, "margin_against = 'lowest' has no effect here"),
        ({"positive_above": 0.8}, "positive_above = 0.8 has no effect here: negative_below is off"),
    ],
)
def test_what_nothing_would_read_is_refused(given: dict, said: str) -> None:
    with pytest.raises(SettingError, match=said.replace("(", r"\(")):
        SelectionSettings.checked(given)
    SelectionSettings(margin_against="lowest", relative_margin=None, choice="simans")  # which measures from it


def test_sources_take_turns_and_a_candidate_counts_once() -> None:
    items = [judged("a", 0.1, ("bm25", 1), ("dense", 2)), judged("b", 0.1, ("dense", 1)), judged("c", 0.1, ("bm25", 2)), judged("d", 0.1)]
    assert [items[row].candidate.document.id for row in interleaved(items)] == ["a", "b", "c", "d"]
