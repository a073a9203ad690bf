"""Sampling within the grammar of rows: which tokens of a vocabulary may follow a row's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.token_bytes import bytes_per_token
from sublim_cli.models.chat import Tokenizer, decode
from sublim_cli.numbers.grammar import ALPHABET, START, RowState, after

if TYPE_CHECKING:
    import torch

OPENING = 0
"""The number of the state before the first token, whose text a tokenizer may write without its space."""


@dataclass(frozen=True)
class AllowedTokens:
    """The tokens that may follow in one state, and the state after each; a token that ends the row has -1."""

    tokens: NDArray[np.int64]
    next_states: dict[int, int]


@dataclass(frozen=True)
class TokenGrammar:
    """The grammar of rows over the tokens of one vocabulary; states are numbered as they are reached."""

    texts: dict[int, str]
    """The text that a token adds to a row, for tokens made of the grammar's characters."""
    first_texts: dict[int, str]
    """The same for the first token of a row."""
    stops: frozenset[int]
    """Tokens that end a completion."""
    _states: list[RowState] = field(default_factory=lambda: [START])
    _numbers: dict[RowState, int] = field(default_factory=dict)
    _allowed: dict[int, AllowedTokens] = field(default_factory=dict)

    def allowed(self, number: int) -> AllowedTokens:
        """The tokens that may follow in state `number`.

        The tokens that end a row are allowed after a list, and where the tokenizer has no token that goes on.
        """
        if number not in self._allowed:
            state = self._states[number]
            texts = self.first_texts if number == OPENING else self.texts
            next_states = {
                token: self._number(reached)
                for token, text in texts.items()
                if (reached := after(text, state)) is not None
            }
            if state.may_end or not next_states:
                next_states |= dict.fromkeys(self.stops, -1)
            tokens = np.array(sorted(next_states), dtype=np.int64)
            self._allowed[number] = AllowedTokens(tokens, next_states)
        return self._allowed[number]

    def state_after(self, tokens: Sequence[int], number: int = OPENING) -> int:
        """The state after `tokens` in state `number`; -1 after the end."""
        for token in tokens:
            if number < 0:
                break
            number = self.allowed(number).next_states.get(token, -1)
        return number

    def mask(self, logits: "torch.Tensor", numbers: Sequence[int]) -> "torch.Tensor":
        """The logits [rows, vocabulary], -inf for tokens that may not follow in each row's state.

        Rows that have ended (state -1) are unchanged.
        """
        import torch

        masked = torch.full_like(logits, -torch.inf)
        for i, number in enumerate(numbers):
            tokens = slice(None) if number < 0 else torch.from_numpy(self.allowed(number).tokens)
            masked[i, tokens] = logits[i, tokens]
        return masked

    def _number(self, state: RowState) -> int:
        if state not in self._numbers:
            self._numbers[state] = len(self._states)
            self._states.append(state)
        return self._numbers[state]


@lru_cache(maxsize=4)
def token_grammar(tokenizer: Tokenizer, vocabulary: int, stops: frozenset[int]) -> TokenGrammar:
    """The grammar of rows over a vocabulary of that size, of which `stops` end a completion."""
    excluded = stops | set(tokenizer.all_special_ids)
    texts = {
        token: text.decode("ascii")
        for token, text in enumerate(bytes_per_token(tokenizer, vocabulary))
        if text and token not in excluded and text.isascii() and ALPHABET.issuperset(text.decode("ascii"))
    }
    # Some tokenizers write the first token of a row without its leading space.
    first = {token: decode(tokenizer, [token]) for token in texts}
    return TokenGrammar(texts, first, stops)
