"""From what a user typed to a `Recipe`: a file or a name, changes from flags, the cells of a sweep.

    load("cats", {"train.rank": 64})
    load("my/cats.yaml", dict([parse_setting("train.epochs=5")]))
    vary(recipe, {"train.rank": 2, "train.seed": 42})

Every error is a RecipeError with one line for each thing wrong: `FILE:LINE: KEY: what and remedy`,
or `--set KEY: …` for a change.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.cells import check_sweep
from sublim_cli.recipe.change import changed
from sublim_cli.recipe.document import Document, Where, parse_value, read
from sublim_cli.recipe.explain import Problem
from sublim_cli.recipe.keys import dotted, related, split
from sublim_cli.recipe.schema import Recipe
from sublim_cli.recipe.shipped import find_recipe

NO_CHANGES: Mapping[str, object] = MappingProxyType({})


def load(source: str, changes: Mapping[str, object] = NO_CHANGES) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with dotted keys changed.

    Every value of `sweep` is tried in one of its cells, so that none fails hours later.
    """
    document = read(find_recipe(source))
    recipe = changed(document.values, changes)
    problems = check_sweep(recipe) if isinstance(recipe, Recipe) else recipe
    if problems or isinstance(recipe, list):
        raise RecipeError(_report(problems, document, [split(key) for key in changes]))
    return recipe


def vary(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """`recipe` with dotted keys replaced; its `sweep` stays unless that is among them."""
    varied = changed(recipe.model_dump(mode="json"), changes)
    if isinstance(varied, list):
        raise RecipeError("\n".join(map(str, varied)))
    return varied


def parse_setting(text: str) -> tuple[str, object]:
    """`train.epochs=5` as `("train.epochs", 5)`; the value is read as in a recipe file."""
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise RecipeError(f"--set {text}: must be KEY=VALUE, such as --set train.epochs=5")
    try:
        return key.strip(), parse_value(value)
    except RecipeError as error:
        raise RecipeError(
            f"--set {text}: the value cannot be read; put a text in quotes of its own: "
            f"--set '{key}=\"{value}\"'"
        ) from error


def _report(problems: Sequence[Problem], document: Document, changes: Sequence[Where]) -> str:
    """A line for each problem, in the order of the file, those of changes last."""
    from_changes, from_file = [], []
    for one in problems:
        way = next((way for way in changes if one.where and related(way, one.where)), None)
        if way is None:
            line = document.line(one.at or one.where)
            from_file.append((line, f"{document.file}:{line}: {one}"))
        else:
            from_changes.append(f"--set {dotted(way)}: {one.says if one.where == way else one}")
    return "\n".join([*(text for _, text in sorted(from_file)), *from_changes])
