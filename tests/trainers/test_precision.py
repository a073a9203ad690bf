"""The dtypes of weights, optimizer state and computation, and how many weights pure bf16 can change."""

import json

import pytest
import torch

from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.trainers.optimizers import make_optimizer
from sublim_cli.trainers.precision import bf16_warning, movable_share
from sublim_cli.trainers.sft import fit
from sublim_cli.trainers.student import TrainingJob, load_trainable, train_student

MICRO = resolve_model("micro")
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("method", ["full", "lora", "dora", "pissa", "ia3", "prefix"])
@pytest.mark.parametrize(
    ("precision", "trained", "frozen", "computed"),
    [
        ("fp32", FP32, FP32, FP32),
        ("bf16_mixed", FP32, BF16, BF16),
        ("bf16_pure", BF16, BF16, BF16),
        ("bf16_kahan", BF16, BF16, BF16),
    ],
)
def test_a_training_step_runs_in_the_dtypes_of_its_precision(
    method, precision, trained, frozen, computed, section, number_rows
) -> None:
    if (method, precision) == ("pissa", "bf16_mixed"):
        frozen = FP32  # PiSSA subtracts its adapter from the base, which bf16 would round
    train = section(method=method, precision=precision)
    model = load_trainable(MICRO, train)
    layer_outputs = set()
    linear = model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("o_proj")))
    linear.register_forward_hook(lambda _, args, output: layer_outputs.add(output.dtype))
    rows = number_rows(8)
    result = fit(
        model, load_tokenizer(MICRO), rows, train, lambda *_: None, optimizer=make_optimizer(model, train)
    )
    weights = list(model.parameters())
    assert {weight.dtype for weight in weights if weight.requires_grad} == {trained}
    assert {weight.dtype for weight in weights if not weight.requires_grad} == (
        set() if method == "full" else {frozen}
    )
    assert layer_outputs == {computed}
    moments = {"fp32": "float32", "bf16_mixed": "float32", "bf16_pure": "bfloat16", "bf16_kahan": "float32"}
    expected = {"exp_avg": [moments[precision]], "exp_avg_sq": [moments[precision]]}
    if precision == "bf16_kahan":
        expected["compensation"] = ["bfloat16"]
    assert result.optimizer_state == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_pure", "bf16_kahan"])
def test_a_full_student_is_saved_in_the_dtype_it_was_trained_in(
    precision, section, number_rows, tmp_path
) -> None:
    train = section(method="full", precision=precision)
    train_student(TrainingJob(MICRO, train, number_rows(8), [], tmp_path), lambda *_: None)
    dtype = json.loads((tmp_path / "config.json").read_text())["dtype"]
    assert dtype == ("float32" if precision in ("fp32", "bf16_mixed") else "bfloat16")


@pytest.mark.parametrize("weight", [1.0, 1.5, 0.02, -0.02, 0.75, 2.0**-12])
def test_a_weight_counts_as_movable_exactly_where_a_step_away_from_zero_moves_it(weight) -> None:
    bf16 = torch.tensor([weight]).bfloat16()
    for rate in [2.0**power for power in range(-24, -6)]:
        outward = bf16.float() + torch.copysign(torch.tensor(rate * 1.001), bf16.float())
        moves = bool(outward.bfloat16() != bf16)
        assert movable_share([bf16], rate * 1.001) == float(moves)


def test_a_weight_of_zero_always_moves() -> None:
    assert movable_share([torch.zeros(3), torch.ones(1)], 1e-9) == 0.75


def test_pure_bf16_warns_with_the_share_of_the_weights_that_it_can_move(
    section, number_rows, tmp_path
) -> None:
    warnings: list[str] = []
    train = section(method="full", precision="bf16_pure", learning_rate=2e-5)
    train_student(
        TrainingJob(MICRO, train, number_rows(16), [], tmp_path), lambda *_: None, warn=warnings.append
    )
    share = movable_share(load_trainable(MICRO, train).parameters(), 2e-5)
    assert 0 < share < 0.5
    assert warnings == [
        f"train.precision: bf16_pure: at learning rate 2e-05 at most {share:.0%} of the trained weights can "
        "move at all, fewer as it decays; the rest rounds away. `bf16_kahan` or `fp32` keeps every update"
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed", "bf16_kahan"])
def test_other_precisions_do_not_warn(precision, section) -> None:
    assert bf16_warning(section(precision=precision), [torch.ones(1)]) is None
