"""What training added to each weight matrix: its norm, stable rank and random projection.

An adapter of the LoRA family adds B·A: norm and rank are computed from the factors, without the full
matrix. Full fine-tuning, DoRA and IA3 have no such factors; their updates are formed, one matrix at a
time. A prefix adds to no weight.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sublim_cli.errors import ModelError
from sublim_cli.models.load import Model
from sublim_cli.models.reference import ModelRef
from sublim_cli.models.structure import in_language_model
from sublim_cli.models.weights import BaseWeights

if TYPE_CHECKING:
    import torch

DIMENSION = 16381
"""Length of a projection, a prime: a cosine near 0 read from two of them has a standard error of 0.008."""

BLOCK = 64 * DIMENSION
"""Entries projected at once, to bound memory: a multiple of 64, the bits of one random word."""

EXACT_SIDE = 512
"""The largest singular value is approximated where a matrix's shorter side is longer than this."""


@dataclass(frozen=True)
class DenseDelta:
    """An update in full: [out, in], or [n] for a vector."""

    matrix: "torch.Tensor"

    @property
    def core(self) -> "torch.Tensor":
        """A matrix with the update's singular values."""
        return self.matrix


@dataclass(frozen=True)
class LowRankDelta:
    """An update left @ right, of [out, rank] and [rank, in]."""

    left: "torch.Tensor"
    right: "torch.Tensor"

    @property
    def matrix(self) -> "torch.Tensor":
        """The update in full: [out, in]."""
        return self.left @ self.right

    @property
    def core(self) -> "torch.Tensor":
        """A matrix of at most rank × rank with the update's singular values.

        With left = Q·R and rightᵀ = P·S the update is Q(R·Sᵀ)Pᵀ, and Q and P have orthonormal columns.
        """
        import torch

        core: torch.Tensor = torch.linalg.qr(self.left).R @ torch.linalg.qr(self.right.T).R.T
        return core


Delta = DenseDelta | LowRankDelta


@dataclass(frozen=True)
class WeightUpdate:
    """What training added to one parameter."""

    name: str
    delta: Delta
    base_weight: "torch.Tensor | None"
    """The weight before training; None where it is quantised."""


def weight_updates(
    student: Model, ref: ModelRef, precision: str, start: "Mapping[str, torch.Tensor] | None" = None
) -> Iterator[WeightUpdate]:
    """The update of every parameter of a student on the base `ref` in `precision`.

    Of an image-and-text model only the language model's. A matrix is [out, in] as in `nn.Linear`. The base's
    weights are read one at a time where the student does not hold them.

    Args:
        student: the model as it was trained, or as `load_student` loads it.
        ref: its base.
        precision: the dtype of the base's weights.
        start: the trained weights before training, for a PiSSA student as it was trained, whose base lacks
            what the adapter started with; None for all others.

    Raises:
        ModelError: an adapter whose update is not known, so that it would be missing from the audit; or see
            `BaseWeights.read`.
    """
    with BaseWeights(ref, precision) as base_weights:
        if not hasattr(student, "peft_config"):
            inside = in_language_model(student)
            for name, weight in student.named_parameters():
                if inside(name):
                    base_weight = base_weights.read(name, weight)
                    delta = DenseDelta(weight.detach().float() - base_weight.float())
                    yield WeightUpdate(name, delta, base_weight)
            return
        for path, module in student.named_modules():
            adapter_delta = _adapter_delta(module)
            if adapter_delta is None:
                continue
            name = f"{path.removeprefix('base_model.model.')}.weight"
            adapted = _base_weight(module).detach()
            if start:
                adapter_delta = _without_start(adapter_delta, module, path, start)
                adapted = _base_weight(module, base_weights.read(name, module.get_base_layer().weight))
            yield WeightUpdate(name, adapter_delta, adapted if adapted.dtype.is_floating_point else None)


def frobenius_norm(delta: Delta) -> float:
    """Frobenius norm of an update."""
    import torch

    return float(torch.linalg.vector_norm(delta.core))


def stable_rank(delta: Delta) -> float | None:
    """Squared Frobenius norm over squared largest singular value, between 1 and the rank.

    It measures in how many directions the update is large. None for a vector and for a zero update.
    """
    norm = frobenius_norm(delta)
    if delta.core.ndim != 2 or norm == 0:
        return None
    return (norm / _largest_singular_value(delta.core)) ** 2


