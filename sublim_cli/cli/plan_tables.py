"""A forecast in words: tables for the terminal, one document for machines. Pure, but for the free disk."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sublim_cli.artifacts.step import digest
from sublim_cli.recipe.resolve import RANKED
from sublim_cli.recipe.schema import Recipe
from sublim_cli.report.claims.power import TRUTHS, Power, RunSpread
from sublim_cli.report.claims.simulate import TOTAL
from sublim_cli.stats import Interval
from sublim_cli.sweep.forecast import Forecast, Planned, PlannedCell
from sublim_cli.wording import NOTHING, count, duration, listed

CHANGES = 12
"""Lines of changes that a terminal shows; `--json` has all."""


@dataclass(frozen=True)
class Told:
    """A table in words."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: bool = True


def headline(recipe: Recipe, seen: Forecast) -> str:
    """Such as `demo on micro: 10 cells (8 students, 2 controls), 26 steps of which 6 are built`."""
    controls = sum(one.cell.role == "control" for one in seen.cells)
    students = len(seen.cells) - controls
    who = listed([count(students, "student"), *([count(controls, "control")] if controls else [])])
    built = len(seen.steps) - len(seen.new)
    work = f"{len(seen.new)} to build" if seen.new else "nothing to do"
    return (
        f"{recipe.name} on {recipe.model}: {who} in {count(len(seen.steps), 'step')}; {built} built, {work}"
    )


def tables(seen: Forecast, power: Sequence[Power], effect: float) -> Iterator[Told]:
    """What there is to say, most wanted first; a table without rows is left out."""
    every = [_steps(seen), _cells(seen), _changes(seen), _power(power, effect)]
    yield from (one for one in every if one.rows)


def caption(seen: Forecast, out: Path) -> str:
    """The totals in a sentence or two."""
    if not seen.new:
        return f"All of it is in {out}; `sublim report` shows it"
    if len(seen.unknown) == len(seen.new):
        return "What the new steps take is not known: no record of the store is like them"
    least = "at least " if seen.unknown else ""
    open_ = f" {count(len(seen.unknown), 'step')} of unknown cost not counted." if seen.unknown else ""
    return (
        f"In all {least}{duration(seen.seconds)} of work, {least}{duration(seen.elapsed)} with "
        f"{count(seen.workers, 'worker')}; up to {_mib(seen.memory)} a worker; {_bytes(seen.disk)} of the "
        f"{_bytes(_free(out))} free in {out}.{open_}"
    )


def _steps(seen: Forecast) -> Told:
    groups: dict[str, list[Planned]] = {}
    for one in seen.steps:
        groups.setdefault(_what(one), []).append(one)
    rows = [
        (name, str(sum(one.cells for one in each)) if each[0].cells else "", *_counted(each), *_cost(each))
        for name, each in groups.items()
    ]
    return Told(
        "Steps in their order",
        ("", "for cells", "built", "new", "each", "memory", "disk", "known from"),
        rows if seen.new else [],
    )


def _what(one: Planned) -> str:
    """A step's kind; of a training also how."""
    if one.step.kind == "eval" and not one.step.inputs:
        return "eval of the base"
    if one.step.kind != "train":
        return one.step.kind
    train = one.step.spec.model_dump()["train"]
    return f"train {train['method']}" + (f" r{train['rank']}" if train["method"] in RANKED else "")


def _counted(steps: Sequence[Planned]) -> tuple[str, str]:
    built = sum(one.built for one in steps)
    return str(built), str(len(steps) - built)


def _cost(steps: Sequence[Planned]) -> tuple[str, str, str, str]:
    """Mean time, highest memory and mean disk of the new ones, and where the figures come from."""
    costs = [one.cost for one in steps if not one.built and one.cost]
    if not costs:
        return (
            ("", "", "", "")
            if all(one.built for one in steps)
            else (NOTHING, NOTHING, NOTHING, "nothing yet")
        )
    sources = dict.fromkeys(
        "a probe" if one.source == "probe" else count(one.records, _ONE[one.source]) for one in costs
    )
    return (
        duration(sum(one.seconds for one in costs) / len(costs)),
        _mib(max(one.memory for one in costs)),
        _bytes(sum(one.disk for one in costs) / len(costs)),
        listed(list(sources)),
    )


_ONE = {"like runs": "like run", "other settings": "other run"}


def _cells(seen: Forecast) -> Told:
    groups: dict[str, list[PlannedCell]] = {}
    for one in seen.cells:
        groups.setdefault(_condition(one), []).append(one)
    return Told(
        "Cells",
        ("", "cells", "built", "new", "each", "memory"),
        [(name, *_cell(each)) for name, each in groups.items()] if seen.new else [],
        caption="each: its training and its scores",
    )


def _condition(one: PlannedCell) -> str:
    """What cells have in common that differ in seeds and trait."""
    teacher, student = (_SEED.sub("", step.title) for step in (one.cell.chain.generate, one.cell.chain.train))
    return f"{one.cell.role} {student.removeprefix(teacher).strip()}"


_SEED = re.compile(r"( data)? seed \d+$")


def _cell(cells: Sequence[PlannedCell]) -> tuple[str, str, str, str, str]:
    new = [one for one in cells if one.new]
    costs = [[step.cost for step in one.own if step.cost] for one in new]
    known = [one for one in costs if one]
    if not known:
        return str(len(cells)), str(len(cells) - len(new)), str(len(new)), NOTHING if new else "", ""
    seconds = sum(cost.seconds for one in known for cost in one) / len(known)
    memory = max(cost.memory for one in known for cost in one)
    return str(len(cells)), str(len(cells) - len(new)), str(len(new)), duration(seconds), _mib(memory)


