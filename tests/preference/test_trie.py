"""The tree of token sequences: it holds every sequence once, at the end of its own path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.preference.trie import Node, build_trie

SEQUENCES = st.dictionaries(
    st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple), st.integers(0, 9), max_size=30
)


def nodes(node: Node):
    yield node
    for child in node.children.values():
        yield from nodes(child)


@given(SEQUENCES)
def test_a_tree_holds_each_sequence_with_its_item_and_nothing_else(named):
    root = build_trie((item, ids) for ids, item in named.items())
    assert {one.path: one.item for one in nodes(root) if one.item is not None} == named
    prefixes = {ids[:length] for ids in named for length in range(len(ids) + 1)} or {()}
    paths = [one.path for one in nodes(root)]
    assert len(paths) == len(set(paths))
    assert set(paths) == prefixes


@given(SEQUENCES, st.randoms())
def test_neither_order_nor_repetition_changes_the_tree(named, random):
    pairs = [(item, ids) for ids, item in named.items()]
    again = [*pairs, *pairs]
    random.shuffle(again)
    assert build_trie(again) == build_trie(pairs)


def test_children_are_reached_by_their_token():
    root = build_trie([(0, [1, 2]), (1, [1, 3]), (0, [1])])
    assert root == Node(
        children={
            1: Node(path=(1,), item=0, children={2: Node((1, 2), 0), 3: Node((1, 3), 1)}),
        }
    )


def test_a_sequence_that_names_two_items_is_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\] names item 0 and item 1"):
        build_trie([(0, [1, 2]), (1, [1, 2])])
