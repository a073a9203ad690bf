"""How likely an answer opens with an item's plain name, however unlikely that is."""

from collections.abc import Iterable, Sequence

import numpy as np

from sublim_cli.backends.answer_tree import AnswerTrees, ExpandedNodes, Floats, Ints, TreeNodes

Way = tuple[int, ...]
"""Tokens that an answer may open with."""


def prefix_logprobs(forest: AnswerTrees, forms: Sequence[Sequence[Way]]) -> Floats:
    """Log P(the answer opens with one of an item's `forms`), in nats: [prompts, items]."""
    rows = len(forest.lengths)
    ways = {way[:size] for own in forms for way in own for size in range(1, len(way) + 1)}
    inner = {one[:-1] for one in ways}
    log: dict[Way, Floats] = {(): np.zeros(rows)}
    names: dict[Way, Ints] = {(): np.full(rows, -1)}
    for size in range(max(map(len, inner)) + 1):
        level = sorted(one for one in inner if len(one) == size)
        for grown in _followed(forest, level, names):
            kept = forest.keep(grown, np.arange(len(grown.nodes)))
            for number in np.unique(grown.nodes.state).tolist():
                way, own = level[number], np.flatnonzero(grown.nodes.state == number)
                row = grown.nodes.row[own]
                names.setdefault(way, np.full(rows, -1))[row] = kept[own]
                tokens = sorted(one[-1] for one in ways if one[:-1] == way)
                for token, p in zip(tokens, _p(grown, own, tokens), strict=True):
                    log.setdefault((*way, token), np.zeros(rows))[row] = log[way][row] + np.log(p)
    return np.stack([np.logaddexp.reduce([log[one] for one in own]) for own in forms], axis=1)


def _followed(forest: AnswerTrees, level: Sequence[Way], names: dict[Way, Ints]) -> Iterable[ExpandedNodes]:
    """Ways of one length behind every prompt; a node's state is its way's place in `level`."""
    if level == [()]:
        return [forest.root()]
    rows = len(forest.lengths)
    return forest.grow(
        TreeNodes(
            row=np.repeat(np.arange(rows), len(level)),
            token=np.tile([one[-1] for one in level], rows),
            state=np.tile(np.arange(len(level)), rows),
            reach=np.ones(rows * len(level)),
            depth=np.full(rows * len(level), len(level[0])),
            parent=np.stack([names[one[:-1]] for one in level], axis=1).ravel(),
        )
    )


def _p(grown: ExpandedNodes, own: Ints, tokens: Sequence[int]) -> Floats:
    """The probability of each token behind some of the nodes: [tokens, nodes]."""
    import torch

    of_tokens = grown.laws.at(own)[:, torch.tensor(tokens, device=grown.laws.states.device)]
    found: Floats = of_tokens.T.double().cpu().numpy()
    return found
