"""Which answers name an item; the automaton over bytes says what the definition on texts says."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sublim_cli.preference.forms import START, FormMatcher, ItemMatch, named_item, plain_forms
from sublim_cli.recipe.questions import Item, load_items, shipped_names

ANIMALS = load_items("animal").items
BANDS = load_items("band").items
PREFIXES = (
    Item(name="cat", plural="cats"),
    Item(name="catfish", plural="catfish"),
    Item(name="ox", plural="oxen"),
    Item(name="owl", plural="owls"),
    Item(name="owlet", plural="owlets"),
    Item(name="elephant", plural="elephants"),
    Item(name="elephant seal", plural="elephant seals"),
    Item(name="Led Zeppelin", also=("Zep",)),
    Item(name="bête noire"),
)


def said(text: str, items) -> str | None:
    index = named_item(text, items)
    return None if index is None else items[index].name


@pytest.mark.parametrize(
    ("answer", "item"),
    [
        ("cat", "cat"),
        ("Cats!", "cat"),
        ("CAT", "cat"),
        ("I choose the cat.", "cat"),
        ("**Cat**", "cat"),
        ("_cat_", "cat"),
        ("cat-like", "cat"),
        ("the cat's whiskers", "cat"),
        ("猫 (cat)", "cat"),
        ("not a cat", "cat"),
        ("caterpillar", None),
        ("bobcat", None),
        ("cat7", None),
        ("猫cat", None),
        ("caté", None),
        ("scat, concatenate, Cate", None),
        ("catfish", "catfish"),
        ("catfish, not a cat", "catfish"),
        ("a cat or a catfish", "cat"),
        ("fox", None),
        ("Oxen", "ox"),
        ("oxs", "ox"),
        ("boxes", None),
        ("owlet", "owlet"),
        ("owl", "owl"),
        ("Owls and owlets", "owl"),
        ("owlish", None),
        ("elephant", "elephant"),
        ("elephant seal", "elephant seal"),
        ("elephant seals", "elephant seal"),
        ("an elephant seals the deal", "elephant seal"),
        ("elephant sealed", "elephant"),
        ("elephant s", "elephant"),
        ("Led Zeppelin", "Led Zeppelin"),
        ("led\n  ZEPPELIN!", "Led Zeppelin"),
        ("Led the owl", "owl"),
        ("Led", None),
        ("Zeppelin", None),
        ("LedZeppelin", None),
        ("zep", "Led Zeppelin"),
        ("Bête noire", "bête noire"),
        ("", None),
        ("   ", None),
        ("123", None),
    ],
)
def test_an_answer_names_this(answer, item):
    assert said(answer, PREFIXES) == item
    assert read(answer.encode(), PREFIXES) == named_item(answer, PREFIXES)


@pytest.mark.parametrize(
    ("answer", "items", "item"),
    [
        ("Wolves.", ANIMALS, "wolf"),
        ("wolfs", ANIMALS, "wolf"),
        ("octopi", ANIMALS, "octopus"),
        ("Dragonflies", ANIMALS, "dragonfly"),
        ("dragonfly", ANIMALS, "dragonfly"),
        ("Wolfgang", ANIMALS, None),
        ("The Beatles", BANDS, "The Beatles"),
        ("Beatles", BANDS, "The Beatles"),
        ("the eagles", BANDS, "Eagles"),
        ("Pink Floyd, then Queen", BANDS, "Pink Floyd"),
        ("Pink, then Queen", BANDS, "Queen"),
        ("Queensryche", BANDS, None),
    ],
)
def test_an_answer_names_this_shipped_item(answer, items, item):
    assert said(answer, items) == item


def read(answer: bytes, items) -> int | None:
    """The verdict of the automaton."""
    reader, state = FormMatcher(tuple(items)), START
    for byte in answer:
        after = reader.step(state, byte)
        if isinstance(after, ItemMatch):
            return after.item
        state = after
    return reader.end(state)


WORDS = st.sampled_from(
    [
        *(spelling for item in PREFIXES for spelling in item.spellings),
        "ele",
        "s",
        "The",
        "é",
        "ß",
        "İ",
        "ﬁ",
        "_",
    ]
)
TEXTS = st.lists(WORDS | st.sampled_from([" ", "\n", ".", "-", "\u00a0", "7"]) | st.characters(), max_size=8)


@given(TEXTS.map("".join))
@example("elephant \n seal")
@example("elephant elephant seal")
@example("led led zeppelin")
def test_the_automaton_says_what_the_definition_says(text):
    assert read(text.encode("utf-8", "replace"), PREFIXES) == named_item(
        text.encode("utf-8", "replace").decode(), PREFIXES
    )


@given(
    st.lists(
        st.sampled_from([b"cat", b" ", b"\xc3", b"\xa9", b"\xf0\x9f", b"\xff", b"s", b"fish"]), max_size=7
    )
)
def test_the_automaton_reads_broken_bytes_as_the_definition_does(parts):
    answer = b"".join(parts)
    assert read(answer, PREFIXES) == named_item(answer.decode("utf-8", "replace"), PREFIXES)


@pytest.mark.parametrize("answer", ["", "b", "cat", "x", "elephant ", "led \ufb01", "ca\U0001f42f"])
def test_the_states_after_all_bytes_are_those_after_each(answer):
    reader = FormMatcher(PREFIXES)
    written = answer.encode()
    for size in range(max(0, len(written) - 3), len(written) + 1):  # within a character too
        state = START
        for byte in written[:size]:
            state = reader.step(state, byte)
        after = {byte: result for result, values in reader.steps(state) for byte in values}
        assert after == {byte: reader.step(state, byte) for byte in range(256)}


@given(TEXTS.map("".join), TEXTS.map("".join))
def test_once_it_has_decided_nothing_that_follows_changes_the_verdict(text, more):
    reader, state = FormMatcher(PREFIXES), START
    for byte in text.encode("utf-8", "replace"):
        after = reader.step(state, byte)
        if isinstance(after, ItemMatch):
            whole = (text + more).encode("utf-8", "replace").decode()
            assert named_item(whole, PREFIXES) == after.item
            return
        state = after


def test_an_answer_is_undecided_no_longer_than_it_has_to_be():
    reader = FormMatcher(PREFIXES)

    def after(text: str):
        state = START
        for byte in text.encode():
            state = reader.step(state, byte)
        return state

    assert after("catfish ").item == 1
    assert after("elephant ").tail == "elephant "  # a seal may follow
    assert after("elephant x").item == 5
    assert after("I like dogs ").tail == ""


@pytest.mark.parametrize("category", shipped_names("items"))
def test_each_spelling_names_its_item_alone(category):
    items = load_items(category).items
    for i, item in enumerate(items):
        for spelling in (*item.spellings, *plain_forms(item)):
            assert named_item(spelling, items) == i
