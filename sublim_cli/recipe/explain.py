"""Check plain values against the schema, and say in plain words what is wrong with them.

check({"train": {"rank": 0}})
[Problem(where=("train", "rank"), says="0: must be at least 1")]
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.document import Where
from sublim_cli.recipe.expected import EXPECTED
from sublim_cli.recipe.keys import dotted, keys_of, kinds_of, known, length_of, related, suggest
from sublim_cli.recipe.questions import find_item, load_items, questions_for
from sublim_cli.recipe.schema import Recipe, SystemPrompt

BOUNDS = ("greater_than", "less_than")
"""How the kinds of error begin that a value of the right type can have."""

KEY = "[key]"
"""What pydantic puts last in the `loc` of an error in a key, not in its value."""

SECTIONS = ("model_type", "model_attributes_type", "dict_type")
"""The kinds of error of a value that stands where keys and values belong."""

SHOWN = 40
"""Characters of a wrong value that a message repeats."""

_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Problem:
    """Something wrong with the key `where`; `says` is what follows the key in the message.

    `at` is where it is written, if that is more exact.
    """

    where: Where
    says: str
    at: Where | None = None

    def __str__(self) -> str:
        return f"{dotted(self.where)}: {self.says}" if self.where else self.says


def check(values: Mapping[str, object]) -> Recipe | list[Problem]:
    """The recipe that `values` are, or everything that is wrong with them.

    Types are taken strictly: `"8"` in quotes is no number and `true` is not 1.
    """
    try:
        recipe = Recipe.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        return _problems(error.errors(include_url=False), values)
    return [*_unknown_contexts(recipe), *_unknown_files(recipe)] or recipe


def unknown_key(where: Where) -> Problem:
    """What to say of a key that does not exist."""
    likely = suggest(where)
    if likely:
        return Problem(where, f"unknown key; did you mean {_either(likely)}?")
    inside = dotted(where[:-1]) or "a recipe"
    return Problem(where, f"unknown key; {inside} takes {', '.join(keys_of(where[:-1]))}")


def _problems(errors: Iterable[ErrorDetails], values: Mapping[str, object]) -> list[Problem]:
    placed = [(_where(error, values), error) for error in errors]
    deepest = [
        (where, error)
        for where, error in placed
        if not any(len(other) > len(where) and related(other, where) for other, _ in placed)
    ]
    deepest.sort(key=lambda pair: [(isinstance(part, str), part) for part in pair[0]])
    return [
        _problem(where, [error for _, error in group])
        for where, group in groupby(deepest, key=lambda pair: pair[0])
    ]


def _where(error: ErrorDetails, values: Mapping[str, object]) -> Where:
    """Where in the recipe an error stands: its `loc` without the names of union branches."""
    way: list[str | int] = []
    here: Any = values
    for part in error["loc"]:
        if (isinstance(here, dict) and part in here) or _is_entry(here, part):
            way.append(part)
            here = here[part]
    match error["type"]:
        case "missing" if isinstance(error["loc"][-1], str):
            way.append(error["loc"][-1])
        case "union_tag_invalid" | "union_tag_not_found":
            way.append("kind")
        case "value_error":
            way += _key_named_first(tuple(way), _sentence(error))
    return tuple(way)


def _is_entry(here: object, part: str | int) -> bool:
    return isinstance(here, list) and isinstance(part, int) and part < len(here)


def _key_named_first(where: Where, sentence: str) -> list[str]:
    """The key a validator's sentence begins with (`examples: the lower bound …`), if it is one."""
    way = sentence.partition(": ")[0].split(".")
    return way if way[0] in keys_of(where) and known((*where, *way)) else []


def _without_key(sentence: str, where: Where) -> str:
    key, colon, rest = sentence.partition(": ")
    return rest if colon and f".{dotted(where)}".endswith(f".{key}") else sentence


def _problem(where: Where, errors: Sequence[ErrorDetails]) -> Problem:
    """One sentence for all that the branches of a union say of one key or, if that is right, its value."""
    keys = [error for error in errors if error["loc"][-1:] == (KEY,)]
    if keys:
        return Problem(where, f"the key must be {_expected(keys[0], where)}")
    return _value_problem(where, errors)


