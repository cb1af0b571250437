"""Stages as values: when each holds, what holds at a step, which negatives an example has then."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from negatron.errors import NegatronError, SettingError
from negatron.settings import Settings
from negatron.training.curriculum import (
    ChoiceReport,
    Curriculum,
    Defaults,
    Stage,
    StepPlan,
    choose_negatives,
    draw_of,
    refuse_unknown_sources,
    sources_of,
    stage_bounds,
)
from negatron.training.recipe import TrainingSettings
from negatron.training.remining import RemineRule
from negatron.training.weighting import Ramp, Weighting
from negatron.types import Document, Negative, Origin, Query, TrainingExample

DEFAULTS = Defaults(batch_size=4, temperature=0.05, false_negative_margin=0.1)


class Recipe(Settings):
    """Stands for the settings of a training, which hold the stages."""

    stages: tuple[Stage, ...] = ()


def curriculum(*stages: dict[str, Any], examples: int = 20, epochs: int = 1, defaults: Defaults = DEFAULTS, **more: Any) -> Curriculum:
    return Curriculum(defaults, examples, epochs, Recipe.checked({"stages": list(stages)}).stages, **more)


def negative(name: str, **ranks: int) -> Negative:
    """negative("a", dense=3, bm25=1): document a, third in dense, first in BM25."""
    return Negative(Document(name, f"text of {name}"), tuple(Origin(source, "maker", rank=rank) for source, rank in ranks.items()))


def example(*negatives: Negative, query: str = "q") -> TrainingExample:
    return TrainingExample(Query(query, f"question {query}"), Document("p", "the answer"), negatives)


def names(chosen: TrainingExample) -> list[str]:
    return [one.document.id for one in chosen.negatives]


def plan_of(**stage: Any) -> StepPlan:
    return curriculum({"share": 1.0} | stage).at(0)


def chosen_by(given: TrainingExample, *, seed: int = 1, **stage: Any) -> list[str]:
    return names(choose_negatives(given, plan_of(**stage), draw_of(given, seed=seed, epoch=0)))


# ---- when ------------------------------------------------------------------------------------------------------------------------------


def test_no_stages_and_no_weighting_is_what_the_settings_of_the_training_say_at_every_step() -> None:
    """9 examples, batches of 4, 2 epochs: 4 + 4 + 1, twice, as without a curriculum."""
    plain = curriculum(examples=9, epochs=2)
    plans = [plain.at(step) for step in range(plain.steps)]
    assert [(plan.epoch, plan.first_of_epoch, plan.examples) for plan in plans] == [
        (0, 0, 4), (0, 4, 4), (0, 8, 1), (1, 0, 4), (1, 4, 4), (1, 8, 1),
    ]  # fmt: skip
    for plan in plans:
        assert plan.loss_options() == {
            "temperature": 0.05,
            "false_negative_margin": 0.1,
            "focal": 0.0,
            "importance": 0.0,
            "hardness": 0.0,
            "hardness_of": "all",
        }
        assert (plan.stage, plan.batch_size, plan.quotas, plan.bands) == (0, 4, None, None)
    given = example(negative("a", dense=1), negative("b"))
    assert choose_negatives(given, plans[0], Random(0)) is given


def test_a_stage_ends_where_its_share_of_all_examples_seen_ends() -> None:
    """20 examples, 2 epochs: a quarter of 40 is 10, so the second stage begins in the middle of the first epoch."""
    two = curriculum({"share": 0.25, "batch_size": 4}, {"share": 0.75, "batch_size": 8}, examples=20, epochs=2)
    assert [(span.stage, span.epoch, span.first_of_epoch, span.examples, span.batch_size, span.first_step) for span in two.spans] == [
        (1, 0, 0, 10, 4, 0),
        (2, 0, 10, 10, 8, 3),
        (2, 1, 0, 20, 8, 5),
    ]
    assert [two.at(step).examples for step in range(two.steps)] == [4, 4, 2, 8, 2, 8, 8, 4]
    assert [two.at(step).stage for step in range(two.steps)] == [1, 1, 1, 2, 2, 2, 2, 2]


def test_three_thirds_may_be_written_short_and_lose_no_example() -> None:
    stages = [Stage(share=0.333) for _ in range(3)]
    assert stage_bounds(stages, 10) == [(0, 3), (3, 7), (7, 10)]


def test_progress_is_the_share_of_the_examples_seen_before_the_step() -> None:
    two = curriculum({"share": 0.5}, {"share": 0.5, "batch_size": 5})
    assert [two.at(step).progress for step in range(two.steps)] == pytest.approx([0, 0.2, 0.4, 0.5, 0.75])
    assert [two.at(step).stage_progress for step in range(two.steps)] == pytest.approx([0, 0.4, 0.8, 0, 0.5])


def test_a_ramp_of_a_stage_runs_over_the_stage_and_one_of_the_training_over_all_of_it() -> None:
    falling = Defaults(batch_size=5, temperature=Ramp(start=0.1, to=0.0625))
    two = curriculum({"share": 0.5}, {"share": 0.5, "temperature": {"from": 0.04, "to": 0.02}}, defaults=falling)
    assert [two.at(step).temperature for step in range(4)] == pytest.approx([0.1, 0.090625, 0.04, 0.03])


def test_weights_follow_the_temperature_of_their_step() -> None:
    """HCL's beta of 1 is 1 / temperature of the cosine: 20 at 0.05, 50 at 0.02."""
    two = curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.02}, weighting=Weighting(importance=1.0))
    assert [two.at(0).importance, two.at(two.steps - 1).importance] == pytest.approx([20, 50])


