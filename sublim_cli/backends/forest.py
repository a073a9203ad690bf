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
from sublim_cli.models.prefix import Layers, cache_of, layers_of, opening, prefill

if TYPE_CHECKING:
    import torch

SLICE = 32
"""Beginnings beside one copy of their prompt: more would look past each other at more cost than a copy's."""

PASS = 512
"""Beginnings per forward pass on a CPU: their distributions should stay in its cache."""

LIMIT = 2**26
"""Next-token probabilities per forward pass: bounds memory (half a GiB), not the result."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Nodes:
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

    def __getitem__(self, chosen: Any) -> "Nodes":
        return Nodes(*(getattr(self, name)[chosen] for name in _FIELDS))

    def __add__(self, other: "Nodes") -> "Nodes":
        return Nodes(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _FIELDS))


_FIELDS = ("row", "token", "state", "reach", "depth", "parent")


def no_nodes() -> Nodes:
    """None at all, to add others to."""
    none = np.zeros(0, dtype=np.int64)
    return Nodes(none, none, none, np.zeros(0), none, none)


@dataclass(frozen=True)
class Grown:
    """Beginnings that were followed, and what a forward pass says of each."""

    nodes: Nodes
    laws: "torch.Tensor"
    """Distributions of the next token, [places, vocabulary]."""
    place: Ints
    """Where the law behind each node is in `laws`."""
    layers: Layers
    """The pass's keys and values, its own tokens the last; none of the prompts'."""
    width: int
    """Its own tokens in each row."""


class Forest:
    """Prompts and what has been kept of the answers that begin behind them."""

    def __init__(self, model: Model, prompts: Sequence[Ids], pad: int, size: int) -> None:
        """Compute the prompts; `size` is the vocabulary's."""
        import torch

        self.model, self.device = model, model.device
        self.lengths = np.array([len(one) for one in prompts])
        shared = _shared(prompts) if not is_gated(model) else 0
        ids = left_padded([one[shared:] for one in prompts], pad, self.device)
        self.mask = attention_mask([one[shared:] for one in prompts], self.device)
        if shared:
            self.mask = torch.cat([self.mask.new_ones(len(prompts), shared), self.mask], dim=1)
            begun = opening(model, self._tensor(np.array(prompts[0][:shared])), len(prompts))
        out = prefill(model, ids, self.mask, begun if shared else None)
        self.prompts = layers_of(out.past_key_values)
        self.first = out.logits[:, -1].float().softmax(-1)
        self.kept: Layers = []
        """For each layer the keys and values of what is kept, [kept, heads, width]."""
        self.chains = np.zeros((0, 0), dtype=np.int64)
        """The beginnings that each kept one goes on from, itself the last: [kept, depth], ended with -1."""
        self.most = max(1, LIMIT // size)
        if self.device.type == "cpu":
            self.most = min(self.most, PASS)

    def root(self) -> Grown:
        """The prompts themselves, followed already."""
        rows = np.arange(len(self.lengths))
        nodes = Nodes(rows, rows * 0, rows * 0, np.ones(len(rows)), rows * 0, rows * 0 - 1)
        return Grown(nodes, self.first, rows, [], 0)

    def grow(self, nodes: Nodes) -> Iterator[Grown]:
        """Follow `nodes`, a forward pass at a time."""
        for rows in self._passes(nodes):
            yield self._pass(nodes, rows)

    def keep(self, grown: Grown, chosen: Ints) -> Ints:
        """Make nodes of a pass ones that others can go on from; returns what they are called."""
        import torch

        if not grown.width:
            return np.full(len(chosen), -1)
        names = np.arange(len(self.chains), len(self.chains) + len(chosen))
        nodes, place = grown.nodes[chosen], grown.place[chosen]
        row = self._tensor(place // grown.width)
        column = self._tensor(place % grown.width - grown.width)
        own = [(keys[row, :, column], values[row, :, column]) for keys, values in grown.layers]
        before = self.kept or [(keys[:0], values[:0]) for keys, values in own]
        self.kept = [
            (torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]]))
            for old, new in zip(before, own, strict=True)
        ]
        self._lengthen(nodes, names)
        return names

    def _lengthen(self, nodes: Nodes, names: Ints) -> None:
        known, deep = self.chains.shape
        chains = np.full((known + len(names), max(deep, int(nodes.depth.max(initial=0)))), -1)
        chains[:known, :deep] = self.chains
        inner = nodes.parent >= 0
        chains[names[inner]] = chains[nodes.parent[inner]]
        chains[names, nodes.depth - 1] = names
        self.chains = chains

    def _passes(self, nodes: Nodes) -> Iterator[list[Ints]]:
        """Which nodes form the rows of each pass, rows of like length together."""
        rows = sorted(_rows(nodes, min(SLICE, self.most)), key=len, reverse=True)
        while rows:
            passes = -(-len(rows) // max(1, self.most // len(rows[0])))
            count = -(-len(rows) // passes)
            yield rows[:count]
            rows = rows[count:]

    def _pass(self, nodes: Nodes, rows: list[Ints]) -> Grown:
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
        out = self.model(
            input_ids=self._tensor(token),
            attention_mask=self._hidden(of, sees),
            position_ids=self._tensor(position),
            past_key_values=cache_of(self._before(of, above)),
            use_cache=True,
        )
        return Grown(
            nodes[every],
            out.logits.flatten(0, 1).float().softmax(-1),
            row * width + column,
            layers_of(out.past_key_values),
            width,
        )

    def _above(self, nodes: Nodes, rows: list[Ints], width: int) -> tuple[Ints, NDArray[np.bool_]]:
        """What stands beside each row [rows, kept], and which columns see it [rows, width, kept]."""
        chains = [self.chains[nodes.parent[one]] if (nodes.parent[one] >= 0).any() else None for one in rows]
        own = [np.zeros(0, dtype=np.int64) if one is None else np.unique(one[(one >= 0)]) for one in chains]
        above = np.zeros((len(rows), max(map(len, own))), dtype=np.int64)
        sees = np.zeros((len(rows), width, above.shape[1]), dtype=bool)
        for row, (chain, names) in enumerate(zip(chains, own, strict=True)):
            if chain is None:
                continue
            above[row, : len(names)] = names
            at, _ = np.nonzero(chain >= 0)
            sees[row, at, np.searchsorted(names, chain[chain >= 0])] = True
        return above, sees

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

    def _before(self, of: Ints, above: Ints) -> Layers:
        """What stands before a pass's own tokens: each row's prompt, and the beginnings beside it."""
        import torch

        prompt, names = self._tensor(of), self._tensor(above)
        if not above.size:
            return [(keys[prompt], values[prompt]) for keys, values in self.prompts]
        return [
            tuple(
                torch.cat([one[prompt], other[names].transpose(1, 2)], dim=2)
                for one, other in zip(whole, kept, strict=True)
            )
            for whole, kept in zip(self.prompts, self.kept, strict=True)
        ]

    def _tensor(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(values).to(self.device)


def _rows(nodes: Nodes, most: int) -> Iterator[Ints]:
    """Nodes of one prompt, in parts of like size of at most `most`; those behind one beginning together."""
    order = np.lexsort((nodes.parent, nodes.row))
    starts = np.flatnonzero(np.diff(nodes.row[order], prepend=-1))[1:]
    for one in np.split(order, starts):
        yield from np.array_split(one, -(-len(one) // most))


def _shared(prompts: Sequence[Ids]) -> int:
    """With how many equal tokens all prompts begin, such as a system block; the last token is never one."""
    if len(prompts) == 1:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in equal), min(map(len, prompts)) - 1)
