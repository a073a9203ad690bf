"""Answers continued token by token from open nodes of a tree: their forward passes and their cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sublim_cli.backends.answer_tree import AnswerTrees, Ints, NextTokenProbs
from sublim_cli.models.batches import attention_mask, left_padded
from sublim_cli.models.prefix import cache_from_layers
from sublim_cli.models.structure import forward_with_states

if TYPE_CHECKING:
    import torch


class AnswerPaths:
    """Beginnings of answers, all continued by one token at a time; each may be continued more than once.

    Every row has its own copy of its prompt's keys and values, which `AnswerTrees` computed.
    """

    def __init__(self, trees: AnswerTrees, prompts: Ints, beginnings: Sequence[Sequence[int]]) -> None:
        """Compute some beginnings.

        Args:
            trees: the trees of the prompts.
            prompts: the index of each beginning's prompt.
            beginnings: tokens after the prompt, at least one each.
        """
        import torch

        self._trees, device = trees, trees.device
        rows = torch.from_numpy(prompts).to(device)
        self._cache = cache_from_layers([(keys[rows], values[rows]) for keys, values in trees.prompt_layers])
        tokens = left_padded(beginnings, 0, device)
        new = attention_mask(beginnings, device).bool()
        self._visible = torch.cat([trees.prompt_mask[rows].bool(), new], dim=1)
        """Which cached tokens belong to a row: [rows, tokens]."""
        count = tokens.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool, device=device).tril()
        allowed = self._visible[:, None].expand(-1, count, -1).clone()
        allowed[:, :, -count:] &= causal
        positions = torch.from_numpy(trees.lengths[prompts]).to(device)[:, None] + new.cumsum(1) - 1
        self._next_position = positions[:, -1:] + 1
        self.probs = self._forward(tokens, positions, allowed)
        """The next-token distribution after each row."""

    def advance(self, parents: Ints, tokens: Ints) -> None:
        """Replace the rows by rows `parents`, each continued by one of `tokens`."""
        import torch

        device = self._trees.device
        index = torch.from_numpy(parents).to(device)
        if len(parents) != len(self._visible) or not np.array_equal(parents, np.arange(len(parents))):
            self._cache.batch_select_indices(index)
        visible = self._visible[index]
        self._visible = torch.cat([visible, visible.new_ones(len(parents), 1)], dim=1)
        positions = self._next_position[index]
        self._next_position = positions + 1
        self.probs = self._forward(
            torch.from_numpy(tokens).to(device)[:, None], positions, self._visible[:, None]
        )

    def _forward(
        self, tokens: "torch.Tensor", positions: "torch.Tensor", allowed: "torch.Tensor"
    ) -> NextTokenProbs:
        """One pass; `allowed` [rows, tokens, cached and new tokens] says which token sees which."""
        import torch

        trees = self._trees
        dtype = trees.prompt_layers[0][0].dtype
        mask = torch.zeros(allowed.shape, dtype=dtype, device=trees.device)
        out, states = forward_with_states(
            trees.model,
            input_ids=tokens,
            attention_mask=mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None],
            position_ids=positions.clamp_min(0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        return trees.next_token_probs(states[:, -1], out.logits[:, -1])
