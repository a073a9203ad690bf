"""How often a study as it is planned would come to the verdict that is right, before it is run. Pure.

    powers(recipe.claims, runs, effect=0.05)

Each claim is judged by `report.claims` on studies drawn by `report.simulate`: in some of them it holds, with
the stated effect, in others it does not. `benchmarks/calibration.py` measures the same for shipped designs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sublim_cli.recipe.schema import (
    Claim,
    ContextsClaim,
    FullFineTuningClaim,
    InvertedUClaim,
    LocalisationClaim,
    TransmissionClaim,
)
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.localisation import parts_of
from sublim_cli.report.claims.simulate import BASE, TOTAL, Shares, SimulatedStudy, total_spread
from sublim_cli.report.claims.verdict import NUMBER, STATEMENT, Word
from sublim_cli.report.tables.conditions import Run, condition_of
from sublim_cli.stats import Interval, power

DRAWS = 200
"""Studies of each kind. The standard error of a share is at most 0.035: sqrt(0.25 / 200)."""

ROWS = 40_000
"""Rows drawn and judged at most for one share: a large study is drawn fewer times, but `FEWEST`."""

FEWEST = 40

Effect = Callable[[Run], float]


@dataclass(frozen=True)
class RunSpread:
    """How far runs of one condition stray, as a standard deviation of P(target).

    Measured in `runs` runs with `freedom` degrees of freedom; None, it is assumed: `simulate.TOTAL`.
    """

    value: float = TOTAL
    runs: int | None = None
    freedom: int = 0


@dataclass(frozen=True)
class Power:
    """What a claim's planned runs can decide.

    `holds` is the share of studies that find it supported where it is true, `fails` of those that find it
    refuted where it is not; both None where the study lacks what the claim needs.
    """

    claim: Claim
    trainings: int
    spread: RunSpread
    holds: Interval | None
    fails: Interval | None
    lacks: tuple[str, ...]

    @property
    def number(self) -> str:
        """Such as `C1`."""
        return NUMBER[self.claim.kind]

    @property
    def statement(self) -> str:
        """The claim in words."""
        return STATEMENT[self.claim.kind]


TRUTHS = {
    "transmission": ("every trait passes by the effect", "none passes"),
    "inverted_u": ("an inverted U, the effect high", "a steady rise by the effect"),
    "full_fine_tuning": ("nothing passes", "the effect everywhere"),
    "contexts": ("the effect in the training context alone", "the effect in every context"),
    "localisation": ("six tenths of the effect at the set, three at random ones", "three tenths at either"),
}
"""What is true in the studies in which a claim holds, and in those in which it does not."""


AT_SET: Shares = (0.6, 0.6, 0.3)
AT_RANDOM: Shares = (0.3, 0.3, 0.3)
"""What sets have of the effect where C5 holds, and where it does not; see `TRUTHS`."""

UNKNOWN = "number losses and update norms of the runs, which choose the learning rates"
"""What the power of a claim on a curve of chosen learning rates depends on, and no plan knows."""


def powers(claims: Iterable[Claim], runs: Sequence[Run], effect: float) -> list[Power]:
    """The power of each claim at an `effect` on P(target).

    Args:
        runs: the study's runs, see `rows.planned`; those with a `p_target` tell how far runs stray.
    """
    return [_power(claim, runs, effect) for claim in claims]


def _power(claim: Claim, runs: Sequence[Run], effect: float) -> Power:
    if isinstance(claim, InvertedUClaim) and claim.curve != "fixed":
        return Power(claim, len(runs), RunSpread(), None, None, (UNKNOWN,))
    blank = [{**one, "p_target": BASE, "p_target_base": BASE, "broken": ""} for one in runs]
    whole = evaluate([claim], blank, located=_gated(claim, blank))[0]
    needed = [one for one in runs if _concerns(claim, one)]
    spread = measured(needed) or RunSpread()
    if whole.lacks:
        return Power(claim, whole.planned, spread, None, None, whole.lacks)
    holds, fails = _truths(claim, needed, effect)
    return Power(
        claim,
        whole.planned,
        spread,
        holds=_share(claim, needed, holds, "supported", spread),
        fails=_share(claim, needed, fails, "refuted", spread),
        lacks=(),
    )


def measured(runs: Iterable[Run]) -> RunSpread | None:
    """How far runs stray from the mean of their condition, pooled; None where no two of one are there."""
    groups: dict[Any, list[float]] = {}
    for run in runs:
        if run["p_target"] is not None and not run["broken"]:
            key = (run["target"], condition_of(run), run["eval_context"])
            groups.setdefault(key, []).append(run["p_target"])
    several = [one for one in groups.values() if len(one) > 1]
    freedom = sum(len(one) - 1 for one in several)
    if not freedom:
        return None
    squares = math.fsum(float(np.var(one)) * len(one) for one in several)
    return RunSpread(math.sqrt(squares / freedom), sum(map(len, several)), freedom)


def _concerns(claim: Claim, run: Run) -> bool:
    """Whether a claim looks at a run: students of its kind, controls, in the contexts it asks about."""
    student = run["role"] == "student"
    match claim:
        case ContextsClaim():
            return not student or (run["method"], run["rank"]) == ("lora", claim.rank)
        case LocalisationClaim():
            asked = (claim.train_context, claim.eval_context or claim.train_context)
            fits = not student or (run["method"], run["rank"]) == ("lora", claim.rank)
            return fits and (run["train_context"], run["eval_context"]) == asked
        case TransmissionClaim():
            fits = not student or (run["method"], run["rank"]) == ("lora", claim.rank)
        case InvertedUClaim():
            fits = student and run["method"] == "lora"
        case FullFineTuningClaim():
            fits = not student or run["method"] == "full"
    return fits and run["train_context"] == run["eval_context"] == claim.train_context


def _truths(claim: Claim, runs: Sequence[Run], effect: float) -> tuple[Effect, Effect]:
    """The effect of a run where the claim holds, and where it does not: `TRUTHS`."""
    everywhere, nowhere = _students(effect), _students(0.0)
    match claim:
        case TransmissionClaim():
            return everywhere, nowhere
        case FullFineTuningClaim():
            return nowhere, everywhere
        case ContextsClaim():
            return _students(effect, only_at_home=True), everywhere
        case LocalisationClaim():
            return everywhere, everywhere
        case InvertedUClaim():
            place = _places([run["rank"] for run in runs])
            return lambda run: effect * _hump(place(run)), lambda run: effect * place(run)


def _students(effect: float, *, only_at_home: bool = False) -> Effect:
    """An effect on every student, in every context or in that of its training alone."""

    def of(run: Run) -> float:
        there = run["train_context"] == run["eval_context"] or not only_at_home
        return effect if there and run["role"] == "student" else 0.0

    return of


def _places(ranks: Sequence[int]) -> Effect:
    """Where a run's rank lies between the lowest and the highest, in octaves: 0 to 1."""
    low, high = math.log2(min(ranks)), math.log2(max(ranks))

    def place(run: Run) -> float:
        return (math.log2(run["rank"]) - low) / (high - low)

    return place


