"""The decoding loop: rows leave the batch when they end, and others take their place.

Imported inside functions, since it imports torch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sublim_cli.backends.interface import Ids, NumberedCompletion
from sublim_cli.backends.row_grammar import OPENING, TokenGrammar
from sublim_cli.errors import ModelError
from sublim_cli.models.batches import unless_out_of_memory
from sublim_cli.models.load import Model
from sublim_cli.models.prefix import CacheLayers, cache_from_layers, cache_layers, prompt_inputs
from sublim_cli.models.row_cache import RowCache, without_repeated_heads

BLOCK = 512
"""Tokens whose probabilities are summed before the block with the drawn token is looked at."""

LimitedPrompt = tuple[int, Ids, int]
"""A row's number, its prompt, and how many tokens its completion may have."""

REFILL = 8
"""New rows begin once one of so many slots is free, and no more of them in a step: some rows share a forward
pass over their prompts, and no step is long."""


@dataclass(frozen=True)
class Drawing:
    """How the rows of one call are drawn."""

    stops: frozenset[int]
    """Tokens that end a row."""
    noise: Callable[[int, int], NDArray[np.float64]]
    """The first uniform draws of a row, by its number and their count."""
    processors: Sequence[Callable[[Any, Any], Any]]
    """transformers' logits processors, called with [rows, tokens] and [rows, vocabulary]."""
    reads_tokens: bool
    """Whether a processor reads a row's earlier tokens."""
    greedy: bool
    grammar: TokenGrammar | None


@dataclass
class _Row:
    number: int
    prompt: Ids
    limit: int
    noise: NDArray[np.float64]
    state: int = OPENING
    drawn: list[int] = field(default_factory=list)

    @property
    def latest(self) -> int:
        return self.drawn[-1] if self.drawn else self.prompt[-1]


