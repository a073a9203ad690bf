"""Why a store lacks a step: the nearest artifact and the fields that differ."""

from pathlib import Path

import pytest

from sublim_cli.artifacts.nearest import FieldChange, nearest_artifacts
from sublim_cli.artifacts.record import ArtifactRecord
from sublim_cli.artifacts.step import digest, identity
from sublim_cli.pipeline import chain


def nearest(step, *stored, known=()):
    """The nearest of the stored steps' artifacts."""
    records = [ArtifactRecord(Path(), each.kind, digest(each), identity(each), {}) for each in stored]
    return nearest_artifacts([step], records, set(known)).get(digest(step))


def test_of_several_records_the_one_with_the_fewest_changes_is_nearest(small):
    new = chain(small(train__rank=4)).train
    far, near = chain(small(train__rank=8, train__epochs=2)).train, chain(small(train__rank=2)).train
    artifact = nearest(new, far, near)
    assert (artifact.digest, artifact.changes) == (digest(near), (FieldChange("train.rank", 2, 4),))
    assert not artifact.inputs_differ


def test_of_equally_near_ones_the_one_no_longer_in_use_is_taken(small):
    new = chain(small(train__learning_rate=1e-3)).train
    used, unused = chain(small(train__learning_rate=1e-3, train__rank=2)).train, chain(small()).train
    artifact = nearest(new, used, unused, known=[digest(used)])
    assert (artifact.digest, artifact.in_study) == (digest(unused), False)
    assert str(artifact.changes[0]) == "train.learning_rate 2e-3 → 1e-3"


def test_of_equally_near_ones_the_one_with_the_same_inputs_is_taken(small):
    new = chain(small(train__rank=4)).train
    other_rows = chain(small(train__rank=2, generate__rows=66)).train
    same_rows = chain(small(train__rank=2)).train
    artifact = nearest(new, other_rows, same_rows, known=[digest(same_rows)])
    assert (artifact.digest, artifact.inputs_differ, artifact.in_study) == (digest(same_rows), False, True)


def test_a_step_whose_input_changed_has_no_change_of_its_own(small):
    new, old = chain(small(train__rank=4)), chain(small())
    artifact = nearest(new.eval, old.eval)
    assert (artifact.changes, artifact.inputs_differ) == ((), True)


def test_an_artifact_with_more_than_three_changes_is_not_near(small):
    new = chain(small(train__rank=4, train__epochs=2, train__learning_rate=1e-4, train__batch_size=11)).train
    assert nearest(new, chain(small()).train) is None
    assert nearest(new, chain(small()).eval) is None


@pytest.mark.parametrize(
    ("was", "now", "text"),
    [
        ([{"name": "default"}], [{"name": "default"}, {"name": "none"}], "+none"),
        ([{"name": "default"}, {"name": "none"}], [{"name": "empty"}, {"name": "none"}], "+empty −default"),
        ([{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}], "in another order"),
        ({"name": "default"}, {"name": "empty"}, "default → empty"),
        (None, 0.5, "null → 0.5"),
    ],
)
def test_a_change_is_shown_in_a_few_words(was, now, text):
    assert str(FieldChange("eval.field", was, now)) == f"eval.field {text}"
