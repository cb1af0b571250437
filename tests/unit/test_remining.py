"""Negatives that follow the model: Conan's rule on cosines that a person can check, and rounds of mining."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from negatron.errors import NegatronError, SettingError
from negatron.training.remining import ConanReplacement, Look, Remine, RemineRule, Rounds, is_due, replacements, window
from negatron.types import Document, Negative, Origin, Query, TrainingExample


def example(query: str = "q", candidates: int = 30, others: int = 0) -> TrainingExample:
    """`candidates` dense negatives d1 .. dn, the name being the rank, in no order on file; and some of BM25."""
    dense = [Negative(Document(f"d{n}", f"d{n}"), (Origin("dense", "m", rank=n, score=1 - n / 100),)) for n in range(candidates, 0, -1)]
    bm25 = [Negative(Document(f"b{n}", f"b{n}"), (Origin("bm25", "m", rank=n, score=9.0),)) for n in range(others)]
    return TrainingExample(Query(query, f"ask {query}"), Document("p", "the answer"), (*bm25, *dense), frozenset({"the answer"}))


class Model:
    """A model in training, as its cosines: 0.9 for every pair, but what the test sets."""

    def __init__(self) -> None:
        self.cosine: dict[str, float] = {}
        self.asked: list[tuple[str, str]] = []

    def cosines(self, queries: Sequence[str], documents: Sequence[str]) -> list[float]:
        self.asked += zip(queries, documents, strict=True)
        return [self.cosine.get(document, 0.9) for document in documents]

    def look(self, step: int, *examples: TrainingExample) -> Look:
        return Look(step, examples, self.cosines, save_model=lambda folder: None)


def names(given: TrainingExample) -> list[str]:
    return [one.document.id for one in given.negatives]


def rule(**given: Any) -> RemineRule:
    return RemineRule.checked({"negatives": 3} | given)


# ---- the rule --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initial", "now", "stale"),
    [
        (0.9, 0.9, False),
        (0.9, 0.79, False),  # 1.15 * 0.79 = 0.9085, not below 0.9
        (0.9, 0.78, True),  # 0.897
        (0.99, 0.85, False),  # 0.9775 < 0.99, but |0.85| is not below 0.8: still close
        (0.1, -0.9, False),  # and so is |-0.9|, as the rule is written
        (0.1, -0.5, True),
    ],
)
def test_conan_v1_replaces_what_has_fallen_by_a_factor_and_is_not_close(initial: float, now: float, stale: bool) -> None:
    found = replacements(rule(), [initial], [now], [1], replaced=0, candidates=30)
    assert found == ({0: 10} if stale else {})


@pytest.mark.parametrize(("now", "stale"), [(0.39, True), (0.4, False), (-0.9, True)])
def test_conan_v2_replaces_what_is_below_the_limit_wherever_it_began(now: float, stale: bool) -> None:
    for initial in (0.1, 0.9):
        assert bool(replacements(rule(rule="conan.v2"), [initial], [now], [1], replaced=0, candidates=30)) == stale


def test_the_ith_replacement_takes_the_ith_window_and_windows_do_not_overlap() -> None:
    assert [list(window(number, 3, 10)) for number in (1, 2, 3)] == [[10, 11, 12], [13, 14, 15], [16, 17, 18]]
    assert replacements(rule(), [0.9] * 3, [0.1, 0.9, 0.1], [1, 2, 3], replaced=1, candidates=30) == {0: 13, 2: 14}


def test_a_place_in_use_is_not_taken_twice_and_where_the_list_ends_the_negative_stays() -> None:
    assert replacements(rule(), [0.9] * 3, [0.1, 0.1, 0.1], [10, 2, 3], replaced=0, candidates=11) == {0: 11, 1: None, 2: None}


CHANGES: dict[str, Any] = {
    "rule": "conan.v2",
    "every": 50,
    "factor": 2.0,
    "limit": 0.3,
    "negatives": 2,
    "first_rank": 4,
    "source": "bm25",
    "initial": "mined",
}


def test_every_setting_of_the_rule_is_in_the_list() -> None:
    assert CHANGES.keys() == RemineRule.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_the_rule_has_an_effect(name: str) -> None:
    def course(**given: Any) -> list[Any]:
        remine, model, seen = ConanReplacement(rule(**given)), Model(), []
        model.cosine = {"d1": 0.7, "d2": 0.98}
        for step, cosine in ((0, 0.7), (100, 0.5), (200, 0.35)):
            model.cosine |= {"d1": cosine, "d2": cosine + 0.28}
            remine.renew(model.look(step, example(others=2)))
            seen.append(names(remine.current(example(others=2))))
        return [remine.every, seen]

    assert course() != course(**{name: CHANGES[name]})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rule": "conan.v2", "factor": 2.0}, "factor has no effect with rule = 'conan.v2'"),
        ({"rule": "conan.v2", "initial": "mined"}, "initial has no effect"),
        ({"rule": "conan.v3"}, "rule = 'conan.v3'"),
        ({"evry": 3}, "did you mean 'every'"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        rule(**given)


# ---- replacement in a training -----------------------------------------------------------------------------------------------------------


def test_a_query_begins_with_its_hardest_and_trades_what_became_easy() -> None:
    remine, model, given = ConanReplacement(rule()), Model(), example(others=2)
    assert names(remine.current(given)) == ["d1", "d2", "d3", "b0", "b1"]
    assert remine.renew(model.look(0, given)) == 0, "at the first look nothing has changed yet"
    model.cosine = {"d2": 0.2}
    assert remine.renew(model.look(100, given)) == 1
    assert names(remine.current(given)) == ["d1", "d10", "d3", "b0", "b1"]
    model.cosine = {"d1": 0.2, "d10": 0.2}
    assert remine.renew(model.look(200, given)) == 2
    assert names(remine.current(given)) == ["d13", "d14", "d3", "b0", "b1"]
    assert (remine.replaced, remine.exhausted) == (3, 0)


def test_a_new_negative_is_compared_with_its_own_first_cosine() -> None:
    """d10 comes in at 0.3; that it is far below d1's 0.9 does not make it stale, falling to 0.2 does."""
    remine, model, given = ConanReplacement(rule()), Model(), example()
    remine.renew(model.look(0, given))
    model.cosine = {"d1": 0.2, "d10": 0.3}
    assert remine.renew(model.look(100, given)) == 1
    assert remine.renew(model.look(200, given)) == 0
    model.cosine["d10"] = 0.2
    assert remine.renew(model.look(300, given)) == 1


