"""Optimizers by their recipe name, each over a model's trained parameters."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.models.load import Model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.kahan import KahanAdamW

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's, the same wherever an AdamW is made."""

Groups = list[dict[str, Any]]


def make_optimizer(model: Model, section: TrainSection) -> torch.optim.Optimizer | None:
    """The optimizer of a resolved section; None for plain AdamW, which the trainer makes itself.

    Raises:
        RecipeError: this torch has no Muon.
        MissingExtra: `adamw_8bit` without bitsandbytes.
    """
    if section.precision == "bf16_kahan":
        return KahanAdamW(_groups(model, section), lr=_rate(section), betas=BETAS, eps=EPSILON)
    match section.optimizer:
        case "adamw":
            return None
        case "adamw_8bit":
            return _eight_bit(model, section)
        case "sgd":
            return torch.optim.SGD(
                _groups(model, section), lr=_rate(section), momentum=section.momentum or 0.0
            )
        case "muon":
            return MuonAndAdamW(model, section)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the layers, AdamW for embeddings, the head and vectors; one learning rate.

    Muon's step is scaled to AdamW's root mean square (`match_rms_adamw`, arXiv 2502.16982), so that a
    learning rate means the same for both parts. Groups and state are this object's own; the two inner
    optimizers borrow them for a step, so a scheduler and a checkpoint see one ordinary optimizer.
    """

    def __init__(self, model: Model, section: TrainSection) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(
                f"train.optimizer: muon needs torch 2.9 or newer, this is {torch.__version__}; "
                "use adamw or upgrade torch"
            )
        rate, decay = _rate(section), section.weight_decay
        matrices, others = _matrices_and_others(model)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            momentum = 0.95 if section.momentum is None else section.momentum
            self._parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=rate,
                    weight_decay=decay,
                    momentum=momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            self._parts.append(torch.optim.AdamW(_decayed(others, decay), lr=rate, betas=BETAS, eps=EPSILON))
        groups = [
            {**group, "part": place} for place, one in enumerate(self._parts) for group in one.param_groups
        ]
        super().__init__(groups, {"lr": rate, "weight_decay": decay})
        for part in self._parts:
            part.param_groups = []  # lent for a step; kept, they would keep whole weights beside their shards

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """One step of both parts; returns what `closure` returns."""
        loss = closure() if closure else None
        for place, part in enumerate(self._parts):
            part.param_groups = [group for group in self.param_groups if group["part"] == place]
            part.state = self.state
            part.step()
        return loss


def _eight_bit(model: Model, section: TrainSection) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingExtra(
            "train.optimizer: adamw_8bit needs bitsandbytes; `pip install bitsandbytes` adds it"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(
        _groups(model, section), lr=_rate(section), betas=BETAS, eps=EPSILON
    )
    return made


def _rate(section: TrainSection) -> float:
    assert isinstance(section.learning_rate, float), "a resolved section has one learning rate"
    return section.learning_rate


def _groups(model: Model, section: TrainSection) -> Groups:
    return _decayed((one for one in model.parameters() if one.requires_grad), section.weight_decay)


def _decayed(weights: Iterable[torch.nn.Parameter], decay: float) -> Groups:
    """Matrices decay, vectors (norms, biases) do not: the rule of the Hugging Face trainer."""
    every = list(weights)
    groups = [
        {"params": [one for one in every if one.ndim >= 2], "weight_decay": decay},
        {"params": [one for one in every if one.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _matrices_and_others(model: Model) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    tables = [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    apart = {id(one) for one in chain.from_iterable(m.parameters() for m in [*tables, head] if m is not None)}
    every = [one for one in model.parameters() if one.requires_grad]
    matrices = [one for one in every if one.ndim == 2 and id(one) not in apart]
    chosen = {id(one) for one in matrices}
    return matrices, [one for one in every if id(one) not in chosen]
