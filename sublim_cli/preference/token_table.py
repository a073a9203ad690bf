"""What each token of a vocabulary makes of an answer: the automaton of `forms`, over tokens instead of bytes.

An outcome is one integer: the number of a state if the answer is still undecided, `NO_ITEM` if it ended and
named no item, and `-2 - i` if it names item i whatever follows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sublim_cli.preference.forms import START, FormMatcher, ItemMatch, MatchState

NO_ITEM = -1

Outcomes = NDArray[np.int32]
"""An outcome for every token: [vocabulary]."""

_INSIDE = 1
"""The state within a word in which no spelling can begin. Most tokens lead from any state to where they lead
from this one, so a state's row starts as a copy of this state's."""


def item_of(outcome: int) -> int | None:
    """The item that an outcome names, None if it names none."""
    return -2 - outcome if outcome < NO_ITEM else None


class TokenTable:
    """The outcome of every token in every state; a state's row is computed when it is first asked for."""

    def __init__(
        self, matcher: FormMatcher, token_bytes: Sequence[bytes], stop_tokens: frozenset[int]
    ) -> None:
        """Tabulate `matcher` for tokens that add `token_bytes` to an answer, or end it."""
        self._matcher, self._token_bytes, self._stop_tokens = matcher, token_bytes, list(stop_tokens)
        self.size = len(token_bytes)
        self._states = [START, MatchState(inside=True)]
        self._numbers = {state: number for number, state in enumerate(self._states)}
        self._steps: dict[tuple[int, int], int] = {}
        self._rows: dict[int, Outcomes] = {}
        self._by_first_byte: dict[int, list[int]] = {}
        for token, written in enumerate(token_bytes):
            if written and token not in stop_tokens:
                self._by_first_byte.setdefault(written[0], []).append(token)
        self._silent = np.flatnonzero([not written for written in token_bytes])

    def after(self, state: int) -> Outcomes:
        """The outcome of every token that comes next in `state`; an answer starts in state 0."""
        if state not in self._rows:
            self._rows[state] = self._row(state)
        return self._rows[state]

    def ended(self, state: int) -> int:
        """The outcome of an answer that ends in `state`."""
        item = self._matcher.end(self._states[state])
        return NO_ITEM if item is None else -2 - item

    def is_open_form(self, state: int) -> bool:
        """Whether an answer in `state` ends with the beginning of a spelling."""
        return bool(self._states[state].tail)

    def _row(self, state: int) -> Outcomes:
        inside = state == _INSIDE
        row = np.empty(self.size, dtype=np.int32) if inside else self.after(_INSIDE).copy()
        row[self._silent] = state
        row[self._stop_tokens] = self.ended(state)
        for first, tokens in self._by_first_byte.items():
            after_first = self._step(state, first)
            if after_first < 0:
                row[tokens] = after_first
            elif inside or after_first != self._step(_INSIDE, first):
                row[tokens] = [self._read(after_first, self._token_bytes[token][1:]) for token in tokens]
        return row

    def _read(self, state: int, text: bytes) -> int:
        """The outcome once `text` has followed in `state`."""
        for byte in text:
            if state < 0:
                break
            state = self._step(state, byte)
        return state

    def _step(self, state: int, byte: int) -> int:
        if (state, byte) not in self._steps:
            match self._matcher.step(self._states[state], byte):
                case ItemMatch(item):
                    self._steps[state, byte] = -2 - item
                case MatchState() as after:
                    if after not in self._numbers:
                        self._numbers[after] = len(self._states)
                        self._states.append(after)
                    self._steps[state, byte] = self._numbers[after]
        return self._steps[state, byte]
