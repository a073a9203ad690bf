"""Studies drawn from a known truth, as runs that `claims.evaluate` can judge. Pure.

A run's P(target) is the mean over its questions of

    base + effect + seed + data set + training + training in this context + training at this question

where the seed's part is shared by every student and control of that seed, the data set's by every student
that learned from it, and the training's by all contexts it is asked in. Nothing is cut at 0 or 1: the truth
must hold exactly.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import AskedModel, Run

BASE = 0.3
SPREAD = {"seed": 0.015, "data": 0.01, "training": 0.015, "context": 0.01}
"""Standard deviations of P(target)."""
QUESTIONS, QUESTION_SPREAD = 50, 0.1
"""Questions of a run, and the standard deviation of a training's part at each question."""

TOTAL = 0.03
"""The standard deviation of a run's P(target) around its truth in all: `total_spread`, rounded.

The spread between seeds that the project plans for until a study has measured its own.
"""

RANDOM_SETS, SET_SPREAD = 5, 0.1
"""Random sets for each gate, and the standard deviation of their shares."""

Shares = tuple[float, float, float]
"""Of a student's effect: kept by the named set alone, lost without it, and either of random sets."""

_SHARED = {
    "seed": ("target", "train_seed"),
    "data": ("target", "role", "data_seed"),
    "training": (
        *("target", "role", "method", "rank", "learning_rate", "precision", "settings", "train_context"),
        *("train_seed", "data_seed"),
    ),
}
"""Runs that agree in these columns share that part."""


def total_spread(*, data: bool) -> float:
    """The standard deviation of a run around its truth, with or without what data sets add."""
    parts = [spread for name, spread in SPREAD.items() if data or name != "data"]
    return math.hypot(*parts, QUESTION_SPREAD / math.sqrt(QUESTIONS))


def shared_by(runs: Sequence[Run], *columns: str) -> NDArray[np.int64]:
    """For each run the number of its group: runs of one group agree in these columns."""
    keys = [tuple(getattr(run, column) for column in columns) for run in runs]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])


def _set_columns(run: Run, columns: Iterable[Field[Any]]) -> dict[str, Any]:
    """The columns that differ from their defaults: the fewer are passed, the faster a row is made."""
    return {f.name: value for f in columns if (value := getattr(run, f.name)) != f.default}


class SimulatedStudy:
    """The runs of a study, whose probabilities are drawn anew for every study."""

    def __init__(self, runs: Sequence[Run], effects: Sequence[float], scale: float, *, data: bool) -> None:
        """Take the runs of a plan and the true effect of each; `scale` multiplies all standard deviations.

        `data`: whether data sets differ. They do not in a study with one, which is judged for that one.
        """
        drawn = {"p_target", "p_target_base", "number_loss", "broken"}
        planned = [f for f in fields(Run) if f.name not in drawn]
        self._columns = [_set_columns(run, planned) for run in runs]
        self._effects = np.asarray(effects, dtype=float)
        self._scale = scale
        self._parts = {name: shared_by(runs, *columns) for name, columns in _SHARED.items()}
        self._parts["context"] = np.arange(len(runs))
        if not data:
            del self._parts["data"]

    def __len__(self) -> int:
        return len(self._columns)

    def draw(self, generator: np.random.Generator) -> list[Run]:
        """The runs of one study."""
        return self.runs(self.draw_p_target(generator))

    def draw_p_target(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """P(target) of each run in one study."""
        noise = generator.normal(0, QUESTION_SPREAD, (len(self), QUESTIONS)).mean(axis=1)
        for name, groups in self._parts.items():
            noise += generator.normal(0, SPREAD[name], groups.max() + 1)[groups]
        p_target: NDArray[np.float64] = BASE + self._effects + self._scale * noise
        return p_target

    def runs(
        self, p_target: NDArray[np.float64], number_loss: NDArray[np.float64] | None = None
    ) -> list[Run]:
        """The planned runs with these values."""
        losses = [None] * len(self) if number_loss is None else number_loss.tolist()
        return [
            Run(**columns, p_target=p, p_target_base=BASE, number_loss=loss)
            for columns, p, loss in zip(self._columns, p_target.tolist(), losses, strict=True)
        ]

    def located(
        self,
        generator: np.random.Generator,
        runs: Sequence[Run],
        shares: Callable[[str], Shares],
        parts: tuple[str, str],
    ) -> list[LocatedRun]:
        """The gated students of the drawn `runs`: each set has its share of a run's effect, and noise.

        `shares` returns those of a target's students; `parts` names the gates, the set alone and all but it.
        """
        located = []
        for run in runs:
            if run.role == "control" or run.p_target is None:
                continue
            kept, lost, random = shares(run.target)
            model = _set_columns(run, fields(AskedModel))
            for part, measure, share in zip(parts, ("kept", "lost"), (kept, lost), strict=True):
                set_shares = np.array([share, *generator.normal(random, SET_SPREAD, RANDOM_SETS)])
                noise = self._scale * generator.normal(0, SPREAD["context"], len(set_shares))
                amounts = set_shares * (run.p_target - BASE) + noise
                located += [
                    LocatedRun(
                        **model,
                        part=part,
                        measure=measure,
                        control=number or None,
                        amount=amount,
                        effect=run.p_target - BASE,
                    )
                    for number, amount in enumerate(amounts.tolist())
                ]
        return located
