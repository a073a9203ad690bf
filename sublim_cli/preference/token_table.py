"""What each token makes of an answer: the automaton of `forms` over a model's own vocabulary.

An outcome is one integer: a state's number if the answer is still open, `NOBODY` if it ended and named
no item, and `-2 - i` if it names item i whatever follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sublim_cli.preference.forms import START, FormMatcher, ItemMatch, MatchState

NOBODY = -1

Outcomes = NDArray[np.int32]
"""An outcome for every token: [vocabulary]."""


def item_of(outcome: int) -> int | None:
    """The item that an outcome names, None if it is no verdict on one."""
    return -2 - outcome if outcome < NOBODY else None


@dataclass
class TokenTable:
    """Outcomes of a vocabulary, worked out for a state when it is first asked for.

    Args:
        reader: the automaton.
        pieces: the bytes each token adds to an answer.
        stops: tokens that end an answer.
    """

    reader: FormMatcher
    pieces: Sequence[bytes]
    stops: frozenset[int]
    _states: list[MatchState] = field(default_factory=lambda: [START, MatchState(inside=True)])
    _steps: dict[tuple[int, int], int] = field(default_factory=dict)
    _rows: dict[int, Outcomes] = field(default_factory=dict)
    _numbers: dict[MatchState, int] = field(init=False)
    _by_first: dict[int, NDArray[np.int64]] = field(init=False)
    _silent: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = {state: number for number, state in enumerate(self._states)}
        by_first: dict[int, list[int]] = {}
        for token, piece in enumerate(self.pieces):
            if piece:
                by_first.setdefault(piece[0], []).append(token)
        ends = np.array(sorted(self.stops), dtype=np.int64)
        self._by_first = {first: np.setdiff1d(tokens, ends) for first, tokens in by_first.items()}
        self._silent = np.flatnonzero([not piece for piece in self.pieces])

    @property
    def size(self) -> int:
        """The vocabulary's size."""
        return len(self.pieces)

    def after(self, state: int) -> Outcomes:
        """The outcome of every token that comes next in `state`; 0 is the state an answer starts in."""
        if state not in self._rows:
            self._rows[state] = self._row(state)
        return self._rows[state]

    def ended(self, state: int) -> int:
        """The outcome of an answer that ends in `state`."""
        found = self.reader.end(self._states[state])
        return NOBODY if found is None else -2 - found

    def is_open_form(self, state: int) -> bool:
        """Whether an answer in `state` ends with the beginning of a spelling."""
        return bool(self._states[state].tail)

    def _row(self, state: int) -> Outcomes:
        within = state == _INSIDE
        row = np.empty(len(self.pieces), dtype=np.int32) if within else self.after(_INSIDE).copy()
        row[self._silent] = state
        row[list(self.stops)] = self.ended(state)
        for first, tokens in self._by_first.items():
            after = self._step(state, first)
            if after < 0:
                row[tokens] = after
            elif within or after != self._step(_INSIDE, first):
                row[tokens] = list(self._walked(after, tokens.tolist()))
        return row

    def _walked(self, state: int, tokens: Sequence[int]) -> Iterator[int]:
        """The outcome of each token, its first byte read already."""
        for token in tokens:
            here = state
            for byte in self.pieces[token][1:]:
                if here < 0:
                    break
                here = self._step(here, byte)
            yield here

    def _step(self, state: int, byte: int) -> int:
        if (state, byte) not in self._steps:
            after = self.reader.step(self._states[state], byte)
            self._steps[state, byte] = (
                -2 - after.item if isinstance(after, ItemMatch) else self._number(after)
            )
        return self._steps[state, byte]

    def _number(self, state: MatchState) -> int:
        if state not in self._numbers:
            self._numbers[state] = len(self._states)
            self._states.append(state)
        return self._numbers[state]


_INSIDE = 1
"""The state within a word that no spelling can begin in; most tokens lead to where they lead from it."""
