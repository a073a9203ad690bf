"""How likely the open part of a tree of answers names each item, estimated by drawing answers from it.

A *line* is one draw: an answer that begins in the tree and goes on to its end. At every step

1. the probability that the next token names an item is added to that item, and the answer goes on under the
   condition that none was named (its weight is multiplied by the rest);
2. the probability of every token that leads into a spelling ("cat", which the token after it must confirm) is
   added too, times an expectation of what it will name (a control variate), and some of these tokens are
   drawn with probabilities of their own choice, so that rare items are seen as well. What a drawn token
   names in truth, minus the expectation, is added with the weight mass / probability of being drawn.

So a line is a small population of weighted beginnings of one answer. Its children are chosen by systematic
sampling (Madow 1949), so every expectation is kept, whatever the probabilities: the estimate is unbiased
(Del Moral 2004 on interacting particles; Owen 2013, section 8.9, on control variates). Lines begin at open
nodes in proportion to their probability, by systematic sampling as well, and the variance is that of
successive differences (Wolter 2007, section 8.2).

All noise comes from the seed and the prompt's tokens: no question depends on those beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sublim_cli.backends.answer_tree import Floats, Ints, NextTokenProbs, running_sum
from sublim_cli.backends.token_masks import TokenMasks
from sublim_cli.preference.token_table import NO_ITEM, item_of

CERTAIN = 0.9
"""The first expectation that a complete spelling is a whole word; later ones are means of what was seen."""

LOOK_AHEAD = 4.0
"""How often a token that leads into a spelling is drawn, for its probability and for each unit of the
standard deviation of what follows: the more its expectation leaves open, the more it is worth to see."""

VISITS = (1.0, 0.25)
"""How often a spelling that is complete, or only begun, is drawn by the time it has its present mass."""

EXTRA = 0.25
"""Tokens drawn at a step only to see rare spellings, at most, for each line (on average)."""

LIGHT = 0.5
"""A line of less weight than this is ended with the probability that its weight lacks (Russian roulette)."""


@dataclass(frozen=True)
class OpenBeginnings:
    """Beginnings of answers to one prompt that a tree left open; arrays are [beginnings]."""

    tokens: Sequence[Sequence[int]]
    state: Ints
    """State of each in the `TokenTable`."""
    prob: Floats
    """Probability of what is open there."""
    limit: Floats
    """Only what follows with next tokens of at most this probability is open; infinite for all."""
    expanded: Any
    """Whether the tree has counted the next tokens that decide the answer (bool)."""

    def __getitem__(self, index: Ints) -> "OpenBeginnings":
        arrays = (getattr(self, field.name)[index] for field in fields(self)[1:])
        return OpenBeginnings([self.tokens[i] for i in index.tolist()], *arrays)


@dataclass(frozen=True)
class _Children:
    """Next tokens of rows, those of one row together; arrays are [children]."""

    row: Ints
    token: Ints
    state: Ints
    mass: Floats
    """Weight of the row times the token's probability; that of all tokens outside of spellings is in one."""
    in_form: Any
    """Whether the token leads into a spelling (bool)."""


@dataclass
class _Expectation:
    """What an answer is expected to name that stands in one state within a spelling."""

    mean: Floats
    """P of each item: [items]."""
    square: Floats
    """The mean of the squares of these: [items]."""
    visits: float = 1.0

    def learn(self, named: Floats) -> None:
        """Take one more observation into the means."""
        self.visits += 1
        self.mean = self.mean + (named - self.mean) / self.visits
        self.square = self.square + (named**2 - self.square) / self.visits

    @property
    def total(self) -> float:
        """P of any item, between 0 and 1."""
        return float(min(max(self.mean.sum(), 0.0), 1.0))

    @property
    def variance(self) -> Floats:
        """Of each item: [items]."""
        return np.maximum(self.square - self.mean**2, 0.0)

    @property
    def deviation(self) -> float:
        """The standard deviation, of all items together."""
        return math.sqrt(float(self.variance.sum()))