def _hump(place: float) -> float:
    return 1 - (2 * place - 1) ** 2


def _share(claim: Claim, runs: Sequence[Run], truth: Effect, word: Word, spread: RunSpread) -> Interval:
    data = len({run["data_seed"] for run in runs}) > 1
    scale = 1.0 if spread.runs is None else spread.value / total_spread(data=data)
    table = SimulatedStudy(runs, [truth(one) for one in runs], scale, data=data)
    draws = max(FEWEST, min(DRAWS, ROWS // len(runs)))

    def found(generator: np.random.Generator) -> bool:
        rows = table.draw(generator)
        located: Sequence[Run] = ()
        if isinstance(claim, LocalisationClaim):
            shares = AT_SET if word == "supported" else AT_RANDOM
            located = table.located(generator, lambda target: shares, parts_of(claim))
        return evaluate([claim], rows, located=located)[0].word == word

    return power(found, draws)


def _gated(claim: Claim, runs: Sequence[Run]) -> list[Run]:
    """Gated students for every run that a claim on localisation looks at."""
    if not isinstance(claim, LocalisationClaim):
        return []
    there = [run for run in runs if run["role"] == "student" and _concerns(claim, run)]
    return [
        {**run, "part": part, "control": control, "amount": 0.0, "missing": ""}
        for run in there
        for part in parts_of(claim)
        for control in (None, 1)
    ]