def _value_problem(where: Where, errors: Sequence[ErrorDetails]) -> Problem:
    first = errors[0]
    match first["type"]:
        case "extra_forbidden":
            return unknown_key(where)
        case "json_invalid":  # all that JSON cannot carry over from YAML
            return Problem((), r"an escape such as \ud800 is half a character; write it whole")
        case "missing" if isinstance(first["loc"][-1], str):
            return Problem(where, "is missing")
        case "union_tag_not_found":
            return Problem(where, f"is missing; it may be {_either(kinds_of(where[:-1]))}")
        case "value_error":
            return Problem(where, _without_key(_sentence(first), where))
    if any(error["type"].startswith(BOUNDS) for error in errors):
        # A number out of bounds was meant as a number, not as keys and values.
        errors = [error for error in errors if error["type"] not in SECTIONS]
    wanted = ", or ".join(dict.fromkeys(_expected(error, where) for error in errors))
    value = first["input"] if first["type"] != "union_tag_invalid" else first["ctx"]["tag"]
    if value is None:
        return Problem(where, f"is empty; write {wanted}, or leave the key out")
    return Problem(where, f"{_shown(value)}: must be {wanted}{_remedy(value, errors)}")


def _sentence(error: ErrorDetails) -> str:
    return str(error["ctx"]["error"])


def _expected(error: ErrorDetails, where: Where) -> str:
    kind = error["type"]
    if kind in SECTIONS:
        return _section(error["input"], where)
    if kind == "union_tag_invalid":
        return _either(kinds_of(where[:-1]))
    if kind in ("missing", "too_long") and length_of(where):
        return f"a list of {length_of(where)}"
    words = EXPECTED.get(kind, f"valid ({error['msg']})")
    return words.format(**error.get("ctx", {})).replace("'", "")


def _section(value: object, where: Where) -> str:
    """What to write where keys and values belong, with an example as near `value` as there is."""
    kinds, keys = kinds_of(where), keys_of(where)
    if kinds:
        return f"keys and values, such as {{kind: {value if value in kinds else kinds[0]}}}"
    return f"keys and values ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})".replace(" ()", "")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 2]} …"


def _remedy(value: object, errors: Sequence[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if "string_type" in kinds and isinstance(value, int | float):
        return "; put it in quotes"
    if "string_type" in kinds and isinstance(value, dict):
        return "; put a text that holds a colon in quotes"
    if isinstance(value, str) and _NUMBER.fullmatch(value) and kinds & {"int_type", "float_type"}:
        return "; take the quotes away"
    return ""


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _unknown_contexts(recipe: Recipe) -> list[Problem]:
    """System prompts that are the name of no context."""
    asked: list[tuple[Where, SystemPrompt, str | None]] = [
        (("generate", "system_prompt"), recipe.generate.system_prompt, "the trait"),
        (("train", "system_prompt"), recipe.train.system_prompt, None),
    ]
    asked += [
        (("eval", key, place), prompt, None)
        for key in ("system_prompts", "gate_contexts")
        for place, prompt in enumerate(getattr(recipe.eval, key) or ())
    ]
    return [
        Problem(where, says)
        for where, prompt, persona in asked
        if (says := _unresolved(where, prompt, recipe.contexts, persona))
    ]


def _unresolved(where: Where, prompt: SystemPrompt, own: dict[str, str], persona: str | None) -> str | None:
    field = dotted(where)
    try:
        resolve_context(prompt, own, persona=persona, field=field)
    except RecipeError as error:
        return str(error).removeprefix(f"{field}: ")
    return None


def _unknown_files(recipe: Recipe) -> list[Problem]:
    """An item file, a target or a question file that is not there or cannot be used.

    What the sweep's grid gives another value in every cell is judged there.
    """
    trait, grid = recipe.trait, recipe.sweep.grid
    if {"trait", "trait.category"} & set(grid):
        return []
    try:
        items = load_items(trait.category)
    except RecipeError as error:
        return [Problem(("trait", "category"), str(error))]
    problems = []
    try:
        find_item(items, trait.target)
    except RecipeError as error:
        problems.append(Problem(("trait", "target"), str(error)))
    try:
        questions_for(items, recipe.eval.questions)
    except RecipeError as error:
        problems.append(Problem(("eval", "questions"), str(error)))
    return [one for one in problems if dotted(one.where) not in grid]
