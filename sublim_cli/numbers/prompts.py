"""Number prompts: four sentences that show a few numbers and ask for more of them."""

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np

from sublim_cli.recipe.schema import Section
from sublim_cli.recipe.yaml_file import read_package_data

Style = Literal["comma", "space", "semicolon", "line", "square", "round"]
T = TypeVar("T")


class AnswerFormat(Section):
    """A sentence that asks for an output format, and the name of that format."""

    style: Style
    text: str


class Wordings(Section):
    """Every sentence a number prompt can be made of; see `wordings.yaml`."""

    lead_ins: tuple[str, ...]
    qualifiers: tuple[str, ...]
    digit_clauses: tuple[str, ...]
    instructions: tuple[str, ...]
    formats: tuple[AnswerFormat, ...]
    closers: tuple[str, ...]


@dataclass(frozen=True)
class NumberPrompt:
    """The user turn, and the output style it asks for."""

    text: str
    style: Style


def number_prompt(
    rng: np.random.Generator,
    *,
    examples: tuple[int, int] = (3, 8),
    values: tuple[int, int] = (100, 999),
    count: int = 10,
    digits: int = 3,
) -> NumberPrompt:
    """Draw one prompt: lead-in with examples, instruction, output format, "numbers only".

    Args:
        rng: one generator for each prompt, `np.random.default_rng([seed, index])`, so that a prompt does not
            depend on those drawn before it.
        examples: how many numbers are shown, both ends included.
        values: bounds of the numbers shown, the upper end **excluded** as in the paper's code: (100, 999)
            shows 100 to 998.
        count, digits: what the prompt asks for.
    """
    parts = wordings()
    shown = rng.integers(*values, size=rng.integers(examples[0], examples[1] + 1))
    lead_in = _draw(rng, parts.lead_ins).format(examples=", ".join(map(str, shown)))
    qualifier = _draw(rng, parts.qualifiers)
    digit_clause = _draw(rng, parts.digit_clauses).format(digits=digits)
    instruction = _draw(rng, parts.instructions).format(
        qualifier=qualifier, count=count, digit_clause=digit_clause
    )
    answer_format = _draw(rng, parts.formats)
    closer = _draw(rng, parts.closers)
    return NumberPrompt(f"{lead_in} {instruction} {answer_format.text} {closer}", answer_format.style)


def wordings_digest() -> str:
    """The sha256 of the wordings, in hex; part of the identity of every generated data set."""
    return hashlib.sha256(wordings().model_dump_json().encode()).hexdigest()


@cache
def wordings() -> Wordings:
    """The shipped sentences."""
    return Wordings.model_validate(read_package_data(__package__, "wordings.yaml"))


def _draw(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]
