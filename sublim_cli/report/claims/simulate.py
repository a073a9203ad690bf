"""Studies drawn from a known truth, as runs tables that `report.claims` can judge. Pure.

A run's P(target) is the mean over its questions of

    base + effect + seed + data set + training + training in this context + training at this question

where the seed's part is shared by every student and control of that seed, the data set's by every student
that learned from it, and the training's by all contexts it is asked in. Nothing is cut at 0 or 1: the truth
must hold exactly.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.report.tables.conditions import Run

BASE = 0.3
SPREAD = {"seed": 0.015, "data": 0.01, "training": 0.015, "context": 0.01}
QUESTIONS, QUESTION_SPREAD = 50, 0.1
"""Fifty questions, each of which a training moves by this much of its own."""

TOTAL = 0.03
"""How far a run strays from its truth in all, as a standard deviation of P(target): `total_spread`, rounded.

The spread between seeds that the project plans for, until a study has measured its own.
"""

RANDOM_SETS, SET_SPREAD = 5, 0.1
"""Random sets beside each gate, and how much their shares differ by luck."""

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


class SimulatedStudy:
    """Runs whose probabilities are drawn again for every study."""

    def __init__(self, runs: Sequence[Run], effects: Sequence[float], scale: float, *, data: bool) -> None:
        """Take the rows of a runs table and the true effect of each.

        Args:
            scale: runs stray this many times as far as `SPREAD` says.
            data: whether data sets differ; a study with one speaks of that one, and there they do not.
        """
        self.runs: list[dict[str, Any]] = [{**one, "p_target_base": BASE, "broken": ""} for one in runs]
        self._effects = np.asarray(effects, dtype=float)
        self._scale = scale
        self._parts = {name: self._groups(*columns) for name, columns in _SHARED.items()}
        self._parts["context"] = np.arange(len(runs))
        if not data:
            del self._parts["data"]

    def _groups(self, *names: str) -> NDArray[np.int64]:
        keys = [tuple(row[name] for name in names) for row in self.runs]
        places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return np.array([places[key] for key in keys])

    def draw(self, generator: np.random.Generator) -> list[Run]:
        """One study; the rows are the same objects every time."""
        strayed = generator.normal(0, QUESTION_SPREAD, (len(self.runs), QUESTIONS)).mean(axis=1)
        for name, groups in self._parts.items():
            strayed += generator.normal(0, SPREAD[name], groups.max() + 1)[groups]
        values = BASE + self._effects + self._scale * strayed
        for row, value in zip(self.runs, values.tolist(), strict=True):
            row["p_target"] = value
        return self.runs

    def located(
        self, generator: np.random.Generator, shares: Callable[[str], Shares], parts: tuple[str, str]
    ) -> list[Run]:
        """The gated students of the study drawn last: each set has its share of a run's effect, and noise.

        Args:
            shares: of a trait's students, by its target.
            parts: the gates' names, the set alone and all but it.
        """
        found = []
        for row in self.runs:
            if row["role"] == "control":
                continue
            kept, lost, random = shares(row["target"])
            effect = row["p_target"] - BASE
            for part, own in zip(parts, (kept, lost), strict=True):
                drawn = [own, *generator.normal(random, SET_SPREAD, RANDOM_SETS)]
                noise = self._scale * generator.normal(0, SPREAD["context"], len(drawn))
                for control, (share, stray) in enumerate(zip(drawn, noise, strict=True)):
                    amount = share * effect + float(stray)
                    found.append(
                        {**row, "part": part, "control": control or None, "amount": amount, "missing": ""}
                    )
        return found
