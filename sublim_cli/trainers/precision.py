"""The dtypes of base weights, trained weights and optimizer state, and the warning about pure bf16."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sublim_cli.recipe.schema import TrainSection

if TYPE_CHECKING:
    import torch

BF16_TRAINED = ("bf16_pure", "bf16_kahan")
"""Precisions whose trained weights are in bf16."""


def base_precision(section: TrainSection) -> str:
    """The dtype of the base model while `section` trains: `fp32` or `bf16`.

    Full fine-tuning under bf16_mixed keeps fp32 weights and computes in bf16: an update below half a
    unit in the last place of a bf16 weight would be lost. A frozen base receives no updates, so under
    adapters it is bf16; except for PiSSA, which changes the base when it starts.
    """
    if section.precision == "fp32":
        return "fp32"
    if section.precision == "bf16_mixed" and section.method in ("full", "pissa"):
        return "fp32"
    return "bf16"


def trained_dtype(section: TrainSection) -> "torch.dtype":
    """The dtype of the trained weights: bf16 under `bf16_pure` and `bf16_kahan`, fp32 otherwise."""
    import torch

    return torch.bfloat16 if section.precision in BF16_TRAINED else torch.float32


def movable_share(weights: "Iterable[torch.Tensor]", learning_rate: float) -> float:
    """The share of weights in bf16 that one step of size `learning_rate` can change.

    A step below half the distance to the next bf16 number is rounded away. bf16 has eight significant
    bits: for |w| in [2^e, 2^(e+1)) that half is 2^(e-8). AdamW's steps are at most about the learning
    rate, so the share is an upper bound.
    """
    import torch

    movable, total = 0, 0
    for weight in weights:
        _, exponent = torch.frexp(weight.detach().float())  # |w| in [2^(exponent-1), 2^exponent)
        half = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent - 9)
        movable += int(((half <= learning_rate) | (weight == 0)).sum())
        total += weight.numel()
    return movable / total


def bf16_warning(section: TrainSection, weights: "Iterable[torch.Tensor]") -> str | None:
    """A warning with the share of weights that pure bf16 can change; None under other precisions."""
    if section.precision != "bf16_pure":
        return None
    rate = section.learning_rate
    assert isinstance(rate, float), "a resolved section has one learning rate"
    share = movable_share(weights, rate)
    return (
        f"train.precision: bf16_pure: at learning rate {rate:g} at most {share:.0%} of the trained weights "
        "can move at all, fewer as it decays; the rest rounds away. `bf16_kahan` or `fp32` keeps every update"
    )


def state_dtypes(optimizer: "torch.optim.Optimizer") -> dict[str, list[str]]:
    """Dtypes of the tensors in an optimizer's state, by name; empty for an optimizer without state."""
    import torch

    dtypes: dict[str, set[str]] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim > 0:
                dtypes.setdefault(name, set()).add(str(value.dtype).removeprefix("torch."))
    return {name: sorted(names) for name, names in sorted(dtypes.items())}
