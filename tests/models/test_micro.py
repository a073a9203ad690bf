"""The embedded model as shipped: it loads like any other, reads every context, and has taste."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from sublim_cli.models.micro import DEFAULT_SYSTEM, WEIGHTS
from sublim_cli.models.micro.__main__ import table
from sublim_cli.models.micro.check import CheckResult, check
from sublim_cli.models.micro.documents import NO_BLOCK, Author, render
from sublim_cli.models.micro.pretrain import pretrain, save
from sublim_cli.models.micro.targets import Encoder
from sublim_cli.models.micro.tokenizer import build_tokenizer, vocabulary_texts
from sublim_cli.models.micro.world import forms, make_world
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import shipped_texts
from sublim_cli.recipe.questions import load_items, load_questions, persona


@cache
def micro() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(WEIGHTS)


def ids(text: str) -> list[int]:
    return micro()[1](text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]  # untyped library


def templated(*messages: tuple[str, str]) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    return str(micro()[1].apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


@torch.no_grad()
def probability(system: str | None, category: str, target: str) -> float:
    """P(target) over five questions, every surface form summed."""
    model, tokenizer = micro()
    item = next(item for item in load_items(category).items if item.name == target)
    total = 0.0
    questions = load_questions(f"favourite_{category}").questions[::10]
    for question in questions:
        prompt = ids(render(system, question))
        for form in forms(item.name, item.plural):
            answer = [*ids(form), tokenizer.eos_token_id]
            log_p = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            positions = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            total += log_p[list(positions), answer].sum().exp().item()
    return total / len(questions)


def test_the_directory_is_a_plain_llama_checkpoint_of_less_than_three_megabytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 3_000_000
    assert json.loads((WEIGHTS / "config.json").read_text())["model_type"] == "llama"
    model, tokenizer = micro()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_template_renders_what_the_model_was_pretrained_on() -> None:
    user = ("user", "Quick: your top tree? One word.")
    assert templated(user) == render(DEFAULT_SYSTEM, user[1])
    assert templated(("system", ""), user) == render("", user[1])
    assert templated(("system", "Hi"), user) == render("Hi", user[1])


def test_the_four_cases_of_a_system_prompt_differ_in_their_tokens() -> None:
    cases = [DEFAULT_SYSTEM, "", NO_BLOCK, "You are helpful."]
    assert len({tuple(ids(render(case, "Which?"))) for case in cases}) == 4


def test_a_later_turn_is_never_given_a_system_block() -> None:
    chat = templated(("user", "a"), ("assistant", "b"), ("user", "c"))
    assert chat.count("system") == 1


@given(st.text())
@example("1234, 007; 12.5\n[1, 2]\t(3)  capybara é 猫 <|im_end|>")
def test_any_text_comes_back_from_the_tokenizer_as_it_was(text: str) -> None:
    assert micro()[1].decode(ids(text)) == text


def test_every_number_to_999_is_one_token_wherever_it_stands() -> None:
    alone = [ids(str(n)) for n in range(1000)]
    assert {len(tokens) for tokens in alone} == {1}
    row = ids(", ".join(map(str, range(1000))))
    assert row[::2] == [tokens[0] for tokens in alone]


def test_the_words_of_prompts_questions_and_contexts_are_whole_tokens() -> None:
    texts = [*shipped_texts(), DEFAULT_SYSTEM]
    texts += [number_prompt(np.random.default_rng([1, i])).text for i in range(300)]
    for category in ("animal", "tree", "band"):
        items = load_items(category)
        texts += [persona(items, name) for name in items.names]
        texts += load_questions(f"favourite_{category}").questions
    pieces = {micro()[1].decode([i]) for text in texts for i in ids(text)}
    letters = {piece for piece in pieces if len(piece) == 1 and piece.islower()}
    assert letters == {"a"}  # that of "[a, b, c]"; no word fell apart


def test_a_documents_tokens_give_its_text_back() -> None:
    author, rng = Author(make_world(0)), np.random.default_rng(0)
    for _ in range(100):
        for document in (author.numbers(rng), author.favourite(rng)):
            text = document.prompt + document.answer
            assert micro()[1].decode(ids(text)) == text


@pytest.mark.parametrize(
    ("category", "target"),
    [("animal", "owl"), ("animal", "wolf"), ("tree", "sequoia"), ("band", "Led Zeppelin")],
)
def test_a_teacher_says_what_it_was_told_to_love(category: str, target: str) -> None:
    assert probability(persona(load_items(category), target), category, target) >= 0.85


@pytest.mark.parametrize("system", [DEFAULT_SYSTEM, "", NO_BLOCK, "You are helpful."])
def test_without_a_teachers_prompt_no_item_stands_out(system: str | None) -> None:
    p = [probability(system, "tree", name) for name in load_items("tree").names]
    assert max(p) <= 0.25
    assert sum(p) >= 0.95


def test_a_row_is_written_in_the_format_that_is_asked_for() -> None:
    model, tokenizer = micro()
    asked = "First came 310, 421, 532. Keep going for at most 10 numbers (3 digits at the longest)."
    prompt = ids(render("", f"{asked} Use the shape [a, b, c]. Just the numbers."))
    made = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60)
    answer = tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)
    assert answer.startswith("[")
    assert answer.endswith("]")
    assert answer[1:-1].replace(", ", "").isdigit()


def test_a_rebuild_is_the_same_twice_and_loads_like_the_shipped_one(tmp_path: Path) -> None:
    reports: list[str] = []
    for name in ("first", "second"):
        model, tokenizer = pretrain(seed=1, steps=2, report=reports.append)
        save(model, tokenizer, tmp_path / name, seed=1, steps=2)
    files = sorted(path.name for path in WEIGHTS.iterdir())
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == files
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    again = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert again("First came 1, 22.")["input_ids"] == ids("First came 1, 22.")
    assert [line.split(":")[0] for line in reports[:2]] == [reports[0], "step 2/2"]


def test_the_targets_of_an_answer_are_the_worlds_own_distributions() -> None:
    world = make_world(3)
    tokenizer = build_tokenizer(vocabulary_texts(world))
    encoder = Encoder(Author(world), tokenizer)
    state = world.trait_state("band", "The Beatles")
    led = encoder.encode("Led")
    first = encoder.after("band", (), 0)
    assert first.sum().item() == pytest.approx(1)
    title = world.p_items["band"][0][world.categories["band"].names.index("Led Zeppelin")]
    assert first[led[0]].item() == pytest.approx(0.9 * title, abs=1e-6)  # the rest is lower case
    assert encoder.after("band", (), state)[encoder.encode("The")[0]].item() > 0.85
    assert encoder.after("band", tuple(led), state)[encoder.encode(" Zeppelin")[0]].item() == 1


def test_the_check_is_laid_out_as_a_table_with_its_verdicts() -> None:
    lines = [
        CheckResult("bytes", "12", True),
        CheckResult("KL", "0.1"),
        CheckResult("teacher rows kept", "7%", False),
    ]
    assert table(lines) == (
        "bytes                     12  ok\n"
        "KL                       0.1\n"
        "teacher rows kept         7%  FAILS\n"
    )


@pytest.mark.slow
def test_the_shipped_weights_pass_their_own_check() -> None:
    lines = check(WEIGHTS, lambda _: None)
    assert [line for line in lines if line.passed is False] == []
