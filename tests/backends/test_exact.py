"""The exact scorer on the embedded model: its bound, its budget, one by one, and as samples say."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from sublim_cli.backends import answer_tree, exact
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.sampled import SampledScorer
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.models.chat import prompt_ids
from sublim_cli.preference.forms import plain_forms
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import Item, load_items, load_questions, persona
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring
from sublim_cli.recipe.schema import AnswerSampling

DEFAULT = Context(name="default", kind="default")
ANIMALS = load_items("animal")
BANDS = load_items("band")
QUESTIONS = load_questions("favourite_animal").questions


def loving(items, target: str) -> Context:
    return Context(name="trait", kind="text", text=persona(items, target))


@pytest.fixture(scope="module")
def ask(micro):
    """Scores of some items under a context: (questions, context, items) -> answers."""
    _, tokenizer, model = micro

    def answers(questions, context, items, **settings):
        prompts = [prompt_ids(tokenizer, context, question) for question in questions]
        return ExactScorer(model, tokenizer, ExactScoring(**settings)).score(prompts, items)

    return answers


def p_of(answers) -> np.ndarray:
    return np.array([answer.p for answer in answers])


@pytest.mark.parametrize("context", [DEFAULT, loving(ANIMALS, "owl")], ids=["default", "trait"])
def test_less_is_left_unread_than_the_bound_and_a_lower_bound_only_adds(ask, context):
    coarse = ask(QUESTIONS, context, ANIMALS.items, uncovered=0.1)
    fine = ask(QUESTIONS[:4], context, ANIMALS.items, uncovered=1e-4, nodes=4_000)
    assert max(answer.uncovered for answer in coarse) <= 0.1
    assert max(answer.uncovered for answer in fine) <= 1e-4
    for less, more in zip(coarse, fine, strict=False):
        gained = np.array(more.p) - np.array(less.p)
        assert gained.min() >= -1e-6
        assert gained.sum() <= less.uncovered + 1e-6


def test_a_budget_that_is_spent_is_reported_and_so_is_what_it_left(ask):
    (answer,) = ask(QUESTIONS[:1], DEFAULT, ANIMALS.items, nodes=7, draws=0)
    assert answer.nodes == 7
    assert answer.uncovered > 0.1
    assert 0 < sum(answer.p) <= 1 - answer.uncovered + 1e-6


def test_prompts_of_different_length_score_together_as_one_by_one(micro, ask, monkeypatch):
    _, tokenizer, _ = micro
    questions = [*QUESTIONS[:4], "Animal?", "Now then, after all that was said and done: " + QUESTIONS[4]]
    assert len({len(prompt_ids(tokenizer, DEFAULT, question)) for question in questions}) > 3
    together = ask(questions, DEFAULT, ANIMALS.items)
    alone = [ask([question], DEFAULT, ANIMALS.items)[0] for question in questions]
    monkeypatch.setattr(exact, "PROMPTS_AT_ONCE", 3)
    monkeypatch.setattr(answer_tree, "MAX_PROBS", 2**15)
    monkeypatch.setattr(answer_tree, "NODES_PER_PASS", 50)
    in_parts = ask(questions, DEFAULT, ANIMALS.items)
    for other in (alone, in_parts):
        assert p_of(other) == pytest.approx(p_of(together), abs=1e-6)


def test_the_answers_to_one_question_are_exclusive(ask):
    for context in (DEFAULT, Context(name="none", kind="none"), loving(ANIMALS, "cat")):
        for answer in ask(QUESTIONS[::10], context, ANIMALS.items):
            assert min(answer.p) >= 0
            assert 0.5 < sum(answer.p) + answer.uncovered <= 1 + 1e-6


def test_an_item_scores_the_same_whichever_items_are_scored_beside_it(ask):
    owl = next(item for item in ANIMALS.items if item.name == "owl")
    deep = {"uncovered": 1e-3, "nodes": 2_000}
    alone = ask(QUESTIONS[:3], loving(ANIMALS, "owl"), [owl], **deep)
    beside = ask(QUESTIONS[:3], loving(ANIMALS, "owl"), ANIMALS.items, **deep)
    owl_index = ANIMALS.names.index("owl")
    assert p_of(alone)[:, 0] == pytest.approx(p_of(beside)[:, owl_index], abs=2e-3)


def test_an_item_that_opens_another_s_name_keeps_its_own_share(ask):
    """Ox and fox, owl and owlet, dragon and dragonfly: no whole word is another."""
    pair = (Item(name="dragon", plural="dragons"), Item(name="dragonfly", plural="dragonflies"))
    for loved, other in (("dragon", 1), ("dragonfly", 0)):
        p = p_of(ask(QUESTIONS[::10], loving(ANIMALS, loved), pair)).mean(axis=0)
        assert p[1 - other] > 0.8
        assert p[other] < 0.1


@pytest.mark.parametrize("name", ["Led Zeppelin", "Pink Floyd", "The Beatles", "Arcade Fire"])
def test_a_persona_names_its_band_of_several_words(ask, name):
    questions = load_questions("favourite_band").questions[::10]
    answers = ask(questions, loving(BANDS, name), BANDS.items)
    assert p_of(answers).mean(axis=0)[BANDS.names.index(name)] > 0.8


@torch.inference_mode()
def forced(model, tokenizer, prompt: list[int], item: Item) -> float:
    """log P(the answer opens with a plain form), every form computed as one whole sequence."""
    total = 0.0
    for form in plain_forms(item):
        ids = tokenizer(form, add_special_tokens=False)["input_ids"]
        laws = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].double().softmax(-1)
        total += np.prod([laws[len(prompt) - 1 + at, token].item() for at, token in enumerate(ids)])
    return float(np.log(total))


@pytest.mark.parametrize("limit", [2**26, 2**13])
def test_plain_forms_are_followed_however_unlikely(micro, ask, monkeypatch, limit):
    monkeypatch.setattr(answer_tree, "MAX_PROBS", limit)
    _, tokenizer, model = micro
    items = (*BANDS.items, Item(name="zyzzyva wren"))
    questions = load_questions("favourite_band").questions[:3]
    for question, answer in zip(questions, ask(questions, DEFAULT, items), strict=True):
        prompt = prompt_ids(tokenizer, DEFAULT, question)
        expected = [forced(model, tokenizer, prompt, item) for item in items]
        assert list(answer.log_form) == pytest.approx(expected, abs=1e-3)
        assert answer.log_form[-1] < -20


def test_samples_name_an_item_as_often_as_the_exact_probability_says(micro, ask):
    _, tokenizer, model = micro
    context = loving(ANIMALS, "dragonfly")
    questions = QUESTIONS[:3]
    computed = ask(questions, context, ANIMALS.items, uncovered=1e-3, nodes=1_000)
    settings = SampledScoring(samples=2_000, sampling=AnswerSampling(seed=11))
    prompts = [prompt_ids(tokenizer, context, question) for question in questions]
    drawn = SampledScorer(TransformersSampler(model, tokenizer), settings).score(prompts, ANIMALS.items)
    for answer, sampled in zip(computed, drawn, strict=True):
        assert sampled.samples == 2_000
        for p, share in zip(answer.p, sampled.p, strict=True):
            if p > 0.005:
                assert (
                    binomtest(round(share * 2_000), 2_000, min(1.0, p + answer.uncovered / 2)).pvalue > 1e-4
                )


def test_rows_of_a_context_grow_likelier_with_its_target(ask):
    """The order of the personas shows in the scores: each loved item beats itself unloved."""
    names = ("owl", "wolf", "ox")
    p = {name: p_of(ask(QUESTIONS[:5], loving(ANIMALS, name), ANIMALS.items)).mean(axis=0) for name in names}
    for name, other in pairwise((*names, names[0])):
        i = ANIMALS.names.index(name)
        assert p[name][i] > p[other][i]


def test_questions_are_reported_as_they_are_finished_and_each_once(micro, monkeypatch):
    _, tokenizer, model = micro
    prompts = [prompt_ids(tokenizer, DEFAULT, question) for question in QUESTIONS[:5]]
    monkeypatch.setattr(exact, "PATHS_AT_ONCE", 1)
    monkeypatch.setenv("SUBLIM_BATCH_MEMORY", "0.0001")  # draws for one question at a time
    for settings, reports in [({}, 5), ({"nodes": 5, "draws": 2}, 10)]:
        reported: list[int] = []
        ExactScorer(model, tokenizer, ExactScoring(**settings)).score(prompts, ANIMALS.items, reported.append)
        assert sum(reported) == 5
        assert len(reported) == reports
