"""How likely an answer opens with an item's plain name, however small that probability is."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sublim_cli.backends.answer_tree import AnswerTrees, ExpandedNodes, Floats, Ints, TreeNodes

Prefix = tuple[int, ...]
"""Tokens that an answer may open with."""


def prefix_logprobs(trees: AnswerTrees, forms: Sequence[Sequence[Prefix]]) -> Floats:
    """Log P(the answer opens with one of an item's `forms`), in nats: [prompts, items]."""
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
        for expanded in _expand(trees, level, cache_index):
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


def _expand(
    trees: AnswerTrees, level: Sequence[Prefix], cache_index: Mapping[Prefix, Ints]
) -> Iterable[ExpandedNodes]:
    """Expand prefixes of one length after every prompt; a node's state is its prefix's index in `level`."""
    if level == [()]:
        return [trees.root()]
    prompts = len(trees.lengths)
    return trees.expand(
        TreeNodes(
            prompt=np.repeat(np.arange(prompts), len(level)),
            token=np.tile([prefix[-1] for prefix in level], prompts),
            state=np.tile(np.arange(len(level)), prompts),
            prob=np.ones(prompts * len(level)),
            depth=np.full(prompts * len(level), len(level[0])),
            parent=np.stack([cache_index[prefix[:-1]] for prefix in level], axis=1).ravel(),
        )
    )
