"""Where in the prompt a student's effect sits: parts of it by run, and the share of the effect each one has.

The effect of a run is P(target) of the whole student minus that of its base, in the context it is asked in.
A gate `X_only` keeps (P - base) of it, a gate `no_X` loses (student - P); the same for patches. Beside every
set stand random ones of as many tokens, whose mean is taken in each run.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sublim_cli.artifacts.step import digest
from sublim_cli.models.positions import is_only_set
from sublim_cli.pipeline import Cell, Study
from sublim_cli.preference.score import broken_reason
from sublim_cli.recipe.schema import MARGIN
from sublim_cli.report.tables.conditions import Condition, Run, condition_of, records, telling
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.run_rows import who
from sublim_cli.report.tables.varied_keys import VariedKeys
from sublim_cli.stats import Interval, Seeds, estimate, ratio_interval
from sublim_cli.steps.files import LOCATED
from sublim_cli.steps.locate import ALL_TOKENS, NO_TOKENS, LocateStep, part_name
from sublim_cli.wording import condition_label

COLUMNS = {
    "name": "str",
    "role": "str",
    "category": "str",
    "target": "str",
    "method": "str",
    "rank": "Int64",
    "alpha": "float64",
    "learning_rate": "float64",
    "precision": "str",
    "train_context": "str",
    "train_seed": "Int64",
    "data_seed": "Int64",
    "settings": "str",
    "eval_context": "str",
    "part": "str",  # as the recipe names the gate or patch
    "measure": "str",  # kept | lost: what its share is of
    "control": "Int64",  # the random set's number, null for the named set
    "tokens": "float64",  # of the set X, mean over questions
    "prompt_tokens": "float64",
    "p_target": "float64",  # mean over questions, with the part alone or without it
    "p_target_student": "float64",
    "p_target_base": "float64",
    "amount": "float64",  # of the effect, kept or lost
    "effect": "float64",  # student minus base
    "p_any": "float64",
    "unresolved": "float64",
    "broken": "str",  # why the whole student cannot be read, or empty
    "missing": "str",
    "train_digest": "str",
    "locate_digest": "str",
}
"""One row for every student, context and set of tokens, random ones included: `localisation.parquet`."""


@dataclass(frozen=True)
class RunAmount:
    """One run: how much of its effect the set has, and random sets in its place (None: none were drawn)."""

    seeds: Seeds
    effect: float
    amount: float
    random: float | None


@dataclass(frozen=True)
class Share:
    """The share of an effect that a set of tokens has, over the runs of one condition in one context.

    The intervals are Fieller's at 95 %, over runs. `share`, `random` (of sets of as many tokens) and `beyond`
    (their difference) are None where there is no effect to locate: its own interval holds zero, or a
    single run's is below `MARGIN`.
    """

    category: str
    target: str
    condition: Condition
    label: str
    eval_context: str
    part: str
    measure: str
    tokens: float | None
    prompt_tokens: float | None
    n: int
    broken: int
    missing: int
    effect: Interval | None
    p_target: float | None
    p_any: float | None
    share: Interval | None
    random: Interval | None
    beyond: Interval | None
    points: tuple[RunAmount, ...]

    @property
    def state(self) -> str:
        """`ok`, or why there is no share."""
        if not self.n:
            return "broken" if self.broken else "missing"
        return "ok" if self.share else "effect not told from zero"


def located_table(study: Study, settings: Sequence[VariedKeys], shelf: StoreReader) -> pd.DataFrame:
    """The parts of every student of a study that the store holds, and which it lacks: `COLUMNS`."""
    rows = [
        {**who(cell), "settings": own.text, **one}
        for cell, own in zip(study.cells, settings, strict=True)
        if cell.chain.locate
        for one in _cell(cell, shelf)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def shares(located: Sequence[Run]) -> list[Share]:
    """The rows of such a table summarised: by trait and condition, then contexts and sets as they come."""
    places: dict[Any, int] = {}
    for row in located:
        places.setdefault((row["category"], row["target"]), len(places))
        places.setdefault(row["eval_context"], len(places))
        places.setdefault(row["part"], len(places))
    conditions = {condition_of(one) for one in located}

    def order(row: Run) -> tuple[Any, ...]:
        trait = places[row["category"], row["target"]]
        return trait, condition_of(row).order, places[row["eval_context"]], places[row["part"]]

    grouped = groupby(sorted(located, key=order), key=order)
    return [_share(list(rows), conditions) for _, rows in grouped]


@dataclass(frozen=True)
class ShareTable:
    """The table of one condition asked in one context."""

    title: str
    effect: Interval | None
    rows: tuple[Share, ...]

    @property
    def locatable(self) -> bool:
        """Whether any set has a share; all of a table have the same runs and effect."""
        return any(one.share for one in self.rows)


def share_tables(located: pd.DataFrame) -> list[ShareTable]:
    """Every table of shares, in the report's order."""
    found: dict[tuple[str, str, Condition, str], list[Share]] = {}
    for one in shares(records(located)):
        found.setdefault((one.category, one.target, one.condition, one.eval_context), []).append(one)
    return [
        ShareTable(
            f"{rows[0].target}, {rows[0].label}, asked in {rows[0].eval_context}", rows[0].effect, tuple(rows)
        )
        for rows in found.values()
    ]


