"""The trees of answers behind some prompts: what a forward pass computes, and what is kept of it.

The prompts' keys and values are computed once. A pass takes beginnings of answers, at most `SLICE` of one
prompt in a row beside a copy of that prompt's keys and values and of those the beginnings go on from; a
mask of four dimensions lets each see its own tokens alone. Rows of like length go together, so little of a
pass is padding. Kept are the keys and values of beginnings that may be gone on from, and no others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.interface import Ids
from sublim_cli.models.batches import attention_mask, left_padded
from sublim_cli.models.gate import is_gated
from sublim_cli.models.load import Model
from sublim_cli.models.prefix import (
    CacheLayers,
    cache_from_layers,
    cache_layers,
    prompt_inputs,
    shared_opening_cache,
)
from sublim_cli.models.structure import Head, forward_with_states, plain_head

if TYPE_CHECKING:
    import torch

SLICE = 64
"""Beginnings beside one copy of their prompt: more would look past each other at more cost than a copy's."""

PASS = 4_096
"""Beginnings per forward pass: bounds memory, not the result."""

LIMIT = 2**26
"""Next-token probabilities at a time: bounds memory (half a GiB), not the result."""

BLOCK = 128
"""Distributions at a time on a CPU: few enough for its cache, where they take half the time."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TreeNodes:
    """Beginnings of answers, one an entry: all arrays are [nodes]."""

    row: Ints
    """The number of its prompt."""
    token: Ints
    """Its last token."""
    state: Ints
    reach: Floats
    """Its probability."""
    depth: Ints
    """Its number of tokens."""
    parent: Ints
    """What `Forest.keep` called the beginning it goes on from; -1 for the prompt itself."""

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: Any) -> "TreeNodes":
        return TreeNodes(*(getattr(self, name)[chosen] for name in _FIELDS))

    def __add__(self, other: "TreeNodes") -> "TreeNodes":
        return TreeNodes(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _FIELDS))


_FIELDS = ("row", "token", "state", "reach", "depth", "parent")


def no_nodes() -> TreeNodes:
    """None at all, to add others to."""
    none = np.zeros(0, dtype=np.int64)
    return TreeNodes(none, none, none, np.zeros(0), none, none)


@dataclass(frozen=True)
class NextTokenProbs:
    """Distributions of the next token behind some nodes, computed a few at a time when they are asked for."""

    head: Head
    states: "torch.Tensor"
    """What the head makes logits of: [nodes, width]."""
    most: int
    """How many distributions there may be at once."""

    def at(self, chosen: Ints) -> "torch.Tensor":
        """Those behind some nodes: [chosen, vocabulary]."""
        import torch

        return self._laws(self.states[torch.from_numpy(chosen).to(self.states.device)])

    def sums(self, sets: "torch.Tensor") -> "torch.Tensor":
        """The probability of each of some sets of tokens [sets, vocabulary]: [sets, nodes]."""
        import torch

        # In this order: PyTorch sums few rows eight times faster than few columns (2.13 on a CPU).
        return torch.cat([sets @ self._laws(one).T for one in torch.split(self.states, self.most)], dim=1)

    def likely(self, chosen: Ints, least: Floats) -> tuple[Ints, Ints, Floats]:
        """The tokens that are likelier than `least`, a number for each of the chosen nodes.

        Returns:
            Place in `chosen`, token and probability of each.
        """
        found = []
        for start in range(0, len(chosen), self.most):
            part = slice(start, start + self.most)
            laws = self.at(chosen[part])
            hot = (laws > laws.new_tensor(least[part])[:, None]).nonzero()
            p = laws[hot[:, 0], hot[:, 1]].double().cpu().numpy()
            at, token = hot.cpu().numpy().T
            found.append((at + start, token, p))
        at, token, p = (np.concatenate(one) for one in zip(*found, strict=True))
        return at, token, p

    def _laws(self, states: "torch.Tensor") -> "torch.Tensor":
        return self.head(states).float().softmax(-1)


@dataclass(frozen=True)
class ExpandedNodes:
    """Beginnings that were followed, and what a forward pass says of each."""

    nodes: TreeNodes
    laws: NextTokenProbs
    layers: CacheLayers
    """The pass's keys and values, its own tokens the last; nothing of a pass over prompts."""
    row: Ints
    column: Ints
    """Where in `layers` each node is; the column counted from the end, so below 0."""


