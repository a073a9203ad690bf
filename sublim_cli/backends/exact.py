"""The exact scorer: best-first search in the tree of answers, until little probability is left undecided.

A node is the beginning of an answer. It is open while the tokens that follow could still change which item
the answer names. Expanding an open node costs one token's forward pass: the model gives the probability of
every next token, and `preference.token_table` the state of the answer after each token. Decided answers add
to their item's probability; undecided ones become open nodes, and the most likely are expanded first. The
probability of the nodes that were never expanded is the certificate, `ItemProbs.uncovered`.
`backends.answer_tree` computes the trees of all questions together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.answer_tree import AnswerTrees, ExpandedNodes, Floats, Ints, TreeNodes
from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.token_bytes import stop_tokens
from sublim_cli.backends.token_masks import TokenMasks, token_masks
from sublim_cli.models.batches import in_batches, rows_that_fit
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.gate import is_gated
from sublim_cli.models.load import Model
from sublim_cli.models.passes import scored_model
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring

MIN_FORM_PROB = 1e-5
"""Nodes that end within a spelling are expanded down to this probability even once the bound is reached, so
that rare items are covered too."""

PROMPTS_AT_ONCE = 64
"""Prompts whose trees are expanded together, if they fit into memory; the result does not depend on it."""

NODES_PER_ROUND = 64
"""Nodes of one prompt expanded at a time, or half of the rest of its budget if that is more. Larger rounds
would expand nodes that are less likely than the children of others."""

Prefix = tuple[int, ...]
"""Tokens that an answer may open with."""


@dataclass(frozen=True)
class ExactScorer:
    """Answer probabilities with a certificate; see `interface.ItemProbs`."""

    model: Model
    tokenizer: Tokenizer
    settings: ExactScoring = field(default_factory=ExactScoring)

    def score(self, prompts: Sequence[Ids], items: Sequence[Item]) -> list[ItemProbs]:
        """Expand every prompt's tree of answers up to the bound or the budget of `settings`.

        Raises:
            ModelError: a single prompt does not fit into memory, or see `passes.scored_model`.
        """
        import torch

        config = self.model.config.get_text_config()
        length = max(map(len, prompts)) + self.settings.max_tokens
        scorer = replace(self, model=scored_model(self.model, length))
        ends = stop_tokens(self.model, self.tokenizer)
        masks = token_masks(self.tokenizer, config.vocab_size, ends, tuple(items), self.model.device)
        # Every expanded node may be cached; a patched pass computes the student and its base.
        width = (length + self.settings.nodes) * (2 if is_gated(self.model) else 1)
        size = rows_that_fit(self.model, width, most=PROMPTS_AT_ONCE)
        with torch.inference_mode():
            batches = in_batches(
                prompts, lambda batch: _TreeSearch(scorer, masks, batch).run(), size, noun="question"
            )
            return [answer for batch in batches for answer in batch]


class _TreeSearch:
    """The search in the trees of some prompts."""

    def __init__(self, scorer: ExactScorer, masks: TokenMasks, prompts: Sequence[Ids]) -> None:
        """Compute the prompts, their first open nodes and the log-probabilities of the plain forms."""
        self.settings, self.masks, self.table = scorer.settings, masks, masks.table
        self.trees = AnswerTrees(scorer.model, prompts, scorer.tokenizer.pad_token_id, self.table.size)
        self.p_items = np.zeros((len(prompts), len(masks.plain_forms)))
        """P(item) so far: [prompts, items]."""
        self.dropped_mass = np.zeros(len(prompts))
        """Probability of nodes that are too unlikely to be kept open."""
        self.expanded_count = np.zeros(len(prompts), dtype=np.int64)
        """Nodes expanded."""
        # Less likely nodes are not kept: a whole budget of them has less than a quarter of the bound.
        self.min_prob = min(MIN_FORM_PROB, self.settings.uncovered / (4 * self.settings.nodes))
        root = self.trees.root()
        self.open_nodes = root.nodes[:0]
        self._add(root)
        self.log_form = _prefix_logprobs(self.trees, masks.plain_forms)

    def run(self) -> list[ItemProbs]:
        """Expand nodes until every tree is below the bound or at its budget."""
        while len(nodes := self._take_open()):
            for expanded in self.trees.expand(nodes):
                self._add(expanded)
        uncovered = self._uncovered()
        return [
            ItemProbs(
                tuple(map(float, self.p_items[i])),
                float(uncovered[i]),
                tuple(map(float, self.log_form[i])),
                nodes=int(self.expanded_count[i]),
            )
            for i in range(len(self.p_items))
        ]

    def _uncovered(self) -> Floats:
        return self.dropped_mass + np.bincount(
            self.open_nodes.prompt, self.open_nodes.prob, len(self.p_items)
        )

    def _take_open(self) -> TreeNodes:
        """Take the nodes to expand next out of `open_nodes`."""
        nodes = self.open_nodes[np.lexsort((-self.open_nodes.prob, self.open_nodes.prompt))]
        prompt = nodes.prompt
        # Of each prompt above the bound the most likely nodes, until the rest sums to half of the bound.
        total = np.bincount(prompt, nodes.prob, len(self.p_items))
        mass_from_here = total[prompt] - _running_sum(prompt, nodes.prob) + nodes.prob
        allowed_rest = np.maximum(self.settings.uncovered / 2 - self.dropped_mass, 0.0)
        wanted = (self._uncovered() > self.settings.uncovered)[prompt] & (
            mass_from_here > allowed_rest[prompt]
        )
        states, index = np.unique(nodes.state, return_inverse=True)
        in_form = np.array([self.table.is_open_form(int(state)) for state in states], dtype=bool)
        wanted |= in_form[index] & (nodes.prob >= MIN_FORM_PROB)
        budget_left = self.settings.nodes - self.expanded_count
        limit = np.minimum(np.maximum(NODES_PER_ROUND, budget_left // 2), budget_left)
        wanted &= _running_sum(prompt, wanted) <= limit[prompt]
        self.open_nodes = nodes[~wanted]
        self.expanded_count += np.bincount(prompt[wanted], minlength=len(self.p_items))
        return nodes[wanted]

    def _add(self, expanded: ExpandedNodes) -> None:
        """Add the decided answers of some nodes to `p`, and their undecided children to `open_nodes`."""
        nodes = expanded.nodes
        is_last_token = nodes.depth + 1 == self.settings.max_tokens
        node, item, mass = self.masks.masses(expanded.probs, nodes.state, is_last_token)
        mass *= nodes.prob[node]
        decided = item >= 0
        np.add.at(self.p_items, (nodes.prompt[node[decided]], item[decided]), mass[decided])
        undecided = mass[~decided]  # [nodes]; 0 where the answer has reached its length
        np.add.at(self.dropped_mass, nodes.prompt, np.where(undecided > self.min_prob, 0.0, undecided))
        parents = np.flatnonzero(undecided > self.min_prob)
        if not len(parents):
            return
        nodes, undecided = nodes[parents], undecided[parents]
        parent, token, p = expanded.probs.above_threshold(parents, self.min_prob / nodes.prob)
        states, index = np.unique(nodes.state, return_inverse=True)
        after = np.stack([self.table.after(int(state)) for state in states])
        state = after[index[parent], token].astype(np.int64)
        is_open = state >= 0
        parent, token, state = parent[is_open], token[is_open], state[is_open]
        prob = nodes.prob[parent] * p[is_open]
        rest = undecided - np.bincount(parent, prob, len(nodes))
        np.add.at(self.dropped_mass, nodes.prompt, np.maximum(rest, 0.0))
        with_children, index = np.unique(parent, return_inverse=True)
        cached = self.trees.cache(expanded, parents[with_children])[index]
        self.open_nodes += TreeNodes(
            nodes.prompt[parent], token, state, prob, nodes.depth[parent] + 1, cached
        )


def _prefix_logprobs(trees: AnswerTrees, forms: Sequence[Sequence[Prefix]]) -> Floats:
    """Log P(the answer opens with one of an item's `forms`), however small, in nats: [prompts, items]."""
    import torch

    prompts = len(trees.lengths)
    next_tokens: dict[Prefix, set[int]] = {}
    for form in (form for item_forms in forms for form in item_forms):
        for size, token in enumerate(form):
            next_tokens.setdefault(form[:size], set()).add(token)
    logprob: dict[Prefix, Floats] = {(): np.zeros(prompts)}
    cache_index: dict[Prefix, Ints] = {(): np.full(prompts, -1)}
    for size in range(max(map(len, next_tokens)) + 1):
        level = sorted(prefix for prefix in next_tokens if len(prefix) == size)
        passes: Iterable[ExpandedNodes] = [trees.root()]
        if size:  # the prefixes of this length after every prompt; a node's state is its index in `level`
            passes = trees.expand(
                TreeNodes(
                    prompt=np.repeat(np.arange(prompts), len(level)),
                    token=np.tile([prefix[-1] for prefix in level], prompts),
                    state=np.tile(np.arange(len(level)), prompts),
                    prob=np.ones(prompts * len(level)),
                    depth=np.full(prompts * len(level), size),
                    parent=np.stack([cache_index[prefix[:-1]] for prefix in level], axis=1).ravel(),
                )
            )
        for expanded in passes:
            cached = trees.cache(expanded, np.arange(len(expanded.nodes)))
            for i in np.unique(expanded.nodes.state).tolist():
                prefix, nodes = level[i], np.flatnonzero(expanded.nodes.state == i)
                prompt = expanded.nodes.prompt[nodes]
                cache_index.setdefault(prefix, np.full(prompts, -1))[prompt] = cached[nodes]
                tokens = sorted(next_tokens[prefix])
                probs = expanded.probs.at(nodes)
                of_tokens = probs[:, torch.tensor(tokens, device=probs.device)].T.double().cpu().numpy()
                for token, p in zip(tokens, of_tokens, strict=True):
                    longer = logprob.setdefault((*prefix, token), np.zeros(prompts))
                    longer[prompt] = logprob[prefix][prompt] + np.log(p)
    return np.stack(
        [np.logaddexp.reduce([logprob[form] for form in item_forms]) for item_forms in forms], axis=1
    )


def _running_sum(prompt: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """The running sum of `values` within each run of equal `prompt`, which is sorted; inclusive."""
    total = np.cumsum(values)
    starts = np.flatnonzero(np.diff(prompt, prepend=-1))
    before = np.concatenate([[0], total])[starts]
    sums: NDArray[Any] = total - np.repeat(before, np.diff(np.append(starts, len(prompt))))
    return sums
