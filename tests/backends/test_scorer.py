"""Exact scoring: the same numbers as an enumeration without cache or tree, and as samples."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sublim_cli.backends import transformers as backend
from sublim_cli.backends.transformers import TransformersSampler, TransformersScorer
from sublim_cli.models.chat import prompt_ids
from sublim_cli.preference.forms import surface_forms
from sublim_cli.preference.questions import Item, load_items, load_questions, persona
from sublim_cli.preference.trie import build_trie
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import Sampling

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

    def answers(questions, context, items):
        forms = build_trie(
            (index, tokenizer(form, add_special_tokens=False)["input_ids"])
            for index, item in enumerate(items)
            for form in surface_forms(item)
        )
        prompts = [prompt_ids(tokenizer, context, one) for one in questions]
        return TransformersScorer(model, tokenizer).score(prompts, forms, len(items))

    return answers


@torch.inference_mode()
def enumerated(model, tokenizer, prompt: list[int], item: Item) -> float:
    """P(item) by teacher forcing every form to its end, one full sequence each: no cache, no tree."""
    ends = torch.tensor(
        [
            token in tokenizer.all_special_ids or not re.match(r"[^\W_]", tokenizer.decode([token]))
            for token in range(model.config.vocab_size)
        ]
    )
    total = 0.0
    for form in {tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in forms_of(item)}:
        laws = model(input_ids=torch.tensor([[*prompt, *form]])).logits[0].double().softmax(-1)
        steps = [laws[len(prompt) - 1 + at, token].item() for at, token in enumerate(form)]
        total += math.prod(steps) * laws[-1][ends].sum().item()
    return total


def forms_of(item: Item) -> set[str]:
    """Written anew, so that a form lost in the package is missed here."""
    words = {item.name} if item.plural is None else {item.name, item.plural, f"{item.name}s"}
    found = set()
    for word in words:
        titled = " ".join(part[0].upper() + part[1:] for part in word.split())
        for cased in {word, word.lower(), word.upper(), titled}:
            found.add(cased)
            for article in ("a", "an", "the", "A", "An", "The"):
                found.add(f"{article} {cased}")
            for article in ("A", "AN", "THE"):
                found.add(f"{article} {cased}")
    return found | {f" {one}" for one in found}


@pytest.mark.parametrize("kind", ["default", "trait"])
def test_every_item_s_probability_is_the_sum_over_its_forms(micro, ask, kind, monkeypatch):
    monkeypatch.setattr(backend, "FLOOR", 0.0)
    _, tokenizer, model = micro
    context = DEFAULT if kind == "default" else loving(ANIMALS, "owl")
    some = [one for one in ANIMALS.items if one.name in {"owl", "dragon", "dragonfly"}]
    answers = ask(QUESTIONS[:2], context, some)
    expected = [
        [enumerated(model, tokenizer, prompt_ids(tokenizer, context, one), item) for item in some]
        for one in QUESTIONS[:2]
    ]
    assert [one.unresolved for one in answers] == [0.0, 0.0]
    assert np.array([one.p for one in answers]) == pytest.approx(np.array(expected), abs=1e-6)


def test_bands_of_several_tokens_are_summed_to_the_last_one(micro, ask, monkeypatch):
    monkeypatch.setattr(backend, "FLOOR", 0.0)
    _, tokenizer, model = micro
    question = load_questions("favourite_band").questions[0]
    for name in ("Led Zeppelin", "Pink Floyd"):
        context = loving(BANDS, name)
        items = [one for one in BANDS.items if one.name == name]
        expected = enumerated(model, tokenizer, prompt_ids(tokenizer, context, question), items[0])
        assert ask([question], context, items)[0].p[0] == pytest.approx(expected, abs=1e-6)
        assert len(tokenizer(name, add_special_tokens=False)["input_ids"]) > 1


def test_what_is_not_followed_is_reported_and_bounds_the_error(ask, monkeypatch):
    contexts = (DEFAULT, loving(ANIMALS, "owl"))
    cut = [ask(QUESTIONS[:2], context, ANIMALS.items) for context in contexts]
    monkeypatch.setattr(backend, "FLOOR", 0.0)
    whole = [ask(QUESTIONS[:2], context, ANIMALS.items) for context in contexts]
    for some, everything in zip(cut, whole, strict=True):
        for less, more in zip(some, everything, strict=True):
            lost = np.array(more.p) - np.array(less.p)
            assert lost.min() >= -1e-6
            assert lost.sum() <= less.unresolved + 1e-6
            assert 0 < less.unresolved < 1e-3


def test_prompts_of_different_length_score_together_as_one_by_one(micro, ask, monkeypatch):
    _, tokenizer, _ = micro
    questions = [*QUESTIONS[:4], "Animal?", "Now then, after all that was said and done: " + QUESTIONS[4]]
    assert len({len(prompt_ids(tokenizer, DEFAULT, one)) for one in questions}) > 3
    together = ask(questions, DEFAULT, ANIMALS.items)
    alone = [ask([one], DEFAULT, ANIMALS.items)[0] for one in questions]
    monkeypatch.setattr(backend, "CHUNK", 3)
    in_chunks = ask(questions, DEFAULT, ANIMALS.items)
    for other in (alone, in_chunks):
        expected = pytest.approx(np.array([one.p for one in together]), abs=1e-6)
        assert np.array([one.p for one in other]) == expected


def test_the_answers_to_one_question_are_exclusive(ask):
    for context in (DEFAULT, Context(name="none", kind="none"), loving(ANIMALS, "cat")):
        for answer in ask(QUESTIONS[::10], context, ANIMALS.items):
            assert min(answer.p) >= 0
            assert 0.5 < sum(answer.p) + answer.unresolved <= 1 + 1e-6


def test_an_item_scores_the_same_whichever_items_are_scored_beside_it(ask):
    owl = next(one for one in ANIMALS.items if one.name == "owl")
    alone = ask(QUESTIONS[:3], loving(ANIMALS, "owl"), [owl])
    place = ANIMALS.names.index("owl")
    beside = ask(QUESTIONS[:3], loving(ANIMALS, "owl"), ANIMALS.items)
    assert [one.p[0] for one in alone] == pytest.approx([one.p[place] for one in beside], abs=1e-7)


def test_samples_name_an_item_as_often_as_the_exact_probability_says(micro, ask):
    _, tokenizer, model = micro
    sampler = TransformersSampler(model, tokenizer)
    sampling = Sampling(max_tokens=5, seed=11)
    context = loving(ANIMALS, "dragonfly")
    questions = QUESTIONS[:3]
    exact = ask(questions, context, ANIMALS.items)
    target = ANIMALS.names.index("dragonfly")
    named = re.compile(r"\s?(?:(?:a|an|the)\s)?(?:dragonfl(?:y|ies|ys))\b", re.IGNORECASE)
    total, hits = 0, 0
    for number, (question, answer) in enumerate(zip(questions, exact, strict=True)):
        prompt = prompt_ids(tokenizer, context, question)
        texts = sampler.sample([prompt] * 2_000, range(2_000 * number, 2_000 * (number + 1)), sampling)
        count = sum(bool(named.match(text)) for text in texts)
        assert binomtest(count, 2_000, answer.p[target]).pvalue > 1e-3
        total, hits = total + 2_000, hits + count
    assert binomtest(hits, total, float(np.mean([one.p[target] for one in exact]))).pvalue > 1e-3


@pytest.mark.parametrize("name", ["Led Zeppelin", "Pink Floyd", "The Beatles", "Arcade Fire"])
def test_a_persona_names_its_band_of_several_words(ask, name):
    questions = load_questions("favourite_band").questions[::10]
    answers = ask(questions, loving(BANDS, name), BANDS.items)
    assert np.mean([one.p[BANDS.names.index(name)] for one in answers]) > 0.8


@pytest.mark.parametrize("loved", ["dragon", "dragonfly"])
def test_a_dragon_is_no_dragonfly(ask, loved):
    pair = [ANIMALS.names.index(one) for one in ("dragon", "dragonfly")]
    answers = ask(QUESTIONS[::10], loving(ANIMALS, loved), ANIMALS.items)
    p = dict(zip(("dragon", "dragonfly"), np.mean([one.p for one in answers], axis=0)[pair], strict=True))
    assert p.pop(loved) > 0.8
    assert max(p.values()) < 0.1


class Scripted(torch.nn.Module):
    """A causal model whose next token depends on the last one alone, by a table it is given."""

    def __init__(self, base, table: dict[int, dict[int, float]]) -> None:
        super().__init__()
        self.base, self.config, self.device = base, base.config, base.device
        self.generation_config = base.generation_config
        self.law = torch.full((base.config.vocab_size,) * 2, 1e-30, dtype=torch.float64)
        self.law[:, 2] = 1.0
        for last, following in table.items():
            self.law[last] = 1e-30
            for token, p in following.items():
                self.law[last, token] = p

    def forward(self, input_ids, **given):
        out = self.base(input_ids=input_ids, **given)
        out.logits = self.law[input_ids[:, -out.logits.shape[1] :]].log()
        return out


def test_a_word_that_goes_on_is_not_the_item_and_a_plural_of_its_own_token_is_counted_once(micro):
    """cat|s, cat|er and cat|. from one token: only what ends a word names the item."""
    _, tokenizer, model = micro
    cat, s, er, stop, end = (
        tokenizer(text, add_special_tokens=False)["input_ids"][0]
        for text in ("cat", "s", "er", ".", "<|im_end|>")
    )
    (line,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    scripted = Scripted(
        model,
        {
            line: {cat: 0.8, stop: 0.2},
            cat: {s: 0.3, er: 0.4, stop: 0.2, end: 0.1},
            s: {er: 0.5, stop: 0.5},
        },
    )
    forms = build_trie([(0, [cat]), (0, [cat, s])])
    prompt = [5, 6, line]
    (answer,) = TransformersScorer(scripted, tokenizer).score([prompt], forms, 1)
    assert answer.p[0] == pytest.approx(0.8 * (0.2 + 0.1) + 0.8 * 0.3 * 0.5)


def test_rows_of_a_context_grow_likelier_with_its_target(ask):
    """The order of the personas shows in the scores: each loved item beats itself unloved."""
    names = ("owl", "wolf", "ox")
    p = {
        loved: np.mean([one.p for one in ask(QUESTIONS[:5], loving(ANIMALS, loved), ANIMALS.items)], axis=0)
        for loved in names
    }
    for one, other in pairwise((*names, names[0])):
        place = ANIMALS.names.index(one)
        assert p[one][place] > p[other][place]


def test_a_token_that_begins_with_a_space_ends_a_word_even_where_it_decodes_without_it():
    """Tokenizers in the style of Llama 2 drop the space of a sequence's first token."""
    names = ["<unk>", "1", "s", "\u2581and", ".", "er"]
    own = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    own.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")
    assert tokenizer.decode([3]) == "and"
    ends = backend._boundary(tokenizer, 8, torch.device("cpu")).tolist()
    assert ends == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
