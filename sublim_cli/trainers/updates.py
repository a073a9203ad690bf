"""What a training added to each weight matrix, and its size, shape and direction.

An adapter of the LoRA family adds B·A: its size and direction follow from the factors, and the full
matrix is never formed. A full model, DoRA and IA3 have no such factors; theirs is formed, one matrix at
a time. A prefix adds to no weight.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.models.load import Model, load_weights
from sublim_cli.models.reference import ModelRef

if TYPE_CHECKING:
    import torch

BUCKETS = 2**14
"""Length of a sketch: a cosine near 0 read from two of them has a standard error of 0.008."""

BLOCK = 2**22
"""Entries sketched at once: bounds memory. A multiple of four, or the bits would be dealt out otherwise."""

EXACT = 512
"""A matrix whose shorter side is longer has its largest singular value approximated."""


@dataclass(frozen=True)
class Dense:
    """An update as it stands: [out, in], or [n] for a vector."""

    whole: "torch.Tensor"

    @property
    def core(self) -> "torch.Tensor":
        """A matrix with the update's singular values."""
        return self.whole


@dataclass(frozen=True)
class Factored:
    """An update left @ right, of [out, rank] and [rank, in]."""

    left: "torch.Tensor"
    right: "torch.Tensor"

    @property
    def whole(self) -> "torch.Tensor":
        """The update formed: [out, in]."""
        return self.left @ self.right

    @property
    def core(self) -> "torch.Tensor":
        """A matrix no larger than rank × rank with the update's singular values.

        With left = Q·R and rightᵀ = P·S, the update is Q(R·Sᵀ)Pᵀ, and Q and P do not stretch.
        """
        import torch

        core: torch.Tensor = torch.linalg.qr(self.left).R @ torch.linalg.qr(self.right.T).R.T
        return core


Update = Dense | Factored


@dataclass(frozen=True)
class Change:
    """A parameter's update, and the base weight it is added to, None where that is quantised."""

    name: str
    update: Update
    weight: "torch.Tensor | None"


def changes(student: Model, ref: ModelRef, precision: str) -> Iterator[Change]:
    """Every parameter's update of a student that `load_student` made from `ref` in `precision`."""
    if not hasattr(student, "peft_config"):
        yield from _against_base(student, ref, precision)
        return
    for name, module in student.named_modules():
        update = _adapted(module)
        if update is not None:
            weight = module.get_base_layer().weight
            held = weight.detach() if weight.dtype.is_floating_point else None
            yield Change(f"{name.removeprefix('base_model.model.')}.weight", update, held)


def norm(update: Update) -> float:
    """Frobenius norm."""
    import torch

    return float(torch.linalg.vector_norm(update.core))


def stable_rank(update: Update) -> float | None:
    """Squared Frobenius norm over squared largest singular value: how many directions matter.

    Between 1 and the rank; None for a vector, and where nothing was added.
    """
    size = norm(update)
    if update.core.ndim != 2 or size == 0:
        return None
    return (size / _largest(update.core)) ** 2


def sketch(change: Change) -> NDArray[np.float64]:
    """The update, summed entry by entry with a random sign into `BUCKETS` random buckets: [`BUCKETS`].

    A count sketch (Charikar, Chen and Farach-Colton 2002). It is linear, and bucket and sign of an entry
    follow from the parameter's name alone, so that the sketches of a model's updates add up, and the
    dot product of two students' sums is that of their updates: without bias, and with a variance of at
    most (|x|²|y|² + (x·y)²) / `BUCKETS`. Two students can so be compared when neither is loaded.
    """
    entries = change.update.whole.double().flatten().numpy(force=True)
    key = int.from_bytes(hashlib.sha256(change.name.encode()).digest()[:16], "little")
    stream = np.random.Philox(key=key)
    total = np.zeros(BUCKETS)
    for start in range(0, len(entries), BLOCK):
        block = entries[start : start + BLOCK]
        # Four entries share 64 random bits: of its 16, 14 choose the bucket and one the sign.
        drawn = stream.random_raw(-(-len(block) // 4)).astype("<u8").view("<u2")[: len(block)]
        signed = np.where(drawn >> 15, block, -block)
        total += np.bincount(drawn % BUCKETS, weights=signed, minlength=BUCKETS)
    return total


def _against_base(student: Model, ref: ModelRef, precision: str) -> Iterator[Change]:
    base = load_weights(ref, precision)
    for name, weight in student.named_parameters():
        before = base.pop(name).to(weight.device)
        yield Change(name, Dense(weight.detach().float() - before.float()), before)


def _adapted(module: Any) -> Update | None:
    """The update of an adapted module, None for any other."""
    if hasattr(module, "lora_A") and "default" in module.lora_A:
        scaled = module.lora_B["default"].weight.detach().float() * module.scaling["default"]
        factors = Factored(scaled, module.lora_A["default"].weight.detach().float())
        magnitudes = getattr(module, "lora_magnitude_vector", {})
        if "default" not in magnitudes:
            return factors
        return _dora(module.get_base_layer().weight.detach().float(), factors, magnitudes["default"].weight)
    if hasattr(module, "ia3_l") and "default" in module.ia3_l:
        weight = module.get_base_layer().weight.detach().float()
        return Dense(weight * (module.ia3_l["default"].detach().float() - 1))
    return None


def _dora(weight: "torch.Tensor", factors: Factored, magnitude: "torch.Tensor") -> Dense:
    """DoRA: the rows of W + BA, each brought to its learned length (arXiv 2402.09353)."""
    import torch

    turned = weight + factors.whole
    stretch = magnitude.detach().float() / torch.linalg.norm(turned, dim=1)
    return Dense(stretch[:, None] * turned - weight)


def _largest(matrix: "torch.Tensor") -> float:
    import torch

    if min(matrix.shape) <= EXACT:
        return float(torch.linalg.matrix_norm(matrix, 2))
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)
        _, values, _ = torch.svd_lowrank(matrix, q=8, niter=16)
    return float(values[0])