def shares_document(found: Iterable[Share]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [{**asdict(one), "state": one.state} for one in found]


def _cell(cell: Cell, shelf: StoreReader) -> Iterator[dict[str, Any]]:
    whole, *steps = cell.chain.locate
    target = cell.recipe.trait.target
    known = _means(whole, shelf, target)
    lost = shelf.losses(cell.chain.train)
    for step in steps:
        same = {**_what(step), "locate_digest": digest(step), "missing": ""}
        if missing := shelf.lacks(step) or shelf.lacks(whole):
            for context in step.spec.contexts:
                yield {**same, "eval_context": context.name, "broken": "", "missing": missing}
            continue
        for (asked, _, control), mean in _means(step, shelf, target).items():
            student, base = known[asked, ALL_TOKENS, None], known[asked, NO_TOKENS, None]
            yield {
                **same,
                **mean,
                **_against(same["measure"], mean, student, base),
                "eval_context": asked,
                "control": control,
                "broken": broken_reason(student["p_any"], base["p_any"], lost.after, lost.before),
            }


def _what(step: LocateStep) -> dict[str, str]:
    part = step.spec.part
    keeps = part is None or is_only_set(part.positions)
    return {"part": part_name(part), "measure": "kept" if keeps else "lost"}


def _against(
    measure: str, mean: Mapping[str, float], student: Mapping[str, float], base: Mapping[str, float]
) -> dict[str, float]:
    p, whole, nothing = mean["p_target"], student["p_target"], base["p_target"]
    return {
        "p_target_student": whole,
        "p_target_base": nothing,
        "amount": p - nothing if measure == "kept" else whole - p,
        "effect": whole - nothing,
    }


def _means(
    step: LocateStep, shelf: StoreReader, target: str
) -> dict[tuple[str, str, int | None], dict[str, float]]:
    """Means over the questions, by context, set and control; of a step that is not there none."""
    found = shelf.find(step)
    if found is None:
        return {}
    noted = shelf.notes.of(found, f"located {target}", lambda: {"sets": _sets(found.path / LOCATED, target)})
    return {
        (one["context"], one["set"], one["control"]): {name: one[name] for name in _MEANS}
        for one in noted["sets"]
    }


_MEANS = ("p_target", "p_any", "tokens", "prompt_tokens", "unresolved")


def _sets(path: Path, target: str) -> list[dict[str, Any]]:
    table = pq.read_table(path, use_threads=False)
    keys = ["context", "set", "control"]
    every = table.group_by(keys, use_threads=False).aggregate([("p", "sum")]).to_pylist()
    any_of = {tuple(row[key] for key in keys): row["p_sum"] for row in every}
    means = [(name, "mean") for name in ("p", "tokens", "prompt_tokens", "uncovered")]
    mine = table.filter(pc.equal(table["item"], target)).group_by(keys, use_threads=False)
    return [
        {key: row[key] for key in keys}
        | {
            "p_target": row["p_mean"],
            "p_any": any_of[tuple(row[key] for key in keys)] / row["p_count"],
            "tokens": row["tokens_mean"],
            "prompt_tokens": row["prompt_tokens_mean"],
            "unresolved": row["uncovered_mean"],
        }
        for row in mine.aggregate([*means, ("p", "count")]).to_pylist()
    ]


def _share(rows: Sequence[Run], conditions: set[Condition]) -> Share:
    first, condition = rows[0], condition_of(rows[0])
    named = [row for row in rows if row["control"] is None]
    there = [row for row in named if not row["missing"]]
    good = [row for row in there if not row["broken"]]
    points = sorted((_point(row, rows) for row in good), key=lambda one: one.seeds)
    effects, seeds = [one.effect for one in points], [one.seeds for one in points]
    amounts = [one.amount for one in points]
    drawn = [one.random for one in points if one.random is not None]
    beyond = [one.amount - one.random for one in points if one.random is not None]
    whole = len(drawn) == len(points)
    return Share(
        category=first["category"],
        target=first["target"],
        condition=condition,
        label=condition_label(
            first["role"], condition.method, condition.rank, telling(condition, conditions)
        ),
        eval_context=first["eval_context"],
        part=first["part"],
        measure=first["measure"],
        tokens=_mean(there, "tokens"),
        prompt_tokens=_mean(there, "prompt_tokens"),
        n=len(good),
        broken=len(there) - len(good),
        missing=len(named) - len(there),
        effect=estimate(effects, seeds).interval() if points else None,
        p_target=_mean(good, "p_target"),
        p_any=_mean(good, "p_any"),
        share=_of(amounts, effects, seeds),
        random=_of(drawn, effects, seeds) if whole else None,
        beyond=_of(beyond, effects, seeds) if whole else None,
        points=tuple(points),
    )


def _point(row: Run, rows: Sequence[Run]) -> RunAmount:
    drawn = [
        one["amount"]
        for one in rows
        if one["control"] is not None and one["locate_digest"] == row["locate_digest"]
    ]
    mean = sum(drawn) / len(drawn) if drawn else None
    return RunAmount((row["train_seed"], row["data_seed"]), row["effect"], row["amount"], mean)


def _of(amounts: Sequence[float], effects: Sequence[float], seeds: Sequence[Seeds]) -> Interval | None:
    if not effects or (len(effects) == 1 and abs(effects[0]) < MARGIN):
        return None
    return ratio_interval(amounts, effects, seeds)


def _mean(rows: Sequence[Run], column: str) -> float | None:
    return sum(row[column] for row in rows) / len(rows) if rows else None
