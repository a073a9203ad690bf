"""Why a store lacks a step: the nearest record and the fields that differ."""

from pathlib import Path

import pytest

from sublim_cli.artifacts.nearest import Change, differences
from sublim_cli.artifacts.record import Recorded
from sublim_cli.artifacts.step import digest, identity
from sublim_cli.pipeline import chain


def recorded(*steps):
    return [Recorded(Path(), one.kind, digest(one), identity(one), {}) for one in steps]


def between(new, *old, known=()):
    return differences([new], recorded(*old), set(known)).get(digest(new))


def test_of_several_records_the_one_with_the_fewest_changes_is_nearest(small):
    new = chain(small(train__rank=4)).train
    far, near = chain(small(train__rank=8, train__epochs=2)).train, chain(small(train__rank=2)).train
    found = between(new, far, near)
    assert (found.nearest, found.changes) == (digest(near), (Change("train.rank", 2, 4),))
    assert not found.inputs


def test_of_equally_near_ones_the_one_no_longer_in_use_is_taken(small):
    new = chain(small(train__learning_rate=1e-3)).train
    kept, old = chain(small(train__learning_rate=1e-3, train__rank=2)).train, chain(small()).train
    found = between(new, kept, old, known=[digest(kept)])
    assert (found.nearest, found.kept) == (digest(old), False)
    assert str(found.changes[0]) == "train.learning_rate 2e-3 → 1e-3"


def test_a_step_whose_input_changed_has_no_change_of_its_own(small):
    new, old = chain(small(train__rank=4)), chain(small())
    found = between(new.eval, old.eval)
    assert (found.changes, found.inputs) == ((), True)


def test_what_differs_in_too_much_is_no_change_of_it(small):
    new = chain(small(train__rank=4, train__epochs=2, train__learning_rate=1e-4, train__batch_size=11)).train
    assert between(new, chain(small()).train) is None
    assert between(new, chain(small()).eval) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Change("eval.contexts", [{"name": "default"}], [{"name": "default"}, {"name": "none"}]), "+none"),
        (Change("train.context", {"name": "default"}, {"name": "empty"}), "default → empty"),
        (Change("train.momentum", None, 0.5), "null → 0.5"),
    ],
)
def test_a_change_is_told_in_a_few_words(change, says):
    assert str(change) == f"{change.field} {says}"
