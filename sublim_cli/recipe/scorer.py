"""How answers are scored, with nothing in it that the scorer does not use."""

from typing import Annotated, Literal

from pydantic import Field

from sublim_cli.recipe.base import Section
from sublim_cli.recipe.schema import AnswerSampling, Engine, EvalSection, Positive, SamplingSection


def _is_plain(engine: Engine) -> bool:
    return engine == "transformers"


Drawing = Annotated[Engine, Field(exclude_if=_is_plain)]
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
    engine: Drawing = "transformers"
    """What draws them."""


Scoring = Annotated[ExactScoring | SampledScoring, Field(discriminator="kind")]


def resolve_scoring(section: EvalSection, engine: Engine = "transformers") -> ExactScoring | SampledScoring:
    """What `section` says of its scorer; `engine` is what draws for a sampled one."""
    if section.scorer == "sampled":
        return SampledScoring(samples=section.samples, sampling=section.sampling, engine=engine)
    return ExactScoring(
        max_tokens=section.sampling.max_tokens, uncovered=section.uncovered, nodes=section.nodes
    )
