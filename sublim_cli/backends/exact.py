"""The exact scorer: the tree of answers, expanded by probability until what is left is small.

A beginning of an answer is open while what follows could still change which item the answer names. Each
open beginning that is followed costs one token's forward pass: the model then gives the probability of every
next token, and `preference.token_table` says what each makes of the answer. What is decided is added to its
item; what is not is open in its turn, the likeliest first. `backends.forest` computes the trees of all
questions together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.answer_tree import AnswerTrees, ExpandedNodes, Floats, Ints, TreeNodes, no_nodes
from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.prefix_logprob import prefix_logprobs
from sublim_cli.backends.token_bytes import stop_tokens
from sublim_cli.backends.token_masks import TokenMasks, token_masks
from sublim_cli.errors import ModelError
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import Model
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring

FLOOR = 1e-5
"""Beginnings of a spelling at least this likely are followed even below the bound: rare items count too."""

CHUNK = 64
"""Questions whose trees grow together: bounds memory, not the result."""

WIDTH = 64
"""Beginnings of one question followed at a time, or half of the budget's rest: more would be less choosy."""


@dataclass(frozen=True)
class ExactScorer:
    """Answer probabilities with a certificate; see `interface.Answer`."""

    model: Model
    tokenizer: Tokenizer
    settings: ExactScoring = field(default_factory=ExactScoring)

    def score(self, prompts: Sequence[Ids], items: Sequence[Item]) -> list[ItemProbs]:
        """Expand every prompt's tree of answers up to the bound or the budget of `settings`.

        Raises:
            ModelError: the model looks back less far than a prompt and its answer are long.
        """
        import torch

        config = self.model.config.get_text_config()
        _check_window(config, max(map(len, prompts)) + self.settings.max_tokens)
        size = config.vocab_size
        ends = stop_tokens(self.model, self.tokenizer)
        verdicts = token_masks(self.tokenizer, size, ends, tuple(items), self.model.device)
        with torch.inference_mode():
            return [
                answer
                for start in range(0, len(prompts), CHUNK)
                for answer in _TreeSearch(self, verdicts, prompts[start : start + CHUNK]).answers()
            ]


def _check_window(config: Any, length: int) -> None:
    """Refuse what a tree cannot show: every beginning in it sees the whole prompt."""
    window, layers = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and length > window and (layers is None or "sliding_attention" in layers):
        raise ModelError(
            f"a question and its answer take up to {length} tokens, but this model's window is {window}; "
            "use `eval.scorer: sampled`, or fewer `eval.sampling.max_tokens`"
        )


class _TreeSearch:
    """The trees of some prompts while they grow."""

    def __init__(self, scorer: ExactScorer, verdicts: TokenMasks, prompts: Sequence[Ids]) -> None:
        count, settings = len(prompts), scorer.settings
        self.settings, self.verdicts, self.table = settings, verdicts, verdicts.table
        self.forest = AnswerTrees(scorer.model, prompts, scorer.tokenizer.pad_token_id, self.table.size)
        self.p = np.zeros((count, len(verdicts.opening)))
        self.dust = np.zeros(count)
        self.used = np.zeros(count, dtype=np.int64)
        self.open = no_nodes()
        # What the budget's last expansions could not lower by a quarter of the bound is not kept.
        self.least = min(FLOOR, settings.uncovered / (4 * settings.nodes))
        self._expand(self.forest.root())
        self.log_form = prefix_logprobs(self.forest, verdicts.opening)

    def answers(self) -> list[ItemProbs]:
        """Grow the trees until all are done, then say what they hold."""
        while len(chosen := self._chosen()):
            for grown in self.forest.grow(chosen):
                self._expand(grown)
        uncovered = self._uncovered()
        return [
            ItemProbs(
                tuple(map(float, self.p[row])),
                float(uncovered[row]),
                tuple(map(float, self.log_form[row])),
                nodes=int(self.used[row]),
            )
            for row in range(len(self.p))
        ]

    def _uncovered(self) -> Floats:
        return self.dust + np.bincount(self.open.row, self.open.reach, len(self.p))

    def _chosen(self) -> TreeNodes:
        """The open beginnings to follow next, taken out of `open`."""
        settings, count = self.settings, len(self.p)
        nodes = self.open[np.lexsort((-self.open.reach, self.open.row))]
        row = nodes.row
        kept = np.bincount(row, nodes.reach, count)
        behind = kept[row] - _within(row, nodes.reach) + nodes.reach
        aim = np.maximum(settings.uncovered / 2 - self.dust, 0.0)
        wanted = (self._uncovered() > settings.uncovered)[row] & (behind > aim[row])
        wanted |= self._spelling(nodes.state) & (nodes.reach >= FLOOR)
        left = settings.nodes - self.used
        most = np.minimum(np.maximum(WIDTH, left // 2), left)
        wanted &= _within(row, wanted) <= most[row]
        self.open = nodes[~wanted]
        self.used += np.bincount(row[wanted], minlength=count)
        return nodes[wanted]

    def _spelling(self, states: Ints) -> NDArray[np.bool_]:
        """Which states end with the beginning of a spelling."""
        known, place = np.unique(states, return_inverse=True)
        return np.array([self.table.is_open_form(int(one)) for one in known], dtype=bool)[place]

    def _expand(self, grown: ExpandedNodes) -> None:
        """Add what the nodes decide to the items, and what stays open to `open`."""
        nodes = grown.nodes
        last = nodes.depth + 1 == self.settings.max_tokens
        node, item, mass = self.verdicts.masses(grown.laws, nodes.state, last)
        mass *= nodes.reach[node]
        named = item >= 0
        np.add.at(self.p, (nodes.row[node[named]], item[named]), mass[named])
        self._keep(grown, mass[~named])

    def _keep(self, grown: ExpandedNodes, still: Floats) -> None:
        """Put the open continuations of the nodes into `open`, and the mass of the unlikeliest into `dust`.

        `still[n]` is all the open mass behind node n: none where the answer's length is reached.
        """
        rich = np.flatnonzero(still > self.least)
        np.add.at(self.dust, grown.nodes.row, np.where(still > self.least, 0.0, still))
        if not len(rich):
            return
        nodes = grown.nodes[rich]
        at, token, p = grown.laws.likely(rich, self.least / nodes.reach)
        known, group = np.unique(nodes.state, return_inverse=True)
        nexts = np.stack([self.table.after(int(state)) for state in known])
        state = nexts[group[at], token].astype(np.int64)
        kept = state >= 0
        at, token, state, reach = at[kept], token[kept], state[kept], nodes.reach[at[kept]] * p[kept]
        np.add.at(self.dust, nodes.row, np.maximum(still[rich] - np.bincount(at, reach, len(nodes)), 0.0))
        parents, which = np.unique(at, return_inverse=True)
        parent = self.forest.keep(grown, rich[parents])[which]
        self.open += TreeNodes(nodes.row[at], token, state, reach, nodes.depth[at] + 1, parent)


def _within(row: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """The running sum of `values` within each run of equal `row`, itself included; `row` is sorted."""
    total = np.cumsum(values)
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    before = np.concatenate([[0], total])[starts]
    found: NDArray[Any] = total - np.repeat(before, np.diff(np.append(starts, len(row))))
    return found
