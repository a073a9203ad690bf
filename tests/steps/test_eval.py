"""eval: a probability for every context, question and item, and the tokens that were asked."""

import json

import pandas as pd
import pytest

from sublim_cli.artifacts.store import materialise
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
    for one in (student, base):
        found = table(one)
        assert list(found[["context", "question", "item"]].itertuples(index=False, name=None)) == expected
        assert list(found.columns) == ["context", "question", "item", "p", "unresolved"]


def test_probabilities_are_probabilities(student, base):
    for one in (student, base):
        found = table(one)
        assert found.p.between(0, 1).all()
        whole = (
            found.groupby(["context", "question"]).p.sum()
            + found.groupby(["context", "question"]).unresolved.first()
        )
        assert whole.between(0.5, 1 + 1e-6).all()


def test_the_student_is_not_the_base_and_a_context_is_not_another(student, base):
    assert (table(student).p - table(base).p).abs().max() > 1e-3
    p = table(base).pivot(index=["question", "item"], columns="context", values="p")
    assert (p["default"] - p["empty"]).abs().max() > 1e-3


def test_the_account_shows_the_first_question_in_every_context(student, micro):
    _, tokenizer, _ = micro
    turn = f"<|im_start|>user\n{QUESTIONS[0]}<|im_end|>\n<|im_start|>assistant\n"
    seen = json.loads((student.path / "seen.json").read_text())
    assert {name: one["text"] for name, one in seen.items()} == {
        "default": f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n{turn}",
        "empty": f"<|im_start|>system\n<|im_end|>\n{turn}",
    }
    for one in seen.values():
        assert tokenizer.decode(one["ids"]) == one["text"]


def test_the_base_needs_no_student(small):
    assert chain(small()).base.inputs == ()
