"""What a training added to each weight matrix, and its size, shape and direction.

An adapter of the LoRA family adds B·A: its size and direction follow from the factors, and the full
matrix is never formed. A full model, DoRA and IA3 have no such factors; theirs is formed, one matrix at
a time. A prefix adds to no weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sublim_cli.models.load import Model, load_weights
from sublim_cli.models.reference import ModelRef

if TYPE_CHECKING:
    import torch

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


def dot(one: Update, other: Update) -> float:
    """Sum over the entries of the product of two updates; of two factored ones, from the factors."""
    if isinstance(one, Factored) and isinstance(other, Factored):
        # <B1 A1, B2 A2> = trace((B1ᵀ B2)(A2 A1ᵀ))
        return float(((one.left.T @ other.left) * (one.right @ other.right.T)).sum())
    return float((one.whole * other.whole).sum())


def cosine(one: Model, other: Model, ref: ModelRef, precision: str = "fp32") -> float | None:
    """Cosine between the updates of two students of one base, as one long vector each.

    Both come from `load_student(ref, precision, …)` and were trained by the same method on the same
    modules. None where there is no update to compare: prefixes, or a student that did not move.
    """
    products = [0.0, 0.0, 0.0]
    for mine, theirs in zip(changes(one, ref, precision), changes(other, ref, precision), strict=True):
        products[0] += dot(mine.update, theirs.update)
        products[1] += norm(mine.update) ** 2
        products[2] += norm(theirs.update) ** 2
    between, own, theirs_own = products
    return between / (own * theirs_own) ** 0.5 if own and theirs_own else None


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
