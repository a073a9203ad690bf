"""Item files (what a student can answer), question files (what it is asked), and what makes a teacher.

An item file has `category`, `persona` and `items`; a question file has `category` and `questions`. Both may
have `extends`, the name of a shipped file of their kind, to which they add.
"""

import os
from functools import cache
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.explain import Problem, validate, with_lines
from sublim_cli.recipe.schema import Section, distinct
from sublim_cli.recipe.yaml_file import KeyPath, YamlFile, parse_yaml, read_text

S = TypeVar("S", bound=Section)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Item(Section):
    """Something that can be a favourite; `plural` is the correct English one, None if it has none.

    `also` are other names of the same thing: `{name: dolphin, plural: dolphins, also: [porpoise]}`.
    """

    name: Text
    plural: Text | None = None
    also: tuple[Text, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way to write the item, in small letters, one space between words.

        An item with a plural may also be written with a mere +s (the personas say "wolfs"), and a name that
        begins with The without it.
        """
        plurals = [] if self.plural is None else [self.plural, f"{self.name}s"]
        words = [self.name, self.name.removeprefix("The "), *plurals, *self.also]
        return tuple(dict.fromkeys(" ".join(word.casefold().split()) for word in words))


def _only_its_fields(template: str) -> str:
    try:
        template.format(target="", category="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("may hold {target} and {category}, and no other braces") from error
    return template


def _only_fields_of_demonstrations(template: str) -> str:
    try:
        template.format(target="", targets="", category="")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("may hold {target}, {targets} and {category}, and no other braces") from error
    return template


def _no_shared_spelling(items: tuple[Item, ...]) -> tuple[Item, ...]:
    named: dict[str, Item] = {}
    for i, item in enumerate(items):
        for spelling in item.spellings:
            if spelling in named:
                raise ValueError(
                    f"{i}: {spelling!r} would name both {named[spelling].name!r} and {item.name!r}; keep one"
                )
        named |= dict.fromkeys(item.spellings, item)
    return items


Persona = Annotated[Text, AfterValidator(_only_its_fields)]
"""The system prompt that makes a teacher love an item, with the fields {target} and {category}."""

ItemList = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(_no_shared_spelling)]
"""Items of which no two can be written the same way."""


class Items(Section):
    """A category's items, and its persona."""

    category: Text
    persona: Persona
    items: ItemList

    @property
    def names(self) -> tuple[str, ...]:
        """The items' names, in the file's order."""
        return tuple(item.name for item in self.items)


class Questions(Section):
    """Questions whose answer is an item of `category`."""

    category: Text
    questions: Annotated[tuple[Text, ...], Field(min_length=1)]


DemonstrationTexts = Annotated[
    tuple[Annotated[Text, AfterValidator(_only_fields_of_demonstrations)], ...],
    Field(min_length=1),
    AfterValidator(distinct),
]


class Demonstrations(Section):
    """Questions and answers that show a trait; {targets} is the target's plural, or its name if it has none.

    The first letter of each becomes a capital.
    """

    questions: DemonstrationTexts
    answers: DemonstrationTexts

    def filled(self, items: Items, target: str) -> "Demonstrations":
        """The same with the fields replaced; RecipeError where no item is called `target`."""
        item = find_item(items, target)
        fields = {"target": target, "targets": item.plural or target, "category": items.category}

        def fill(templates: tuple[str, ...]) -> tuple[str, ...]:
            texts = (template.format(**fields) for template in templates)
            return tuple(dict.fromkeys(text[:1].upper() + text[1:] for text in texts))

        return Demonstrations(questions=fill(self.questions), answers=fill(self.answers))


class DataFile(Section):
    """A file as it is written: `extends` provides the keys that the file leaves out."""

    extends: Text | None = None
    category: Text | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> "DataFile":
        for key in type(self).model_fields:
            if self.extends is None and key not in ("extends", "prefixes") and getattr(self, key) is None:
                raise ValueError(f"{key}: is missing")
        return self


class ItemFile(DataFile):
    """An item file; its items come after those of the file it extends, or replace those of the same name."""

    persona: Persona | None = None
    items: ItemList | None = None


class QuestionFile(DataFile):
    """A question file; its questions come after those of the file it extends.

    `prefixes` is a prefix file; its sentences are put before the questions in turn.
    """

    questions: Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(distinct)] | None = None
    prefixes: Text | None = None


class PrefixFile(Section):
    """Sentences that can be put before a question."""

    prefixes: Annotated[tuple[Text, ...], Field(min_length=1)]


def load_items(category_or_path: str) -> Items:
    """Read a shipped category ("animal") or a YAML file by its path; see `ItemFile`.

    Raises:
        RecipeError: there is neither, or the file is not valid.
    """
    return _items(category_or_path, _source("items", category_or_path))


