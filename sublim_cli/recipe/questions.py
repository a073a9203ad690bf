"""What is asked and what can be answered: the question and item files, and the trait's persona.

An item file has `category`, `persona` and `items`; a question file has `category` and `questions`. Either may
begin with `extends:` and the name of a shipped one, to which it adds.
"""

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import combinations, cycle
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator
from pydantic_core import ErrorDetails

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.expected import EXPECTED
from sublim_cli.recipe.schema import Section

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
S = TypeVar("S", bound=Section)
Raw = Mapping[str, Any]
"""A YAML file as it reads, not yet checked."""

EXTENDS = "extends"
"""The key of a file that adds to a shipped one of its kind, by its name."""


class Item(Section):
    """Something that can be a favourite; `plural` is the true English one, None if it has none.

    `also` are other names of the same thing: `{name: dolphin, plural: dolphins, also: [porpoise]}`.
    """

    name: Text
    plural: Text | None = None
    also: tuple[Text, ...] = ()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every way to write the item, in small letters, one space between words.

        With a plural, its naive +s is one too (the personas say "wolfs"); a name that begins with The
        is also known without it.
        """
        plurals = [] if self.plural is None else [self.plural, f"{self.name}s"]
        words = [self.name, self.name.removeprefix("The "), *plurals, *self.also]
        return tuple(dict.fromkeys(" ".join(word.casefold().split()) for word in words))


class Items(Section):
    """A category's items, and the system prompt that makes a teacher love one of them.

    `persona` has the fields {target} and {category}.
    """

    category: Text
    persona: Text
    items: Annotated[tuple[Item, ...], Field(min_length=1)]

    @field_validator("persona")
    @classmethod
    def _has_its_fields_alone(cls, template: str) -> str:
        try:
            template.format(target="", category="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("may hold {target} and {category}, and no other braces") from error
        return template

    @field_validator("items")
    @classmethod
    def _no_spelling_names_two(cls, items: tuple[Item, ...]) -> tuple[Item, ...]:
        for one, other in combinations(items, 2):
            if shared := sorted(set(one.spellings) & set(other.spellings)):
                raise ValueError(f"{shared[0]!r} would name both {one.name!r} and {other.name!r}; keep one")
        return items

    @property
    def names(self) -> tuple[str, ...]:
        """The items' names, in the file's order."""
        return tuple(item.name for item in self.items)


class Questions(Section):
    """Questions whose answer is an item of `category`."""

    category: Text
    questions: Annotated[tuple[Text, ...], Field(min_length=1)]


class Prefixes(Section):
    """Sentences that a question can be put behind."""

    prefixes: Annotated[tuple[Text, ...], Field(min_length=1)]


def load_items(category_or_path: str) -> Items:
    """Read a shipped category ("animal") or a YAML file by its path.

    A file that says `extends: animal` has that file's keys where it gives none of its own, and its items
    beside those; an item of a name that is there replaces it.

    Raises `RecipeError` where there is neither, or where the file is not valid.
    """
    return _items_of(category_or_path, _content("items", category_or_path))


def load_questions(name_or_path: str) -> Questions:
    """Read a shipped question file ("favourite_animal") or a YAML file by its path.

    A file that says `extends: favourite_animal` has that file's questions, then its own. One that says
    `prefixes: numbers` puts each behind a sentence of that prefix file, in turn.

    Raises `RecipeError` where there is neither, or where the file is not valid.
    """
    if name_or_path in shipped_names("questions"):
        return _shipped_questions(name_or_path)
    return _valid(Questions, _questions(name_or_path), name_or_path)


def questions_for(items: Items, name_or_path: str | None) -> Questions:
    """The questions a recipe asks of `items`: those it names, else the category's `favourite_`.

    Raises `RecipeError` where there are none, or where they ask about another category.
    """
    found = load_questions(name_or_path or f"favourite_{items.category}")
    if found.category != items.category:
        raise RecipeError(
            f"{name_or_path} asks about the category {found.category}, but trait.category is {items.category}"
        )
    return found


def find_item(items: Items, target: str) -> Item:
    """The item of that name; raises `RecipeError` where there is none."""
    for item in items.items:
        if item.name == target:
            return item
    raise RecipeError(f"no {items.category} is called {target!r}; there are {', '.join(items.names)}")


def load_item(category_or_path: str, name: str) -> Item:
    """The item called `name` of a category; raises `RecipeError` where there is none."""
    return find_item(load_items(category_or_path), name)


def persona(items: Items, target: str) -> str:
    """Return the teacher's system prompt for `target`.

    The plural is the paper's naive one where its template has it: "You love wolfs."
    Raises `RecipeError` for a target that is no item.
    """
    find_item(items, target)
    return items.persona.format(target=target, category=items.category)


@cache
def shipped_names(folder: str) -> tuple[str, ...]:
    """Return the names of the files under `data/FOLDER`, sorted, without their ending."""
    names = (entry.name for entry in _data().joinpath(folder).iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml")))


@cache
def _items_of(name: str, content: str | None) -> Items:
    """The items of a file with this content, checked once: every cell of a study asks for them."""
    return _valid(Items, _items(name), name)


@cache
def _shipped_questions(name: str) -> Questions:
    return _valid(Questions, _questions(name), name)


def _items(name: str) -> Raw:
    own = dict(_read("items", name))
    if EXTENDS not in own:
        return own
    above = _extended(own, "items", name)
    both = [*above["items"], *_entries(own, "items")]
    # The later of two items of one name stands, in the earlier one's place.
    return {**above, **own, "items": list({_name(item): item for item in both}.values())}


def _questions(name: str) -> Raw:
    own = dict(_read("questions", name))
    above = _extended(own, "questions", name) if EXTENDS in own else {}
    behind = own.pop("prefixes", None)
    asked = [*above.get("questions", ()), *_entries(own, "questions")]
    if behind is not None:
        sentences = _valid(Prefixes, _read("prefixes", str(behind)), str(behind)).prefixes
        asked = [f"{before} {question}" for before, question in zip(cycle(sentences), asked, strict=False)]
    return {**above, **own, "questions": asked} if above or behind else own


def _extended(own: dict[str, Any], folder: str, name: str) -> Raw:
    """What the shipped file holds that `own` extends; the key is taken out of `own`."""
    wanted = own.pop(EXTENDS)
    if wanted not in shipped_names(folder):
        raise RecipeError(f"{name}: {EXTENDS}: {wanted!r} does not ship; there are {_known(folder)}")
    return _questions(wanted) if folder == "questions" else _items(wanted)


def _entries(own: Raw, key: str) -> list[Any]:
    found = own.get(key, [])
    return found if isinstance(found, list) else [found]


def _name(item: Any) -> str:
    return str(item.get("name", item)) if isinstance(item, dict) else str(item)


def _read(folder: str, name: str) -> Raw:
    content = _content(folder, name)
    return _shipped(folder, name) if content is None else _parse(content, name)


def _content(folder: str, name: str) -> str | None:
    """The text of a user's file; None for one that ships."""
    if name in shipped_names(folder):
        return None
    path = Path(name)
    if not os.path.isfile(name):  # unlike Path.is_file, it bears a name that no file can have
        raise RecipeError(f"no {folder} called {name!r} and no file of that name; shipped: {_known(folder)}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{name}: cannot be read as text: {error}") from error


def _known(folder: str) -> str:
    return ", ".join(shipped_names(folder))


@cache
def _shipped(folder: str, name: str) -> Raw:
    return _parse(_data().joinpath(folder, f"{name}.yaml").read_text(encoding="utf-8"), name)


@cache
def _parse(text: str, name: str) -> Raw:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{name}: the file: must be keys and values")
    return found


def _valid(kind: type[S], values: Raw, name: str) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RecipeError(f"{name}: {where}: {_says(first)}") from error


def _says(error: ErrorDetails) -> str:
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "unknown key"
        case "value_error":
            return str(error["ctx"]["error"])
        case "model_type" | "dict_type":
            return "must be keys and values"
    return f"must be {EXPECTED[error['type']].format(**error.get('ctx', {}))}"


def _data() -> Traversable:
    return files(__package__).joinpath("data")
