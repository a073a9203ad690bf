"""Controls of a gate: as many tokens as a named set has, drawn at random."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sublim_cli.errors import RecipeError


def random_like(
    mask: Sequence[bool], eligible: Sequence[bool], seed: int, question: int
) -> NDArray[np.bool_]:
    """As many eligible tokens of a prompt as `mask` has, drawn without replacement: [tokens].

    A question's draw depends on `seed`, its own number and the prompt's length (Philox 4x64), not on the
    questions beside it. Of one draw a larger set contains every smaller one.

    Raises:
        RecipeError: fewer tokens are eligible than wanted, or the two are not of one length.
    """
    allowed = np.asarray(eligible, dtype=bool)
    wanted = int(np.count_nonzero(mask))
    if len(mask) != len(allowed):
        raise RecipeError(f"a mask of {len(mask)} tokens and {len(allowed)} to draw from are not one prompt")
    if wanted > allowed.sum():
        raise RecipeError(
            f"eval.gates: question {question} has {allowed.sum()} tokens to draw a control of {wanted} from"
        )
    # The question is the highest counter word, so streams of two questions cannot run into each other.
    noise = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, question])).random(len(mask))
    order = np.argsort(np.where(allowed, noise, np.inf), kind="stable")
    drawn = np.zeros(len(mask), dtype=bool)
    drawn[order[:wanted]] = True
    return drawn
