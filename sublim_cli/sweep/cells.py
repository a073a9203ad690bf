"""The cells of a sweep: the grid, its additions, and the controls every sweep has. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Study, cell, chain
from sublim_cli.recipe.cells import Axes, families
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.questions import load_item
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.recipe.schema import REPLICATED, Recipe, Section, SweepSection
from sublim_cli.steps.leak import LeakSpec, LeakStep

UNTRAITED: dict[str, Any] = {"generate.system_prompt": "default"}
"""The control teacher: the same model, prompts and seeds, without the persona."""

CONTROLLED = ("train.seed", "train.system_prompt")
"""The axes of `train` a control student crosses; rank and learning rate stay the recipe's own."""

SectionT = TypeVar("SectionT", bound=Section)


def study(recipe: Recipe) -> Study:
    """Resolve a recipe's sweep into cells, controls and leak comparisons.

    Raises:
        RecipeError: see `pipeline.chain`.
    """
    own = families(recipe.sweep)
    asked = [changes for axes in (*own, *map(_control, own)) for changes in _combinations(axes)]
    wanted = _once(
        _that_count(recipe, {**changes, **seeds}) for seeds in _replicates(recipe.sweep) for changes in asked
    )
    bare = recipe.model_copy(
        update={"sweep": SweepSection(), "claims": ()}
    )  # else each cell's are checked anew
    cells: dict[_Name, Cell] = {}
    for one in map(cell, _varied(bare, wanted)):
        name = _name(one)
        cells[name] = _both(cells[name], one) if name in cells else one
    return Study(recipe.name, tuple(cells.values()), tuple(_leaks(cells.values())))


def _replicates(sweep: SweepSection) -> list[dict[str, Any]]:
    return [dict.fromkeys(REPLICATED, seed) for seed in sweep.replicates] or [{}]


def _control(family: Axes) -> Axes:
    crossed = {
        key: values for key, values in family.items() if not key.startswith("train.") or key in CONTROLLED
    }
    return {**crossed, **{key: [value] for key, value in UNTRAITED.items()}}


def _combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _varied(recipe: Recipe, wanted: Iterable[dict[str, Any]]) -> Iterator[Recipe]:
    """The recipe with each of the changes.

    Checking is what takes the time, and most cells differ from another in nothing but a seed that was
    checked in a third.
    """
    checked: dict[str, Recipe] = {}
    tried: set[tuple[str, object]] = set()
    for changes in wanted:
        seeds = _seeds(changes)
        others = {key: value for key, value in changes.items() if key not in seeds}
        name = json.dumps([others, sorted(seeds)])  # a seed not named is the recipe's
        if name in checked and tried.issuperset(seeds.items()):
            yield _with_seeds(checked[name], seeds)
        else:
            checked[name] = vary(recipe, changes)
            tried.update(seeds.items())
            yield checked[name]


def _seeds(changes: Mapping[str, Any]) -> dict[str, int]:
    """The seeds among the changes; none where one sets a whole section and may set them, too."""
    if any(seed.startswith(f"{key}.") for seed in REPLICATED for key in changes):
        return {}
    return {key: changes[key] for key in REPLICATED if key in changes}


def _with_seeds(recipe: Recipe, seeds: Mapping[str, int]) -> Recipe:
    for key, seed in seeds.items():
        recipe = _put(recipe, key.split("."), seed)
    return recipe


def _put(section: SectionT, way: Sequence[str], value: object) -> SectionT:
    head, *rest = way
    below = _put(getattr(section, head), rest, value) if rest else value
    return section.model_copy(update={head: below})


def _that_count(recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes but for the rank of a method without one: its axis does not multiply full fine-tuning."""
    ranked = "train" in changes or changes.get("train.method", recipe.train.method) in RANKED
    return {key: value for key, value in changes.items() if ranked or key != "train.rank"}


def _once(wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(one): one for one in wanted}.values())  # their order counts, so it is kept


def _both(one: Cell, other: Cell) -> Cell:
    """Two cells of one name, which may differ in their gates, as one."""
    located = {digest(step): step for step in (*one.chain.locate, *other.chain.locate)}
    return replace(other, chain=replace(other.chain, locate=tuple(located.values())))


_Name = tuple[str, str, str]


def _name(one: Cell) -> _Name:
    """Cells with equal names are one: what was written differently may resolve to the same."""
    return (one.recipe.trait.category, one.recipe.trait.target, digest(one.chain.eval))


def _leaks(cells: Iterable[Cell]) -> Iterator[LeakStep]:
    """The rows of every teacher with a trait beside its control's, each data set once."""
    students = {digest(one.chain.filter): one for one in cells if one.role == "student"}
    for one in students.values():
        control, trait = chain(vary(one.recipe, UNTRAITED)), one.recipe.trait
        target = load_item(trait.category, trait.target)
        yield LeakStep(LeakSpec(target=target), (one.chain.filter, control.filter), one.chain.filter.title)
