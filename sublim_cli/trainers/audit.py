"""The audit of a student's weights: dtypes, how many changed, by how much, in how many directions."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sublim_cli.models.load import Model
from sublim_cli.models.reference import ModelRef
from sublim_cli.models.structure import outside_parameters
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.precision import BF16_TRAINED, base_precision
from sublim_cli.trainers.updates import (
    LowRankDelta,
    WeightUpdate,
    frobenius_norm,
    project,
    stable_rank,
    weight_updates,
)

if TYPE_CHECKING:
    import torch

RANDOM_START = ("lora", "rslora", "dora", "qlora", "prefix")
"""Methods whose adapter starts from random numbers; PiSSA starts from singular vectors, IA3 from ones."""

WITH_DROPOUT = ("lora", "rslora", "dora", "qlora", "pissa")
"""Methods with adapter dropout."""


def random_sources(section: TrainSection) -> dict[str, bool]:
    """Which sources of randomness `train.seed` controls under this method.

    Two students that differ only in the seed are replicates with respect to exactly these.
    """
    return {
        "data_order": True,
        "adapter_init": section.method in RANDOM_START,
        "dropout": section.method in WITH_DROPOUT and section.adapter.dropout > 0,
    }


def copy_adapter(model: Model, section: TrainSection) -> "dict[str, torch.Tensor]":
    """A copy of the trained weights by name, taken before training; empty for full fine-tuning.

    A full student is compared with the base model on disk instead.
    """
    if section.method == "full":
        return {}
    return {
        name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }


def audit_in_memory(
    model: Model,
    section: TrainSection,
    adapter_before: "Mapping[str, torch.Tensor]",
    optimizer_state: Mapping[str, list[str]],
) -> dict[str, Any]:
    """The part of the audit that needs the model as it was trained: dtypes and counts of parameters.

    Of an image-and-text model the language model's parameters are counted, and `parameters.not_counted` says
    how many others there are.

    `adapter_before` is from `copy_adapter`, `optimizer_state` the dtypes of the optimizer's state.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    not_counted = {id(weight) for weight in outside_parameters(model)}
    frozen = [
        weight for weight in model.parameters() if not weight.requires_grad and id(weight) not in not_counted
    ]
    outside = sum(weight.numel() for weight in outside_parameters(model))
    trained_sizes, frozen_sizes = _sizes_by_dtype(trained.values()), _sizes_by_dtype(frozen)
    return {
        "dtypes": {
            "frozen": frozen_sizes,
            "trained": trained_sizes,
            "updated_copy": sorted(trained_sizes),
            "compensated": section.precision == "bf16_kahan",
            "optimizer_state": dict(optimizer_state),
        },
        "parameters": {
            "total": sum(frozen_sizes.values()) + sum(trained_sizes.values()),
            "trained": sum(trained_sizes.values()),
            "changed": sum(
                int((trained[name].detach() != before).sum()) for name, before in adapter_before.items()
            ),
            **({"not_counted": outside} if outside else {}),
        },
    }


def student_updates(
    model: Model, ref: ModelRef, section: TrainSection, adapter_before: "Mapping[str, torch.Tensor]"
) -> Iterator[WeightUpdate]:
    """The updates of a student, from the model as it was trained; `adapter_before` is from `copy_adapter`.

    They are those of the saved student, which is not loaded: another model need not fit beside this one.
    """
    start = adapter_before if section.method == "pissa" else None
    return weight_updates(model, ref, base_precision(section), start)


def audit(
    updates: Iterable[WeightUpdate],
    section: TrainSection,
    in_memory: Mapping[str, Any],
    tokens_with_loss: int,
) -> "tuple[dict[str, Any], torch.Tensor | None]":
    """The audit of a student, and its projection.

    `updates` is from `student_updates`, `in_memory` from `audit_in_memory`, `tokens_with_loss` the count
    over all epochs. Per matrix: `norm` (Frobenius), `relative` (to the base weight's norm) and `stable_rank`
    of the update.
    `effective` counts the entries of the changed matrices, and those that differ from the base once the
    update is added in the base's dtype; null without such weights (a quantised base, a prefix).
    The projection (see `updates.project`) is that of all updates together. It is None for a student whose
    updates can be computed from the fp32 factors of its adapter, and for one without updates.
    """
    quantize = section.qlora.quantize if section.method == "qlora" else None
    full = section.method == "full"
    matrices: dict[str, dict[str, float | None]] = {}
    entries = changed = 0
    factors_saved = section.precision not in BF16_TRAINED  # NumPy cannot read bf16
    projection: torch.Tensor | None = None
    for update in updates:
        norm, base = frobenius_norm(update.delta), update.base_weight
        base_norm = float(base.float().norm()) if base is not None else None
        matrices[update.name] = {
            "norm": norm,
            "relative": norm / base_norm if base_norm else None,
            "stable_rank": stable_rank(update.delta),
        }
        if not (isinstance(update.delta, LowRankDelta) and factors_saved):
            projected = project(update)
            projection = projected if projection is None else projection + projected
        if base is not None and quantize is None:
            entries += base.numel()
            changed += _changed_entries(update, base, full=full)
    parameters = dict(in_memory["parameters"])
    if full:
        parameters["changed"] = changed
    result = {
        "method": section.method,
        "precision": section.precision,
        "quantize": quantize,
        "dtypes": in_memory["dtypes"],
        "parameters": parameters,
        "effective": {"entries": entries, "changed": changed} if entries else None,
        "update": _total(matrices),
        "matrices": matrices,
        "tokens_with_loss": tokens_with_loss,
        "random_sources": random_sources(section),
    }
    return result, projection


def _changed_entries(update: WeightUpdate, base: "torch.Tensor", *, full: bool) -> int:
    """How many entries of the base weight change when the update is added in the base's dtype."""
    if full:  # the update is the difference of two stored weights, which is zero only if they are equal
        return int((update.delta.matrix != 0).sum())
    return int(((base.float() + update.delta.matrix).to(base.dtype) != base).sum())


def _total(matrices: Mapping[str, Mapping[str, float | None]]) -> dict[str, float] | None:
    """Norm of all updates as one vector, and the mean stable rank weighted by squared norm."""
    if not matrices:
        return None
    sizes = [(matrix["norm"] or 0.0, matrix["stable_rank"]) for matrix in matrices.values()]
    with_rank = [(norm, rank) for norm, rank in sizes if rank is not None]
    weight = sum(norm**2 for norm, _ in with_rank)
    return {
        "norm": math.sqrt(sum(norm**2 for norm, _ in sizes)),
        "stable_rank": sum(rank * norm**2 for norm, rank in with_rank) / weight if weight else 0.0,
    }


def _sizes_by_dtype(weights: "Iterable[torch.Tensor]") -> dict[str, int]:
    """The number of entries held in each dtype.

    A tensor that bitsandbytes packed as nf4 holds two entries per byte; its `quant_state` has the shape.
    """
    sizes: Counter[str] = Counter()
    for weight in weights:
        quantised = getattr(weight, "quant_state", None)
        if quantised is not None:
            sizes[str(quantised.quant_type)] += math.prod(quantised.shape)
        else:
            sizes[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    return dict(sorted(sizes.items()))
