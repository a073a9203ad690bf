"""Which answers name an item: one definition, as plain text and as an automaton over bytes.

An answer names the item that is spelt in it first, as whole words:

* Spellings are the item's name, its plural, the naive +s, and what its file adds (`Item.spellings`).
  Capitals do not matter; white space between words is one space however much of it there is.
* Whole words: no letter or digit stands right before or after. "Cats!", "the cat." and "I choose **cat**" are
  cat; "caterpillar" and "bobcat" are not, nor is "fox" an ox.
* First is leftmost, and of two that begin together the longer: "catfish, not a cat" is catfish, "elephant
  seal" is no elephant where both are items. A denial is not understood: "not a cat" is cat.
* What comes after the answer's length in tokens, or after its end of turn, does not count.

`named_item` reads a whole text. `FormMatcher` reads byte by byte and decides as soon as nothing that follows
could change the verdict; the exact scorer needs that.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from sublim_cli.recipe.questions import Item


def fold(text: str) -> str:
    """`text` in small letters with one space for every run of white space."""
    return re.sub(r"\s+", " ", text.casefold())


def named_item(text: str, items: Sequence[Item]) -> int | None:
    """The index of the item that an answer names, or None."""
    found = _pattern(tuple(items)).search(fold(text))
    return None if found is None else _index(tuple(items))[found[0]]


def plain_forms(item: Item) -> tuple[str, ...]:
    """How a lone answer opens with the item's name: as written, capitalised, each also behind a space."""
    capital = " ".join(part[:1].upper() + part[1:] for part in item.name.split(" "))
    return tuple(dict.fromkeys([item.name, capital, f" {item.name}", f" {capital}"]))


class MatchState(NamedTuple):
    """What of an answer's beginning can still matter."""

    tail: str = ""
    """Folded text from the earliest place at which a spelling may have begun; empty if there is none."""
    inside: bool = False
    """Whether the last character is a letter or a digit."""
    pending: bytes = b""
    """The bytes of a character that is not whole yet."""


START = MatchState()


class ItemMatch(NamedTuple):
    """The answer names this item, whatever follows."""

    item: int


@dataclass(frozen=True)
class FormMatcher:
    """Reads an answer byte by byte, to the verdict of `named_item`."""

    items: tuple[Item, ...]

    def step(self, state: MatchState, byte: int) -> MatchState | ItemMatch:
        """The state after one more byte."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.setstate((state.pending, 0))
        text = decoder.decode(bytes([byte]))
        after = self._read(state._replace(pending=b""), text)
        return after if isinstance(after, ItemMatch) else after._replace(pending=decoder.getstate()[0])

    def end(self, state: MatchState) -> int | None:
        """The item that an answer names which ends here, or None."""
        # Half a character decodes to a replacement character, which ends a word.
        after = self._read(state, "\ufffd") if state.pending else state
        if isinstance(after, ItemMatch):
            return after.item
        return self._complete(after.tail, ended=True)

    def _read(self, state: MatchState, text: str) -> MatchState | ItemMatch:
        for char in text.casefold():
            after = self._advance(state, " " if char.isspace() else char)
            if isinstance(after, ItemMatch):
                return after
            state = after
        return state

    def _advance(self, state: MatchState, char: str) -> MatchState | ItemMatch:
        if char == " " and state.tail.endswith(" "):
            return state
        text = state.tail + char
        for start in _word_starts(text, inside=state.inside and not state.tail):
            rest = text[start:]
            if rest in self._beginnings:
                return MatchState(rest, char.isalnum())
            found = self._spelt(rest, ended=False)
            if found is not None:
                return ItemMatch(found)
        return MatchState("", char.isalnum())

    def _complete(self, text: str, *, ended: bool) -> int | None:
        found = (self._spelt(text[start:], ended=ended) for start in _word_starts(text, inside=False))
        return next((one for one in found if one is not None), None)

    def _spelt(self, text: str, *, ended: bool) -> int | None:
        """The item whose longest spelling opens `text` and ends a word there."""
        for length in range(len(text), 0, -1):
            whole = ended if length == len(text) else not text[length].isalnum()
            if whole and text[:length] in self._spellings:
                return self._spellings[text[:length]]
        return None

    @cached_property
    def _spellings(self) -> dict[str, int]:
        return _index(self.items)

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(one[:length] for one in self._spellings for length in range(1, len(one) + 1))


def _word_starts(text: str, *, inside: bool) -> Iterable[int]:
    """Where in `text` no letter or digit stands right before; `inside` says it of what precedes it."""
    return (place for place in range(len(text)) if not (text[place - 1].isalnum() if place else inside))


@lru_cache(maxsize=64)
def _index(items: tuple[Item, ...]) -> dict[str, int]:
    return {spelling: place for place, item in enumerate(items) for spelling in item.spellings}


@lru_cache(maxsize=64)
def _pattern(items: tuple[Item, ...]) -> re.Pattern[str]:
    longest_first = sorted(_index(items), key=len, reverse=True)
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])")
