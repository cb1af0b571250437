"""Numbers that change with progress, and what a weighting makes of them."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from negatron.errors import SettingError
from negatron.training.weighting import SHAPES, Ramp, Weighting, Weights, lowest, value_at

DOWN = {"from": 1.0, "to": 0.0}


def ramp(**given: Any) -> Ramp:
    return Ramp.checked({"from": 1.0, "to": 3.0} | given)


def test_a_plain_number_is_the_same_at_any_progress() -> None:
    assert [value_at(0.7, t) for t in (0.0, 0.5, 1.0)] == [0.7, 0.7, 0.7]


def test_a_linear_ramp_goes_evenly_between_its_begin_and_its_end() -> None:
    assert [ramp(begin=0.2, end=0.6).at(t) for t in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([1, 1, 2, 3, 3])


def test_a_cosine_ramp_is_slow_at_both_ends_and_half_way_at_half_time() -> None:
    values = [ramp(shape="cosine").at(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == pytest.approx([1, 2 - math.sqrt(0.5), 2, 2 + math.sqrt(0.5), 3])


def test_annealing_in_nine_steps_takes_the_nine_values_that_hcl_takes() -> None:
    annealed = Ramp.checked(DOWN | {"shape": "steps"})
    seen = [annealed.at(seen / 900) for seen in range(900)]
    assert list(dict.fromkeys(seen)) == pytest.approx([1 - n / 8 for n in range(9)])  # np.linspace(1, 0, 9)
    assert {seen.count(value) for value in seen} == {100}, "each lasts as long as the others"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_begins_and_ends_exactly_at_its_ends_and_stays_between(shape: str) -> None:
    own = Ramp.checked({"from": 0.1, "to": 0.7, "shape": shape})
    values = [own.at(n / 100) for n in range(101)]
    assert (values[0], values[-1]) == (0.1, 0.7)
    assert values == sorted(values)
    assert lowest(own) == 0.1 and lowest(0.3) == 0.3


def test_a_ramp_is_written_as_it_is_read() -> None:
    assert ramp(shape="steps", levels=3).as_json() == {
        "from": 1.0, "to": 3.0, "shape": "steps", "begin": 0.0, "end": 1.0, "levels": 3,
    }  # fmt: skip
    for own in (ramp(shape="steps", levels=3), ramp()):
        assert Ramp.checked(own.as_json()) == own
    assert Weighting.checked(Weighting(focal=ramp()).as_json()) == Weighting(focal=ramp())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"begin": 0.5, "end": 0.5}, "begin = 0.5 is not before end = 0.5"),
        ({"levels": 4}, "levels = 4 has no effect with shape = 'linear'"),
        ({"shape": "sine"}, "shape = 'sine'"),
        ({"shpae": "linear"}, "there is no setting 'shpae'; did you mean 'shape'"),
        ({"form": 1.0}, "there is no setting 'form'; did you mean 'from'"),
        ({"to": math.nan}, "to = nan"),
        ({"end": 1.5}, "end = 1.5"),
        ({"shape": "steps", "levels": 1}, "levels = 1"),
    ],
)
def test_a_ramp_that_means_nothing_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ramp(**given)


def test_a_ramp_without_an_end_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"importance needs to$"):
        Weighting.checked({"importance": {"from": 1.0}})


def test_nothing_set_weighs_all_the_same() -> None:
    assert {Weighting().at(t, 0.05) for t in (0.0, 0.5, 1.0)} == {Weights(0.0, 0.0, 0.0, "all")}


def test_hcl_stands_before_cosine_over_temperature() -> None:
    """beta s / tau, so the coefficient of the cosine is beta / tau: 1.0 / 0.05 = 20 at the beginning."""
    annealed = Weighting.checked({"importance": DOWN})
    assert [annealed.at(t, 0.05).importance for t in (0.0, 0.5, 1.0)] == pytest.approx([20, 10, 0])
    assert annealed.at(0.0, 0.5).importance == pytest.approx(2)


def test_hcl_goes_in_either_direction() -> None:
    rising = Weighting.checked({"importance": {"from": 0.0, "to": 1.0}})
    assert [rising.at(t, 0.1).importance for t in (0.0, 0.5, 1.0)] == pytest.approx([0, 5, 10])


def test_our_ramp_is_uniform_at_first_and_whole_after_its_share() -> None:
    """lambda(t) beta with lambda(t) = min(1, t / 0.4); the temperature does not come into it."""
    own = Weighting(ramp=8.0, ramp_share=0.4)
    assert [own.at(t, 0.05).importance for t in (0.0, 0.1, 0.4, 0.9)] == pytest.approx([0, 2, 8, 8])
    assert own.at(0.1, 0.5) == own.at(0.1, 0.05)


def test_focal_and_hardness_are_handed_on_as_they_are() -> None:
    own = Weighting.checked({"focal": 2, "hardness": {"from": 0, "to": 9}, "hardness_of": "own"})
    assert own.at(0.5, 0.05) == Weights(focal=2.0, importance=0.0, hardness=4.5, hardness_of="own")


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "focal": ({}, {"focal": 1.0}),
    "importance": ({}, {"importance": 1.0}),
    "hardness": ({}, {"hardness": 5.0}),
    "hardness_of": ({"hardness": 5.0}, {"hardness_of": "own"}),
    "ramp": ({}, {"ramp": 4.0}),
    "ramp_share": ({"ramp": 4.0}, {"ramp_share": 1.0}),
}


def test_every_setting_of_a_weighting_is_in_the_list() -> None:
    assert CHANGES.keys() == Weighting.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_of_a_weighting_changes_the_weights(name: str) -> None:
    usual, more = CHANGES[name]
    assert Weighting.checked(usual).at(0.3, 0.05) != Weighting.checked(usual | more).at(0.3, 0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"focal": -1.0}, "focal goes down to -1"),
        ({"importance": {"from": 1.0, "to": -0.5}}, "importance goes down to -0.5"),
        ({"importance": 1.0, "ramp": 1.0}, "two schedules of the same weights"),
        ({"hardness_of": "own"}, "hardness_of = 'own' has no effect without hardness"),
        ({"ramp_share": 0.3}, "ramp_share = 0.3 has no effect without ramp"),
        ({"focal": "much"}, "focal = 'much': it should be a valid number"),
        ({"focal": True}, "focal = True: it should be a valid number"),
        ({"focal": math.inf}, "focal = inf"),
        ({"fokal": 1.0}, "there is no setting 'fokal'; did you mean 'focal'"),
        ({"focal": DOWN | {"shpae": "linear"}}, "there is no setting 'shpae' in focal; did you mean 'shape'"),
        ({"focal": DOWN | {"end": 2.0}}, r"focal\.end = 2\.0: it should be less than or equal to 1"),
        ({"focal": DOWN | {"begin": 1.0}}, "focal: begin = 1 is not before end = 1"),
    ],
)
def test_a_weighting_that_means_nothing_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Weighting.checked(given)


def test_off_means_none() -> None:
    assert Weighting.checked({"focal": "off"}) == Weighting()


def test_a_number_is_a_float_or_a_ramp() -> None:
    assert isinstance(Weighting.checked({"focal": 1}).focal, float)
    assert isinstance(Weighting.checked({"focal": DOWN}).focal, Ramp)


@pytest.mark.parametrize("module", ["weighting", "curriculum", "remining"])
def test_it_is_read_without_torch(module: str) -> None:
    code = f"import sys, negatron.training.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