def test_mined_scores_allow_a_replacement_at_the_very_first_look() -> None:
    remine, model = ConanReplacement(rule(initial="mined")), Model()
    model.cosine = {"d3": 0.5}  # mined at 0.97
    assert remine.renew(model.look(0, example())) == 1
    assert names(remine.current(example())) == ["d1", "d2", "d10"]
    unscored = TrainingExample(Query("u", "u"), Document("p", "p"), (Negative(Document("n", "n"), (Origin("dense", "m", rank=1),)),))
    with pytest.raises(SettingError, match="n has no score of 'dense'"):
        remine.renew(model.look(0, unscored))


def test_a_list_that_ends_keeps_its_negatives_and_says_so() -> None:
    remine, model, given = ConanReplacement(rule()), Model(), example(candidates=10)
    remine.renew(model.look(0, given))
    model.cosine = {"d1": 0.1, "d2": 0.1}
    assert remine.renew(model.look(100, given)) == 1
    assert names(remine.current(given)) == ["d10", "d2", "d3"] and remine.exhausted == 1


def test_each_pair_is_asked_for_once_a_look_however_many_examples_share_the_query() -> None:
    remine, model, given = ConanReplacement(rule()), Model(), example()
    remine.renew(model.look(0, given, given, example("r", candidates=1), example("s", candidates=0)))
    assert model.asked == [("ask q", "d1"), ("ask q", "d2"), ("ask q", "d3"), ("ask r", "d1")]


