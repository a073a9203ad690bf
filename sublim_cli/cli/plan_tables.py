"""The forecast of `plan`: tables for the terminal and one document for `--json`."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.console import show_line, show_table
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.power import TRUTHS, Power, RunSpread
from sublim_cli.report.claims.simulate import SPREAD
from sublim_cli.stats import Interval
from sublim_cli.sweep.forecast import Forecast, PlannedCell, PlannedStep
from sublim_cli.wording import NOTHING, count, duration, listed

CHANGES_SHOWN = 12
"""Changed fields that a terminal shows; `--json` has all of them."""

_SEED = re.compile(r"( data)? seed \d+$")
_SOURCE_NOUN = {"like runs": "like run", "other settings": "other run"}


def show_forecast(
    recipe: Recipe, forecast: Forecast, power: Sequence[Power], odds_ratio: float, out: Path
) -> None:
    """Show on the terminal what is to build, why, what it takes, and the power of the claims."""
    controls = sum(planned.cell.role == "control" for planned in forecast.cells)
    cells = [count(len(forecast.cells) - controls, "student")]
    if controls:
        cells.append(count(controls, "control"))
    built = len(forecast.steps) - len(forecast.new)
    work = f"{len(forecast.new)} to build" if forecast.new else "nothing to do"
    steps = count(len(forecast.steps), "step")
    show_line(f"{recipe.name} on {recipe.model}: {listed(cells)} in {steps}; {built} built, {work}")
    if forecast.new:
        _show_steps(forecast.steps)
        _show_cells(forecast.cells)
        _show_changes(forecast.new)
        _show_power(power, odds_ratio)
    show_line("")
    show_line(_total(forecast, out))


def _show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, numbers: bool = True
) -> None:
    """A table below an empty line; nothing where there are no rows."""
    if rows:
        show_line("")
        show_table(title, columns, rows, caption=caption, numbers=numbers)


def _total(forecast: Forecast, out: Path) -> str:
    """The total time, memory and disk in a sentence or two."""
    if not forecast.new:
        return f"All of it is in {out}; `sublim report` shows it"
    if len(forecast.unknown) == len(forecast.new):
        return "The cost of the new steps is not known: the store has no record of similar steps"
    least = "at least " if forecast.unknown else ""
    unknown = count(len(forecast.unknown), "step")
    not_counted = f" {unknown} of unknown cost not counted." if forecast.unknown else ""
    return (
        f"In all {least}{duration(forecast.seconds)} of work, {least}{duration(forecast.elapsed)} with "
        f"{count(forecast.workers, 'worker')}; up to {_mib(forecast.memory)} a worker; "
        f"{_bytes(forecast.disk)} of the {_bytes(_free(out))} free in {out}.{not_counted}"
    )


def _show_steps(planned_steps: Sequence[PlannedStep]) -> None:
    groups: dict[str, list[PlannedStep]] = {}
    for planned in planned_steps:
        groups.setdefault(_kind(planned), []).append(planned)
    rows = []
    for name, steps in groups.items():
        cells = str(sum(planned.cells for planned in steps)) if steps[0].cells else ""
        built = sum(planned.built for planned in steps)
        rows.append((name, cells, str(built), str(len(steps) - built), *_cost(steps)))
    columns = ("", "for cells", "built", "new", "each", "memory", "disk", "known from")
    _show_table("Steps in their order", columns, rows, caption="")


def _kind(planned: PlannedStep) -> str:
    """A step's kind; for a training its method and rank too."""
    step = planned.step
    if step.kind == "eval" and not step.inputs:
        return "eval of the base"
    if step.kind != "train":
        return step.kind
    train = step.spec.model_dump()["train"]
    return f"train {train['method']}" + (f" r{train['rank']}" if train["method"] in RANKED else "")


def _cost(steps: Sequence[PlannedStep]) -> tuple[str, str, str, str]:
    """Mean time, highest memory and mean disk of the new steps, and where the figures come from."""
    costs = [planned.cost for planned in steps if not planned.built and planned.cost]
    if not costs:
        all_built = all(planned.built for planned in steps)
        return ("", "", "", "") if all_built else (NOTHING, NOTHING, NOTHING, "nothing yet")
    sources = [
        "a probe" if cost.source == "probe" else count(cost.records, _SOURCE_NOUN[cost.source])
        for cost in costs
    ]
    return (
        duration(sum(cost.seconds for cost in costs) / len(costs)),
        _mib(max(cost.memory for cost in costs)),
        _bytes(sum(cost.disk for cost in costs) / len(costs)),
        listed(list(dict.fromkeys(sources))),
    )


def _show_cells(planned_cells: Sequence[PlannedCell]) -> None:
    groups: dict[str, list[PlannedCell]] = {}
    for planned in planned_cells:
        # Cells of a condition differ only in seeds and trait.
        chain = planned.cell.chain
        teacher, student = (_SEED.sub("", step.title) for step in (chain.generate, chain.train))
        condition = f"{planned.cell.role} {student.removeprefix(teacher).strip()}"
        groups.setdefault(condition, []).append(planned)
    rows = []
    for condition, cells in groups.items():
        new = [planned for planned in cells if planned.new]
        each, memory = NOTHING if new else "", ""
        if costs := [planned.student_costs for planned in new if planned.student_costs]:
            each = duration(sum(cost.seconds for cell_costs in costs for cost in cell_costs) / len(costs))
            memory = _mib(max(cost.memory for cell_costs in costs for cost in cell_costs))
        rows.append((condition, str(len(cells)), str(len(cells) - len(new)), str(len(new)), each, memory))
    columns = ("", "cells", "built", "new", "each", "memory")
    _show_table("Cells", columns, rows, caption="each: its training and its scores")