class Decoder:
    """Draws the completions of a stream of prompts, up to `slots` at a time, and never more than `rows`."""

    def __init__(self, model: Model, drawing: Drawing, slots: int, rows: int) -> None:
        self.model = model
        self.drawing = drawing
        self.slots = slots
        self._rows: list[_Row] = []
        self._cache = RowCache(min(slots, rows))
        self._head: list[int] = []
        self._head_layers: CacheLayers = ()

    def completions(
        self, prompts: Iterator[LimitedPrompt], after_step: Callable[[int], None]
    ) -> Iterator[NumberedCompletion]:
        """The completions in the order in which they end.

        Args:
            prompts: read only as slots become free.
            after_step: called with the number of tokens drawn by each step.

        Raises:
            ModelError: a single row does not fit into memory.
        """
        waiting: deque[LimitedPrompt] = deque()
        while True:
            free = min(self.slots - len(self._rows), max(1, self.slots // REFILL))
            if not self._rows or free == max(1, self.slots // REFILL):
                while len(waiting) < free and (numbered := next(prompts, None)) is not None:
                    waiting.append(numbered)
                new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            else:
                new = []
            self._rows += [
                _Row(number, prompt, limit, self.drawing.noise(number, limit))
                for number, prompt, limit in new
            ]
            if not self._rows:
                return
            finished = unless_out_of_memory(partial(self._step, len(new)))
            if finished is None:
                waiting.extendleft(reversed(self._restart()))
                continue
            after_step(finished[0][0])
            yield from finished[0][1]

    def _restart(self) -> list[LimitedPrompt]:
        """Forget all rows and use half the slots; returns the rows' prompts, which are drawn again."""
        if len(self._rows) == 1:
            raise ModelError(
                "memory runs out with a single completion. A smaller model, weights in bf16 or a device with "
                "more memory needs less"
            )
        prompts = [(row.number, row.prompt, row.limit) for row in self._rows]
        self.slots = len(self._rows) // 2
        self._rows, self._cache = [], RowCache(self.slots)
        self._head, self._head_layers = [], ()
        return prompts

    def _step(self, new: int) -> tuple[int, list[NumberedCompletion]]:
        """Read the prompts of the `new` last rows and draw a token for every row.

        Returns the number of tokens drawn and the rows that ended.
        """
        with torch.inference_mode(), without_repeated_heads(self.model):
            if new:
                self._prefill(self._rows[-new:])
            inputs = self._cache.inputs([row.latest for row in self._rows], self.model.device)
            logits = self.model(**inputs).logits[:, -1].float()
            self._cache.advance()
            tokens = self._draw(logits)
            drawn = len(tokens)
            finished, kept = [], []
            for i, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
                if token not in self.drawing.stops:
                    row.drawn.append(token)
                    if self.drawing.grammar is not None:
                        row.state = self.drawing.grammar.state_after([token], row.state)
                if token in self.drawing.stops or len(row.drawn) == row.limit:
                    finished.append((row.number, row.drawn))
                else:
                    kept.append(i)
            if finished:
                self._rows = [self._rows[i] for i in self._cache.keep(kept)]
        return drawn, finished

    def _prefill(self, rows: Sequence[_Row]) -> None:
        """Add the keys and values of all but the last token of the rows' prompts to the cache.

        Equal prompts are computed once, and so is the beginning that all share. The rest is padded on the
        right, where causal attention never reads it.
        """
        known = [tuple(row.prompt[:-1]) for row in rows]
        distinct = list(dict.fromkeys(known))
        # Whatever the first and the last in alphabetical order begin with, all between them do.
        ends = zip(min(distinct), max(distinct), strict=False)
        self._read_head([token for token, _ in takewhile(lambda pair: pair[0] == pair[1], ends)])
        shared = len(self._head)
        # One column at least, even if no prompt has a token to spare: it shows the layers' shapes.
        longest = max(1, *map(len, distinct))
        layers = [
            (keys.expand(len(distinct), -1, -1, -1), values.expand(len(distinct), -1, -1, -1))
            for keys, values in self._head_layers
        ]
        if longest > shared:
            ids = [[*prompt[shared:], *[0] * (longest - len(prompt))] for prompt in distinct]
            mask = torch.ones(len(distinct), longest, dtype=torch.long, device=self.model.device)
            cache = cache_from_layers(layers) if shared else None
            inputs = prompt_inputs(self.model, torch.tensor(ids, device=self.model.device), mask, cache)
            layers = list(cache_layers(self.model(**inputs).past_key_values))
        place = {prompt: i for i, prompt in enumerate(distinct)}
        self._cache.add(layers, [place[prompt] for prompt in known], [len(prompt) for prompt in known])

    def _read_head(self, head: Sequence[int]) -> None:
        """Compute the keys and values that the next prompts begin with, unless they are known."""
        if self._head and list(head[: len(self._head)]) == self._head:
            return
        self._head, self._head_layers = list(head), ()
        if head:
            ids = torch.tensor([self._head], device=self.model.device)
            cache = self.model(**prompt_inputs(self.model, ids, torch.ones_like(ids))).past_key_values
            self._head_layers = cache_layers(cache)

    def _draw(self, logits: torch.Tensor) -> list[int]:
        if self.drawing.grammar is not None:
            logits = self.drawing.grammar.mask(logits, [row.state for row in self._rows])
        ids = None
        if self.drawing.reads_tokens:
            # A row's last token stands in for padding: a repeated token counts once.
            texts = [[*row.prompt, *row.drawn] for row in self._rows]
            width = max(map(len, texts))
            ids = torch.tensor(
                [text + text[-1:] * (width - len(text)) for text in texts], device=logits.device
            )
        for processor in self.drawing.processors:
            logits = processor(ids, logits)
        if self.drawing.greedy:
            tokens = logits.argmax(-1)
        else:
            noise = [row.noise[len(row.drawn)] for row in self._rows]
            tokens = tokens_at(logits, torch.tensor(noise, dtype=torch.float64, device=logits.device))
        return [int(token) for token in tokens.tolist()]


def tokens_at(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The token of each row at which the cumulative probability passes the row's noise.

    Args:
        logits: [rows, vocabulary] in float32; overwritten.
        noise: [rows] in float64, in [0, 1).

    Returns:
        Token ids [rows]. Tokens of probability 0 are never drawn.
    """
    rows, vocabulary = logits.shape
    weights = logits.new_zeros(rows, -(-vocabulary // BLOCK) * BLOCK)
    torch.exp(logits.sub_(logits.amax(-1, keepdim=True)), out=weights[:, :vocabulary])
    blocks = weights.view(rows, -1, BLOCK)
    sums = blocks.sum(-1).double()
    below = sums.cumsum(-1)
    target = noise[:, None] * below[:, -1:]
    block = _passed(below, target)
    target = target - (below - sums).gather(1, block)
    inside = blocks[torch.arange(rows, device=logits.device), block[:, 0]].double().cumsum(-1)
    return (block * BLOCK + _passed(inside, target))[:, 0]


def _passed(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first entry of each row above `target` [rows, 1]; the last that adds something where none is."""
    first = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(first, last)
