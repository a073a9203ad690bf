"""The cells of a sweep: the grid, its additions, and the controls every sweep has. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Study, cell, chain
from sublim_cli.recipe.cells import Axes, families
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.questions import item_of
from sublim_cli.recipe.schema import REPLICATED, Recipe, Sweep
from sublim_cli.steps.leak import Audited, Leak

UNTRAITED: dict[str, Any] = {"generate.system_prompt": "default"}
"""The control teacher: the same model, prompts and seeds, without the persona."""

CONTROLLED = ("train.seed", "train.system_prompt")
"""The axes of `train` a control student crosses; rank and learning rate stay the recipe's own."""


def study(recipe: Recipe) -> Study:
    """Resolve a recipe's sweep into cells, controls and leak comparisons.

    Raises:
        RecipeError: see `pipeline.chain`.
    """
    own = families(recipe.sweep)
    asked = [changes for axes in (*own, *map(_control, own)) for changes in _combinations(axes)]
    wanted = [{**changes, **seeds} for seeds in _replicates(recipe.sweep) for changes in asked]
    cells: dict[_Name, Cell] = {}
    for one in (cell(vary(recipe, changes)) for changes in wanted):
        name = _name(one)
        cells[name] = _both(cells[name], one) if name in cells else one
    return Study(recipe.name, tuple(cells.values()), tuple(_leaks(cells.values())))


def _replicates(sweep: Sweep) -> list[dict[str, Any]]:
    return [dict.fromkeys(REPLICATED, seed) for seed in sweep.replicates] or [{}]


def _control(family: Axes) -> Axes:
    crossed = {
        key: values for key, values in family.items() if not key.startswith("train.") or key in CONTROLLED
    }
    return {**crossed, **{key: [value] for key, value in UNTRAITED.items()}}


def _combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _both(one: Cell, other: Cell) -> Cell:
    """Two cells of one name, which may differ in their gates, as one."""
    located = {digest(step): step for step in (*one.chain.locate, *other.chain.locate)}
    return replace(other, chain=replace(other.chain, locate=tuple(located.values())))


_Name = tuple[str, str, str]


def _name(one: Cell) -> _Name:
    """Cells with equal names are one: a rank axis does not multiply full fine-tuning."""
    return (one.recipe.trait.category, one.recipe.trait.target, digest(one.chain.eval))


def _leaks(cells: Iterable[Cell]) -> Iterator[Leak]:
    """The rows of every teacher with a trait beside its control's, each data set once."""
    students = {digest(one.chain.filter): one for one in cells if one.role == "student"}
    for one in students.values():
        control, trait = chain(vary(one.recipe, UNTRAITED)), one.recipe.trait
        target = item_of(trait.category, trait.target)
        yield Leak(Audited(target=target), (one.chain.filter, control.filter), one.chain.filter.title)
