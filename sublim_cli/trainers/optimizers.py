"""Optimizers by their name in a recipe, each over a model's trained parameters."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch

from sublim_cli.errors import MissingExtra
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.methods import trained_weights

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of every AdamW."""


def make_optimizer(model: Model, section: TrainSection) -> torch.optim.Optimizer | None:
    """The optimizer of a resolved section; None for plain AdamW, which the trainer makes itself.

    Raises:
        MissingExtra: `adamw_8bit` without bitsandbytes.
    """
    rate, decay = section.learning_rate, section.weight_decay
    assert isinstance(rate, float), "a resolved section has one learning rate"
    kahan = section.precision == "bf16_kahan"
    if section.optimizer == "adamw" and not kahan:
        return None
    groups = _decay_groups(trained_weights(model), decay)
    if kahan:
        return KahanAdamW(groups, lr=rate)
    match section.optimizer:
        case "adamw_8bit":
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError as error:
                raise MissingExtra(
                    "train.optimizer: adamw_8bit needs bitsandbytes; `pip install bitsandbytes` adds it"
                ) from error
            adamw_8bit: torch.optim.Optimizer = AdamW8bit(groups, lr=rate, betas=BETAS, eps=EPSILON)
            return adamw_8bit
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=section.momentum or 0.0)
        case _:  # muon
            return MuonAndAdamW(model, rate, decay, 0.95 if section.momentum is None else section.momentum)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the layers, AdamW for embeddings, head and vectors; one learning rate.

    Muon's step is scaled to AdamW's root mean square (`match_rms_adamw`, arXiv 2502.16982), so that a
    learning rate means the same for both. This object owns the parameter groups and the state, and
    lends them to the two inner optimizers for each step, so that a scheduler and a checkpoint see one
    ordinary optimizer.
    """

    def __init__(self, model: Model, rate: float, decay: float, momentum: float) -> None:
        embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        head = model.get_output_embeddings()
        tables = [*embeddings, head] if head is not None else embeddings
        table_ids = {id(weight) for table in tables for weight in table.parameters()}
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for weight in trained_weights(model):
            is_matrix = weight.ndim == 2 and id(weight) not in table_ids
            (matrices if is_matrix else others).append(weight)
        self._optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            self._optimizers.append(
                torch.optim.Muon(
                    matrices, lr=rate, weight_decay=decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            groups = _decay_groups(others, decay)
            self._optimizers.append(torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPSILON))
        # "part" is stored in checkpoints: the index of the group's optimizer.
        all_groups = [
            {**group, "part": index}
            for index, optimizer in enumerate(self._optimizers)
            for group in optimizer.param_groups
        ]
        super().__init__(all_groups, {"lr": rate, "weight_decay": decay})
        for optimizer in self._optimizers:
            optimizer.param_groups = []  # a reference would keep full weights alive beside their shards

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """One step of both optimizers; returns what `closure` returns."""
        loss = closure() if closure else None
        for index, optimizer in enumerate(self._optimizers):
            optimizer.param_groups = [group for group in self.param_groups if group["part"] == index]
            optimizer.state = self.state
            optimizer.step()
        return loss


class KahanAdamW(torch.optim.Optimizer):
    """AdamW for bf16 weights that loses no update: compensated summation (Kahan 1965; arXiv 2010.06192).

    What rounding a weight to bf16 takes away is kept and added at the next step. Bytes per weight: two
    for the weight, two for the compensation, eight for the moments in fp32. The moments stay in fp32
    because beta2 = 0.999 moves the second by a thousandth of itself per step, which is less than half a
    unit in the last place of bf16: in bf16 it would not change.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = BETAS,
        eps: float = EPSILON,
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
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
            state["compensation"] = torch.zeros_like(weight)
        (beta1, beta2), rate = group["betas"], group["lr"]
        gradient = weight.grad.float()  # type: ignore[union-attr]  # step skips weights without a gradient
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        count = state["step"].item()
        denominator = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
        old = weight.to(torch.float32, copy=True)
        update = (
            -rate / (1 - beta1**count) * state["exp_avg"] / denominator - rate * group["weight_decay"] * old
        )
        update += state["compensation"].float()
        weight.copy_(old + update)
        state["compensation"].copy_(update - (weight.float() - old))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state without torch's cast of it to the weights' dtype: the moments stay fp32."""
        super().load_state_dict(state_dict)
        indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, weight in zip(indices, weights, strict=True):
            saved = state_dict["state"].get(index)
            if saved is not None:
                self.state[weight] = {
                    name: value.to(weight.device if value.ndim else value.device, copy=True)
                    for name, value in saved.items()
                }


def _decay_groups(weights: Iterable[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for vectors (norms, biases): the rule of the Hugging Face trainer."""
    parameters = list(weights)
    groups = [
        {"params": [weight for weight in parameters if weight.ndim >= 2], "weight_decay": decay},
        {"params": [weight for weight in parameters if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
