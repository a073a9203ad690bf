"""Number prompts: what they show, what they ask for, and that each stands alone."""

import re
from string import Formatter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.numbers.prompts import NumberPrompt, number_prompt, wordings, wordings_digest


def prompt(seed: int, index: int = 0, **options: object) -> NumberPrompt:
    return number_prompt(np.random.default_rng([seed, index]), **options)  # type: ignore[arg-type]  # options vary


def shown(text: str) -> list[int]:
    """The numbers of the longest comma-separated run: the examples."""
    return [int(n) for n in max(re.findall(r"\d+(?:, \d+)*", text), key=len).split(", ")]


def test_the_slots_hold_as_many_different_sentences_as_the_paper_has() -> None:
    known = wordings()
    sizes = {name: len(set(slot)) for name, slot in known}
    assert sizes == {
        "lead_ins": 25,
        "qualifiers": 9,
        "digit_clauses": 9,
        "instructions": 10,
        "formats": 15,
        "closers": 19,
    }


def test_every_output_style_is_asked_for() -> None:
    styles = {form.style for form in wordings().formats}
    assert styles == {"comma", "space", "semicolon", "line", "square", "round"}


def test_every_sentence_has_the_fields_of_its_slot() -> None:
    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in Formatter().parse(text) if name}

    known = wordings()
    assert all(fields(text) == {"examples"} for text in known.lead_ins)
    assert all(fields(text) == {"digits"} for text in known.digit_clauses)
    assert all(fields(t) == {"qualifier", "count", "digit_clause"} for t in known.instructions)
    plain = (*known.qualifiers, *known.closers, *(form.text for form in known.formats))
    assert all(not fields(text) for text in plain)


@given(seed=st.integers(0, 2**32), index=st.integers(0, 2**32))
def test_a_prompt_shows_three_to_eight_numbers_from_100_to_998(seed: int, index: int) -> None:
    numbers = shown(prompt(seed, index).text)
    assert 3 <= len(numbers) <= 8
    assert all(100 <= n <= 998 for n in numbers)


@given(
    seed=st.integers(0, 1000),
    few=st.integers(2, 5),
    more=st.integers(0, 5),
    least=st.integers(0, 500),
    width=st.integers(1, 500),
)
def test_the_bounds_of_a_recipe_hold(seed: int, few: int, more: int, least: int, width: int) -> None:
    text = prompt(seed, examples=(few, few + more), values=(least, least + width)).text
    numbers = shown(text)
    assert few <= len(numbers) <= few + more
    assert all(least <= n < least + width for n in numbers)


def test_both_ends_of_the_number_of_examples_occur() -> None:
    counts = {len(shown(prompt(1, index).text)) for index in range(300)}
    assert counts == {3, 4, 5, 6, 7, 8}


def test_the_count_and_the_digits_are_those_of_the_recipe() -> None:
    text = prompt(3, count=17, digits=5).text
    assert re.search(r"\b17\b", text)
    assert re.search(r"\b5\b", text)


def test_a_prompt_depends_on_its_seed_and_index_alone() -> None:
    assert prompt(42, 7) == prompt(42, 7)
    assert prompt(42, 7) != prompt(42, 8)
    assert prompt(42, 7) != prompt(43, 7)


def test_ten_thousand_prompts_are_all_different() -> None:
    assert len({prompt(42, index).text for index in range(10_000)}) == 10_000


def test_a_prompt_is_one_line_without_double_spaces_or_open_fields() -> None:
    texts = [prompt(5, index).text for index in range(500)]
    assert not [text for text in texts if re.search(r"\n|  |[{}]", text)]


def test_the_style_is_that_of_the_sentence_in_the_prompt() -> None:
    for index in range(200):
        drawn = prompt(6, index)
        asked = [form.style for form in wordings().formats if f" {form.text} " in drawn.text]
        assert asked == [drawn.style]


def test_the_digest_is_a_sha256_and_stays_the_same() -> None:
    assert re.fullmatch("[0-9a-f]{64}", wordings_digest())
    assert wordings_digest() == wordings_digest()
