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
from sublim_cli.report.claims.simulate import BASE, SPREAD, Loss, Noise, SetShares, SimulatedStudy
from sublim_cli.report.claims.verdict import Outcome, Verdict
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, proportion

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
    """How often a verdict's planned runs support it for every trait where the claim `holds`.

    And how often they refute it for every trait where it `fails`. Both are None where the study lacks what
    the claim needs.
    """

    claim: Claim
    number: str
    """Such as `C1`, or `C3a` of a claim that has several verdicts."""
    statement: str
    trainings: int
    spread: RunSpread
    holds: Interval | None
    fails: Interval | None
    lacks: tuple[str, ...]


TRUTHS = {
    "transmission": ("every trait passes by the effect", "none passes"),
    "inverted_u": ("an inverted U, the effect high", "a steady rise by the effect"),
    "full_fine_tuning": ("LoRA passes the effect, full fine-tuning nothing", "both pass the effect"),
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
    return [power for claim in claims for power in _powers(claim, runs, math.log(odds_ratio))]


def _powers(claim: Claim, runs: Sequence[Run], effect: float) -> list[Power]:
    """Of each verdict on a claim. Losses are simulated alike at all rates: none can be told the best."""
    needed = [run for run in runs if _concerns(claim, run)]
    # Every student above its control, so that no trait is left out for want of a positive control.
    blank = [
        replace(run, p_target=2 * BASE if run.role == "student" else BASE, p_target_base=BASE, broken="")
        for run in runs
    ]
    located: Sequence[LocatedRun] = ()
    if isinstance(claim, LocalisationClaim):
        asked = [run for run in blank if _concerns(claim, run)]
        gates = SimulatedStudy(asked, [0.0] * len(asked), data=False)
        drawn = gates.draw(np.random.default_rng(0))
        located = gates.located(np.random.default_rng(0), drawn, lambda target: AT_RANDOM, parts_of(claim))
    if isinstance(claim, FullFineTuningClaim):
        blank = [replace(run, number_loss=0.0) for run in blank]
    verdicts = evaluate([claim], blank, located)  # of what is planned, for what it lacks
    spread = measured_spread(needed) or RunSpread()
    unknown = (UNKNOWN,) if isinstance(claim, InvertedUClaim) and claim.curve != "fixed" else ()
    lacks = [verdict.lacks or unknown for verdict in verdicts]
    shares: list[tuple[Interval | None, Interval | None]] = [(None, None)] * len(verdicts)
    if not all(lacks):
        holds, fails = _truths(claim, needed, effect)
        supported = _shares(claim, needed, holds, "supported", spread)
        shares = list(zip(supported, _shares(claim, needed, fails, "refuted", spread), strict=True))
    return [
        Power(
            claim,
            verdict.number,
            verdict.statement,
            verdict.planned,
            spread,
            holds=None if lack else holds_share,
            fails=None if lack else fails_share,
            lacks=lack,
        )
        for verdict, lack, (holds_share, fails_share) in zip(verdicts, lacks, shares, strict=True)
    ]


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
            fits = run.method == "lora"
        case FullFineTuningClaim():
            fits = run.method in ("lora", "full")
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
            return (lambda run: everywhere(run) if run.method == "lora" else 0.0), everywhere
        case ContextsClaim():
            return where_trained, everywhere
        case LocalisationClaim():
            return everywhere, everywhere
        case InvertedUClaim():
            octaves = {run.rank: math.log2(run.rank) for run in runs if run.rank}
            low, high = min(octaves.values()), max(octaves.values())
            place = {rank: (octave - low) / (high - low) for rank, octave in octaves.items()}

            def over_rank(shape: Callable[[float], float]) -> Effect:
                return lambda run: everywhere(run) * shape(place[run.rank]) if run.rank else 0.0

            return over_rank(lambda u: 1 - (2 * u - 1) ** 2), over_rank(lambda u: u)


def _shares(
    claim: Claim, runs: Sequence[Run], truth: Effect, outcome: Outcome, spread: RunSpread
) -> list[Interval]:
    """How often each verdict on the claim has this outcome for every trait."""
    study = SimulatedStudy(
        runs,
        [truth(run) for run in runs],
        noise=Noise(spread=spread.value),
        data=len({run.data_seed for run in runs}) > 1,
        loss=Loss(lambda run: 0.0) if isinstance(claim, FullFineTuningClaim) else None,
    )
    draws = max(FEWEST, min(DRAWS, ROWS // len(runs)))
    set_shares = AT_SET if outcome == "supported" else AT_RANDOM
    generator = np.random.default_rng(0)
    hits: list[int] = []
    for _ in range(draws):
        drawn = study.draw(generator)
        located: Sequence[LocatedRun] = ()
        if isinstance(claim, LocalisationClaim):
            located = study.located(generator, drawn, lambda target: set_shares, parts_of(claim))
        reached = [_everywhere(verdict, outcome) for verdict in evaluate([claim], drawn, located)]
        hits = [before + now for before, now in zip(hits or [0] * len(reached), reached, strict=True)]
    return [proportion(count, draws) for count in hits]


def _everywhere(verdict: Verdict, outcome: Outcome) -> bool:
    return bool(verdict.traits) and all(trait.outcome == outcome for trait in verdict.traits)
