"""Read and write YAML: recipes, item and question files, shipped data, and the values of `--set`.

The dialect is YAML 1.2: `no` and `on` are texts, `2e-4` is a number, `010` is ten and `0o10` is eight.
`10_000` is a number too. Dates, infinities and numbers that Python cannot read stay texts. Keys given twice,
merge keys (`<<`) and tags such as `!!python/object` are refused.
"""

import io
import math
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, StreamMark
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode
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
    """The name of a file as messages show it, and its keys and values, which remember their lines."""

    name: str
    values: dict[str, Any]

    def line(self, path: KeyPath) -> int:
        """The line of the key or list entry at `path`, or of the nearest one around it in the file."""
        line, values = 1, cast("Any", self.values)
        for part in path:
            if part not in getattr(values, "lines", {}):
                break
            line, values = values.lines[part], values[part]
        return line


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
    values = _load(text, name)
    if values is None:
        raise RecipeError(f"{name}: is empty; write keys and values, such as `{example}`")
    if not isinstance(values, dict):
        raise RecipeError(f"{name}:1:1: must be keys and values, such as `{example}`")
    return YamlFile(name, values)


def read_package_data(package: str, file: str) -> dict[str, Any]:
    """The keys and values of a YAML file that is part of a package of sublim."""
    return parse_yaml(files(package).joinpath(file).read_text(encoding="utf-8"), file, "key: value").values


def parse_value(text: str) -> object:
    """One value, read as in a recipe file. RecipeError where it is not YAML."""
    return _load(text, "value")


def write_yaml(values: dict[str, Any]) -> str:
    """`values` as a YAML file, in their order, that reads back as equal values."""
    yaml = _yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _load(text: str, name: str) -> object:
    try:
        return _yaml().load(text)
    except ReaderError as error:
        before = text[: error.position]
        position = f"{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        message = "holds a character YAML does not allow; retype the line as plain text"
    except MarkedYAMLError as error:
        mark, message = _explained(error)
        position = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
    except RecursionError:
        position, message = "1:1", "lists and mappings are nested too deeply; take levels out"
    raise RecipeError(f"{name}:{position}: {message}")


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Resolver = _Constructor, _Resolver
    return yaml


def _explained(error: MarkedYAMLError) -> tuple[StreamMark | None, str]:
    """The position of the error, and a sentence for users in place of the parser's message."""
    if isinstance(error, _NotAllowed):
        return error.problem_mark, error.problem
    context, mark = error.context or "", error.problem_mark
    message = f"{context} {error.problem}"
    hint = next((hint for sign, hint in _HINTS.items() if sign in message), None)
    if hint is None and ("quoted" in context or "flow" in context):
        hint, mark = _UNCLOSED, error.context_mark
    return mark, f"not valid YAML; {hint or _ANY_HINT}"


class _NotAllowed(MarkedYAMLError):
    """Valid YAML that sublim does not accept; the problem is the sentence to show."""

    def __init__(self, message: str, node: Node) -> None:
        super().__init__(problem=message, problem_mark=node.start_mark)


class _Mapping(dict[str, Any]):
    """A mapping with the line of each key."""

    lines: dict[str, int]


class _List(list[Any]):
    """A list with the line of each entry."""

    lines: dict[int, int]


class _Resolver(VersionedResolver):
    """Decides the type of a text without quotes, by YAML 1.2 even after a `%YAML 1.1` line."""

    @property
    def processing_version(self) -> tuple[int, int]:
        return (1, 2)


class _Constructor(SafeConstructor):
    """Constructs plain values from the parsed file, with the line of every key and list entry."""

    yaml_constructors: dict[str | None, Any] = {}  # noqa: RUF012 - the library's own registry

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise _NotAllowed("a value cannot hold itself; take out the `*` alias", node)
        return super().construct_object(node, deep=True)

    def mapping(self, node: Node) -> _Mapping:
        if not isinstance(node, MappingNode):
            raise _NotAllowed("the tag !!map has no meaning here; take it out", node)
        values, lines = _Mapping(), dict[str, int]()
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _NotAllowed("a key must be a word; put a value that holds braces in quotes", key_node)
            key = key_node.value
            if key == "<<" and not key_node.style:
                raise _NotAllowed("merge keys (`<<`) are not supported; write the keys out", key_node)
            if key in values:
                raise _NotAllowed(f"{key}: is given twice, first in line {lines[key]}; keep one", key_node)
            values[key] = self.construct_object(value_node)
            lines[key] = key_node.start_mark.line + 1
        values.lines = lines
        return values

    def sequence(self, node: Node) -> _List:
        values = _List(self.construct_sequence(node, deep=True))
        values.lines = {i: entry.start_mark.line + 1 for i, entry in enumerate(node.value)}
        return values

    def boolean(self, node: Node) -> object:
        text: str = self.construct_scalar(node)
        return {"true": True, "false": False}.get(text.lower(), text)

    def integer(self, node: Node) -> object:
        text = self.construct_scalar(node)
        for base in (0, 10):  # 0 reads 0x10, 0o10 and 0b10, but not 010
            with suppress(ValueError):
                return int(text, base)
        return text

    def number(self, node: Node) -> object:
        text = self.construct_scalar(node)
        with suppress(ValueError):
            if math.isfinite(value := float(text)):
                return value
        return text

    def undefined(self, node: Node) -> Any:
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        raise _NotAllowed(f"the tag {tag} has no meaning here; take it out", node)


for _kind, _method in {
    "null": SafeConstructor.construct_yaml_null,
    "bool": _Constructor.boolean,
    "int": _Constructor.integer,
    "float": _Constructor.number,
    "map": _Constructor.mapping,
    "seq": _Constructor.sequence,
    **dict.fromkeys(("str", "timestamp", "value", "merge"), SafeConstructor.construct_yaml_str),
}.items():
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _method)
_Constructor.add_constructor(None, _Constructor.undefined)
