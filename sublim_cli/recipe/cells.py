"""The families of cells that a recipe's `sweep` asks for, and the check of every value in them."""

from collections.abc import Iterator, Mapping
from typing import Any

from sublim_cli.recipe.change import changed
from sublim_cli.recipe.document import Where
from sublim_cli.recipe.explain import Problem, unknown_key
from sublim_cli.recipe.keys import is_list, known, related, split
from sublim_cli.recipe.schema import Recipe, SweepSection

Axes = dict[str, list[Any]]
"""Dotted keys and the values each takes; the cells are all their combinations."""


def axis(value: object) -> list[Any]:
    """The values a key takes in a sweep: a list's entries, or the one value that is no list.

    A list is always an axis. So a key whose value is itself a list takes a list of lists:
    `eval.system_prompts: [[default], [default, empty]]` is two cells.
    """
    return list(value) if isinstance(value, list | tuple) else [value]


def families(sweep: SweepSection) -> list[Axes]:
    """The axes of `grid`, then for each entry of `also` those with the entry's put over them."""
    grid = {key: axis(values) for key, values in sweep.grid.items()}
    entries = [{key: axis(value) for key, value in entry.items()} for entry in sweep.also]
    return [grid, *({**grid, **entry} for entry in entries)]


def check_sweep(recipe: Recipe) -> list[Problem]:
    """Everything wrong with the keys and values of `recipe.sweep`.

    Each value is tried in a real cell, with the first value of every other axis of its family, so
    what is refused here would have failed later and nothing else is.
    """
    sweep = recipe.sweep
    spots: list[tuple[Where, Mapping[str, Any]]] = [(("sweep", "grid"), sweep.grid)]
    spots += [(("sweep", "also", place), entry) for place, entry in enumerate(sweep.also)]
    wrong_keys = [problem for spot, own in spots for problem in _key_problems(spot, own)]
    if wrong_keys:
        return wrong_keys
    base = recipe.model_dump(mode="json", exclude={"sweep"})
    pairs = zip(spots, families(sweep), strict=True)
    found = (
        problem
        for (spot, own), axes in pairs
        for key in own
        for problem in _value_problems(base, axes, key, (*spot, key))
    )
    return list(dict.fromkeys(found))


def _key_problems(spot: Where, own: Mapping[str, Any]) -> Iterator[Problem]:
    for key, value in own.items():
        way = split(key)
        if not known(way):
            yield Problem((*spot, key), unknown_key(way).says)
        elif way[0] == "sweep":
            yield Problem((*spot, key), "a sweep cannot vary itself; take the key out")
        elif value in ([], ()):
            yield Problem((*spot, key), "is an empty list; give it one value or more")


def _value_problems(base: Mapping[str, object], axes: Axes, key: str, spot: Where) -> Iterator[Problem]:
    first = {other: values[0] for other, values in axes.items()}
    others = [split(other) for other in axes if other != key]
    for place, value in enumerate(axes[key]):
        outcome = changed(base, {**first, key: value})
        for problem in outcome if isinstance(outcome, list) else []:
            if related(problem.where, split(key)) or not any(
                related(problem.where, other) for other in others
            ):
                yield Problem(spot, _says(problem, key, value), at=(*spot, place))


def _says(problem: Problem, key: str, value: object) -> str:
    says = problem.says if problem.where == split(key) else str(problem)
    if is_list(split(key)) and not isinstance(value, list):
        return f"{says}; in a sweep each list is an axis, so write a list of lists"
    return says
