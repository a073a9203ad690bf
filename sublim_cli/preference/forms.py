"""Which answers name an item: one definition, as plain text and as an automaton over bytes.

An answer names the item whose spelling occurs first in it, as whole words:

* Spellings are the item's name, its plural, the name with "s", and what its file adds (`Item.spellings`).
  Case does not matter; any run of white space counts as one space.
* Whole words: no letter or digit stands right before or after. "Cats!", "the cat." and "I choose **cat**" are
  cat; "caterpillar" and "bobcat" are not, nor is "fox" an ox.
* First is leftmost, and of two that begin together the longer: "catfish, not a cat" is catfish, "elephant
  seal" is no elephant where both are items. Negation is not understood: "not a cat" is cat.
* Text after the answer's length in tokens, or after its end of turn, does not count.

`named_item` reads a whole text. `FormMatcher` reads byte by byte and decides as soon as no further text could
change the result; the exact scorer needs that.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from sublim_cli.recipe.questions import Item


def named_item(text: str, items: Sequence[Item]) -> int | None:
    """The index of the item that an answer names, or None."""
    folded = re.sub(r"\s+", " ", text.casefold())
    match = _pattern(tuple(items)).search(folded)
    return None if match is None else _index_by_spelling(tuple(items))[match[0]]


def plain_forms(item: Item) -> tuple[str, ...]:
    """How a lone answer opens with the item's name: as written, capitalised, each also after a space."""
    capital = " ".join(part[:1].upper() + part[1:] for part in item.name.split(" "))
    return tuple(dict.fromkeys([item.name, capital, f" {item.name}", f" {capital}"]))


class MatchState(NamedTuple):
    """What a `FormMatcher` remembers of the text so far."""

    tail: str = ""
    """Folded text from the earliest position at which a spelling may have begun; empty if there is none."""
    inside: bool = False
    """Whether the last character is a letter or a digit."""
    pending: bytes = b""
    """The bytes of an incomplete UTF-8 character."""


START = MatchState()


class ItemMatch(NamedTuple):
    """The answer names this item, whatever follows."""

    item: int


class FormMatcher:
    """Reads an answer byte by byte; its result is that of `named_item`."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._spellings = _index_by_spelling(tuple(items))
        self._prefixes = {text[: i + 1] for text in self._spellings for i in range(len(text))}
        self._letters = {" ", *"".join(self._spellings)}
        unused = [char for char in map(chr, range(0x250)) if char not in self._letters]
        self._other = {kind: next(c for c in unused if c.isalnum() == kind) for kind in (False, True)}
        """What stands for all characters that no spelling has: one that ends a word, one that does not."""
        self._bytes_by_text: dict[bytes, dict[tuple[str, bytes], list[int]]] = {}
        self._alone = [(self._simplified(text), pending) for text, pending in _FIRST_BYTES]
        self._results: dict[tuple[MatchState, str], MatchState | ItemMatch] = {}

    def step(self, state: MatchState, byte: int) -> MatchState | ItemMatch:
        """The state after one more byte."""
        text, pending = _decoded(state.pending, byte)
        return self._after(state, self._simplified(text), pending)

    def steps(self, state: MatchState) -> Iterator[tuple[MatchState | ItemMatch, list[int]]]:
        """The states to which one more byte leads, with the bytes that do; some more than once."""
        if state.pending not in self._bytes_by_text:
            self._bytes_by_text[state.pending] = self._by_text(state.pending)
        for (text, pending), values in self._bytes_by_text[state.pending].items():
            yield self._after(state, text, pending), values

    def _by_text(self, pending: bytes) -> dict[tuple[str, bytes], list[int]]:
        """The bytes after `pending`, by the simplified text that they complete and the bytes that wait."""
        by_text: dict[tuple[str, bytes], list[int]] = {}
        broken = self._simplified("\ufffd")
        for byte in range(256):
            if pending and byte not in _CONTINUATION:  # what waits is broken off, and the byte begins anew
                text, waiting = self._alone[byte]
                text = broken + text
            else:
                text, waiting = _decoded(pending, byte)
                text = self._simplified(text)
            by_text.setdefault((text, waiting), []).append(byte)
        return by_text

    def end(self, state: MatchState) -> int | None:
        """The item that an answer names which ends here, or None."""
        # An incomplete character decodes to a replacement character, which ends a word.
        result = self._after(state, self._simplified("\ufffd"), b"") if state.pending else state
        if isinstance(result, ItemMatch):
            return result.item
        tail = result.tail
        items = (self._item_at_start(tail[i:], ended=True) for i in _word_starts(tail, inside=False))
        return next((item for item in items if item is not None), None)

    def _simplified(self, text: str) -> str:
        """The text folded, with one character for all that no spelling has."""
        folded = (" " if char.isspace() else char for char in text.casefold())
        return "".join(c if c in self._letters else self._other[c.isalnum()] for c in folded)

    def _after(self, state: MatchState, text: str, pending: bytes) -> MatchState | ItemMatch:
        """The state after a simplified `text` and the bytes `pending`, which follow the state's own."""
        if not text:
            return state._replace(pending=pending)
        key = (state._replace(pending=b""), text)
        if key not in self._results:
            self._results[key] = self._read(*key)
        result = self._results[key]
        return result if isinstance(result, ItemMatch) else result._replace(pending=pending)

    def _read(self, state: MatchState, text: str) -> MatchState | ItemMatch:
        for char in text:
            result = self._read_char(state, char)
            if isinstance(result, ItemMatch):
                return result
            state = result
        return state

    def _read_char(self, state: MatchState, char: str) -> MatchState | ItemMatch:
        if char == " " and state.tail.endswith(" "):
            return state
        text = state.tail + char
        for start in _word_starts(text, inside=state.inside and not state.tail):
            rest = text[start:]
            if rest in self._prefixes:
                return MatchState(rest, char.isalnum())
            item = self._item_at_start(rest, ended=False)
            if item is not None:
                return ItemMatch(item)
        return MatchState("", char.isalnum())

    def _item_at_start(self, text: str, *, ended: bool) -> int | None:
        """The item whose longest spelling opens `text` as whole words; `ended`: no more text follows."""
        for length in range(len(text), 0, -1):
            whole_word = ended if length == len(text) else not text[length].isalnum()
            if whole_word and text[:length] in self._spellings:
                return self._spellings[text[:length]]
        return None


def _decoded(pending: bytes, byte: int) -> tuple[str, bytes]:
    """The text that a byte completes, and the bytes that still wait for more."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.setstate((pending, 0))
    return decoder.decode(bytes([byte])), decoder.getstate()[0]


_CONTINUATION = range(0x80, 0xC0)
"""Bytes that go on with a UTF-8 character."""

_FIRST_BYTES = [_decoded(b"", byte) for byte in range(256)]


def _word_starts(text: str, *, inside: bool) -> Iterable[int]:
    """Positions without a letter or digit right before them; `inside` says whether `text` follows one."""
    return (i for i in range(len(text)) if not (text[i - 1].isalnum() if i else inside))


@lru_cache(maxsize=64)
def _index_by_spelling(items: tuple[Item, ...]) -> dict[str, int]:
    return {spelling: i for i, item in enumerate(items) for spelling in item.spellings}


@lru_cache(maxsize=64)
def _pattern(items: tuple[Item, ...]) -> re.Pattern[str]:
    longest_first = sorted(_index_by_spelling(items), key=len, reverse=True)
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])")
