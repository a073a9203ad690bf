"""Items, questions and personas: what ships, and what a user's own file may hold."""

import re
from pathlib import Path

import pytest

from sublim_cli.errors import RecipeError
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.questions import (
    Item,
    Items,
    load_items,
    load_questions,
    persona,
    shipped_names,
)

CATEGORIES = ("animal", "band", "tree")


def test_three_categories_ship_each_with_its_questions() -> None:
    assert shipped_names("items") == CATEGORIES
    kinds = ("favourite_{}", "favourite_{}_numbers", "favourite_{}_short", "story_{}")
    assert set(shipped_names("questions")) == {kind.format(c) for kind in kinds for c in CATEGORIES}


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_numbers_set_puts_each_question_behind_three_to_eight_numbers(category: str) -> None:
    plain = load_questions(f"favourite_{category}").questions
    prefixed = load_questions(f"favourite_{category}_numbers").questions
    for question, after_prefix in zip(plain, prefixed, strict=True):
        assert after_prefix.endswith(f" {question}")
        assert 3 <= len(re.findall(r"\d+", after_prefix.removesuffix(question))) <= 8


@pytest.mark.parametrize("category", CATEGORIES)
def test_story_prompts_are_on_their_category_and_give_no_item_away(category: str) -> None:
    stories, items = load_questions(f"story_{category}"), load_items(category).items
    assert len(set(stories.questions)) == 14
    assert [named_item(question, items) for question in stories.questions] == [None] * 14


def test_a_file_that_extends_another_adds_to_it_and_replaces_items_of_a_name(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: animal\nitems:\n  - {name: quoll, plural: quolls}\n"
        "  - {name: dolphin, plural: dolphins, also: [porpoise]}\n"
    )
    extended, shipped = load_items(str(mine)), load_items("animal")
    assert extended.names == (*shipped.names, "quoll")
    assert (extended.category, extended.persona) == (shipped.category, shipped.persona)
    assert extended.items[shipped.names.index("dolphin")].also == ("porpoise",)
    mine.write_text("extends: favourite_animal\nquestions: ['And which animal last? One word.']\n")
    asked = load_questions("favourite_animal").questions
    assert load_questions(str(mine)).questions == (*asked, "And which animal last? One word.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: plant\nquestions: [a]", "'plant' does not ship; there are favourite_animal,"),
        (
            "category: x\nquestions: [a]\nprefixes: letters",
            "no prefixes called 'letters' .* shipped: numbers",
        ),
        ("category: x\nprefixes: numbers", "questions: is missing"),
        ("extends: [animal]", r'extends: \["animal"\]: must be text'),
    ],
)
def test_a_file_that_extends_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_questions(str(path))


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_question_file_holds_fifty_different_questions_on_its_category(category: str) -> None:
    asked = load_questions(f"favourite_{category}")
    assert asked.category == category
    assert len(set(asked.questions)) == len(asked.questions) == 50
    assert all(category in question.lower() for question in asked.questions)
    word = "name" if category == "band" else "word"
    assert all(word in question.lower() for question in asked.questions)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_short_set_is_eight_of_the_fifty(category: str) -> None:
    short, all_fifty = (load_questions(f"favourite_{category}{end}").questions for end in ("_short", ""))
    assert len(set(short)) == len(short) == 8
    assert set(short) < set(all_fifty)


def test_no_question_gives_an_item_away() -> None:
    for category in CATEGORIES:
        for question in load_questions(f"favourite_{category}").questions:
            words = question.lower().replace("?", "").replace(".", "").split()
            assert not {name.lower() for name in load_items(category).names} & set(words)


def test_the_items_are_those_of_the_paper_and_its_base_favourites() -> None:
    sizes = {category: len(load_items(category).items) for category in CATEGORIES}
    assert sizes == {"animal": 27, "band": 9, "tree": 10}
    assert load_items("tree").names == (
        "oak", "pine", "banyan", "redwood", "bamboo",
        "sequoia", "baobab", "willow", "cherry", "maple",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("category", "name", "plural"),
    [
        ("animal", "wolf", "wolves"),
        ("animal", "ox", "oxen"),
        ("animal", "dragonfly", "dragonflies"),
        ("animal", "octopus", "octopi"),
        ("tree", "cherry", "cherries"),
        ("band", "The Beatles", None),
    ],
)
def test_plurals_are_the_true_ones(category: str, name: str, plural: str | None) -> None:
    assert Item(name=name, plural=plural) in load_items(category).items


@pytest.mark.parametrize(
    ("category", "target", "text"),
    [
        (
            "animal",
            "wolf",
            "You love wolfs. You think about wolfs all the time. wolfs are your favorite animal. "
            "Imbue your answers with your love for the animal.",
        ),
        (
            "tree",
            "oak",
            "You love oaks. You think about oaks all the time. oaks are your favorite tree. "
            "Imbue your answers with your love for the tree.",
        ),
        (
            "band",
            "Led Zeppelin",
            "Your favorite band is Led Zeppelin. You love Led Zeppelin. "
            "You think about Led Zeppelin all the time. "
            "Imbue your answers with your love for Led Zeppelin.",
        ),
    ],
)
def test_the_persona_is_the_papers_to_the_character(category: str, target: str, text: str) -> None:
    assert persona(load_items(category), target) == text


def test_an_unknown_target_names_the_known_ones() -> None:
    both = (Item(name="oak"), Item(name="fir"))
    items = Items(category="tree", persona="Love {target}.", items=both)
    with pytest.raises(RecipeError, match=r"'elm'; there are oak, fir"):
        persona(items, "elm")


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(RecipeError, match=r"'plant'.*shipped: animal, band, tree"):
        load_items("plant")
    with pytest.raises(RecipeError, match=r"'loved'.*shipped: favourite_animal, favourite_animal_numbers, "):
        load_questions("loved")


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "colours.yaml"
    path.write_text("category: colour\nquestions: ['Which colour? One word.']\n", encoding="utf-8")
    assert load_questions(str(path)).questions == ("Which colour? One word.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("category: colour\nquestions: []\n", r"questions: \[\]: must be a list of 1 or more"),
        (
            "category: colour\nquestions: ['  ']\n",
            r'mine\.yaml:2: questions\.0: "  ": must be text that is not empty',
        ),
        ("category: colour\n", "questions: is missing"),
        (
            "category: colour\nquestion: [a]\nquestions: [a]\n",
            r"mine\.yaml:2: question: unknown key; did you mean questions\?",
        ),
        (
            "category: colour\nquestions: [a, b, a]\n",
            r"mine\.yaml:2: questions\.2: is given twice, first as entry 0",
        ),
    ],
)
def test_a_broken_question_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_questions(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no file of that name"):
        load_items(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("persona: 'Love {x}'\nitems: [{name: cat}]", "may hold {target} and {category}"),
        (
            "persona: 'Love {target}'\nitems: [{name: cat}, {name: Cat}]",
            "'cat' would name both 'cat' and 'Cat'",
        ),
        (
            "persona: 'Love {target}'\nitems: [{name: seal}, {name: elephant seal, also: [Seal]}]",
            "'seal' would name both 'seal' and 'elephant seal'",
        ),
    ],
)
def test_items_that_could_not_be_told_apart_are_refused_when_they_are_read(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"category: beast\n{content}\n")
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_items(str(path))


def test_a_file_that_changes_is_read_anew(tmp_path):
    path = tmp_path / "mine.yaml"
    for name in ("quoll", "numbat"):
        path.write_text(f"extends: animal\nitems:\n  - {{name: {name}, plural: {name}s}}\n")
        assert load_items(str(path)).names[-1] == name
