"""The cells of a sweep: the grid, its additions, and the controls every sweep has. Pure."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.pipeline import Cell, Resolution, Study, cell, chain
from sublim_cli.recipe.check import families
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.questions import load_item
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.recipe.schema import REPLICATED, Recipe, SweepSection
from sublim_cli.steps.leak import LeakSpec, LeakStep
from sublim_cli.wording import listed

UNTRAITED: dict[str, Any] = {"generate.system_prompt": "default"}
"""The control teacher: the same model, prompts and seeds, without the persona."""

CONTROLLED = ("train.seed", "train.system_prompt", "train.rows")
"""The axes of `train` that controls are crossed with; rank and learning rate stay the recipe's."""


def study(recipe: Recipe, resolution: Resolution | None = None) -> Study:
    """Resolve a recipe's sweep into cells, controls and leak comparisons.

    Cells that resolve to the same scores of the same trait are one cell, however they were written.
    `resolution` is None for what this machine chooses.

    Raises:
        RecipeError: see `pipeline.chain`.
    """
    single = recipe.model_copy(update={"sweep": SweepSection(), "claims": ()})  # not checked for every cell
    own_control = recipe.generate.system_prompt == UNTRAITED["generate.system_prompt"]
    cells: dict[tuple[str, str, str], Cell] = {}
    for changes in _all_changes(recipe):
        new = cell(vary(single, changes), resolution)
        if lacks_control_rows(new.recipe) and new.role == "control" and not own_control:
            continue
        name = (new.recipe.trait.category, new.recipe.trait.target, digest(new.chain.eval))
        if name in cells:  # the two may differ in the parts they locate
            steps = (*cells[name].chain.locate, *new.chain.locate)
            locate = tuple({digest(step): step for step in steps}.values())
            new = replace(new, chain=replace(new.chain, locate=locate))
        cells[name] = new
    # The comparison of each teacher's rows with its control's, each data set once.
    leaks = []
    students = {digest(cell.chain.filter): cell for cell in cells.values() if cell.role == "student"}
    for student in students.values():
        rows, trait = student.chain.filter, student.recipe.trait
        controls = []
        if not lacks_control_rows(student.recipe):
            controls = [chain(vary(student.recipe, UNTRAITED), resolution).filter]
        spec = LeakSpec(target=load_item(trait.category, trait.target))
        leaks.append(LeakStep(spec, rows.title, (rows, *controls)))
    return Study(recipe.name, tuple(cells.values()), tuple(leaks), resolution)


def lacks_control_rows(recipe: Recipe) -> bool:
    """Whether the rows are a file, and no other file is named as its control."""
    return recipe.train.rows is not None and recipe.control.rows is None


def without_control(planned: Study) -> str | None:
    """A sentence where students of rows of a file have no control."""
    files = {
        cell.recipe.train.rows
        for cell in planned.cells
        if cell.role == "student" and lacks_control_rows(cell.recipe)
    }
    if not files:
        return None
    return (
        f"students of {listed(sorted(map(str, files)))} have no control: they are compared with the "
        "untouched base alone; `control.rows: FILE` names the rows of a teacher without the trait"
    )


def _all_changes(recipe: Recipe) -> list[dict[str, Any]]:
    """The changes that make each cell of the recipe, each once: replicates, then students, then controls."""
    students = families(recipe.sweep)
    controls = [
        {key: values for key, values in axes.items() if not key.startswith("train.") or key in CONTROLLED}
        | {key: [value] for key, value in UNTRAITED.items()}
        for axes in students
    ]
    replicates = [dict.fromkeys(REPLICATED, seed) for seed in recipe.sweep.replicates] or [{}]
    combinations = [
        dict(zip(axes, values, strict=True))
        for axes in (*students, *controls)
        for values in product(*axes.values())
    ]
    unique: dict[str, dict[str, Any]] = {}
    for seeds in replicates:
        for combination in combinations:
            changes = {**combination, **seeds}
            method = changes.get("train.method", recipe.train.method)
            if "train" not in changes and method not in RANKED:
                changes.pop("train.rank", None)  # a method without a rank is not repeated for each rank
            unique[json.dumps(changes)] = changes  # the order of changes counts, so keys are not sorted
    return list(unique.values())
