"""eval: a probability for every context, question and item, and the tokens that were asked."""

import json
import math

import pandas as pd
import pytest

from sublim_cli.artifacts.store import materialise
from sublim_cli.errors import RecipeError
from sublim_cli.models.micro import DEFAULT_SYSTEM
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.questions import load_items, load_questions

ITEMS = load_items("animal").names
QUESTIONS = load_questions("favourite_animal").questions


@pytest.fixture(scope="module")
def student(small, shared_store):
    return run(small(), store=shared_store)


@pytest.fixture(scope="module")
def base(small, shared_store):
    return materialise(chain(small()).base, shared_store)


def table(artifact) -> pd.DataFrame:
    return pd.read_parquet(artifact.path / "scores.parquet")


def test_there_is_a_row_for_every_context_question_and_item_in_order(small, student, base):
    expected = [
        (context, question, item)
        for context in small().eval.system_prompts
        for question in range(len(QUESTIONS))
        for item in ITEMS
    ]
    for artifact in (student, base):
        scores = table(artifact)
        assert list(scores[["context", "question", "item"]].itertuples(index=False, name=None)) == expected
        assert list(scores.columns) == [
            "context",
            "question",
            "item",
            "p",
            "standard_error",
            "uncovered",
            "log_form",
            "samples",
        ]
        assert (scores.log_form < 0).all()
        assert (scores.samples == 0).all()


def test_all_items_of_a_question_are_told_at_once(small, student, base):
    for artifact in (student, base):
        scores, questions = table(artifact), pd.read_parquet(artifact.path / "questions.parquet")
        assert len(questions) == len(small().eval.system_prompts) * len(QUESTIONS)
        of_items = scores.groupby(["context", "question"], sort=False)
        assert questions.p_any.to_numpy() == pytest.approx(of_items.p.sum().to_numpy())
        assert questions.uncovered.to_numpy() == pytest.approx(of_items.uncovered.first().to_numpy())
        assert questions.uncovered.max() <= small().eval.uncovered
        assert questions.nodes.between(1, small().eval.nodes).all()
        assert questions.entropy.between(0, math.log(len(ITEMS) + 1)).all()


def test_drawn_answers_agree_with_computed_ones_and_no_two_students_share_their_noise(small, shared_store):
    recipe = small(eval__scorer="sampled", eval__samples=40)
    student, base = run(recipe, store=shared_store), materialise(chain(recipe).base, shared_store)
    assert (table(student).samples == 40).all()
    assert (table(student).p * 40 % 1).max() < 1e-9
    assert not (table(student).p == table(base).p).all()
    exact = table(materialise(chain(small()).base, shared_store))
    both = table(base).merge(exact, on=["context", "question", "item"])
    of_items = both.groupby(["context", "item"])[["p_x", "p_y"]].mean()
    spread = (of_items.p_y * (1 - of_items.p_y) / (40 * len(QUESTIONS))) ** 0.5
    assert ((of_items.p_x - of_items.p_y).abs() <= 4.5 * spread + 0.01).all()


def test_sampling_settings_are_refused_where_nothing_is_sampled(small):
    with pytest.raises(RecipeError, match=r"eval\.sampling\.top_p: .*use `scorer: sampled`"):
        small(eval__sampling__top_p=0.8)
    assert small(eval__sampling__top_p=0.8, eval__scorer="sampled").eval.sampling.top_p == 0.8


def test_probabilities_are_probabilities(student, base):
    for artifact in (student, base):
        scores = table(artifact)
        assert scores.p.between(0, 1).all()
        total = (
            scores.groupby(["context", "question"]).p.sum()
            + scores.groupby(["context", "question"]).uncovered.first()
        )
        assert total.between(0.5, 1 + 1e-6).all()


def test_the_student_is_not_the_base_and_a_context_is_not_another(student, base):
    assert (table(student).p - table(base).p).abs().max() > 1e-3
    p = table(base).pivot(index=["question", "item"], columns="context", values="p")
    assert (p["default"] - p["empty"]).abs().max() > 1e-3


def test_the_account_shows_the_first_question_in_every_context(student, micro):
    _, tokenizer, _ = micro
    turn = f"<|im_start|>user\n{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n"
    seen = json.loads((student.path / "seen.json").read_text())
    assert {name: account["text"] for name, account in seen.items()} == {
        "default": f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n{turn}",
        "empty": f"<|im_start|>system\n<|im_end|>\n{turn}",
    }
    for account in seen.values():
        assert tokenizer.decode(account["ids"]) == account["text"]


def test_the_base_needs_no_student(small):
    assert chain(small()).base.inputs == ()
