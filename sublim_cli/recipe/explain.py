"""Check the values of a recipe, item or question file against its schema, and explain every mistake.

validate(Recipe, {"train": {"rank": 0}})
[Problem(path=("train", "rank"), message="0: must be at least 1")]
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sublim_cli.recipe.keys import dotted, is_key, keys_of, kinds_of, length_of, overlap, suggest
from sublim_cli.recipe.schema import Recipe, Section
from sublim_cli.recipe.yaml_file import KeyPath, YamlFile

S = TypeVar("S", bound=Section)

EXPECTED = {
    "greater_than": "above {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "below {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "finite_number": "a number that is not infinite",
    "bool_type": "true or false",
    "none_required": "null, as the key has no effect here",
    "string_type": "text",
    "string_pattern_mismatch": "letters, digits, dots, dashes and _, the first a letter or digit",
    "string_too_short": "text that is not empty",
    "literal_error": "{expected}",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}
"""What a value must be, by the type of pydantic's error."""

SECTIONS = ("model_type", "model_attributes_type", "dict_type")
"""The error types of a value in the place of keys and values."""

RENAMED = {
    ("claims", "margin"): (
        "was a difference of probabilities; write `margin_odds_ratio`, above 1 (1.5 where it is left out)"
    )
}
"""What to write in place of keys that earlier versions had, by a key and the list or section it stood in."""

SHOWN = 40
"""Characters of a wrong value that a message repeats."""

_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Problem:
    """A mistake at the key `path`; `message` is what follows the key in the sentence.

    `exact` is a more exact path to show the line of, such as one value of a sweep's axis.
    """

    path: KeyPath
    message: str
    exact: KeyPath | None = None

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def validate(root: type[S], values: Mapping[str, object]) -> S | list[Problem]:
    """An instance of `root` with these values, or everything that is wrong with them.

    Types are strict: `"8"` in quotes is not a number and `true` is not 1.
    """
    try:
        return root.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        located = [(_path(details, values, root), details) for details in error.errors(include_url=False)]
    meant_as_text = [
        path
        for path, details in located
        if details["type"] == "string_type" and isinstance(details["input"], dict)
        if not set(details["input"]) & set(keys_of(path, root))
    ]
    # Of the branches of a union only the error that is deepest in the values is of use, except where the
    # value is a text such as `Answer: which?` that YAML reads as a mapping.
    shown = [
        (path, details)
        for path, details in located
        if not any(len(path) > len(text) and overlap(path, text) for text in meant_as_text)
        if path in meant_as_text
        or not any(len(deeper) > len(path) and overlap(deeper, path) for deeper, _ in located)
    ]
    shown.sort(key=lambda pair: [(isinstance(part, str), part) for part in pair[0]])
    return [
        _problem(path, [details for _, details in group], root)
        for path, group in groupby(shown, key=lambda pair: pair[0])
    ]


def unknown_key(path: KeyPath, root: type[Section] = Recipe) -> Problem:
    """The message for a key that does not exist, with what took its place or the most similar keys."""
    if renamed := RENAMED.get((str(path[0]), str(path[-1]))):
        return Problem(path, renamed)
    if likely := suggest(path, root):
        return Problem(path, f"unknown key; did you mean {_either(likely)}?")
    section = dotted(path[:-1]) or ("a recipe" if root is Recipe else "the file")
    return Problem(path, f"unknown key; {section} takes {', '.join(keys_of(path[:-1], root))}")


def with_lines(problems: Iterable[Problem], file: YamlFile) -> list[str]:
    """`FILE:LINE: KEY: message` for every problem, in the order of the file."""
    lines = sorted((file.line(problem.exact or problem.path), str(problem)) for problem in problems)
    return [f"{file.name}:{line}: {text}" for line, text in lines]


def _path(error: ErrorDetails, values: Mapping[str, object], root: type[Section]) -> KeyPath:
    """The path of an error in the file: its `loc` without the names of union branches."""
    path: list[str | int] = []
    value: Any = values
    for part in error["loc"]:
        is_entry = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_entry or (isinstance(value, dict) and part in value):
            path.append(part)
            value = value[part]
    match error["type"]:
        case "missing" if isinstance(error["loc"][-1], str):
            path.append(error["loc"][-1])
        case "union_tag_invalid" | "union_tag_not_found":
            path.append("kind")
        case "value_error":
            # A validator's sentence may begin with a key or an index: `examples: the lower bound …`.
            start = str(error["ctx"]["error"]).partition(": ")[0].split(".")
            below = [int(part) if part.isdecimal() else part for part in start]
            named = isinstance(below[0], int) or below[0] in keys_of(tuple(path), root)
            if named and is_key((*path, *below), root):
                path += below
    return tuple(path)


def _problem(path: KeyPath, errors: Sequence[ErrorDetails], root: type[Section]) -> Problem:
    """One sentence for the errors that all branches of a union give for one key or its value."""
    if of_key := [error for error in errors if error["loc"][-1:] == ("[key]",)]:
        return Problem(path, f"the key must be {_expected(of_key[0], path, root)}")
    first = errors[0]
    match first["type"]:
        case "extra_forbidden":
            return unknown_key(path, root)
        case "json_invalid":  # the only value that YAML can hold and JSON cannot
            return Problem((), r"an escape such as \ud800 is half a character; write it whole")
        case "missing" if isinstance(first["loc"][-1], str):
            return Problem(path, "is missing")
        case "union_tag_not_found":
            return Problem(path, f"is missing; it may be {_either(kinds_of(path[:-1], root))}")
        case "value_error":
            sentence = str(first["ctx"]["error"])
            key, colon, rest = sentence.partition(": ")
            return Problem(path, rest if colon and f".{dotted(path)}".endswith(f".{key}") else sentence)
    if any(error["type"].startswith(("greater_than", "less_than")) for error in errors):
        # A number out of bounds was meant as a number, not as keys and values.
        errors = [error for error in errors if error["type"] not in SECTIONS]
    expected = ", or ".join(dict.fromkeys(_expected(error, path, root) for error in errors))
    value = first["input"] if first["type"] != "union_tag_invalid" else first["ctx"]["tag"]
    if value is None:
        return Problem(path, f"is empty; write {expected}, or leave the key out")
    shown = json.dumps(value, ensure_ascii=False)
    if len(shown) > SHOWN:
        shown = f"{shown[: SHOWN - 2]} …"
    return Problem(path, f"{shown}: must be {expected}{_remedy(value, errors)}")


def _expected(error: ErrorDetails, path: KeyPath, root: type[Section]) -> str:
    """What a value must be, such as `at least 1`."""
    kind = error["type"]
    if kind in SECTIONS:
        kinds, keys = kinds_of(path, root), keys_of(path, root)
        if kinds:
            value = error["input"]
            return f"keys and values, such as {{kind: {value if value in kinds else kinds[0]}}}"
        return f"keys and values ({', '.join(keys[:3])}{', …' * (len(keys) > 3)})".replace(" ()", "")
    if kind == "union_tag_invalid":
        return _either(kinds_of(path[:-1], root))
    if kind in ("missing", "too_long") and (length := length_of(path, root)):
        return f"a list of {length}"
    words = EXPECTED.get(kind, f"valid ({error['msg']})")
    return words.format(**error.get("ctx", {})).replace("'", "")


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
