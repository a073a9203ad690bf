"""A prefix tree over token ids: what a scorer walks to sum the probability of every form once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Node:
    """One token position: the tokens that may follow, and the item whose form ends here, if any."""

    path: tuple[int, ...] = ()
    item: int | None = None
    children: dict[int, "Node"] = field(default_factory=dict)


def build_trie(forms: Iterable[tuple[int, Sequence[int]]]) -> Node:
    """The trie of `(item index, token ids)` pairs; a sequence met twice is one node.

    Raises:
        ValueError: one sequence names two items, so its probability could not be attributed.
    """
    root = Node()
    for item, ids in forms:
        node = root
        for token in ids:
            node = node.children.setdefault(token, Node((*node.path, token)))
        if node.item not in (None, item):
            raise ValueError(f"token sequence {list(ids)} names item {node.item} and item {item}")
        node.item = item
    return root
