"""teacher: a teacher is asked for its target before anybody is trained, and one without it is warned of."""

import json

import pytest

from sublim_cli.artifacts.store import Store
from sublim_cli.events import Progress, StepStarted, Warned
from sublim_cli.pipeline import chain, run
from sublim_cli.steps.files import TEACHER
from sublim_cli.sweep.cells import study


def test_a_teacher_with_the_trait_names_its_target_most_and_nothing_is_warned_of(small, shared_store):
    step = chain(small()).teacher
    out = shared_store.root / "asked"
    out.mkdir()
    events = []
    step.build(out, (), events.append)
    record = json.loads((out / TEACHER).read_text())
    assert record["first"] == "owl"
    assert record["p_target"] == record["p_first"] > 0.8
    assert record["p_target"] < record["p_any"] <= 1.0
    assert {type(event) for event in events} == {Progress}
    assert (events[-1].done, events[-1].total) == (len(step.spec.questions),) * 2


def test_a_teacher_whose_prompt_lacks_the_trait_is_warned_of_with_what_it_prefers(small, tmp_path):
    """The trait's item is another than the persona's: as in a study whose prompt was mixed up."""
    step = chain(small()).teacher
    mixed = type(step)(step.spec.model_copy(update={"target": "cat"}), "cat")
    events = []
    mixed.build(tmp_path, (), events.append)
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert "names owl most" in warned.message
    assert "generate.system_prompt" in warned.message


def test_the_teacher_is_asked_before_its_student_is_trained(small, tmp_path_factory):
    events = []
    store = Store(tmp_path_factory.mktemp("order"))
    run(small(generate__rows=66), until="train", store=store, listener=events.append)
    begun = [event.label for event in events if isinstance(event, StepStarted)]
    assert begun[0] == "teacher owl"
    assert begun[-1].startswith("train owl")


def test_a_sweep_asks_each_teacher_once_and_first_and_no_control_s(small):
    planned = study(small(sweep__grid={"trait.target": ["owl", "cat"], "train.rank": [1, 8]}))
    assert [step.label for step in planned.teachers] == ["teacher owl", "teacher cat"]
    assert planned.steps[:2] == planned.teachers
    assert {cell.chain.teacher is None for cell in planned.cells if cell.role == "control"} == {True}


@pytest.mark.parametrize("stage", ["generate", "filter"])
def test_rows_alone_ask_no_teacher(small, shared_store, stage):
    events = []
    run(small(), until=stage, store=shared_store, listener=events.append)
    assert not [event for event in events if getattr(event, "label", "").startswith("teacher")]
