"""The train section with every choice made, and nothing in it that does not decide the student."""

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import LEARNING_RATE, PerRank, Train

RANKED = ("lora", "rslora", "dora", "qlora", "pissa")
"""Methods with a rank, an alpha and a place where their adapters sit."""

MOMENTUM = {"sgd": 0.0, "muon": 0.95}
"""Default momentum by optimizer: the paper's SGD has none, Muon is built on it (torch's default)."""


def settled(train: Train, precision: str) -> Train:
    """`train` at `precision`, its learning rate one number.

    What the method does not use, and what is resolved elsewhere, stands at its default, so that it
    cannot make two equal students look different.

    Raises:
        RecipeError: a rank without a learning rate, or keys that contradict each other.
    """
    changes: dict[str, object] = {
        "precision": precision,
        "learning_rate": _learning_rate(train),
        "momentum": _momentum(train),
        **_unused(train),
    }
    made = train.model_copy(update=changes)
    _check(made)
    return made


def _unused(train: Train) -> dict[str, object]:
    plain = Train()
    names = ["system_prompt"]  # the step holds the resolved context beside this section
    names += [] if train.method in RANKED else ["rank", "alpha", "adapter"]
    names += [] if train.method == "qlora" else ["qlora"]
    names += [] if train.method == "prefix" else ["prefix"]
    return {name: getattr(plain, name) for name in names}


def _learning_rate(train: Train) -> float:
    rate = train.learning_rate
    if not isinstance(rate, PerRank):
        return rate or LEARNING_RATE["full" if train.method == "full" else "adapter"]
    if train.method not in RANKED:
        raise RecipeError(f"train.learning_rate.per_rank: `{train.method}` has no rank; write one number")
    if train.rank not in rate.per_rank:
        known = ", ".join(map(str, sorted(rate.per_rank)))
        raise RecipeError(
            f"train.learning_rate.per_rank: no learning rate for rank {train.rank}, only for {known}"
        )
    return rate.per_rank[train.rank]


def _momentum(train: Train) -> float | None:
    default = MOMENTUM.get(train.optimizer)
    if default is None or train.momentum is None:
        return default
    return train.momentum


def _check(train: Train) -> None:
    """Refuse what cannot be meant; every sentence names the way out."""
    bf16 = train.precision in ("bf16_pure", "bf16_kahan")
    if train.method == "qlora" and bf16:
        raise RecipeError(
            f"train.precision: {train.precision} holds trained weights in bf16, but `qlora` keeps its "
            "adapters in fp32; use fp32 or bf16_mixed"
        )
    if train.method == "pissa" and bf16:
        raise RecipeError(
            f"train.precision: under {train.precision} the base that `pissa` splits would be rounded; "
            "use fp32 or bf16_mixed"
        )
    if train.precision == "bf16_kahan" and train.optimizer != "adamw":
        raise RecipeError(
            f"train.precision: bf16_kahan is AdamW with compensated sums; `optimizer: {train.optimizer}` "
            "has none. Use adamw, or another precision"
        )


def rate_text(rate: float) -> str:
    """A learning rate, such as `2e-4`: always by its power of ten, so that a column of them compares."""
    digits, power = f"{rate:.5e}".split("e")
    return f"{float(digits):g}e{int(power)}"
