"""Which dtype weights are held, trained and computed in, and what bf16 alone cannot follow."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection

if TYPE_CHECKING:
    import torch

BF16_TRAINED = ("bf16_pure", "bf16_kahan")
"""Precisions that hold the trained weights themselves in bf16."""


def base_precision(section: TrainSection) -> str:
    """`fp32` or `bf16`: how the base model is held while `section` trains.

    Full fine-tuning under bf16_mixed keeps fp32 weights and computes in bf16: an update below half a
    unit in the last place of a bf16 weight would be lost. A frozen base loses no update, so adapters
    stand on bf16 there; PiSSA alone does not, because it rewrites its base.
    """
    if section.precision == "fp32":
        return "fp32"
    if section.precision == "bf16_mixed" and section.method in ("full", "pissa"):
        return "fp32"
    return "bf16"


def trained_dtype(section: TrainSection) -> "torch.dtype":
    """The dtype of what the optimizer moves; fp32 except where the recipe says bf16 by name."""
    import torch

    return torch.bfloat16 if section.precision in BF16_TRAINED else torch.float32


def movable_share(weights: "Iterable[torch.Tensor]", learning_rate: float) -> float:
    """The share of weights that one step of size `learning_rate` can move if they are held in bf16.

    A step below half the distance to the next bf16 number rounds back to where it began. bf16 has
    eight significant bits: for |w| in [2^e, 2^(e+1)) that half is 2^(e-8). AdamW's steps are about
    the learning rate at most, so the share bounds what can move at all.
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
    """What a user of pure bf16 should know; None under every other precision."""
    if section.precision != "bf16_pure":
        return None
    rate = section.learning_rate
    assert isinstance(rate, float), "a resolved section has one learning rate"
    share = movable_share(weights, rate)
    return (
        f"train.precision: bf16_pure: at learning rate {rate:g} at most {share:.0%} of the trained weights "
        "can move at all, fewer as it decays; the rest rounds away. `bf16_kahan` or `fp32` keeps every update"
    )


@contextmanager
def kept(model: Model) -> Iterator[None]:
    """Undo whatever the block does to the values and dtypes of the trained weights.

    TRL casts the adapters of a quantised base to bf16 when it is made; sublim trains them in fp32.
    """
    before = [(one, one.data) for one in model.parameters() if one.requires_grad]
    yield
    for one, data in before:
        one.data = data


def state_dtypes(optimizer: "torch.optim.Optimizer") -> dict[str, list[str]]:
    """Dtypes of what an optimizer remembers, by name; empty where it remembers nothing."""
    import torch

    found: dict[str, set[str]] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim > 0:
                found.setdefault(name, set()).add(str(value.dtype).removeprefix("torch."))
    return {name: sorted(dtypes) for name, dtypes in sorted(found.items())}
