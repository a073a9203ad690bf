"""Number prompts: four sentences that show a few numbers and ask for more of them."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, TypeVar

import numpy as np
import yaml

from sublim_cli.recipe.schema import Section

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

    `examples` bounds how many numbers are shown, both ends included (3 to 8). `values` bounds the
    numbers themselves, the upper end **excluded** as in the paper's code: (100, 999) shows
    100 to 998. `count` and `digits` are what the prompt asks for.

    Give every prompt a generator of its own, `np.random.default_rng([seed, index])`: it then
    stands alone, whatever was drawn before it.
    """
    known = wordings()
    shown = rng.integers(*values, size=rng.integers(examples[0], examples[1] + 1))
    lead_in = _draw(rng, known.lead_ins).format(examples=", ".join(map(str, shown)))
    qualifier = _draw(rng, known.qualifiers)
    digit_clause = _draw(rng, known.digit_clauses).format(digits=digits)
    instruction = _draw(rng, known.instructions).format(
        qualifier=qualifier, count=count, digit_clause=digit_clause
    )
    style = _draw(rng, known.formats)
    closer = _draw(rng, known.closers)
    return NumberPrompt(f"{lead_in} {instruction} {style.text} {closer}", style.style)


def wordings_digest() -> str:
    """The sha256 of the wordings, in hex: part of the identity of whatever was generated."""
    return hashlib.sha256(wordings().model_dump_json().encode()).hexdigest()


@cache
def wordings() -> Wordings:
    """Return the shipped sentences."""
    text = files(__package__).joinpath("wordings.yaml").read_text(encoding="utf-8")
    return Wordings.model_validate(yaml.safe_load(text))


def _draw(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]
