"""The families of cells that a recipe's `sweep` asks for, and the check of every value in them."""

from collections.abc import Iterator, Mapping
from typing import Any

from sublim_cli.recipe.check import check_changed
from sublim_cli.recipe.explain import Problem, unknown_key
from sublim_cli.recipe.keys import is_key, is_list, overlap, split
from sublim_cli.recipe.schema import Recipe, SweepSection
from sublim_cli.recipe.yaml_file import KeyPath

Axes = dict[str, list[Any]]
"""Dotted keys and the values of each; the cells are all combinations of values."""


def axis(value: object) -> list[Any]:
    """The values of a key in a sweep: the entries of a list, or a single value.

    A list is always an axis. So a key whose value is itself a list takes a list of lists:
    `eval.system_prompts: [[default], [default, empty]]` is two cells.
    """
    return list(value) if isinstance(value, list | tuple) else [value]


def families(sweep: SweepSection) -> list[Axes]:
    """The axes of `grid`, then for each entry of `also` the same axes with the entry's in place of some."""
    grid = {key: axis(values) for key, values in sweep.grid.items()}
    entries = [{key: axis(value) for key, value in entry.items()} for entry in sweep.also]
    return [grid, *({**grid, **entry} for entry in entries)]


def check_sweep(recipe: Recipe) -> list[Problem]:
    """Everything wrong with the keys and values of `recipe.sweep`.

    Each value is checked in a cell that has the first value of every other axis of its family, so a value
    is refused only if that cell would fail.
    """
    sweep = recipe.sweep
    sections: list[tuple[KeyPath, Mapping[str, Any]]] = [(("sweep", "grid"), sweep.grid)]
    sections += [(("sweep", "also", i), entry) for i, entry in enumerate(sweep.also)]
    wrong_keys = [problem for path, section in sections for problem in _key_problems(path, section)]
    if wrong_keys:
        return wrong_keys
    base = recipe.model_dump(mode="json", exclude={"sweep"})
    problems = (
        problem
        for (path, section), axes in zip(sections, families(sweep), strict=True)
        for key in section
        for problem in _value_problems(base, axes, key, (*path, key))
    )
    return list(dict.fromkeys(problems))


def _key_problems(path: KeyPath, section: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in section.items():
        recipe_path = split(key)
        if not is_key(recipe_path):
            yield Problem((*path, key), unknown_key(recipe_path).message)
        elif recipe_path[0] == "sweep":
            yield Problem((*path, key), "a sweep cannot vary itself; take the key out")
        elif value in ([], ()):
            yield Problem((*path, key), "is an empty list; give it one value or more")


def _value_problems(base: Mapping[str, object], axes: Axes, key: str, path: KeyPath) -> Iterator[Problem]:
    first_values = {axis_key: values[0] for axis_key, values in axes.items()}
    recipe_path = split(key)
    other_paths = [split(axis_key) for axis_key in axes if axis_key != key]
    for i, value in enumerate(axes[key]):
        outcome = check_changed(base, {**first_values, key: value})
        for problem in outcome if isinstance(outcome, list) else []:
            if not overlap(problem.path, recipe_path) and any(overlap(problem.path, p) for p in other_paths):
                continue  # a problem of another axis, reported there
            message = problem.message if problem.path == recipe_path else str(problem)
            if is_list(recipe_path) and not isinstance(value, list):
                message += "; in a sweep each list is an axis, so write a list of lists"
            yield Problem(path, message, exact=(*path, i))