def test_off_takes_the_margin_away_for_a_stage_and_silence_leaves_it() -> None:
    three = curriculum({"share": 0.4}, {"share": 0.4, "false_negative_margin": "off"}, {"share": 0.2, "false_negative_margin": 0})
    assert [three.at(step).false_negative_margin for step in (0, 2, 4)] == [0.1, None, 0.0]


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_training_has_no_plan(step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step} of a training of 5 steps"):
        curriculum().at(step)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"share": 0.5}, {"share": 0.4}], r"the shares of the 2 stages add up to 0\.9, expected 1: \[0\.5, 0\.4\]"),
        ([{"share": 0.99}, {"share": 0.01, "name": "hard"}], r"stage 2 \('hard'\) gets none of the 20 examples"),
    ],
)
def test_shares_that_leave_something_out_are_refused(stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        curriculum(*stages)


def test_no_examples_are_refused() -> None:
    with pytest.raises(SettingError, match="no examples"):
        curriculum(examples=0)


# ---- how stages are written --------------------------------------------------------------------------------------------------------------


def test_stages_are_read_from_toml(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("""
        [[stages]]
        name = "warm"
        share = 0.25
        quotas = {}
        [[stages]]
        share = 0.75
        batch_size = 64
        temperature = {from = 0.05, to = 0.02, shape = "cosine"}
        false_negative_margin = "off"
        quotas = {dense = 3, synthetic = 1}
        bands.dense = [1, 10]
    """)
    warm, hard = Recipe.read(tmp_path / "recipe.toml").stages
    assert (warm.name, warm.quotas, warm.bands) == ("warm", {}, None)
    assert (hard.quotas, hard.bands, hard.batch_size) == ({"dense": 3, "synthetic": 1}, {"dense": (1, 10)}, 64)
    assert hard.temperature == Ramp(start=0.05, to=0.02, shape="cosine") and hard.false_negative_margin == "off"
    written = json.loads(json.dumps(Recipe(stages=(warm, hard)).as_json()))
    assert Recipe.checked(written) == Recipe(stages=(warm, hard)), "what a manifest holds can be read again"


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"temprature": 1.0}, r"there is no setting 'temprature' in stages \(number 2\); did you mean 'temperature'\?"),
        ({"share": 2}, r"stages \(number 2\)\.share = 2.*less than or equal to 1"),
        ({"share": None}, r"stages \(number 2\)\.share = None"),
        ({"batch_size": 0}, r"stages \(number 2\)\.batch_size = 0"),
        ({"batch_size": "off", "share": "much"}, r"stages \(number 2\)\.share = 'much'"),
        ({"temperature": 0}, r"stages \(number 2\): temperature goes down to 0: expected more than 0"),
        ({"temperature": {"from": 1.0, "too": 2.0}}, r"there is no setting 'too' in stages \(number 2\)\.temperature; did you mean 'to'"),
        ({"false_negative_margin": "of"}, r"stages \(number 2\)\.false_negative_margin = 'of': it should be 'off'"),
        ({"quotas": "off"}, r"stages \(number 2\)\.quotas = 'off'"),
        ({"temperature": "off"}, r"stages \(number 2\)\.temperature = 'off'"),
        ({"quotas": {"dense": -1}}, r"stages \(number 2\)\.quotas\.dense = -1"),
        ({"quotas": {"dense": 1.5}}, r"stages \(number 2\)\.quotas\.dense = 1\.5"),
        ({"bands": {"dense": [1]}}, r"stages \(number 2\)\.bands\.dense \(number 2\) is missing in \[1\]"),
        ({"bands": {"dense": 3}}, r"bands\.dense = 3: expected a list, such as stages \(number 2\)\.bands\.dense = \[3\]"),
        ({"bands": {"dense": [5, 2]}}, r"bands\.dense = \[5, 2\]: expected first and last place"),
        ({"bands": {"dense": [0, 2]}}, r"bands\.dense = \[0, 2\]: expected first and last place"),
        ({"bands": {"dense": [1, 2]}, "quotas": {"bm25": 1}}, "bands.dense has no effect: quotas ask for no negative of dense"),
        ({"bands": {"dense": [1, 2]}, "quotas": {"dense": 3}}, r"quotas\.dense = 3, but bands\.dense = \[1, 2\] has fewer places"),
    ],
)
def test_a_stage_that_means_nothing_is_refused_with_its_place(stage: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Recipe.checked({"stages": [{"share": 0.5}, {"share": 0.5} | stage]})


def test_a_stage_without_a_share_and_stages_that_are_no_list_are_refused() -> None:
    with pytest.raises(SettingError, match=r"stages \(number 1\) needs share"):
        Recipe.checked({"stages": [{}]})
    with pytest.raises(SettingError, match=r"expected a list, such as a table \[\[stages\]\] for each"):
        Recipe.checked({"stages": {"share": 1.0}})


CHANGES: dict[str, Any] = {
    "name": "hard",
    "share": 0.75,
    "quotas": {"dense": 1},
    "bands": {"dense": [1, 3]},
    "false_negative_margin": 0.2,
    "batch_size": 5,
    "temperature": 0.02,
}


def test_every_setting_of_a_stage_is_in_the_list() -> None:
    assert CHANGES.keys() == Stage.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_a_stage_changes_a_plan_and_the_fingerprint(name: str) -> None:
    rest = {"share": 0.25 if name == "share" else 0.5}
    usual, changed = curriculum({"share": 0.5}, {"share": 0.5}), curriculum({"share": 0.5} | {name: CHANGES[name]}, rest)
    assert [usual.at(n) for n in range(usual.steps)] != [changed.at(n) for n in range(changed.steps)]
    assert usual.fingerprint != changed.fingerprint


# ---- which negatives -------------------------------------------------------------------------------------------------------------------

FIVE = example(*(negative(name, dense=rank) for name, rank in {"e": 50, "c": 30, "a": 10, "d": 40, "b": 20}.items()))


def test_a_band_is_of_places_among_the_negatives_at_hand_the_hardest_first() -> None:
    """Ranks 10, 20, 30, 40, 50 in the source's own list are places 1 to 5; the example keeps its order."""
    assert chosen_by(FIVE, bands={"dense": [2, 3]}) == ["c", "b"]
    assert chosen_by(FIVE, bands={"dense": [4, 99]}) == ["e", "d"]


def test_without_ranks_the_sources_score_decides_and_after_those_with_ranks() -> None:
    scored = [Negative(Document(name, name), (Origin("dense", "m", score=score),)) for name, score in {"x": 0.2, "y": 0.9}.items()]
    mixed = example(*scored, negative("a", dense=7))
    assert [chosen_by(mixed, bands={"dense": [place, place]}) for place in (1, 2, 3)] == [["a"], ["y"], ["x"]]


def test_a_band_of_negatives_with_neither_rank_nor_score_is_refused() -> None:
    unranked = example(Negative(Document("u", "u"), (Origin("imported", "m"),)))
    assert chosen_by(unranked, quotas={"imported": 1}) == ["u"]
    with pytest.raises(SettingError, match="u has neither a rank nor a score in 'imported'"):
        chosen_by(unranked, bands={"imported": [1, 1]})


def test_a_quota_takes_so_many_of_a_source_and_none_of_the_others() -> None:
    both = example(*FIVE.negatives, negative("x", bm25=1), negative("y", bm25=2))
    taken = chosen_by(both, quotas={"dense": 3})
    assert len(taken) == 3 and set(taken) < set("abcde")
    assert chosen_by(both, quotas={"bm25": 2, "dense": 0}) == ["x", "y"]
    assert chosen_by(both, quotas={}) == []


def test_a_quota_draws_inside_its_band_and_every_negative_of_it_has_its_chance() -> None:
    seen = {tuple(chosen_by(FIVE, seed=seed, quotas={"dense": 2}, bands={"dense": [1, 3]})) for seed in range(60)}
    assert seen == {("a", "b"), ("c", "a"), ("c", "b")}


def test_a_larger_quota_keeps_what_a_smaller_one_took() -> None:
    for seed in range(20):
        taken = [set(chosen_by(FIVE, seed=seed, quotas={"dense": count})) for count in range(6)]
        assert all(fewer < more for fewer, more in pairwise(taken))


def test_the_quota_of_one_source_moves_no_draw_of_another() -> None:
    both = example(*FIVE.negatives, *(negative(name, bm25=rank) for rank, name in enumerate("vwxyz", 1)))
    for seed in range(20):
        alone = chosen_by(both, seed=seed, quotas={"bm25": 2})
        assert [name for name in chosen_by(both, seed=seed, quotas={"bm25": 2, "dense": 3}) if name in "vwxyz"] == alone


def test_each_epoch_and_each_query_draws_its_own() -> None:
    plan = plan_of(quotas={"dense": 2})
    by_epoch = {tuple(names(choose_negatives(FIVE, plan, draw_of(FIVE, seed=1, epoch=epoch)))) for epoch in range(20)}
    others = [example(*FIVE.negatives, query=f"q{n}") for n in range(20)]
    by_query = {tuple(names(choose_negatives(other, plan, draw_of(other, seed=1, epoch=0)))) for other in others}
    assert len(by_epoch) > 5 and len(by_query) > 5


def test_a_negative_of_two_sources_is_taken_once_and_where_it_is_needed() -> None:
    """x is all that bm25 has; dense has x and y: one each is possible, and found whichever name comes first."""
    for scarce, rich in (("bm25", "dense"), ("dense", "bm25")):
        shared = example(negative("x", **{scarce: 1, rich: 1}), negative("y", **{rich: 2}))
        for seed in range(10):
            assert chosen_by(shared, seed=seed, quotas={scarce: 1, rich: 1}) == ["x", "y"]


def test_a_band_without_quotas_spares_other_sources_and_negatives_of_no_known_source() -> None:
    mixed = example(negative("a", dense=1), negative("b", dense=2, bm25=9), negative("c", dense=3), negative("x", bm25=1), negative("u"))
    assert chosen_by(mixed, bands={"dense": [1, 1]}) == ["a", "b", "x", "u"], "b comes from bm25 too, which has no band"


def test_the_name_of_a_family_means_all_of_its_sources() -> None:
    written = example(negative("a", **{"synthetic:syneg": 1}), negative("b", **{"synthetic:drg": 1}), negative("c", synthetics=1))
    assert chosen_by(written, quotas={"synthetic": 9}) == ["a", "b"]
    assert chosen_by(written, quotas={"synthetic:drg": 9}) == ["b"]


def test_graded_negatives_go_from_easy_to_hard_or_back() -> None:
    """MGH: four written negatives a query, 1 the hardest; a stage each, one after the other."""
    graded = example(*(negative(f"grade {grade}", synthetic=grade) for grade in (1, 2, 3, 4)))
    stages = [{"share": 0.25, "quotas": {"synthetic": 1}, "bands": {"synthetic": [grade, grade]}} for grade in (4, 3, 2, 1)]
    for order in (stages, stages[::-1]):
        course = curriculum(*order)
        seen = [names(choose_negatives(graded, course.at(step), Random(step))) for step in range(course.steps) if step % 2 == 0]
        assert [course.at(step).stage for step in (0, 2, 4, 6)] == [1, 2, 3, 4] and course.steps == 8
        assert seen == [[f"grade {stage['bands']['synthetic'][0]}"] for stage in order]


def test_what_is_short_is_counted() -> None:
    report = ChoiceReport()
    plan = plan_of(quotas={"bm25": 2, "dense": 2})
    for given in (FIVE, example(negative("x", bm25=1)), example()):
        choose_negatives(given, plan, Random(0), report)
    assert (report.examples, report.examples_short, report.examples_without) == (3, 3, 1)
    assert dict(report.chosen) == {"dense": 2, "bm25": 1} and dict(report.short) == {"bm25": 5, "dense": 4}
    assert str(report) == ("3 negatives chosen for 3 examples; not there: 5 bm25, 4 dense; 3 examples have fewer than asked for, 1 none")


def test_the_stage_goes_with_the_example() -> None:
    two = curriculum({"share": 0.5}, {"share": 0.5, "quotas": {"dense": 1}})
    assert [choose_negatives(FIVE, two.at(step), Random(0)).stage for step in (0, two.steps - 1)] == [1, 2]


def test_a_source_that_no_example_has_is_refused_with_the_nearest_name() -> None:
    stages = Recipe.checked(
        {"stages": [{"share": 0.5}, {"share": 0.5, "quotas": {"dense": 1, "bm52": 1, "nowhere": 0}, "name": "hard"}]}
    ).stages
    known = sources_of([FIVE, example(negative("x", bm25=1), negative("w", **{"synthetic:drg": 1}))])
    assert known == {"dense", "bm25", "synthetic:drg"}
    with pytest.raises(
        SettingError, match=r"stage 2 \('hard'\) asks for negatives of 'bm52', but no example has one; did you mean 'bm25'\?"
    ):
        refuse_unknown_sources(stages, known)
    refuse_unknown_sources([Stage(share=1.0, quotas={"synthetic": 1, "dense": 2, "nowhere": 0})], known)
    with pytest.raises(SettingError, match="mine some first"):
        refuse_unknown_sources([Stage(share=1.0, bands={"dense": (1, 2)})], ())


# ---- state -----------------------------------------------------------------------------------------------------------------------------


def test_another_curriculum_refuses_the_state() -> None:
    two = curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.02})
    state = json.loads(json.dumps(two.state(3)))
    assert two.resume(state) == 3
    others = [
        curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.03}),
        curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.02}, examples=21),
        curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.02}, epochs=2),
        curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.02}, weighting=Weighting(focal=1.0)),
        curriculum({"share": 0.5}, {"share": 0.5, "temperature": 0.02}, defaults=Defaults(batch_size=5, false_negative_margin=0.1)),
    ]
    for other in others:
        with pytest.raises(NegatronError, match="belongs to another curriculum"):
            other.resume(state)


# ---- docs/curriculum.md ------------------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent.parent / "docs" / "curriculum.md"


def blocks(kind: str) -> list[str]:
    """The code blocks of the page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_page_are_settings_of_a_training(tmp_path: Path) -> None:
    assert len(blocks("toml")) == 3
    for number, text in enumerate(blocks("toml")):
        (tmp_path / f"{number}.toml").write_text(text)
        settings = TrainingSettings.read(tmp_path / f"{number}.toml")
        assert Curriculum(settings.defaults(), 1000, 1, settings.stages, settings.weighting).steps > 0
        assert settings != TrainingSettings()
    for text in blocks("python"):
        exec(text, {})


@pytest.mark.parametrize("settings", [Stage, Ramp, Weighting, RemineRule])
def test_the_page_names_every_setting(settings: type[Settings]) -> None:
    names_in_files = {field.serialization_alias or name for name, field in settings.model_fields.items()}
    assert {name for name in names_in_files if f"`{name}`" not in PAGE.read_text(encoding="utf-8")} == set()
