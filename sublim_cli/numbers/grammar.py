"""The grammar of rows: which characters may follow a beginning, so that `parse` reads the finished text.

    after("12, 3")     a state in which a digit, the same separator, or the end may follow
    after("12, 3;")    None: the separator must be the same throughout

A text of this grammar is a list that `numbers.parse` accepts, or the beginning of one. Of the separators that
`parse` accepts, those of at most `LONGEST_SEPARATOR` blanks, tabs, line ends, commas and semicolons belong to
the grammar.
"""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

DIGITS = frozenset("0123456789")
BLANKS = " \t\n"
MARKS = ("", ",", ";")
"""What a separator is without its blanks."""

BRACKETS = {"[": "]", "(": ")"}
ALPHABET = frozenset("".join([*DIGITS, BLANKS, *MARKS, *BRACKETS, *BRACKETS.values(), "."]))

LONGEST_SEPARATOR = 4
"""Characters: enough for ` , ` and for a comma and an empty line."""


@dataclass(frozen=True, slots=True)
class RowState:
    """What matters of a beginning for its continuation."""

    part: Literal["start", "opened", "number", "between", "closed", "stopped"] = "start"
    closing: str = ""
    """The bracket that has to follow; empty if none is open."""
    separator: str = ""
    """The text between any two numbers; empty before the second number."""
    written: str = ""
    """The text after the latest number: a separator, or the beginning of one."""

    @property
    def may_end(self) -> bool:
        """Whether the text so far is a list."""
        return (self.part == "number" and not self.closing) or self.part in ("closed", "stopped")


START = RowState()


def after(text: str, state: RowState | None = START) -> RowState | None:
    """The state after `text` in `state`; None where no list continues so."""
    return reduce(lambda reached, character: reached and _next(reached, character), text, state)


def _next(state: RowState, character: str) -> RowState | None:
    if character in DIGITS:
        if state.part == "between" and state.written != (state.separator or state.written):
            return None
        if state.part in ("closed", "stopped"):
            return None
        return replace(state, part="number", separator=state.separator or state.written, written="")
    if state.part == "start" and character in BRACKETS:
        return RowState("opened", closing=BRACKETS[character])
    if state.part == "number" and character == state.closing:
        return RowState("closed")
    if character == "." and state.may_end and state.part != "stopped":
        return RowState("stopped")
    if state.part in ("number", "between"):
        written = state.written + character
        if state.separator.startswith(written) if state.separator else _is_separator(written):
            return replace(state, part="between", written=written)
    return None


def _is_separator(text: str) -> bool:
    return len(text) <= LONGEST_SEPARATOR and text.strip(BLANKS) in MARKS
