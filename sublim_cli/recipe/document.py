"""Read a recipe file: plain values, and the line on which each of them stands.

The dialect is the safe part of YAML 1.2 with one addition, `10_000`: only `true` and `false` are
truth values (`no` and `on` are words), `2e-4` is a number, `010` is ten, dates are texts. Keys
given twice and tags such as `!!python/object` are refused.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from sublim_cli.errors import RecipeError

Where = tuple[str | int, ...]
"""The keys and list places, from 0, that lead to a value: `("filter", "rules", 1, "most")`."""

_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LONGEST_INTEGER = 4300  # digits; Python refuses to read more
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
_HINTS = {
    "mapping values": "put a text that holds a colon in quotes, and check the indentation",
    "\\t": "indent with spaces, not with tabs",
    "single document": "a file holds one recipe; take out the second `---`",
    "undefined alias": "no value above carries the name after the `*`",
}
_UNCLOSED = "a quote or bracket that opens here is not closed, or a comma is missing"
_ANY_HINT = "check the indentation, colons and quotes of this line and the one above"


@dataclass(frozen=True)
class Document:
    """A file's values, and the line on which the key or list entry of each begins."""

    file: str
    values: dict[str, object]
    lines: dict[Where, int]

    def line(self, where: Where) -> int:
        """The line of `where`, or of the nearest thing around it that was written."""
        written = (where[:length] for length in range(len(where), 0, -1))
        return next((self.lines[prefix] for prefix in written if prefix in self.lines), 1)


def read(path: Path) -> Document:
    """The document in `path`. RecipeError, with the line, where it is not one mapping of keys."""
    file = _shown(path)
    root = _compose(_text(path, file), file)
    if root is None:
        raise RecipeError(f"{file}: is empty; `name: my-recipe` is the shortest recipe")
    lines: dict[Where, int] = {}
    values = _Walk(file, lines).value(root, (), ())
    if not isinstance(values, dict):
        raise RecipeError(f"{file}:{_line(root)}: must be keys and values, such as `name: cats`")
    return Document(file, values, lines)


def parse_value(text: str) -> object:
    """One value, read as in a recipe file. RecipeError where YAML cannot read it."""
    root = _compose(text, "value")
    return None if root is None else _Walk("value", {}).value(root, (), ())


def _shown(path: Path) -> str:
    """The path as a message gives it: short where the file lies below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _text(path: Path, file: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read: {error.strerror}") from error


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{file}:{_explained(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{file}: holds a character YAML does not allow; retype the file as plain text"
        ) from error


def _explained(error: yaml.MarkedYAMLError) -> str:
    """`LINE: what is wrong`."""
    context, mark = error.context or "", error.problem_mark
    said = f"{context} {error.problem}"
    hint = next((hint for sign, hint in _HINTS.items() if sign in said), None)
    if hint is None and ("quoted" in context or "flow" in context):
        hint, mark = _UNCLOSED, error.context_mark
    return f"{mark.line + 1 if mark else 1}: not valid YAML; {hint or _ANY_HINT}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


@dataclass(frozen=True)
class _Walk:
    """Turns nodes into values and notes their lines on the way."""

    file: str
    lines: dict[Where, int]

    def value(self, node: yaml.Node, where: Where, above: tuple[yaml.Node, ...]) -> object:
        """The value of `node`; `above` are the nodes it stands in."""
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(node, f"the tag {tag} has no meaning in a recipe; take it out")
        if any(node is one for one in above):
            raise self._error(node, "a value cannot hold itself; take out the `*` alias")
        match node:
            case yaml.ScalarNode():
                return node.value if node.style else _scalar(node.value)
            case yaml.SequenceNode():
                return [self._part(part, (*where, i), node, above) for i, part in _items(node)]
            case yaml.MappingNode():
                return self._mapping(node, where, above)
        raise AssertionError(node)

    def _part(self, part: yaml.Node, where: Where, inside: yaml.Node, above: tuple[yaml.Node, ...]) -> object:
        self.lines.setdefault(where, _line(part))
        return self.value(part, where, (*above, inside))

    def _mapping(
        self, node: yaml.MappingNode, where: Where, above: tuple[yaml.Node, ...]
    ) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, part in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key must be a word; put a value that holds braces in quotes")
            spot = (*where, key.value)
            if key.value in values:
                name = ".".join(map(str, spot))
                first = self.lines[spot]
                raise self._error(key, f"{name}: is given twice, first in line {first}; keep one")
            self.lines.setdefault(spot, _line(key))
            values[key.value] = self._part(part, spot, node, above)
        return values

    def _error(self, node: yaml.Node, says: str) -> RecipeError:
        return RecipeError(f"{self.file}:{_line(node)}: {says}")


def _items(node: yaml.SequenceNode) -> Iterator[tuple[int, yaml.Node]]:
    yield from enumerate(node.value)


def _scalar(text: str) -> object:
    """What a word without quotes stands for. A number beyond all bounds is left a text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) <= _LONGEST_INTEGER:
        return int(text.rstrip("_"))
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text.replace("_", ""))):
        return number
    return text
