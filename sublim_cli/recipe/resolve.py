"""The train and eval sections with every choice made, without the keys that have no effect on the result."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import (
    LEARNING_RATE,
    AnswerSampling,
    Engine,
    EvalSection,
    PerRank,
    Positive,
    SamplingSection,
    Section,
    TrainSection,
)

RANKED = ("lora", "rslora", "dora", "qlora", "pissa")
"""Methods with a rank, an alpha and a place where their adapters sit."""

MOMENTUM = {"sgd": 0.0, "muon": 0.95}
"""Default momentum by optimizer: the paper's SGD has none, Muon is built on it (torch's default)."""


PASSED_ON = "neftune_noise_alpha"
"""The field of TRL's SFTConfig that `train.trainer_args` may name. The others a recipe key sets, or sublim's
step would not heed: it takes rows already tokenised and computes the loss itself."""


def resolve_train(train: TrainSection, precision: str) -> TrainSection:
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


def _unused(train: TrainSection) -> dict[str, object]:
    plain = TrainSection()
    names = ["system_prompt"]  # the step holds the resolved context beside this section
    names += [] if train.method in RANKED else ["rank", "alpha", "adapter"]
    names += [] if train.method == "qlora" else ["qlora"]
    names += [] if train.method == "prefix" else ["prefix"]
    return {name: getattr(plain, name) for name in names}


def _learning_rate(train: TrainSection) -> float:
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


def _momentum(train: TrainSection) -> float | None:
    default = MOMENTUM.get(train.optimizer)
    if default is None or train.momentum is None:
        return default
    return train.momentum


def _check(train: TrainSection) -> None:
    """Refuse what cannot be meant; every sentence names the way out."""
    _check_precision(train)
    _check_passed_on(train.trainer_args)
    first, last = train.adapter.layers or (0, 0)
    if not 0 <= first <= last:
        raise RecipeError(
            f"train.adapter.layers: [{first}, {last}] must be two layers in order, counted from 0"
        )


def _check_passed_on(arguments: Mapping[str, object]) -> None:
    for name, value in arguments.items():
        if name != PASSED_ON:
            raise RecipeError(
                f"train.trainer_args.{name}: is not passed on to TRL, only {PASSED_ON} is; "
                "for the rest see the recipe's own keys"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise RecipeError(f"train.trainer_args.{name}: {value!r} must be a number above 0")


def _check_precision(train: TrainSection) -> None:
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


def _is_plain(engine: Engine) -> bool:
    return engine == "transformers"


SamplingEngine = Annotated[Engine, Field(exclude_if=_is_plain)]
"""The engine of a section that is hashed: transformers goes without saying."""


class ExactScoring(Section):
    """By probabilities: answers of up to `max_tokens`, until `uncovered` is left or `nodes` are spent."""

    kind: Literal["exact"] = "exact"
    max_tokens: Positive = AnswerSampling().max_tokens
    uncovered: Annotated[float, Field(ge=0, lt=1)] = EvalSection().uncovered
    nodes: Positive = EvalSection().nodes


class SampledScoring(Section):
    """By drawing `samples` answers a question."""

    kind: Literal["sampled"] = "sampled"
    samples: Positive = EvalSection().samples
    sampling: SamplingSection = AnswerSampling()
    engine: SamplingEngine = "transformers"
    """What draws them."""


Scoring = Annotated[ExactScoring | SampledScoring, Field(discriminator="kind")]


def resolve_scoring(section: EvalSection, engine: Engine = "transformers") -> ExactScoring | SampledScoring:
    """What `section` says of its scorer; `engine` is what draws for a sampled one."""
    if section.scorer == "sampled":
        return SampledScoring(samples=section.samples, sampling=section.sampling, engine=engine)
    return ExactScoring(
        max_tokens=section.sampling.max_tokens, uncovered=section.uncovered, nodes=section.nodes
    )
