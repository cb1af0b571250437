import pytest

torch = pytest.importorskip("torch", reason="needs negatron[train]")

from negatron.errors import SettingError  # noqa: E402 - after the check for torch
from negatron.models.precision import autocast, choose_precision, fast_in_bf16  # noqa: E402


def test_what_is_asked_for_is_chosen_and_auto_is_what_the_device_is_faster_in():
    assert [choose_precision(setting, "cpu") for setting in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert choose_precision("auto", "cpu") == ("bf16" if fast_in_bf16("cpu") else "fp32")


def test_an_unknown_precision_is_refused_with_the_nearest_known_one():
    with pytest.raises(SettingError, match="did you mean 'bf16'"):
        choose_precision("bf61", "cpu")


def test_a_matrix_product_is_made_in_the_precision_asked_for():
    matrix = torch.eye(3)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast("cpu", precision):
            assert (matrix @ matrix).dtype == expected
