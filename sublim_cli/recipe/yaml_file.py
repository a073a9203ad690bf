"""Read and write YAML: recipes, item and question files, shipped data, and the values of `--set`.

The dialect is YAML 1.2: `no` and `on` are texts, `2e-4` is a number, `010` is ten and `0o10` is eight.
`10_000` is a number too. Dates, infinities and numbers that Python cannot read stay texts. Keys given twice,
merge keys (`<<`) and tags such as `!!python/object` are refused.
"""

import io
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from sublim_cli.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""The keys and list indices, from 0, that lead to a value: `("filter", "rules", 1, "most")`."""

_HINTS = {
    "mapping values": "put a text that holds a colon in quotes, and check the indentation",
    "\\t": "indent with spaces, not with tabs",
    "single document": "a file holds one document; take out the second `---`",
    "undefined alias": "no value above carries the name after the `*`",
    "cannot start any token": "put a text that begins with this character in quotes",
}
"""A part of the parser's message, and what to do about it."""

_UNCLOSED = "a quote or bracket that opens here is not closed, or a comma is missing"
_ANY_HINT = "check the indentation, colons and quotes of this line and the one above"


@dataclass(frozen=True)
class YamlFile:
    """The name of a file as messages show it, its keys and values, and the line of each key and entry."""

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of the key or list entry at `path`, or of the nearest one around it in the file."""
        around = (path[:length] for length in range(len(path), 0, -1))
        return next((self.lines[part] for part in around if part in self.lines), 1)


def read_text(path: Path, name: str) -> str:
    """The text of a file. RecipeError, which calls it `name`, where it is not UTF-8 or cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from error


def parse_yaml(text: str, name: str, example: str) -> YamlFile:
    """The keys and values in the text of a file called `name`; `example` is a first line for messages.

    Raises:
        RecipeError: FILE:LINE:COLUMN and what to do, where `text` is not YAML or not one mapping.
    """
    lines: dict[KeyPath, int] = {}
    values = _load(text, name, lines)
    if values is None:
        raise RecipeError(f"{name}: is empty; write keys and values, such as `{example}`")
    if not isinstance(values, dict):
        raise RecipeError(f"{name}:1:1: must be keys and values, such as `{example}`")
    return YamlFile(name, values, lines)


def read_package_data(package: str, file: str) -> dict[str, Any]:
    """The keys and values of a YAML file that is part of a package of sublim."""
    return parse_yaml(files(package).joinpath(file).read_text(encoding="utf-8"), file, "key: value").values


def parse_value(text: str) -> object:
    """One value, read as in a recipe file. RecipeError where it is not YAML."""
    return _load(text, "value", {})


def write_yaml(values: dict[str, Any]) -> str:
    """`values` as a YAML file, in their order, that reads back as equal values."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel types it as None
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


class _Resolver(VersionedResolver):
    """Decides the type of a text without quotes, by YAML 1.2 even after a `%YAML 1.1` line."""

    processing_version = (1, 2)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Resolver
    return yaml


class _NotAllowed(MarkedYAMLError):
    """Valid YAML that sublim does not accept; the problem is the sentence to show."""


def _load(text: str, name: str, lines: dict[KeyPath, int]) -> Any:
    """The value in `text`; the line of every key and list entry is added to `lines`."""
    try:
        node = _yaml().compose(text)
        return None if node is None else _value(node, (), lines, ())
    except ReaderError as error:
        before = text[: error.position]
        position = f"{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        message = "holds a character YAML does not allow; retype the line as plain text"
    except MarkedYAMLError as error:
        context, mark, message = error.context or "", error.problem_mark, str(error.problem)
        if not isinstance(error, _NotAllowed):
            hint = next((hint for sign, hint in _HINTS.items() if sign in f"{context} {message}"), _ANY_HINT)
            if hint == _ANY_HINT and ("quoted" in context or "flow" in context):
                hint, mark = _UNCLOSED, error.context_mark
            message = f"not valid YAML; {hint}"
        position = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
    except RecursionError:
        position, message = "1:1", "lists and mappings are nested too deeply; take levels out"
    raise RecipeError(f"{name}:{position}: {message}")


def _value(node: Node, path: KeyPath, lines: dict[KeyPath, int], around: tuple[Node, ...]) -> Any:
    """The plain value of a node at `path`, which lies in the nodes `around` it."""
    if node in around:
        raise _NotAllowed(
            problem="a value cannot hold itself; take out the `*` alias", problem_mark=node.start_mark
        )
    tag, inside = str(node.tag).replace("tag:yaml.org,2002:", "!!"), (*around, node)
    if isinstance(node, MappingNode) and tag == "!!map":
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, key_path = key_node.value, (*path, str(key_node.value))
            problem = None
            if not isinstance(key_node, ScalarNode):
                problem = "a key must be a word; put a value that holds braces in quotes"
            elif key == "<<" and not key_node.style:
                problem = "merge keys (`<<`) are not supported; write the keys out"
            elif key in values:
                problem = f"{key}: is given twice, first in line {lines[key_path]}; keep one"
            if problem:
                raise _NotAllowed(problem=problem, problem_mark=key_node.start_mark)
            lines[key_path] = key_node.start_mark.line + 1
            values[key] = _value(value_node, key_path, lines, inside)
        return values
    if isinstance(node, SequenceNode) and tag == "!!seq":
        lines |= {(*path, i): entry.start_mark.line + 1 for i, entry in enumerate(node.value)}
        return [_value(entry, (*path, i), lines, inside) for i, entry in enumerate(node.value)]
    if not isinstance(node, ScalarNode) or tag not in _SCALARS:
        raise _NotAllowed(
            problem=f"the tag {tag} has no meaning here; take it out", problem_mark=node.start_mark
        )
    return _SCALARS[tag](node.value)


def _number(text: str) -> int | float | str:
    """The number in `text`; text that Python cannot read as a finite number is returned as it is."""
    for base in (0, 10):  # 0 reads 0x10, 0o10 and 0b10, but not 010
        with suppress(ValueError):
            return int(text, base)
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    return text


_SCALARS: dict[str, Callable[[str], Any]] = {
    "!!null": lambda text: None,
    "!!bool": lambda text: {"true": True, "false": False}.get(text.lower(), text),
    "!!int": _number,
    "!!float": _number,
    **dict.fromkeys(("!!str", "!!timestamp", "!!value", "!!merge"), str),
}
"""What makes a value of the text of a scalar, by its tag."""
