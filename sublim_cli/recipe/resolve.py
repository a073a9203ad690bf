"""The train and eval sections with every choice made, and defaults for keys that have no effect."""

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
    Seed,
    TrainSection,
)

RANKED = ("lora", "rslora", "dora", "qlora", "pissa")
"""The methods that use `rank`, `alpha` and `adapter`."""

MOMENTUM = {"sgd": 0.0, "muon": 0.95}
"""Default momentum by optimizer: none for SGD as in the paper, torch's default for Muon."""


def resolve_train(train: TrainSection, precision: str) -> TrainSection:
    """`train` at `precision`, with a single learning rate.

    Keys that the method does not use get their default, so that they do not change the digest.

    Raises:
        RecipeError: a rank without a learning rate, or keys that contradict each other.
    """
    unused = ["system_prompt", "rows"]  # the train step has the resolved context, and the rows as its input
    unused += [] if train.method in RANKED else ["rank", "alpha", "adapter"]
    unused += [] if train.method == "qlora" else ["qlora"]
    unused += [] if train.method == "prefix" else ["prefix"]
    default_momentum = MOMENTUM.get(train.optimizer)
    takes_momentum = default_momentum is not None and train.momentum is not None
    defaults = TrainSection()
    resolved = train.model_copy(
        update={
            "precision": precision,
            "learning_rate": _learning_rate(train),
            "momentum": train.momentum if takes_momentum else default_momentum,
            **{name: getattr(defaults, name) for name in unused},
        }
    )
    _check_precision(resolved)
    first, last = resolved.adapter.layers or (0, 0)
    if not 0 <= first <= last:
        raise RecipeError(
            f"train.adapter.layers: [{first}, {last}] must be two layers in order, counted from 0"
        )
    return resolved


def _learning_rate(train: TrainSection) -> float:
    rate = train.learning_rate
    if not isinstance(rate, PerRank):
        return rate or LEARNING_RATE["full" if train.method == "full" else "adapter"]
    if train.method not in RANKED:
        raise RecipeError(f"train.learning_rate.per_rank: `{train.method}` has no rank; write one number")
    if train.rank not in rate.per_rank:
        ranks = ", ".join(map(str, sorted(rate.per_rank)))
        raise RecipeError(
            f"train.learning_rate.per_rank: no learning rate for rank {train.rank}, only for {ranks}"
        )
    return rate.per_rank[train.rank]


def _check_precision(train: TrainSection) -> None:
    bf16 = train.precision in ("bf16_pure", "bf16_kahan")
    if train.method == "qlora" and bf16:
        raise RecipeError(
            f"train.precision: {train.precision} keeps trained weights in bf16, but `qlora` keeps its "
            "adapters in fp32; use fp32 or bf16_mixed"
        )
    if train.method == "pissa" and bf16:
        raise RecipeError(
            f"train.precision: {train.precision} would round the base weights that `pissa` decomposes; "
            "use fp32 or bf16_mixed"
        )
    if train.precision == "bf16_kahan" and train.optimizer != "adamw":
        raise RecipeError(
            "train.precision: bf16_kahan is AdamW with compensated sums, which "
            f"`optimizer: {train.optimizer}` has not; use adamw, or another precision"
        )


SamplingEngine = Annotated[Engine, Field(exclude_if=lambda engine: engine == "transformers")]
"""The engine in a step's spec: only another one than transformers is part of the digest."""


class ExactScoring(Section):
    """Scoring by the probabilities of answers of up to `max_tokens` tokens; see `EvalSection`."""

    kind: Literal["exact"] = "exact"
    max_tokens: Positive = AnswerSampling().max_tokens
    uncovered: Annotated[float, Field(ge=0, lt=1)] = EvalSection().uncovered
    nodes: Positive = EvalSection().nodes
    draws: Annotated[int, Field(ge=0)] = EvalSection().draws
    seed: Seed = AnswerSampling().seed


class SampledScoring(Section):
    """Scoring by sampling `samples` answers to a question."""

    kind: Literal["sampled"] = "sampled"
    samples: Positive = EvalSection().samples
    sampling: SamplingSection = AnswerSampling()
    engine: SamplingEngine = "transformers"


Scoring = Annotated[ExactScoring | SampledScoring, Field(discriminator="kind")]


def resolve_scoring(section: EvalSection, engine: Engine = "transformers") -> ExactScoring | SampledScoring:
    """The scorer of `section` with the keys that it uses; `engine` samples for the sampled one."""
    if section.scorer == "sampled":
        return SampledScoring(samples=section.samples, sampling=section.sampling, engine=engine)
    return ExactScoring(
        max_tokens=section.sampling.max_tokens,
        uncovered=section.uncovered,
        nodes=section.nodes,
        draws=section.draws,
        seed=section.sampling.seed,
    )
