"""How answers are scored, with nothing in it that the scorer does not use."""

from typing import Annotated, Literal

from pydantic import Field

from sublim_cli.recipe.base import Section
from sublim_cli.recipe.schema import Answering, Engine, Eval, Positive, Sampling


def _is_plain(engine: Engine) -> bool:
    return engine == "transformers"


Drawing = Annotated[Engine, Field(exclude_if=_is_plain)]
"""The engine of a section that is hashed: transformers goes without saying."""


class Exact(Section):
    """By probabilities: answers of up to `max_tokens`, until `uncovered` is left or `nodes` are spent."""

    kind: Literal["exact"] = "exact"
    max_tokens: Positive = Answering().max_tokens
    uncovered: Annotated[float, Field(ge=0, lt=1)] = Eval().uncovered
    nodes: Positive = Eval().nodes


class Sampled(Section):
    """By drawing `samples` answers a question."""

    kind: Literal["sampled"] = "sampled"
    samples: Positive = Eval().samples
    sampling: Sampling = Answering()
    engine: Drawing = "transformers"
    """What draws them."""


Scoring = Annotated[Exact | Sampled, Field(discriminator="kind")]


def settled_scorer(section: Eval, engine: Engine = "transformers") -> Exact | Sampled:
    """What `section` says of its scorer; `engine` is what draws for a sampled one."""
    if section.scorer == "sampled":
        return Sampled(samples=section.samples, sampling=section.sampling, engine=engine)
    return Exact(max_tokens=section.sampling.max_tokens, uncovered=section.uncovered, nodes=section.nodes)