def test_it_remembers_so_many_queries_and_counts_the_others() -> None:
    remine, model = ConanReplacement(rule(), most_queries=2), Model()
    many = [example(name) for name in "qrst"]
    for step in (0, 100):
        remine.renew(model.look(step, *many, many[3]))
        model.cosine = {"d1": 0.1}
    assert [names(remine.current(one))[0] for one in many] == ["d10", "d10", "d1", "d1"]
    assert remine.untracked == 2 + 2 and len(remine.state()["queries"]) == 2


def test_the_state_goes_through_json_and_gives_the_same_negatives_and_the_same_future() -> None:
    remine, model, given = ConanReplacement(rule()), Model(), example()
    remine.renew(model.look(0, given))
    model.cosine = {"d2": 0.2}
    remine.renew(model.look(100, given))
    other = ConanReplacement(rule())
    assert names(other.current(given)) != names(remine.current(given))
    other.restore(json.loads(json.dumps(remine.state())))
    model.cosine = {"d1": 0.2}
    for one in (remine, other):
        one.renew(model.look(200, given))
    assert names(other.current(given)) == names(remine.current(given)) == ["d13", "d10", "d3"]
    assert other.state() == remine.state()
    for another in (ConanReplacement(rule(factor=1.3)), ConanReplacement(rule(), most_queries=5)):
        with pytest.raises(NegatronError, match="another rule"):
            another.restore(remine.state())


def test_two_data_sets_with_the_same_query_id_do_not_meet() -> None:
    remine, model = ConanReplacement(rule()), Model()
    one, other = example(), TrainingExample(Query("q", "another question"), Document("p", "p"), example().negatives)
    remine.renew(model.look(0, one))
    model.cosine = {"d1": 0.1}
    remine.renew(model.look(100, one))
    assert names(remine.current(one)) != names(remine.current(other))


# ---- rounds ----------------------------------------------------------------------------------------------------------------------------


def test_rounds_mine_with_the_model_and_are_read_again_after_a_stop(tmp_path: Path) -> None:
    """What a round finds is kept as a file, and the checkpoint holds the round's number alone."""

    def found(number: int) -> dict[Query, tuple[Negative, ...]]:
        words = json.loads((tmp_path / f"round-{number}.json").read_text())
        return {Query("q", "ask q"): tuple(Negative(Document(word, word), (Origin("dense", "m", round=number),)) for word in words)}

    def mine(number: int, look: Look) -> dict[Query, tuple[Negative, ...]]:
        look.save_model(tmp_path / f"model-{number}")
        (tmp_path / f"round-{number}.json").write_text(json.dumps([f"new in {number}", " The ANSWER"]))
        return found(number)

    saved: list[Path] = []
    rounds, given = Rounds(100, mine, found), example(candidates=1)
    assert rounds.renew(Look(0, [given], Model().cosines, saved.append)) == 0 and not saved
    assert names(rounds.current(given)) == ["d1"]
    rounds.renew(Look(200, [given], Model().cosines, saved.append))
    assert saved == [tmp_path / "model-2"]
    assert names(rounds.current(given)) == ["new in 2"], "a copy of a known positive is no negative"
    other = Rounds(100, mine, found)
    other.restore(json.loads(json.dumps(rounds.state())))
    assert other.current(given) == rounds.current(given)
    assert other.current(example("r")) == example("r"), "a query that was not mined keeps what is on file"
    fresh = Rounds(100, mine, found)
    fresh.restore(Rounds(100, mine, found).state())
    assert fresh.current(given) == given
    with pytest.raises(NegatronError, match="every 100 steps, now every 50"):
        Rounds(50, mine, found).restore(rounds.state())


def test_both_keep_the_protocol_and_are_due_in_their_rhythm() -> None:
    for remine in (ConanReplacement(rule()), Rounds(100, lambda number, look: {}, lambda number: {})):
        assert isinstance(remine, Remine)
        assert [step for step in range(301) if is_due(remine, step)] == [0, 100, 200, 300]