def _changes(seen: Forecast) -> Told:
    """The fields by which new steps differ from what the store holds."""
    found: dict[tuple[str, bool], list[str]] = {}
    follow = 0
    for one in seen.new:
        if one.difference and one.difference.changes:
            text = ", ".join(map(str, one.difference.changes))
            found.setdefault((text, one.difference.kept), []).append(one.step.kind)
        elif one.difference:
            follow += 1
    rows = [
        (text, _kinds(kinds), "stays in use" if kept else "falls out of use")
        for (text, kept), kinds in sorted(found.items(), key=lambda item: (item[0][1], -len(item[1])))
    ]
    more = [f"{count(len(rows) - CHANGES, 'other change')} (--json has all)"] if len(rows) > CHANGES else []
    more += [f"{count(follow, 'new step')} only because of the steps before"] if follow else []
    return Told(
        "What differs from the nearest artifact of the store",
        ("field", "new steps", "the old one"),
        rows[:CHANGES],
        caption="; ".join(more),
        numbers=False,
    )


def _kinds(kinds: Sequence[str]) -> str:
    return listed([f"{kinds.count(one)} {one}" for one in dict.fromkeys(kinds)])


def _power(power: Sequence[Power], effect: float) -> Told:
    rows = []
    for one in power:
        name = f"{one.number} {one.claim.kind}, {count(one.trainings, 'run')}"
        holds, fails = TRUTHS[one.claim.kind]
        rows.append((name, holds, "supported", _share(one.holds)))
        rows.append(("", fails, "refuted", _share(one.fails)))
    return Told(
        f"Power at an effect of {effect:g} in P(target)",
        ("claim", "what is true", "right verdict", "found"),
        rows,
        caption=". ".join([*_lacks(power), *_strays(power)]),
        numbers=False,
    )


def _share(share: Interval | None) -> str:
    return NOTHING if share is None else f"{share.mean:.2f}"


def _lacks(power: Sequence[Power]) -> Iterator[str]:
    for one in power:
        if one.lacks:
            yield f"{one.number} cannot be judged: the study lacks {listed(one.lacks[:3])}"


def _strays(power: Sequence[Power]) -> Iterator[str]:
    groups: dict[RunSpread, list[str]] = {}
    for one in power:
        groups.setdefault(one.spread, []).append(one.number)
    for spread, numbers in groups.items():
        where = (
            "assumed, as the project does; the store has no two runs of a condition"
            if spread.runs is None
            else f"measured in {spread.runs} runs of the store"
        )
        yield f"{listed(numbers)}: runs of a condition stray by {spread.value:.3g} ({where})"


def _mib(mebibytes: float) -> str:
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def _bytes(size: float) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size / 1e3:.0f} kB"


def _free(out: Path) -> int:
    """Free bytes where `out` is or would be."""
    there = next(one for one in (out.absolute(), *out.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def document(
    recipe: Recipe, seen: Forecast, power: Sequence[Power], effect: float, failures: Sequence[str], out: Path
) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "store": str(out),
        "workers": seen.workers,
        "steps": [_step(place, one) for place, one in enumerate(seen.steps)],
        "cells": [_plain_cell(one) for one in seen.cells],
        "total": {
            "steps": len(seen.steps),
            "built": len(seen.steps) - len(seen.new),
            "new": len(seen.new),
            "unknown": len(seen.unknown),
            "seconds": seen.seconds,
            "elapsed": seen.elapsed,
            "memory_mib": seen.memory,
            "disk": seen.disk,
            "disk_free": _free(out),
        },
        "not_measured": list(failures),
        "power": {"effect": effect, "assumed_spread": TOTAL, "claims": [_plain_power(one) for one in power]},
    }


def _step(place: int, one: Planned) -> dict[str, Any]:
    near = one.difference
    return {
        "order": place,
        "kind": one.step.kind,
        "digest": one.digest,
        "label": one.step.label,
        "inputs": [digest(needed) for needed in one.step.inputs],
        "built": one.built,
        "cells": one.cells,
        "cost": asdict(one.cost) if one.cost else None,
        "nearest": near
        and {
            "digest": near.nearest,
            "changes": [asdict(change) for change in near.changes],
            "inputs_differ": near.inputs,
            "in_study": near.kept,
        },
    }


def _plain_cell(one: PlannedCell) -> dict[str, Any]:
    costs = [step.cost for step in one.own if step.cost]
    return {
        "role": one.cell.role,
        "name": one.cell.chain.train.title,
        "steps": [step.digest for step in one.steps],
        "built": not one.new,
        "own_seconds": sum(cost.seconds for cost in costs),
        "memory_mib": max((step.cost.memory for step in one.new if step.cost), default=None),
        "own_disk": sum(cost.disk for cost in costs),
        "unknown": sum(step.cost is None for step in one.new),
    }


def _plain_power(one: Power) -> dict[str, Any]:
    supported, refuted = TRUTHS[one.claim.kind]
    return {
        "number": one.number,
        "statement": one.statement,
        "claim": one.claim.model_dump(mode="json"),
        "trainings": one.trainings,
        "spread": asdict(one.spread),
        "supported": {"where": supported, "share": one.holds and asdict(one.holds)},
        "refuted": {"where": refuted, "share": one.fails and asdict(one.fails)},
        "lacks": list(one.lacks),
    }
