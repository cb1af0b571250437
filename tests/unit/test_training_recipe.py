import pytest

from negatron.errors import SettingError
from negatron.training.recipe import TrainingSettings, learning_rate_at


@pytest.mark.parametrize(("total", "share"), [(2, 0.1), (7, 0.1), (40, 0.25), (5, 0.0)])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_is_that_of_transformers_at_every_step(schedule, total, share):
    torch = pytest.importorskip("torch", reason="needs negatron[train]")
    transformers = pytest.importorskip("transformers", reason="needs negatron[train]")
    warmup = -(-total * share // 1)  # rounded up, as transformers' get_warmup_steps does
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    made = (
        transformers.get_linear_schedule_with_warmup(optimiser, warmup, total)
        if schedule == "linear"
        else transformers.get_constant_schedule_with_warmup(optimiser, warmup)
    )
    settings = TrainingSettings(schedule=schedule, warmup_share=share)
    for step in range(total):
        assert learning_rate_at(step, total, settings) == pytest.approx(made.get_last_lr()[0], abs=1e-20)
        optimiser.step()
        made.step()


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_training_of_one_step_is_not_all_warm_up(schedule):
    assert learning_rate_at(0, 1, TrainingSettings(schedule=schedule, warmup_share=0.1)) == 2e-5  # with 0 it would learn nothing, unsaid


def test_an_unknown_setting_is_refused_with_the_nearest_known_name():
    with pytest.raises(SettingError, match="did you mean 'batch_size'"):
        TrainingSettings.read(None, ["bacth_size=3"])


def test_a_setting_out_of_range_is_refused_by_name():
    with pytest.raises(SettingError, match="temperature = 0"):
        TrainingSettings.read(None, ["temperature=0"])
