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
        self._ended: dict[int, int] = {}
        self._inside_bytes: Outcomes = self._after_bytes(_INSIDE)
        self._by_first_byte: dict[int, list[int]] = {}
        for token, written in enumerate(token_bytes):
            if written and token not in stop_tokens:
                self._by_first_byte.setdefault(written[0], []).append(token)
        self._first_byte = np.array([written[0] if written else 0 for written in token_bytes])
        self._silent = np.flatnonzero([not written for written in token_bytes])

    def after(self, state: int) -> Outcomes:
        """The outcome of every token that comes next in `state`; an answer starts in state 0."""
        if state not in self._rows:
            self._rows[state] = self._row(state)
        return self._rows[state]

    def ended(self, state: int) -> int:
        """The outcome of an answer that ends in `state`."""
        if state not in self._ended:
            item = self._matcher.end(self._states[state])
            self._ended[state] = NO_ITEM if item is None else -2 - item
        return self._ended[state]

    def is_open_form(self, state: int) -> bool:
        """Whether an answer in `state` ends with the beginning of a spelling.

        An incomplete character after it hardly ever continues one. There are thousands of such states, whose
        rows would fill the memory if each were looked for.
        """
        return bool(self._states[state].tail) and not self._states[state].pending

    def _row(self, state: int) -> Outcomes:
        inside = state == _INSIDE
        after_bytes = self._inside_bytes if inside else self._after_bytes(state)
        row = np.empty(self.size, dtype=np.int32) if inside else self.after(_INSIDE).copy()
        changed = np.ones(256, dtype=bool) if inside else after_bytes != self._inside_bytes
        decided = (changed & (after_bytes < 0))[self._first_byte]
        row[decided] = after_bytes[self._first_byte[decided]]
        for first in np.flatnonzero(changed & (after_bytes >= 0)).tolist():
            after_first, tokens = int(after_bytes[first]), self._by_first_byte.get(first, [])
            row[tokens] = [self._read(after_first, self._token_bytes[token][1:]) for token in tokens]
        row[self._silent] = state
        row[self._stop_tokens] = self.ended(state)
        return row

    def _after_bytes(self, state: int) -> Outcomes:
        """The outcome of every byte that comes next in `state`: [256]."""
        outcomes = np.empty(256, dtype=np.int32)
        for after, values in self._matcher.steps(self._states[state]):
            outcomes[values] = self._outcome(after)
        return outcomes

    def _read(self, state: int, text: bytes) -> int:
        """The outcome once `text` has followed in `state`."""
        for byte in text:
            if state < 0:
                break
            state = self._step(state, byte)
        return state

    def _step(self, state: int, byte: int) -> int:
        if (state, byte) not in self._steps:
            self._steps[state, byte] = self._outcome(self._matcher.step(self._states[state], byte))
        return self._steps[state, byte]

    def _outcome(self, after: MatchState | ItemMatch) -> int:
        """The number of a state, which is a new one if it was not met before; or the item that is named."""
        if isinstance(after, ItemMatch):
            return -2 - after.item
        if after not in self._numbers:
            self._numbers[after] = len(self._states)
            self._states.append(after)
        return self._numbers[after]