class AnswerTrees:
    """Prompts and what has been kept of the answers that begin behind them."""

    def __init__(self, model: Model, prompts: Sequence[Ids], pad: int, size: int) -> None:
        """Compute the prompts; `size` is the vocabulary's."""
        import torch

        self.model, self.device = model, model.device
        self.lengths = np.array([len(one) for one in prompts])
        shared = 0 if _whole(model) else _shared(prompts)
        ids = left_padded([one[shared:] for one in prompts], pad, self.device)
        self.mask = attention_mask([one[shared:] for one in prompts], self.device)
        begun = None
        if shared:
            self.mask = torch.cat([self.mask.new_ones(len(prompts), shared), self.mask], dim=1)
            begun = shared_opening_cache(model, self._tensor(np.array(prompts[0][:shared])), len(prompts))
        out, states = forward_with_states(model, **prompt_inputs(model, ids, self.mask, begun))
        self.head = plain_head(model, states[:, -1:], out.logits)
        self.prompts = cache_layers(out.past_key_values)
        limit = max(1, LIMIT // size)
        self.most = min(limit, BLOCK) if self.device.type == "cpu" else limit
        self.first = NextTokenProbs(_as_it_is, out.logits[:, -1], self.most)
        self.kept: CacheLayers = []
        """For each layer the keys and values of what is kept, [kept, heads, width]."""
        self.chains = np.zeros((0, 0), dtype=np.int64)
        """The beginnings that each kept one goes on from, itself the last: [kept, depth], ended with -1."""

    def root(self) -> ExpandedNodes:
        """The prompts themselves, followed already."""
        rows = np.arange(len(self.lengths))
        nodes = TreeNodes(rows, rows * 0, rows * 0, np.ones(len(rows)), rows * 0, rows * 0 - 1)
        return ExpandedNodes(nodes, self.first, [], rows, rows)

    def grow(self, nodes: TreeNodes) -> Iterator[ExpandedNodes]:
        """Follow `nodes`, a forward pass at a time."""
        for rows in self._passes(nodes):
            yield self._pass(nodes, rows)

    def keep(self, grown: ExpandedNodes, chosen: Ints) -> Ints:
        """Make nodes of a pass ones that others can go on from; returns what they are called."""
        import torch

        if not grown.layers:
            return np.full(len(chosen), -1)
        names = np.arange(len(self.chains), len(self.chains) + len(chosen))
        row, column = self._tensor(grown.row[chosen]), self._tensor(grown.column[chosen])
        own = [(keys[row, :, column], values[row, :, column]) for keys, values in grown.layers]
        before = self.kept or [(keys[:0], values[:0]) for keys, values in own]
        self.kept = [
            (torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]]))
            for old, new in zip(before, own, strict=True)
        ]
        self._lengthen(grown.nodes[chosen], names)
        return names

    def _lengthen(self, nodes: TreeNodes, names: Ints) -> None:
        known, deep = self.chains.shape
        chains = np.full((known + len(names), max(deep, int(nodes.depth.max(initial=0)))), -1)
        chains[:known, :deep] = self.chains
        inner = nodes.parent >= 0
        chains[names[inner]] = chains[nodes.parent[inner]]
        chains[names, nodes.depth - 1] = names
        self.chains = chains

    def _passes(self, nodes: TreeNodes) -> Iterator[list[Ints]]:
        """Which nodes form the rows of each pass, rows of like length together."""
        most = PASS if self.head else min(PASS, self.most)
        rows = sorted(_rows(nodes, min(SLICE, most)), key=len, reverse=True)
        while rows:
            passes = -(-len(rows) // max(1, most // len(rows[0])))
            count = -(-len(rows) // passes)
            yield rows[:count]
            rows = rows[count:]

    def _pass(self, nodes: TreeNodes, rows: list[Ints]) -> ExpandedNodes:
        width = max(map(len, rows))
        every = np.concatenate(rows)
        row = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
        column = np.concatenate([np.arange(len(one)) for one in rows])
        of = np.array([nodes.row[one[0]] for one in rows])
        token = np.zeros((len(rows), width), dtype=np.int64)
        position = np.zeros_like(token)
        token[row, column] = nodes.token[every]
        position[row, column] = self.lengths[nodes.row[every]] + nodes.depth[every] - 1
        above, sees = self._above(nodes, rows, width)
        out, states = forward_with_states(
            self.model,
            input_ids=self._tensor(token),
            attention_mask=self._hidden(of, sees),
            position_ids=self._tensor(position),
            past_key_values=cache_from_layers(self._before(of, above)),
            use_cache=True,
            logits_to_keep=1 if self.head else 0,
        )
        of_nodes = (states if self.head else out.logits)[self._tensor(row), self._tensor(column)]
        laws = NextTokenProbs(self.head or _as_it_is, of_nodes, self.most)
        return ExpandedNodes(nodes[every], laws, cache_layers(out.past_key_values), row, column - width)

    def _above(self, nodes: TreeNodes, rows: list[Ints], width: int) -> tuple[Ints, NDArray[np.bool_]]:
        """What stands beside each row [rows, kept], and which columns see it [rows, width, kept]."""
        chains = [self._chains_of(nodes.parent[one]) for one in rows]
        own = [np.unique(one[one >= 0]) for one in chains]
        above = np.zeros((len(rows), max(map(len, own))), dtype=np.int64)
        sees = np.zeros((len(rows), width, above.shape[1]), dtype=bool)
        for row, (chain, names) in enumerate(zip(chains, own, strict=True)):
            above[row, : len(names)] = names
            seeing, _ = np.nonzero(chain >= 0)
            sees[row, seeing, np.searchsorted(names, chain[chain >= 0])] = True
        return above, sees

    def _chains_of(self, parents: Ints) -> Ints:
        """What nodes of these parents go on from: [nodes, depth], ended with -1."""
        if parents.max() < 0:
            return np.zeros((len(parents), 0), dtype=np.int64)
        return np.where(parents[:, None] < 0, -1, self.chains[parents])

    def _hidden(self, of: Ints, sees: NDArray[np.bool_]) -> "torch.Tensor":
        """The mask that is added to attention, [rows, 1, width, prompt + kept + width]."""
        import torch

        rows, width, _ = sees.shape
        prompt = self.mask[self._tensor(of)].bool()[:, None].expand(-1, width, -1)
        own = torch.eye(width, dtype=torch.bool, device=self.device).expand(rows, -1, -1)
        whole = torch.cat([prompt, self._tensor(sees), own], dim=2)
        kind = self.prompts[0][0].dtype
        hidden = torch.zeros(whole.shape, dtype=kind, device=self.device)
        return hidden.masked_fill_(~whole, torch.finfo(kind).min)[:, None]

    def _before(self, of: Ints, above: Ints) -> CacheLayers:
        """What stands before a pass's own tokens: each row's prompt, and the beginnings beside it."""
        import torch

        prompt, names = self._tensor(of), self._tensor(above)

        def _beside(whole: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
            return torch.cat([whole[prompt], kept[names].transpose(1, 2)], dim=2)

        if not above.size:
            return [(keys[prompt], values[prompt]) for keys, values in self.prompts]
        pairs = zip(self.prompts, self.kept, strict=True)
        return [(_beside(keys, more), _beside(values, others)) for (keys, values), (more, others) in pairs]

    def _tensor(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(values).to(self.device)


def _as_it_is(logits: "torch.Tensor") -> "torch.Tensor":
    return logits


def _rows(nodes: TreeNodes, most: int) -> Iterator[Ints]:
    """Nodes of one prompt, in parts of like size of at most `most`; those behind one beginning together."""
    order = np.lexsort((nodes.parent, nodes.row))
    starts = np.flatnonzero(np.diff(nodes.row[order], prepend=-1))[1:]
    for one in np.split(order, starts):
        yield from np.array_split(one, -(-len(one) // most))


def _whole(model: Model) -> bool:
    """Whether prompts must be computed whole: for a gate, or where they would come out otherwise in parts.

    8-bit matrices (LLM.int8) treat a column by the largest value in it, so a token by those beside it.
    """
    return is_gated(model) or getattr(model.config, "quantization_config", None) is not None


def _shared(prompts: Sequence[Ids]) -> int:
    """With how many equal tokens all prompts begin, such as a system block; the last token is never one."""
    if len(prompts) == 1:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in equal), min(map(len, prompts)) - 1)
