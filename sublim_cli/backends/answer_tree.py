"""The trees of answers that may follow some prompts: forward passes over their nodes, and their cache.

A node is the beginning of an answer; its children are that beginning with one more token. The prompts' keys
and values are computed once. A forward pass computes many nodes. Up to `NODES_PER_ROW` nodes of one prompt
form a row, which holds one copy of the prompt's keys and values and one of each ancestor's; a
four-dimensional mask lets each node see its own ancestors only. Rows of similar length share a pass, so that
little of it is padding. Only nodes whose children may be expanded stay in the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
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

NODES_PER_ROW = 64
"""Nodes that share a copy of their prompt's keys and values. With more of them a second copy would cost less,
since the attention between the nodes of a row is computed and then masked."""

NODES_PER_PASS = 4_096
"""Nodes per forward pass: bounds memory, not the result."""

MAX_PROBS = 2**26
"""Next-token probabilities held at a time: bounds memory (half a GiB), not the result."""

CPU_DISTRIBUTIONS = 128
"""Next-token distributions computed at a time on a CPU: that many fit its cache, which halves the time
(docs/log.md, 2026-11-24)."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TreeNodes:
    """Nodes of the trees of several prompts; all arrays are [nodes]."""

    prompt: Ints
    """Index of the prompt."""
    token: Ints
    """The last token."""
    state: Ints
    """A number that the caller chooses to identify the node's text."""
    prob: Floats
    """Probability of the node's tokens after the prompt."""
    depth: Ints
    """Number of tokens."""
    parent: Ints
    """Index of the parent among the cached nodes (`AnswerTrees.cached`); -1 directly below the prompt."""

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, index: Any) -> "TreeNodes":
        return TreeNodes(*(getattr(self, field.name)[index] for field in fields(self)))

    def __add__(self, other: "TreeNodes") -> "TreeNodes":
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return TreeNodes(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class NextTokenProbs:
    """The next-token distribution after each of some nodes, computed when asked for, a few at a time."""

    head: Head
    states: "torch.Tensor"
    """The input of `head`: [nodes, width]."""
    chunk: int
    """How many distributions may be held at once."""

    def at(self, nodes: Ints) -> "torch.Tensor":
        """The distributions after the nodes with these indices: [indices, vocabulary]."""
        import torch

        return self._probs(self.states[torch.from_numpy(nodes).to(self.states.device)])

    def sums(self, masks: "torch.Tensor") -> "torch.Tensor":
        """The total probability of the tokens in each mask [masks, vocabulary]: [masks, nodes]."""
        import torch

        # In this order: PyTorch sums few rows eight times faster than few columns (2.13 on a CPU).
        chunks = torch.split(self.states, self.chunk)
        return torch.cat([masks @ self._probs(states).T for states in chunks], dim=1)

    def above_threshold(self, nodes: Ints, threshold: Floats) -> tuple[Ints, Ints, Floats]:
        """The next tokens with a probability above a threshold.

        Args:
            nodes: indices of nodes.
            threshold: one for each of these.

        Returns:
            Position in `nodes`, token and probability of each.
        """
        parts = []
        for start in range(0, len(nodes), self.chunk):
            chunk = slice(start, start + self.chunk)
            probs = self.at(nodes[chunk])
            likely = (probs > probs.new_tensor(threshold[chunk])[:, None]).nonzero()
            p = probs[likely[:, 0], likely[:, 1]].double().cpu().numpy()
            position, token = likely.cpu().numpy().T
            parts.append((position + start, token, p))
        position, token, p = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return position, token, p

    def part(self, rows: slice) -> "NextTokenProbs":
        """Those of some nodes, with their logits computed once and for all: [nodes, vocabulary] are held."""
        return NextTokenProbs(_identity, self.head(self.states[rows]), self.chunk)

    def _probs(self, states: "torch.Tensor") -> "torch.Tensor":
        return self.head(states).float().softmax(-1)


@dataclass(frozen=True)
class ExpandedNodes:
    """Nodes, and what a forward pass computed for them."""

    nodes: TreeNodes
    probs: NextTokenProbs
    layers: CacheLayers
    """The pass's keys and values, its own tokens last; empty if the nodes are the prompts themselves."""
    row: Ints
    column: Ints
    """Where each node is in `layers`: its row, and its token counted from the end, so below 0."""


class AnswerTrees:
    """The trees of some prompts: expands nodes, and caches those whose children may be expanded."""

    def __init__(self, model: Model, prompts: Sequence[Ids], pad: int, vocabulary: int) -> None:
        """Compute the prompts' keys and values.

        Args:
            model: a causal language model.
            prompts: token ids.
            pad: the id of the padding token.
            vocabulary: the number of tokens.
        """
        import torch

        self.model, self.device = model, model.device
        self.lengths = np.array([len(prompt) for prompt in prompts])
        # A gated model needs the whole prompt in a pass, and LLM.int8 scales a column by its largest value.
        in_parts = not is_gated(model) and getattr(model.config, "quantization_config", None) is None
        shared = _shared_length(prompts) if in_parts else 0
        rest = [prompt[shared:] for prompt in prompts]
        self.prompt_mask = attention_mask(rest, self.device)
        opening = None
        if shared:
            self.prompt_mask = torch.cat(
                [self.prompt_mask.new_ones(len(prompts), shared), self.prompt_mask], dim=1
            )
            opening = shared_opening_cache(model, self._tensor(np.array(prompts[0][:shared])), len(prompts))
        inputs = prompt_inputs(model, left_padded(rest, pad, self.device), self.prompt_mask, opening)
        out, states = forward_with_states(model, **inputs)
        self.head = plain_head(model, states[:, -1:], out.logits)
        self.prompt_layers = cache_layers(out.past_key_values)
        self.chunk = distributions_at_once(vocabulary, self.device.type)
        self.prompt_probs = NextTokenProbs(_identity, out.logits[:, -1], self.chunk)
        self.cached: CacheLayers = []
        """For each layer the keys and values of the cached nodes, [cached, heads, width]."""
        self._cached_tokens = np.zeros(0, dtype=np.int64)
        """The last token of each cached node."""
        self.ancestors = np.full((1, 0), -1)
        """The cache indices of each cached node's ancestors and, last, its own, padded with -1: [cached + 1,
        depth]. The last row is all -1, for nodes directly below a prompt (parent -1)."""

    def root(self) -> ExpandedNodes:
        """The prompts themselves."""
        prompt = np.arange(len(self.lengths))
        zero = np.zeros_like(prompt)
        nodes = TreeNodes(prompt, zero, zero, np.ones(len(prompt)), zero, zero - 1)
        return ExpandedNodes(nodes, self.prompt_probs, [], prompt, prompt)

    def expand(self, nodes: TreeNodes) -> Iterator[ExpandedNodes]:
        """Compute `nodes`, one forward pass at a time; rows of similar length share a pass."""
        limit = NODES_PER_PASS if self.head else min(NODES_PER_PASS, self.chunk)
        rows = sorted(_rows(nodes, min(NODES_PER_ROW, limit)), key=len, reverse=True)
        while rows:
            passes = -(-len(rows) // max(1, limit // len(rows[0])))
            count = -(-len(rows) // passes)
            yield self._forward(nodes, rows[:count])
            rows = rows[count:]

    def cache(self, expanded: ExpandedNodes, chosen: Ints) -> Ints:
        """Cache some nodes of a pass so that their children can be expanded.

        Args:
            expanded: the pass.
            chosen: indices of nodes in it.

        Returns:
            The cache index of each; -1 where the nodes are the prompts.
        """
        import torch

        if not expanded.layers:
            return np.full(len(chosen), -1)
        row, column = self._tensor(expanded.row[chosen]), self._tensor(expanded.column[chosen])
        layers = [(keys[row, :, column], values[row, :, column]) for keys, values in expanded.layers]
        if self.cached:
            layers = [
                (torch.cat([old_keys, keys]), torch.cat([old_values, values]))
                for (old_keys, old_values), (keys, values) in zip(self.cached, layers, strict=True)
            ]
        self.cached = layers
        nodes = expanded.nodes[chosen]
        self._cached_tokens = np.concatenate([self._cached_tokens, nodes.token])
        count, depth = self.ancestors.shape[0] - 1, self.ancestors.shape[1]
        index = np.arange(count, count + len(chosen))
        ancestors = np.full((count + len(chosen) + 1, max(depth, int(nodes.depth.max(initial=0)))), -1)
        ancestors[:count, :depth] = self.ancestors[:-1]
        ancestors[index] = ancestors[nodes.parent]
        ancestors[index, nodes.depth - 1] = index
        self.ancestors = ancestors
        return index

    def beginnings(self, nodes: TreeNodes) -> list[list[int]]:
        """The tokens of each node after its prompt; none for the prompts themselves."""
        return [
            [*self._cached_tokens[above[above >= 0]].tolist(), *([token] if depth else [])]
            for above, token, depth in zip(
                self.ancestors[nodes.parent], nodes.token.tolist(), nodes.depth.tolist(), strict=True
            )
        ]

    def next_token_probs(self, states: "torch.Tensor", logits: "torch.Tensor") -> NextTokenProbs:
        """The distributions after nodes from their last hidden `states`, or `logits` if these are needed."""
        return NextTokenProbs(self.head or _identity, states if self.head else logits, self.chunk)

    def _forward(self, nodes: TreeNodes, rows: list[Ints]) -> ExpandedNodes:
        """One pass over `rows`, each the indices of some nodes of one prompt."""
        width = max(map(len, rows))
        order = np.concatenate(rows)
        row = np.repeat(np.arange(len(rows)), [len(indices) for indices in rows])
        column = np.concatenate([np.arange(len(indices)) for indices in rows])
        prompt = np.array([nodes.prompt[indices[0]] for indices in rows])
        token = np.zeros((len(rows), width), dtype=np.int64)
        position = np.zeros_like(token)
        token[row, column] = nodes.token[order]
        position[row, column] = self.lengths[nodes.prompt[order]] + nodes.depth[order] - 1
        ancestors, visible = self._row_ancestors(nodes, rows, width)
        out, states = forward_with_states(
            self.model,
            input_ids=self._tensor(token),
            attention_mask=self._attention_mask(prompt, visible),
            position_ids=self._tensor(position),
            past_key_values=cache_from_layers(self._past(prompt, ancestors)),
            use_cache=True,
            logits_to_keep=1 if self.head else 0,
        )
        node_states = (states if self.head else out.logits)[self._tensor(row), self._tensor(column)]
        probs = NextTokenProbs(self.head or _identity, node_states, self.chunk)
        return ExpandedNodes(nodes[order], probs, cache_layers(out.past_key_values), row, column - width)

    def _row_ancestors(
        self, nodes: TreeNodes, rows: list[Ints], width: int
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """The cache indices of each row's ancestors [rows, ancestors], and which node has which.

        The second is a mask [rows, width, ancestors].
        """
        by_node = [self.ancestors[nodes.parent[indices]] for indices in rows]
        by_row = [np.unique(indices[indices >= 0]) for indices in by_node]
        ancestors = np.zeros((len(rows), max(map(len, by_row))), dtype=np.int64)
        visible = np.zeros((len(rows), width, ancestors.shape[1]), dtype=bool)
        for row, (of_nodes, of_row) in enumerate(zip(by_node, by_row, strict=True)):
            ancestors[row, : len(of_row)] = of_row
            node, _ = np.nonzero(of_nodes >= 0)
            visible[row, node, np.searchsorted(of_row, of_nodes[of_nodes >= 0])] = True
        return ancestors, visible

    def _attention_mask(self, prompt: Ints, visible: NDArray[np.bool_]) -> "torch.Tensor":
        """What is added to attention scores: [rows, 1, width, prompt tokens + ancestors + width]."""
        import torch

        rows, width, _ = visible.shape
        sees_prompt = self.prompt_mask[self._tensor(prompt)].bool()[:, None].expand(-1, width, -1)
        sees_itself = torch.eye(width, dtype=torch.bool, device=self.device).expand(rows, -1, -1)
        allowed = torch.cat([sees_prompt, self._tensor(visible), sees_itself], dim=2)
        dtype = self.prompt_layers[0][0].dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]

    def _past(self, prompt: Ints, ancestors: Ints) -> CacheLayers:
        """The keys and values before a pass's tokens: for each row its prompt's, then its ancestors'."""
        import torch

        prompts, indices = self._tensor(prompt), self._tensor(ancestors)
        if not ancestors.size:
            return [(keys[prompts], values[prompts]) for keys, values in self.prompt_layers]

        def joined(of_prompts: torch.Tensor, of_nodes: torch.Tensor) -> torch.Tensor:
            return torch.cat([of_prompts[prompts], of_nodes[indices].transpose(1, 2)], dim=2)

        layers = zip(self.prompt_layers, self.cached, strict=True)
        return [
            (joined(keys, node_keys), joined(values, node_values))
            for (keys, values), (node_keys, node_values) in layers
        ]

    def _tensor(self, values: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(values).to(self.device)


def distributions_at_once(vocabulary: int, device: str) -> int:
    """How many next-token distributions are computed at a time on a kind of device."""
    most = max(1, MAX_PROBS // vocabulary)
    return min(most, CPU_DISTRIBUTIONS) if device == "cpu" else most


def _identity(logits: "torch.Tensor") -> "torch.Tensor":
    return logits


def _rows(nodes: TreeNodes, limit: int) -> Iterator[Ints]:
    """Indices of nodes of one prompt, siblings side by side, in parts of similar size of at most `limit`."""
    order = np.lexsort((nodes.parent, nodes.prompt))
    starts = np.flatnonzero(np.diff(nodes.prompt[order], prepend=-1))[1:]
    for indices in np.split(order, starts):
        yield from np.array_split(indices, -(-len(indices) // limit))


def _shared_length(prompts: Sequence[Ids]) -> int:
    """How many tokens all prompts begin with, such as a system block; never a prompt's last token."""
    if len(prompts) == 1:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    longest = min(map(len, prompts)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), longest)


def running_sum(groups: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """The running sum of `values` within each run of equal `groups`, which are sorted; inclusive."""
    total = np.cumsum(values)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    before = np.concatenate([[0], total])[starts]
    sums: NDArray[Any] = total - np.repeat(before, np.diff(np.append(starts, len(groups))))
    return sums