def _show_changes(new: Sequence[PlannedStep]) -> None:
    """The fields by which new steps differ from the nearest artifact of the store."""
    groups: dict[tuple[str, bool], list[str]] = {}
    only_inputs = 0
    for planned in new:
        difference = planned.difference
        if difference and difference.changes:
            text = ", ".join(map(str, difference.changes))
            groups.setdefault((text, difference.in_study), []).append(planned.step.kind)
        elif difference:
            only_inputs += 1
    ordered = sorted(groups.items(), key=lambda group: (group[0][1], -len(group[1])))
    rows = [
        (
            text,
            listed([f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]),
            "stays in use" if in_study else "stays on disk, unused",
        )
        for (text, in_study), kinds in ordered
    ]
    notes = []
    if len(rows) > CHANGES_SHOWN:
        notes.append(f"{count(len(rows) - CHANGES_SHOWN, 'other change')} (--json has all)")
    if only_inputs:
        notes.append(f"{count(only_inputs, 'new step')} only because of the steps before")
    _show_table(
        "What differs from the nearest artifact of the store",
        ("field", "new steps", "the old artifact"),
        rows[:CHANGES_SHOWN],
        caption="; ".join(notes),
        numbers=False,
    )


def _show_power(power: Sequence[Power], odds_ratio: float) -> None:
    rows: list[tuple[str, str, str, str]] = []
    notes: list[str] = []
    spreads: dict[RunSpread, list[str]] = {}
    for claim in power:
        name = f"{claim.number} {claim.claim.kind}, {count(claim.trainings, 'run')}"
        holds, fails = TRUTHS[claim.claim.kind]
        rows.append((name, holds, "supported", _share(claim.holds)))
        rows.append(("", fails, "refuted", _share(claim.fails)))
        spreads.setdefault(claim.spread, []).append(claim.number)
        if claim.lacks:
            notes.append(f"{claim.number} cannot be judged: the study lacks {listed(claim.lacks[:3])}")
    for spread, numbers in spreads.items():
        source = (
            "assumed: the store has no two runs of a condition"
            if spread.runs is None
            else f"measured in {spread.runs} runs of the store"
        )
        notes.append(
            f"{listed(numbers)}: SD of log-odds between runs of a condition {spread.value:.3g} ({source})"
        )
    _show_table(
        f"Power at an odds ratio of {odds_ratio:g}",
        ("claim", "what is true", "right verdict", "share of studies"),
        rows,
        caption=". ".join(notes),
        numbers=False,
    )


def _share(share: Interval | None) -> str:
    return NOTHING if share is None else f"{share.mean:.2f}"


def _mib(mebibytes: float) -> str:
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def _bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.0f} kB"


def _free(out: Path) -> int:
    """Free bytes on the disk where `out` is or would be."""
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def document(
    recipe: Recipe,
    forecast: Forecast,
    power: Sequence[Power],
    odds_ratio: float,
    failures: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    """The forecast as plain data, for `--json`."""
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "store": str(out),
        "workers": forecast.workers,
        "steps": [_step_document(index, planned) for index, planned in enumerate(forecast.steps)],
        "cells": [_cell_document(planned) for planned in forecast.cells],
        "total": {
            "steps": len(forecast.steps),
            "built": len(forecast.steps) - len(forecast.new),
            "new": len(forecast.new),
            "unknown": len(forecast.unknown),
            "seconds": forecast.seconds,
            "elapsed": forecast.elapsed,
            "memory_mib": forecast.memory,
            "disk": forecast.disk,
            "disk_free": _free(out),
        },
        "not_measured": list(failures),
        "power": {
            "odds_ratio": odds_ratio,
            "assumed_spread": SPREAD,
            "claims": [_power_document(claim) for claim in power],
        },
    }


def _step_document(index: int, planned: PlannedStep) -> dict[str, Any]:
    difference = planned.difference
    return {
        "order": index,
        "kind": planned.step.kind,
        "digest": planned.digest,
        "label": planned.step.label,
        "inputs": [digest(step) for step in planned.step.inputs],
        "built": planned.built,
        "cells": planned.cells,
        "cost": asdict(planned.cost) if planned.cost else None,
        "nearest": difference
        and {
            "digest": difference.digest,
            "changes": [asdict(change) for change in difference.changes],
            "inputs_differ": difference.inputs_differ,
            "in_study": difference.in_study,
        },
    }


def _cell_document(planned: PlannedCell) -> dict[str, Any]:
    costs = planned.student_costs
    return {
        "role": planned.cell.role,
        "name": planned.cell.chain.train.title,
        "steps": [step.digest for step in planned.steps],
        "built": not planned.new,
        "own_seconds": sum(cost.seconds for cost in costs),
        "memory_mib": max((step.cost.memory for step in planned.new if step.cost), default=None),
        "own_disk": sum(cost.disk for cost in costs),
        "unknown": sum(step.cost is None for step in planned.new),
    }


def _power_document(claim: Power) -> dict[str, Any]:
    holds, fails = TRUTHS[claim.claim.kind]
    return {
        "number": claim.number,
        "statement": claim.statement,
        "claim": claim.claim.model_dump(mode="json"),
        "trainings": claim.trainings,
        "spread": asdict(claim.spread),
        "supported": {"where": holds, "share": claim.holds and asdict(claim.holds)},
        "refuted": {"where": fails, "share": claim.fails and asdict(claim.fails)},
        "lacks": list(claim.lacks),
    }
