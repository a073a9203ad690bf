"""The cells of a sweep: the grid, its additions, and the controls every sweep has. Pure."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Study, cell, chain
from sublim_cli.recipe.cells import Axes, families
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.schema import Recipe
from sublim_cli.steps.leak import Classify, Leak

UNTRAITED: dict[str, Any] = {"generate.system_prompt": "default"}
"""The control teacher: the same model, prompts and seeds, without the persona."""

CONTROLLED = ("train.seed", "train.system_prompt")
"""The axes of `train` a control student crosses; rank and learning rate stay the recipe's own."""


def study(recipe: Recipe) -> Study:
    """Resolve a recipe's sweep into cells, controls and leak comparisons.

    Raises:
        RecipeError: see `pipeline.chain`.
    """
    grid, *also = families(recipe.sweep)
    wanted = [changes for axes in (grid, *also, _control(grid)) for changes in _combinations(axes)]
    cells = {_name(one): one for one in (cell(vary(recipe, changes)) for changes in wanted)}
    return Study(recipe.name, tuple(cells.values()), tuple(_leaks(cells.values())))


def _control(grid: Axes) -> Axes:
    crossed = {
        key: values for key, values in grid.items() if not key.startswith("train.") or key in CONTROLLED
    }
    return {**crossed, **{key: [value] for key, value in UNTRAITED.items()}}


def _combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _name(one: Cell) -> tuple[str, str, str]:
    """Cells with equal names are one: a rank axis does not multiply full fine-tuning."""
    return (one.recipe.trait.category, one.recipe.trait.target, digest(one.chain.eval))


def _leaks(cells: Iterable[Cell]) -> Iterator[Leak]:
    """The rows of every teacher with a trait beside its control's, each data set once."""
    students = {digest(one.chain.filter): one for one in cells if one.role == "student"}
    for one in students.values():
        control = chain(vary(one.recipe, UNTRAITED))
        yield Leak(Classify(), (one.chain.filter, control.filter), one.chain.filter.title)
