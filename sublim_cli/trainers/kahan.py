"""AdamW over bf16 weights that loses no update: compensated summation (Kahan 1965; arXiv 2010.06192)."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch


class KahanAdamW(torch.optim.Optimizer):
    """AdamW whose weights carry what rounding took from them over to the next step.

    Per weight: two bytes for it, two for the compensation, eight for the moments in fp32. The moments
    stay in fp32 because beta2 = 0.999 moves the second by a thousandth of itself a step, less than half
    a unit in the last place of bf16: in bf16 it would stand still.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Update every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: torch.nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[weight] or self._begin(weight)
        (beta1, beta2), rate = group["betas"], group["lr"]
        gradient = weight.grad.float()  # type: ignore[union-attr]  # step skips weights without one
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        count = state["step"].item()
        spread = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        old = weight.to(torch.float32, copy=True)
        change = -rate / (1 - beta1**count) * state["exp_avg"] / spread - rate * group["weight_decay"] * old
        owed = change + state["compensation"].float()
        weight.copy_(old + owed)
        state["compensation"].copy_(owed - (weight.float() - old))

    def _begin(self, weight: torch.nn.Parameter) -> dict[str, Any]:
        state: dict[str, Any] = self.state[weight]
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
        state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
        state["compensation"] = torch.zeros_like(weight)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state; the fp32 moments stay fp32, which torch's own rule would round."""
        super().load_state_dict(state_dict)
        places = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        for place, weight in zip(places, weights, strict=True):
            saved = state_dict["state"].get(place)
            if saved is not None:
                self.state[weight] = {
                    name: value.to(weight.device if value.ndim else value.device, copy=True)
                    for name, value in saved.items()
                }
