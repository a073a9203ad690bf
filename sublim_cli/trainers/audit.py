"""What a training did to the weights: dtypes, how many moved, how far, in how many directions."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.models.load import Model, load_student
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.precision import base_precision
from sublim_cli.trainers.updates import BUCKETS, Change, changes, norm, sketch, stable_rank

if TYPE_CHECKING:
    import torch

FROM_SEED = ("lora", "rslora", "dora", "qlora", "prefix")
"""Methods whose adapter starts from random numbers; PiSSA starts from singular vectors, IA3 from ones."""

DROPPED = ("lora", "rslora", "dora", "qlora", "pissa")
"""Methods with adapter dropout."""


def random_sources(section: TrainSection) -> dict[str, bool]:
    """Which sources of randomness `train.seed` moves under this method.

    Two students that differ in the seed alone are replicates of exactly these.
    """
    return {
        "data_order": True,
        "adapter_init": section.method in FROM_SEED,
        "dropout": section.method in DROPPED and section.adapter.dropout > 0,
    }


class Account:
    """Facts of a model that is being trained, taken before and after; its weights need not stay."""

    def __init__(self, model: Model, section: TrainSection) -> None:
        self._section = section
        # Of a full model the base says what it was; of an adapter nothing but this copy does.
        own = {} if section.method == "full" else dict(_trained(model))
        self._before = {name: one.detach().clone() for name, one in own.items()}

    def live(self, model: Model, optimizer_state: Mapping[str, list[str]]) -> dict[str, Any]:
        """Dtypes and counts of the trained model as it stands in memory."""
        trained = dict(_trained(model))
        frozen = [one for _, one in model.named_parameters() if not one.requires_grad]
        sizes = _by_dtype(trained.values())
        return {
            "dtypes": {
                "frozen": _by_dtype(frozen),
                "trained": sizes,
                "updated_copy": sorted(sizes),
                "compensated": self._section.precision == "bf16_kahan",
                "optimizer_state": dict(optimizer_state),
            },
            "parameters": {
                "total": sum(map(_count, [*frozen, *trained.values()])),
                "trained": sum(map(_count, trained.values())),
                "changed": sum(_moved(before, trained[name]) for name, before in self._before.items()),
            },
        }


def audit(
    ref: ModelRef, section: TrainSection, weights: Path, live: Mapping[str, Any], tokens: int
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The account of a saved student, read back from `weights` as an evaluation would read it.

    With it the sketch of its update, see `updates.sketch`; all zero where no weight was updated.

    `live` is what `Account` found, `tokens` how many carried loss in all epochs together. Per matrix:
    `norm` (Frobenius), `relative` (to the base weight's norm), `stable_rank`. `effective` counts the
    entries of the changed matrices and those that differ from the base once the update is added in
    the base's own dtype; null where there is no such weight (a quantised base, a prefix).
    """
    precision = base_precision(section)
    quantize = section.qlora.quantize if section.method == "qlora" else None
    student = load_student(ref, precision, weights, quantize)
    matrices: dict[str, dict[str, float | None]] = {}
    entries = differing = 0
    sketched = np.zeros(BUCKETS)
    for change in changes(student, ref, precision):
        matrices[change.name] = _size(change)
        sketched += sketch(change)
        if change.weight is not None and quantize is None:
            entries += change.weight.numel()
            differing += _differing(change, full=section.method == "full")
    parameters = dict(live["parameters"])
    if section.method == "full":
        parameters["changed"] = differing
    account = {
        "method": section.method,
        "precision": section.precision,
        "quantize": quantize,
        "dtypes": live["dtypes"],
        "parameters": parameters,
        "effective": {"entries": entries, "changed": differing} if entries else None,
        "update": _total(matrices),
        "matrices": matrices,
        "tokens_with_loss": tokens,
        "random_sources": random_sources(section),
    }
    return account, sketched


def _size(change: Change) -> dict[str, float | None]:
    size = norm(change.update)
    whole = float(change.weight.float().norm()) if change.weight is not None else None
    return {
        "norm": size,
        "relative": size / whole if whole else None,
        "stable_rank": stable_rank(change.update),
    }


def _differing(change: Change, *, full: bool) -> int:
    """How many entries of the base weight are another number once the update is added."""
    weight = change.weight
    assert weight is not None, "asked of weights that are held as numbers"
    if full:  # the stored weight itself: the difference of two unlike floats is never rounded to zero
        return int((change.update.whole != 0).sum())
    return int(((weight.float() + change.update.whole).to(weight.dtype) != weight).sum())


def _total(matrices: Mapping[str, Mapping[str, float | None]]) -> dict[str, float] | None:
    """Norm of all updates as one vector, and the mean stable rank weighted by squared norm."""
    sizes = [(one["norm"] or 0.0, one["stable_rank"]) for one in matrices.values()]
    if not sizes:
        return None
    ranked = [(size, rank) for size, rank in sizes if rank is not None]
    weight = sum(size**2 for size, _ in ranked)
    return {
        "norm": math.sqrt(sum(size**2 for size, _ in sizes)),
        "stable_rank": sum(rank * size**2 for size, rank in ranked) / weight if weight else 0.0,
    }


def _trained(model: Model) -> "Iterable[tuple[str, torch.Tensor]]":
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def _moved(before: "torch.Tensor", after: "torch.Tensor") -> int:
    return int((after.detach() != before).sum())


def _count(weight: Any) -> int:
    """How many numbers a parameter holds; nf4 packs two into a byte and knows the shape it had."""
    state = getattr(weight, "quant_state", None)
    return math.prod(state.shape) if state is not None else int(weight.numel())


def _by_dtype(weights: "Iterable[torch.Tensor]") -> dict[str, int]:
    """How many numbers are held in each dtype."""
    found: Counter[str] = Counter()
    for one in weights:
        found[_dtype(one)] += _count(one)
    return dict(sorted(found.items()))


def _dtype(weight: Any) -> str:
    state = getattr(weight, "quant_state", None)
    return str(state.quant_type) if state is not None else str(weight.dtype).removeprefix("torch.")
