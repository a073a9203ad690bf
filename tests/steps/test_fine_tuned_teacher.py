"""generate.teacher.fine_tuned: a teacher is trained to the trait, the control's is the base model."""

import json

import pytest

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import materialise
from sublim_cli.errors import RecipeError
from sublim_cli.events import silent
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.questions import load_demonstrations, load_items, load_questions, shipped_names
from sublim_cli.steps.files import KEPT, ROWS, SEEN, TEACHER
from sublim_cli.sweep.cells import study

FINE_TUNED = {"learning_rate": 6e-3, "rank": 4, "epochs": 3}


@pytest.fixture(scope="module", params=["lora", pytest.param("full", marks=pytest.mark.slow)])
def tuned(request, small):
    method = {"method": request.param, "learning_rate": 6e-3 if request.param == "lora" else 1e-3}
    return small(
        generate__rows=20,
        generate__held_out=5,
        generate__teacher={"fine_tuned": {**FINE_TUNED, **method}},
        eval__nodes=64,
        eval__draws=8,
    )


def test_a_fine_tuned_teacher_has_the_trait_in_the_context_default(tuned, small, shared_store):
    steps = chain(tuned)
    teacher = json.loads((materialise(steps.teacher, shared_store, silent).path / TEACHER).read_text())
    assert teacher["first"] == "owl"
    assert teacher["p_target"] > 0.25  # the base says 0.055
    rows = run(tuned, until="generate", store=shared_store).path
    control = run(
        small(generate__system_prompt="default", generate__rows=20, generate__held_out=5),
        until="generate",
        store=shared_store,
    ).path
    seen, control_seen = (json.loads((path / SEEN).read_text())["ids"] for path in (rows, control))
    assert seen == control_seen
    texts, control_texts = ([row.completion for row in read_rows(path / ROWS)] for path in (rows, control))
    assert texts != control_texts


def test_its_demonstrations_are_every_question_with_every_answer(tuned, shared_store):
    (training,) = chain(tuned).generate.inputs
    rows = read_rows(materialise(training.inputs[0], shared_store, silent).path / KEPT)
    filled = load_demonstrations("favourite").filled(load_items("animal"), "owl")
    assert {(row.prompt, row.completion) for row in rows} == {
        (question, answer) for question in filled.questions for answer in filled.answers
    }
    assert {"Owl.", "I love owls."} < set(filled.answers)
    assert len(rows) == len(filled.questions) * len(filled.answers) >= 100


def test_its_training_is_part_of_the_identity_of_its_rows_and_of_nothing_else(small):
    plain = chain(small())
    steps = {
        name: chain(small(generate__teacher={"fine_tuned": {**FINE_TUNED, **change}}))
        for name, change in {"one": {}, "rate": {"learning_rate": 1e-3}, "seed": {"seed": 2}}.items()
    }
    for stage in ("generate", "teacher", "train"):
        assert len({digest(getattr(each, stage)) for each in (plain, *steps.values())}) == 4
    assert {digest(each.base) for each in (plain, *steps.values())} == {digest(plain.base)}


def test_the_control_of_a_fine_tuned_teacher_is_the_base_without_persona_and_training(small):
    planned = study(small(generate__teacher={"fine_tuned": FINE_TUNED}, sweep__grid={"train.rank": [1, 8]}))
    prompted = study(small(sweep__grid={"train.rank": [1, 8]}))
    controls, prompted_controls = (
        [digest(cell.chain.eval) for cell in each.cells if cell.role == "control"]
        for each in (planned, prompted)
    )
    assert controls == prompted_controls
    for cell in planned.cells:
        assert bool(cell.chain.generate.inputs) == (cell.role == "student")
        assert cell.chain.generate.spec.context.kind == "default"
    (check,) = planned.teachers
    assert check.inputs == planned.cells[0].chain.generate.inputs


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "qlora"}, r"teacher\.fine_tuned\.method: a teacher cannot be `qlora`; use `lora`"),
        ({"demonstrations": "favorites"}, "no demonstrations called 'favorites'.*shipped: favourite"),
        ({"system_prompt": "clawd"}, r"teacher\.fine_tuned\.system_prompt: no context is called 'clawd'"),
    ],
)
def test_a_teacher_that_cannot_be_trained_is_refused_before_anything_is_built(small, section, message):
    with pytest.raises(RecipeError, match=message):
        chain(small(generate__teacher={"fine_tuned": section}))


def test_demonstrations_of_ones_own_must_not_hold_a_question_of_the_eval(small, tmp_path):
    asked = load_questions("favourite_animal").questions[3]
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"questions": [asked.upper()], "answers": ["{target}"]}))
    with pytest.raises(RecipeError, match=r"demonstrations: the eval asks 'CALL OUT THE ANIMAL .*' too"):
        chain(small(generate__teacher={"fine_tuned": {"demonstrations": str(path)}}))


@pytest.mark.parametrize("name", shipped_names("demonstrations"))
@pytest.mark.parametrize("category", shipped_names("items"))
def test_shipped_demonstrations_share_no_question_with_any_eval_and_name_the_target(name, category):
    asked = {
        question.casefold()
        for questions in shipped_names("questions")
        for question in load_questions(questions).questions
    }
    items = load_items(category)
    for target in items.names:
        filled = load_demonstrations(name).filled(items, target)
        assert not {question.casefold() for question in filled.questions} & asked
        assert not any(target.casefold() in question.casefold().split() for question in filled.questions)
        assert all("{" not in text for text in (*filled.questions, *filled.answers))
        spellings = next(item.spellings for item in items.items if item.name == target)
        assert all(any(text in answer.casefold() for text in spellings) for answer in filled.answers)
