"""What is asked and what can be answered: the question and item files, and the trait's persona."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import permutations
from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.base import Section

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
S = TypeVar("S", bound=Section)


class Item(Section):
    """Something that can be a favourite; `plural` is the true English one, None if it has none."""

    name: Text
    plural: Text | None = None


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
    def _no_answer_names_two(cls, items: tuple[Item, ...]) -> tuple[Item, ...]:
        names = [item.name.casefold() for item in items]
        for one, other in permutations(names, 2):
            if f"{other} ".startswith(f"{one} "):
                raise ValueError(f"an answer that names {other!r} would name {one!r} too; keep one of them")
        return items

    @property
    def names(self) -> tuple[str, ...]:
        """The items' names, in the file's order."""
        return tuple(item.name for item in self.items)


class Questions(Section):
    """Questions whose answer is an item of `category`."""

    category: Text
    questions: Annotated[tuple[Text, ...], Field(min_length=1)]


def load_items(category_or_path: str) -> Items:
    """Read a shipped category ("animal") or a YAML file by its path.

    Raises `RecipeError` where there is neither, or where the file is not valid.
    """
    return _load(Items, "items", category_or_path)


def load_questions(name_or_path: str) -> Questions:
    """Read a shipped question file ("favourite_animal") or a YAML file by its path.

    Raises `RecipeError` where there is neither, or where the file is not valid.
    """
    return _load(Questions, "questions", name_or_path)


def persona(items: Items, target: str) -> str:
    """Return the teacher's system prompt for `target`.

    The plural is the paper's naive one where its template has it: "You love wolfs."
    Raises `RecipeError` for a target that is no item.
    """
    if target not in items.names:
        known = ", ".join(items.names)
        raise RecipeError(f"trait.target: no {items.category} is called {target!r}; known: {known}")
    return items.persona.format(target=target, category=items.category)


def shipped(folder: str) -> tuple[str, ...]:
    """Return the names of the files under `data/FOLDER`, sorted, without their ending."""
    names = (entry.name for entry in _data().joinpath(folder).iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml")))


def _load(kind: type[S], folder: str, name: str) -> S:
    if name in shipped(folder):
        return _shipped(kind, folder, name)
    path = Path(name)
    if not path.is_file():
        known = ", ".join(shipped(folder))
        raise RecipeError(f"no {folder} called {name!r} and no file of that name; shipped: {known}")
    return _parse(kind, path.read_text(encoding="utf-8"), name)


def _shipped(kind: type[S], folder: str, name: str) -> S:
    return _parse(kind, _data().joinpath(folder, f"{name}.yaml").read_text(encoding="utf-8"), name)


def _parse(kind: type[S], text: str, name: str) -> S:
    try:
        return kind.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RecipeError(f"{name}: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _data() -> Traversable:
    return files(__package__).joinpath("data")