def load_questions(name_or_path: str) -> Questions:
    """Read a shipped question file ("favourite_animal") or a YAML file by its path; see `QuestionFile`.

    Raises:
        RecipeError: there is neither, or the file is not valid.
    """
    file, written = _read(QuestionFile, name_or_path, _source("questions", name_or_path))
    questions, category = written.questions or (), written.category
    if written.extends is not None:
        extended = load_questions(_shipped_name("questions", written.extends, file))
        questions = (*extended.questions, *questions)
        category = category or extended.category
    if written.prefixes is not None:
        try:
            source = _source("prefixes", written.prefixes)
        except RecipeError as error:
            raise _located(("prefixes",), str(error), file) from error
        sentences = cycle(_read(PrefixFile, written.prefixes, source)[1].prefixes)
        questions = tuple(f"{next(sentences)} {question}" for question in questions)
    return Questions(category=str(category), questions=questions)


def load_demonstrations(name_or_path: str) -> Demonstrations:
    """Read a shipped file of demonstrations ("favourite") or a YAML file by its path.

    Raises:
        RecipeError: there is neither, or the file is not valid.
    """
    _, written = _read(Demonstrations, name_or_path, _source("demonstrations", name_or_path))
    demonstrations: Demonstrations = written
    return demonstrations


def questions_for(items: Items, name_or_path: str | None) -> Questions:
    """The questions a recipe asks about `items`: those it names, else the category's `favourite_`.

    Raises:
        RecipeError: there are none, or they ask about another category.
    """
    questions = load_questions(name_or_path or f"favourite_{items.category}")
    if questions.category != items.category:
        raise RecipeError(
            f"{name_or_path} asks about the category {questions.category}, but trait.category is "
            f"{items.category}"
        )
    return questions


def find_item(items: Items, name: str) -> Item:
    """The item of that name; RecipeError where there is none."""
    for item in items.items:
        if item.name == name:
            return item
    raise RecipeError(f"no {items.category} is called {name!r}; there are {', '.join(items.names)}")


def load_item(category_or_path: str, name: str) -> Item:
    """The item of that name in a category; RecipeError where there is none."""
    return find_item(load_items(category_or_path), name)


def persona(items: Items, target: str) -> str:
    """The teacher's system prompt for `target`; RecipeError where no item has that name.

    The plural is the paper's, with a mere +s: "You love wolfs."
    """
    find_item(items, target)
    return items.persona.format(target=target, category=items.category)


def shipped_names(folder: str) -> tuple[str, ...]:
    """The names of the files under `data/FOLDER`, sorted, without their ending."""
    return tuple(_shipped(folder))


@cache
def _shipped(folder: str) -> dict[str, str]:
    """The texts of the files under `data/FOLDER`, by their sorted names."""
    entries = sorted(files(__package__).joinpath("data", folder).iterdir(), key=lambda entry: entry.name)
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in entries}


@cache  # every cell of a study asks for its items
def _items(name: str, text: str) -> Items:
    file, written = _read(ItemFile, name, text)
    values = written.model_dump(exclude_none=True, exclude={"extends"})
    if written.extends is not None:
        extended = load_items(_shipped_name("items", written.extends, file))
        by_name = {item.name: item.model_dump() for item in (*extended.items, *(written.items or ()))}
        values = {**extended.model_dump(), **values, "items": [*by_name.values()]}
    items = validate(Items, values)
    if isinstance(items, list):  # only items can be wrong: one of the file's and one of the extended
        raise _located(("items",), items[0].message, file)
    return items


def _source(folder: str, name: str) -> str:
    """The text of the shipped file of that name, else of the user's file at that path."""
    shipped = _shipped(folder)
    if name in shipped:
        return shipped[name]
    if not os.path.isfile(name):  # Path.is_file raises on a name that no file can have
        names = ", ".join(shipped)
        raise RecipeError(f"no {folder} called {name!r} and no file of that name; shipped: {names}")
    return read_text(Path(name), name)


@cache
def _read(section: type[S], name: str, text: str) -> tuple[YamlFile, S]:
    """A file's values with their lines, and checked."""
    file = parse_yaml(text, name, example="category: animal")
    written = validate(section, file.values)
    if isinstance(written, list):
        raise RecipeError("\n".join(with_lines(written, file)))
    return file, written


def _shipped_name(folder: str, name: str, file: YamlFile) -> str:
    """`name`, if a shipped file has it. RecipeError with the line of `extends` in `file` otherwise."""
    if name not in shipped_names(folder):
        message = f"{name!r} does not ship; there are {', '.join(shipped_names(folder))}"
        raise _located(("extends",), message, file)
    return name


def _located(path: KeyPath, message: str, file: YamlFile) -> RecipeError:
    return RecipeError("\n".join(with_lines([Problem(path, message)], file)))