def project(update: WeightUpdate) -> "torch.Tensor":
    """A random projection of the update's entries, in row-major order: [`DIMENSION`], on its device.

    Entry i is added with a random sign to element i modulo `DIMENSION`, which is a prime so that the
    entries of a row and of a column are spread over the whole projection. The signs depend only on the
    parameter's name: the projections of a model's updates can be summed, and the dot product of two
    students' sums estimates that of their updates without bias; divided by the norms, with a standard
    error of about 1 / sqrt(`DIMENSION`).

    It takes 3 ns per entry on one CPU core, so 20 s for the 6.5e9 entries of a full 7B model, and on a
    GPU about 30 bytes of memory traffic per entry.
    """
    import torch

    entries = update.delta.matrix.float().flatten()
    total = torch.zeros(DIMENSION, dtype=torch.float64, device=entries.device)
    key = int.from_bytes(hashlib.sha256(update.name.encode()).digest()[:16], "little")
    generator = np.random.Philox(key=key)
    shifts = torch.arange(32, dtype=torch.int32, device=entries.device)
    for start in range(0, len(entries), BLOCK):
        block = entries[start : start + BLOCK]
        # The signs come from NumPy, 64 from a word: torch's generators differ between devices.
        words = torch.from_numpy(generator.random_raw(-(-len(block) // 64)).view(np.int32)).to(block.device)
        sign_bits = (words[:, None] << shifts).flatten()[: len(block)] & -(2**31)
        signed = (block.view(torch.int32) ^ sign_bits).view(torch.float32)
        padded = torch.nn.functional.pad(signed, (0, -len(block) % DIMENSION))
        total += padded.view(-1, DIMENSION).sum(0)
    return total


def _adapter_delta(module: Any) -> Delta | None:
    """The update of an adapted module; None for any other module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if hasattr(module, "lora_A") and "default" in module.lora_A:
        scaled = module.lora_B["default"].weight.detach().float() * module.scaling["default"]
        low_rank = LowRankDelta(scaled, module.lora_A["default"].weight.detach().float())
        magnitudes = getattr(module, "lora_magnitude_vector", {})
        if "default" not in magnitudes:
            return low_rank
        base_weight = _base_weight(module).detach().float()
        return _dora_delta(base_weight, low_rank, magnitudes["default"].weight)
    if hasattr(module, "ia3_l") and "default" in module.ia3_l:
        weight = _base_weight(module).detach().float()
        return DenseDelta(weight * (module.ia3_l["default"].detach().float() - 1))
    if isinstance(module, BaseTunerLayer):
        raise ModelError(
            f"the update of an adapter of {type(module).__name__} is not known, so it cannot be audited; "
            "name other modules in `train.adapter.targets`"
        )
    return None


def _without_start(delta: Delta, module: Any, path: str, start: "Mapping[str, torch.Tensor]") -> LowRankDelta:
    """A PiSSA adapter's update: what its factors make now, less what they made at the start."""
    import torch

    assert isinstance(delta, LowRankDelta)
    scaled = start[f"{path}.lora_B.default.weight"].float() * module.scaling["default"]
    return LowRankDelta(
        torch.cat([delta.left, -scaled], dim=1),
        torch.cat([delta.right, start[f"{path}.lora_A.default.weight"].float()]),
    )


def _base_weight(module: Any, weight: "torch.Tensor | None" = None) -> "torch.Tensor":
    """The weight below an adapter, or `weight` in its place: [out, in]. GPT-2's `Conv1D` stores [in, out]."""
    from transformers.pytorch_utils import Conv1D

    base_layer = module.get_base_layer()
    stored: torch.Tensor = base_layer.weight if weight is None else weight
    return stored.T if isinstance(base_layer, Conv1D) else stored


def _dora_delta(weight: "torch.Tensor", low_rank: LowRankDelta, magnitude: "torch.Tensor") -> DenseDelta:
    """DoRA: the rows of W + BA, each scaled to its trained magnitude (arXiv 2402.09353)."""
    import torch

    direction = weight + low_rank.matrix
    scale = magnitude.detach().float() / torch.linalg.norm(direction, dim=1)
    return DenseDelta(scale[:, None] * direction - weight)


def _largest_singular_value(matrix: "torch.Tensor") -> float:
    import torch

    if min(matrix.shape) <= EXACT_SIDE:
        return float(torch.linalg.matrix_norm(matrix, 2))
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        _, values, _ = torch.svd_lowrank(matrix, q=8, niter=16)
    return float(values[0])
