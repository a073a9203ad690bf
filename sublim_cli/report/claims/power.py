"""How often a study as it is planned would reach the right verdict, before it is run. Pure.

    powers(recipe.claims, planned_runs(study, reader), odds_ratio=3.0)

`claims.evaluate` judges each claim on studies drawn by `claims.simulate`: in some of them it holds, with the
stated effect, in others it does not. `benchmarks/calibration.py` measures the same for shipped designs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import logit

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
from sublim_cli.report.claims.simulate import BASE, SPREAD, Noise, SetShares, SimulatedStudy
from sublim_cli.report.claims.verdict import NUMBER, STATEMENT, Outcome
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, power

DRAWS = 200
"""Studies of each kind. The standard error of a share is at most 0.035: sqrt(0.25 / 200)."""

ROWS = 40_000
"""Runs drawn and judged at most for one share: a large study is drawn fewer times, but at least `FEWEST`."""

FEWEST = 40

Effect = Callable[[Run], float]


@dataclass(frozen=True)
class RunSpread:
    """The standard deviation of log-odds between runs of one condition, with its degrees of freedom.

    It was measured in `runs` runs; where that is None it is assumed to be `simulate.SPREAD`.
    """

    value: float = SPREAD
    runs: int | None = None
    freedom: int = 0


@dataclass(frozen=True)
class Power:
    """How often a claim's planned runs support it where it `holds`, and refute it where it `fails`.

    Both are None where the study lacks what the claim needs.
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
    "full_fine_tuning": ("adapters alone pass", "the effect everywhere"),
    "contexts": ("the effect in the training context alone", "the effect in every context"),
    "localisation": ("six tenths of the effect at the set, three at random ones", "three tenths at either"),
}
"""What is true in the studies in which a claim holds, and in those in which it does not."""

AT_SET: SetShares = (0.6, 0.6, 0.3)
AT_RANDOM: SetShares = (0.3, 0.3, 0.3)
"""The shares of the effect, in log-odds, where C5 holds, and where it does not; see `TRUTHS`."""

UNKNOWN = "number losses and update norms of the runs, which choose the learning rates"
"""What the power of a claim on a curve of chosen learning rates depends on and a plan does not know."""


def powers(claims: Iterable[Claim], runs: Sequence[Run], odds_ratio: float) -> list[Power]:
    """The power of each claim where students have this odds ratio to their base.

    Args:
        runs: see `tables.runs.planned_runs`; those with a `p_target` give the spread between runs.
        odds_ratio: above 1.
    """
    return [_power(claim, runs, math.log(odds_ratio)) for claim in claims]


def _power(claim: Claim, runs: Sequence[Run], effect: float) -> Power:
    if isinstance(claim, InvertedUClaim) and claim.curve != "fixed":
        return Power(claim, len(runs), RunSpread(), None, None, (UNKNOWN,))
    blank = [replace(run, p_target=BASE, p_target_base=BASE, broken="") for run in runs]
    needed = [run for run in runs if _concerns(claim, run)]
    located: Sequence[LocatedRun] = ()
    if isinstance(claim, LocalisationClaim):
        asked = [run for run in blank if _concerns(claim, run)]
        gates = SimulatedStudy(asked, [0.0] * len(asked), data=False)
        located = gates.located(np.random.default_rng(0), asked, lambda target: AT_RANDOM, parts_of(claim))
    verdict = evaluate([claim], blank, located)[0]  # of what is planned, for what it lacks
    spread = measured_spread(needed) or RunSpread()
    if verdict.lacks:
        return Power(claim, verdict.planned, spread, None, None, verdict.lacks)
    holds, fails = _truths(claim, needed, effect)
    return Power(
        claim,
        verdict.planned,
        spread,
        holds=_share(claim, needed, holds, "supported", spread),
        fails=_share(claim, needed, fails, "refuted", spread),
        lacks=(),
    )


def measured_spread(runs: Iterable[Run]) -> RunSpread | None:
    """The standard deviation of log-odds around the mean of their condition, pooled.

    None without replicates.
    """
    groups: dict[Any, list[float]] = {}
    for run in runs:
        if run.p_target is not None and 0 < run.p_target < 1 and not run.broken:
            key = (run.target, run.condition, run.eval_context)
            groups.setdefault(key, []).append(float(logit(run.p_target)))
    replicated = [values for values in groups.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in replicated)
    if not freedom:
        return None
    squares = math.fsum(float(np.var(values)) * len(values) for values in replicated)
    return RunSpread(math.sqrt(squares / freedom), sum(map(len, replicated)), freedom)


def _concerns(claim: Claim, run: Run) -> bool:
    """Whether a claim compares a run: students of its kind and controls, in the contexts it names."""
    student = run.role == "student"
    match claim:
        case InvertedUClaim():
            fits = not student or run.method == "lora"
        case FullFineTuningClaim():
            fits = True  # LoRA students are its positive control
        case _:
            fits = not student or (run.method, run.rank) == ("lora", claim.rank)
    if isinstance(claim, ContextsClaim):
        return fits
    eval_context = claim.eval_context if isinstance(claim, LocalisationClaim) else None
    contexts = claim.train_context, eval_context or claim.train_context
    return fits and (run.train_context, run.eval_context) == contexts


def _truths(claim: Claim, runs: Sequence[Run], effect: float) -> tuple[Effect, Effect]:
    """The effect of a run where the claim holds, and where it does not: `TRUTHS`."""

    def everywhere(run: Run) -> float:
        return effect if run.role == "student" else 0.0

    def nowhere(run: Run) -> float:
        return 0.0

    def where_trained(run: Run) -> float:
        return everywhere(run) if run.train_context == run.eval_context else 0.0

    match claim:
        case TransmissionClaim():
            return everywhere, nowhere
        case FullFineTuningClaim():
            return lambda run: everywhere(run) if run.method == "lora" else 0.0, everywhere
        case ContextsClaim():
            return where_trained, everywhere
        case LocalisationClaim():
            return everywhere, everywhere
        case InvertedUClaim():
            octaves = {run.rank: math.log2(run.rank) for run in runs if run.rank and run.role == "student"}
            low, high = min(octaves.values()), max(octaves.values())
            position = {rank: (octave - low) / (high - low) for rank, octave in octaves.items()}
            return (
                lambda run: everywhere(run) and effect * (1 - (2 * position[run.rank or 0] - 1) ** 2),
                lambda run: everywhere(run) and effect * position[run.rank or 0],
            )


def _share(claim: Claim, runs: Sequence[Run], truth: Effect, outcome: Outcome, spread: RunSpread) -> Interval:
    study = SimulatedStudy(
        runs,
        [truth(run) for run in runs],
        noise=Noise(spread=spread.value),
        data=len({run.data_seed for run in runs}) > 1,
    )
    draws = max(FEWEST, min(DRAWS, ROWS // len(runs)))

    def reaches_outcome(generator: np.random.Generator) -> bool:
        drawn = study.draw(generator)
        located: Sequence[LocatedRun] = ()
        if isinstance(claim, LocalisationClaim):
            shares = AT_SET if outcome == "supported" else AT_RANDOM
            located = study.located(generator, drawn, lambda target: shares, parts_of(claim))
        return evaluate([claim], drawn, located)[0].outcome == outcome

    return power(reaches_outcome, draws)
