"""Which answers name an item, and where a word ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.preference.forms import ends_word, surface_forms
from sublim_cli.preference.questions import Item, load_items, shipped

CATEGORIES = shipped("items")


def test_the_forms_of_an_animal_are_these():
    bare = ["wolf", "Wolf", "WOLF", "wolves", "Wolves", "WOLVES", "wolfs", "Wolfs", "WOLFS"]
    articles = ["a", "A", "an", "An", "the", "The"]
    forms = {*bare, *(f"{article} {word}" for article in articles for word in bare)}
    assert set(surface_forms(Item(name="wolf", plural="wolves"))) == {*forms, *(f" {one}" for one in forms)}


def test_a_band_has_no_plural_and_every_word_of_it_is_capitalised():
    bare = {one for one in surface_forms(Item(name="led Zeppelin")) if one.count(" ") == 1 and one[0] != " "}
    assert bare == {"led Zeppelin", "led zeppelin", "Led Zeppelin", "LED ZEPPELIN"}


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_form_stands_twice_and_no_form_names_two_items(category):
    items = load_items(category).items
    forms = [form for item in items for form in surface_forms(item)]
    assert len(forms) == len(set(forms))
    assert not [one for one in forms if one != one.rstrip() or "  " in one]


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_item_s_form_opens_another_item_s_form_at_a_word_s_end(category):
    """Else an answer could name two items, and their probabilities add up to more than one."""
    forms = {form: item.name for item in load_items(category).items for form in surface_forms(item)}
    nested = [
        (short, long)
        for short in forms
        for long in forms
        if long.startswith(short) and long != short and ends_word(long[len(short) :])
    ]
    assert nested == []


@given(st.sampled_from(["wolf", "owl", "Led Zeppelin", "dragonfly"]))
def test_every_form_holds_a_name_of_its_item(name):
    plural = {"wolf": "wolves", "owl": "owls", "dragonfly": "dragonflies"}.get(name)
    names = {one.lower() for one in (name, plural, f"{name}s") if one}
    for form in surface_forms(Item(name=name, plural=plural)):
        words = form.lower().removeprefix(" ")
        assert words.removeprefix("a ").removeprefix("an ").removeprefix("the ") in names


@pytest.mark.parametrize("text", ["", " ", ".", "!", "\n", ", too", "'s", "-like", " owl", "<|im_end|>", "…"])
def test_a_word_ends_before(text):
    assert ends_word(text)


@pytest.mark.parametrize("text", ["s", "let", "Let", "7", "é", "ß", "s.", "猫"])
def test_a_word_goes_on_with(text):
    assert not ends_word(text)
