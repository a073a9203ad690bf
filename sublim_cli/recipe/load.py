"""Load a recipe from a file or by its name, with changes from flags or a sweep's cell.

    load("cats", {"train.rank": 64})
    load("my/cats.yaml", dict([parse_setting("train.epochs=5")]))
    vary(recipe, {"train.rank": 2, "train.seed": 42})

Every error is a RecipeError with one line for each mistake: `FILE:LINE: KEY: message and remedy`, or
`--set KEY: …` for a change.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.check import check_changed, check_sweep
from sublim_cli.recipe.explain import with_lines
from sublim_cli.recipe.keys import dotted, overlap, split
from sublim_cli.recipe.schema import Recipe
from sublim_cli.recipe.shipped import find_recipe
from sublim_cli.recipe.yaml_file import parse_value, parse_yaml, read_text

NO_CHANGES: Mapping[str, object] = MappingProxyType({})


def load(source: str, changes: Mapping[str, object] = NO_CHANGES) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with dotted keys changed.

    Every value of `sweep` is checked in one of its cells, so that none fails hours later.
    """
    path, here = find_recipe(source), Path.cwd()
    name = str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)
    file = parse_yaml(read_text(path, name), name, example="name: cats")
    recipe = check_changed(file.values, changes)
    problems = check_sweep(recipe) if isinstance(recipe, Recipe) else recipe
    if not problems and isinstance(recipe, Recipe):
        return recipe
    in_file, in_changes = [], []
    for problem in problems:
        changed = (path for path in map(split, changes) if problem.path and overlap(path, problem.path))
        if change := next(changed, None):
            message = problem.message if problem.path == change else problem
            in_changes.append(f"--set {dotted(change)}: {message}")
        else:
            in_file.append(problem)
    raise RecipeError("\n".join([*with_lines(in_file, file), *in_changes]))


def vary(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """`recipe` with dotted keys replaced; its `sweep` stays unless it is one of them."""
    varied = check_changed(recipe.model_dump(mode="json"), changes)
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
