"""Which dtype is held where, and how many weights pure bf16 can move."""

import pytest
import torch

from sublim_cli.models.reference import resolve_model
from sublim_cli.trainers.precision import base_precision, bf16_warning, movable_share
from sublim_cli.trainers.student import train_student, trainable

MICRO = resolve_model("micro")


@pytest.mark.parametrize(
    ("method", "precision", "held"),
    [
        ("full", "fp32", "fp32"),
        ("full", "bf16_mixed", "fp32"),
        ("full", "bf16_pure", "bf16"),
        ("full", "bf16_kahan", "bf16"),
        ("lora", "fp32", "fp32"),
        ("lora", "bf16_mixed", "bf16"),
        ("pissa", "bf16_mixed", "fp32"),
    ],
)
def test_the_base_is_held_where_no_update_is_lost(method, precision, held, section) -> None:
    assert base_precision(section(method=method, precision=precision)) == held


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prefix"])
def test_adapters_are_fp32_on_a_bf16_base_unless_the_recipe_says_otherwise(method, section) -> None:
    for precision, dtype in [("bf16_mixed", torch.float32), ("bf16_pure", torch.bfloat16)]:
        model = trainable(MICRO, section(method=method, precision=precision))
        assert {one.dtype for one in model.parameters() if one.requires_grad} == {dtype}
        assert {one.dtype for one in model.parameters() if not one.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("weight", [1.0, 1.5, 0.02, -0.02, 0.75, 2.0**-12])
def test_a_weight_counts_as_movable_exactly_where_a_step_away_from_zero_moves_it(weight) -> None:
    held = torch.tensor([weight]).bfloat16()
    for rate in [2.0**power for power in range(-24, -6)]:
        outward = held.float() + torch.copysign(torch.tensor(rate * 1.001), held.float())
        moves = bool(outward.bfloat16() != held)
        assert movable_share([held], rate * 1.001) == float(moves)


def test_a_weight_of_zero_always_moves() -> None:
    assert movable_share([torch.zeros(3), torch.ones(1)], 1e-9) == 0.75


def test_pure_bf16_warns_with_the_share_of_its_own_weights(section, number_rows, tmp_path) -> None:
    heard: list[str] = []
    train = section(method="full", precision="bf16_pure", learning_rate=2e-5)
    train_student(MICRO, train, number_rows(16), [], tmp_path, lambda *_: None, warn=heard.append)
    share = movable_share(trainable(MICRO, train).parameters(), 2e-5)
    assert 0 < share < 0.5
    assert heard == [
        f"train.precision: bf16_pure: at learning rate 2e-05 at most {share:.0%} of the trained weights can "
        "move at all, fewer as it decays; the rest rounds away. `bf16_kahan` or `fp32` keeps every update"
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_kahan"])
def test_other_precisions_do_not_warn(precision, section) -> None:
    assert bf16_warning(section(precision=precision), [torch.ones(1)]) is None
