"""Check a recipe, changes made to it by dotted keys, and every value of its `sweep`."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.explain import Problem, unknown_key, validate
from sublim_cli.recipe.keys import dotted, is_key, is_list, overlap, split
from sublim_cli.recipe.questions import find_item, load_items, questions_for
from sublim_cli.recipe.schema import Recipe, SweepSection, SystemPrompt
from sublim_cli.recipe.yaml_file import KeyPath

Axes = dict[str, list[Any]]
"""Dotted keys and the values of each; the cells are all combinations of values."""

_DEFAULTS = Recipe().model_dump(mode="json")


def check(values: Mapping[str, object]) -> Recipe | list[Problem]:
    """The recipe with these values, or everything that is wrong with them."""
    recipe = validate(Recipe, values)
    if isinstance(recipe, list):
        return recipe
    return [*_context_problems(recipe), *_file_problems(recipe), *_rows_problems(recipe)] or recipe


def check_changed(values: Mapping[str, object], changes: Mapping[str, object]) -> Recipe | list[Problem]:
    """The recipe with these values after `changes` were made in their order, or everything that is wrong.

    A change below a key that is not in `values` starts from its default: `filter.rules.1.most` works on a
    recipe without rules. List indices count from 0.
    """
    problems: list[Problem] = []
    changed: object = values
    for path, value in ((split(key), value) for key, value in changes.items()):
        if not is_key(path):
            problems.append(unknown_key(path))
            continue
        try:
            changed = _replace(changed, path, value, _DEFAULTS)
        except IndexError as error:
            problems.append(Problem(path, str(error)))
    outcome = check(changed) if isinstance(changed, dict) else []
    if isinstance(outcome, list):
        return [*outcome, *problems]
    return problems or outcome


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
    rows_given = recipe.train.rows or any("train.rows" in section for _, section in sections)
    if recipe.control.rows and not rows_given:
        message = "is the control of `train.rows`, which the recipe lacks; other students have a control"
        return [Problem(("control", "rows"), message)]
    problems = (
        problem
        for (path, section), axes in zip(sections, families(sweep), strict=True)
        for key in section
        for problem in _value_problems(base, axes, key, (*path, key))
    )
    return list(dict.fromkeys(problems))


def _replace(values: object, path: KeyPath, value: object, default: object) -> object:
    """A copy of `values` with `value` at `path`; where `values` has no keys or entries, of `default`."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    base = next((base for base in (values, default) if isinstance(base, dict | list)), {})
    if isinstance(base, dict):
        default_below = default.get(head) if isinstance(default, dict) else None
        return {**base, head: _replace(base.get(head), rest, value, default_below)}
    if not isinstance(head, int) or head >= len(base):
        raise IndexError(f"there is no entry {head}; the list has {len(base)}, counted from 0")
    return [*base[:head], _replace(base[head], rest, value, None), *base[head + 1 :]]


def _context_problems(recipe: Recipe) -> list[Problem]:
    """System prompts that are not the name of a context."""
    prompts: dict[KeyPath, SystemPrompt] = {
        ("generate", "system_prompt"): recipe.generate.system_prompt,
        ("train", "system_prompt"): recipe.train.system_prompt,
    }
    for key in ("system_prompts", "gate_contexts"):
        prompts |= {("eval", key, i): prompt for i, prompt in enumerate(getattr(recipe.eval, key) or ())}
    problems = []
    for path, prompt in prompts.items():
        persona = "the trait" if path[0] == "generate" else None
        resolve = partial(resolve_context, persona=persona, field=dotted(path))
        problems += _failures(path, resolve, prompt, recipe.contexts)
    return problems


def _file_problems(recipe: Recipe) -> list[Problem]:
    """An item file, a target or a question file that does not exist or cannot be used.

    Keys that the sweep's grid sets in every cell are checked in the cells.
    """
    trait, grid = recipe.trait, recipe.sweep.grid
    if {"trait", "trait.category"} & set(grid):
        return []
    if problems := _failures(("trait", "category"), load_items, trait.category):
        return problems
    items = load_items(trait.category)
    problems = _failures(("trait", "target"), find_item, items, trait.target)
    problems += _failures(("eval", "questions"), questions_for, items, recipe.eval.questions)
    return [problem for problem in problems if dotted(problem.path) not in grid]


def _rows_problems(recipe: Recipe) -> list[Problem]:
    """Files of rows that are not there."""
    files = {("train", "rows"): recipe.train.rows, ("control", "rows"): recipe.control.rows}
    problems = []
    for path, name in files.items():
        if name is None or os.path.isfile(name):
            continue
        message = f"no file called {name!r}; a relative path starts at the working directory"
        if "://" in name:
            message = f"{name!r} is an address; download the file, and write its path"
        problems.append(Problem(path, message))
    return problems


def _failures(path: KeyPath, load: Callable[..., object], *arguments: object) -> list[Problem]:
    """A problem at `path` for each line of the RecipeError that `load` raises."""
    try:
        load(*arguments)
    except RecipeError as error:
        lines = str(error).splitlines()
        return [Problem(path, line.removeprefix(f"{dotted(path)}: ")) for line in lines]
    return []


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