class DrawnAnswers:
    """The draws from the open part of one prompt's tree."""

    def __init__(
        self,
        masks: TokenMasks,
        beginnings: OpenBeginnings,
        spellings: Mapping[int, Floats],
        draws: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        """Draw where the lines begin.

        Args:
            masks: what each token makes of an answer.
            beginnings: where answers are open.
            spellings: for states within a spelling, how likely an answer is to complete each item's.
            draws: the number of lines.
            max_tokens: the length of an answer.
            seed: of the noise.
        """
        self._masks, self._max_tokens = masks, max_tokens
        self._rng = np.random.Generator(np.random.Philox(key=seed))
        self._mass = float(beginnings.prob.sum())
        points = (np.arange(draws) + self._rng.random()) / draws
        begun = beginnings[_drawn(np.cumsum(beginnings.prob), points)]
        self.tokens: list[Sequence[int]] = list(begun.tokens)
        """The tokens that the lines begin with, until the first `step`."""
        self._line = np.arange(draws)
        self._state, self._limit, self._expanded = begun.state, begun.limit, begun.expanded
        self._depth = np.array([len(tokens) for tokens in begun.tokens])
        self._weight = np.ones(draws)
        self._values = np.zeros((draws, len(masks.plain_forms)))
        """What each line adds to the items: [lines, items]."""
        self._spellings = spellings
        self._expected: dict[int, _Expectation] = {}
        self._form_mass: dict[int, float] = {}
        """The mass of all tokens that led into each of these states."""
        self._expected_variance = np.zeros(len(masks.plain_forms))
        """What the choice of tokens that lead into spellings is expected to add to the variance of the sum
        over lines, by what their states have shown: [items]."""
        self.passes = 0
        """Tokens computed."""

    def __len__(self) -> int:
        return len(self._line)

    def begin(self, prompt_probs: NextTokenProbs, prompt: int) -> None:
        """Draw the first token of lines that begin with the prompt itself."""
        import torch

        at_prompt = np.flatnonzero(self._depth == 0)
        if not len(at_prompt):
            return
        after = self._masks.table.after(0)
        probs = prompt_probs.at(np.array([prompt]))[0].double().cpu()
        is_open = (after >= 0) & (probs.numpy() <= self._limit[at_prompt[0]])
        cumulative = (probs * torch.from_numpy(is_open)).cumsum(0).numpy()
        tokens = _drawn(cumulative, self._rng.random(len(at_prompt)))
        for line, token in zip(at_prompt.tolist(), tokens.tolist(), strict=True):
            self.tokens[line] = [token]
        self._state[at_prompt], self._depth[at_prompt] = after[tokens], 1
        self._limit[at_prompt], self._expanded[at_prompt] = np.inf, False

    def step(self, probs: NextTokenProbs) -> tuple[Ints, Ints]:
        """Add what the next tokens name, and draw the rows that go on.

        Args:
            probs: the next-token distribution of every row.

        Returns:
            For each new row the row it continues and the token; none when the draws are finished.
        """
        self.passes += len(self)
        is_last = self._depth + 1 == self._max_tokens
        named = np.zeros((len(self), self._values.shape[1]))
        node, item, mass = self._masks.masses(probs, self._state, is_last)
        counts = (item >= 0) & ~self._expanded[node]
        np.add.at(named, (node[counts], item[counts]), mass[counts])
        children = self._children(probs, np.flatnonzero(~is_last), named)
        np.add.at(self._values, self._line, self._weight[:, None] * named)
        picked, weight = self._pick(children)
        parents = children.row[picked]
        for i in np.flatnonzero(children.in_form[picked]):
            expected = self._expectation(int(children.state[picked[i]])).mean
            self._values[self._line[parents[i]]] -= weight[i] * expected
        self._learn(named)
        self._line, self._depth = self._line[parents], self._depth[parents] + 1
        self._state, self._weight = children.state[picked], weight
        self._limit, self._expanded = np.full(len(picked), np.inf), np.zeros(len(picked), dtype=bool)
        return parents, children.token[picked]

    def estimate(self) -> tuple[Floats, Floats]:
        """For each item the probability that it is named in the open part, and the standard error.

        The error is that of the differences between lines, or that expected of the choice of tokens that lead
        into spellings if that is larger: rarely chosen tokens with large weights may all have been missed.
        """
        values = self._mass * self._values
        count = len(values)
        if count < 2:
            return values.mean(axis=0), np.full(values.shape[1], np.inf)
        variance = (np.diff(values, axis=0) ** 2).sum(axis=0) / (2 * (count - 1))
        expected = self._mass**2 * self._expected_variance / count
        return values.mean(axis=0), np.sqrt(np.maximum(variance, expected) / count)

    def _expectation(self, state: int) -> _Expectation:
        if state not in self._expected:
            mean = self._spellings.get(state, np.zeros(self._values.shape[1])).copy()
            item = item_of(self._masks.table.ended(state))
            if item is not None:
                mean[item] = 1.0
            mean *= CERTAIN
            self._expected[state] = _Expectation(mean, square=mean.copy())
        return self._expected[state]

    def _learn(self, named: Floats) -> None:
        """Let what the rows within spellings named [rows, items] count in later expectations."""
        for row, state in enumerate(self._state.tolist()):
            if self._masks.table.is_open_form(state) and not self._expanded[row]:
                self._expectation(state).learn(named[row])

    def _pick(self, children: _Children) -> tuple[Ints, Floats]:
        """The indices of the children that are drawn, and their weights."""
        line, in_form, lines = self._line[children.row], children.in_form, len(self._values)
        states, index = np.unique(children.state[in_form], return_inverse=True)
        expected = [self._expectation(state) for state in states.tolist()]
        mass = np.bincount(index, children.mass[in_form], len(states))
        for i, state in enumerate(states.tolist()):
            mass[i] += self._form_mass.get(state, 0.0)
            self._form_mass[state] = float(mass[i])
        visits = [VISITS[self._masks.table.ended(state) == NO_ITEM] for state in states.tolist()]
        boost, leaving, look = np.zeros(len(line)), np.ones(len(line)), np.zeros(len(line))
        boost[in_form] = (visits / np.maximum(mass, 1e-300))[index]
        boost /= max(1.0, (children.mass * boost).sum() / (EXTRA * lines))
        leaving[in_form] = np.array([1 - expectation.total for expectation in expected])[index]
        look[in_form] = np.array([LOOK_AHEAD * expectation.deviation for expectation in expected])[index]
        going_on = np.bincount(line, leaving * children.mass, lines)
        share = np.maximum(leaving / np.maximum(going_on, LIGHT)[line], look)
        chance = np.minimum(children.mass * np.maximum(share, boost), 1.0)
        if len(expected):
            mass_in_form, chance_in_form = children.mass[in_form], chance[in_form]
            added = mass_in_form**2 * (1 / np.maximum(chance_in_form, 1e-300) - 1)
            variances = np.array([expectation.variance for expectation in expected])
            self._expected_variance += np.bincount(index, added, len(states)) @ variances
        running = running_sum(line, chance) + self._rng.random(lines)[line]
        picked = np.flatnonzero(np.floor(running) > np.floor(running - chance))
        return picked, children.mass[picked] / chance[picked]

    def _children(self, probs: NextTokenProbs, going: Ints, named: Floats) -> _Children:
        """The next tokens of rows `going`: one drawn outside of spellings, and all that lead into one.

        Adds what the latter are expected to name to `named` [rows, items].
        """
        import torch

        noise = self._rng.random(len(self))
        parts = []
        for state in np.unique(self._state[going]).tolist():
            rows = going[self._state[going] == state]
            outside, tokens, states = self._masks.children(state)
            limit = torch.from_numpy(self._limit[rows]).to(outside)[:, None]
            p = probs.at(rows)
            p = torch.where(p <= limit, p, 0.0)
            in_form = p[:, torch.from_numpy(tokens).to(p.device)].double().cpu().numpy()
            cumulative = (p * outside).double().cumsum(1)
            total = cumulative[:, -1].cpu().numpy()
            target = torch.from_numpy(noise[rows]).to(p.device) * cumulative[:, -1]
            token = torch.searchsorted(cumulative, target[:, None], right=True).clamp_max(p.shape[1] - 1)
            rest = in_form.sum(axis=1) + total
            scale = np.where(self._expanded[rows], 1 / np.maximum(rest, 1e-300), 1.0)
            distinct, index = np.unique(states, return_inverse=True)
            if len(distinct):
                expected = np.array([self._expectation(s).mean for s in distinct.tolist()])
                named[rows] += scale[:, None] * (in_form @ expected[index])
            weight = (scale * self._weight[rows])[:, None]
            after = self._masks.table.after(state)[token[:, 0].cpu().numpy()]
            parts.append(_Children(rows, token[:, 0].cpu().numpy(), after, weight[:, 0] * total, rows < 0))
            row, column = np.nonzero(in_form)
            mass = (weight * in_form)[row, column]
            parts.append(_Children(rows[row], tokens[column], states[column], mass, mass > 0))
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            return _Children(none, none, none, none.astype(float), none.astype(bool))
        arrays = [
            np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Children)
        ]
        children = _Children(*arrays)
        # In an order that does not depend on the numbers of states, which other questions may have added.
        order = np.lexsort((children.token, children.in_form, children.row, self._line[children.row]))
        return _Children(*(getattr(children, field.name)[order] for field in fields(_Children)))


def _drawn(cumulative: Floats, noise: Floats) -> Ints:
    """The index at which the cumulative sums pass each share of their total."""
    index: Ints = np.searchsorted(cumulative, noise * cumulative[-1], side="right")
    return np.minimum(index, len(cumulative) - 1)
