"""How often an interval at chosen learning rates holds the value at those that truly have the least loss.

    python benchmarks/best_rates.py [--studies 2000]

Losses of neighbouring rates lie 1e-4 apart and two rates of a seed differ with a standard deviation of 9e-4,
so that a few runs hardly tell which is best. Effects differ by 0.7 in log-odds from rate to rate and runs
stray by 0.3. All intervals are at 95 %.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from calibration import CLOSE_LOSS, GRID, MICRO, adapter, cells, full, own
from scipy.special import logit

from sublim_cli.recipe.schema import Claim, FullFineTuningClaim, InvertedUClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.simulate import BASE, Noise, SimulatedStudy
from sublim_cli.report.rates.choose import BETA, not_shown_higher
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Seeds, mean_of, power

FULL = 0.5
BY_RANK = {1: 0.0, 4: 1.0, 16: 2.0, 64: 1.0}
"""The effects at the best rate."""

BY_RATE = 0.7
SEED = 54

Values = dict[float, dict[Seeds, float]]
"""By learning rate and seeds."""


def effect(run: Run) -> float:
    """At a lower rate than the best less of it, at a higher one more."""
    if run.role == "control":
        return 0.0
    if run.rank is None or run.learning_rate is None:
        return FULL
    return BY_RANK[run.rank] + BY_RATE * (GRID.index(run.learning_rate) - 1)


def study(kinds: Sequence[dict[str, Any]], runs: int) -> SimulatedStudy:
    """Students of these kinds with a control of each method."""
    controls = [adapter(4, GRID[1]), full(2e-5, "fp32")]
    planned = cells(["cat"], kinds, own(runs), roles=["student"])
    planned += cells(["cat"], controls, own(runs), roles=["control"])
    effects = [effect(run) for run in planned]
    return SimulatedStudy(planned, effects, noise=Noise(spread=0.3), loss=CLOSE_LOSS)


def least(losses: Values) -> Sequence[float]:
    """The rate with the least mean loss."""
    return [min(losses, key=lambda rate: mean_of(losses[rate]).mean)]


def may_be_least(losses: Values) -> Sequence[float]:
    """The rates that may have it."""
    return not_shown_higher(losses, BETA)


def at_rates(drawn: Sequence[Run], kept: Callable[[Values], Sequence[float]]) -> bool:
    """Whether the union of the intervals at the rates kept holds the log-odds of rank 4 at the best rate."""
    losses: Values = defaultdict(dict)
    odds: Values = defaultdict(dict)
    for run in drawn:
        if run.role == "student" and run.rank == 4 and run.learning_rate and run.number_loss:
            losses[run.learning_rate][run.seeds] = run.number_loss
            odds[run.learning_rate][run.seeds] = float(logit(run.p_target))
    intervals = [mean_of(odds[rate]).interval() for rate in kept(losses)]
    truth = float(logit(BASE)) + BY_RANK[4]
    return any(i.low is not None and i.low <= truth for i in intervals) and any(
        i.high is not None and i.high >= truth for i in intervals
    )


def in_finding(claim: Claim, drawn: Sequence[Run], truth: float) -> bool | None:
    """Whether the interval of the claim's last verdict holds the truth; None where the claim is not asked."""
    findings = evaluate([claim], drawn)[-1].findings
    interval = findings[0].effect if findings else None
    if interval is None or interval.low is None or interval.high is None:
        return None
    return interval.low <= truth <= interval.high


def coverages(runs: int) -> Iterator[tuple[str, Callable[[np.random.Generator], bool]]]:
    """What is covered, and whether it is in a drawn study."""
    one_rank = [adapter(4, rate) for rate in GRID]
    ladder = study([adapter(rank, rate) for rank in MICRO.ranks for rate in GRID], runs)
    both = study([*one_rank, full(2e-5, "fp32")], runs)
    curve, ratio = InvertedUClaim(curve="best", alpha=0.025), FullFineTuningClaim(alpha=0.025)
    fall, less = BY_RANK[16] - BY_RANK[64], FULL - BY_RANK[4]

    def covered(claim: Claim, drawn: SimulatedStudy, truth: float) -> Callable[[np.random.Generator], bool]:
        def holds(generator: np.random.Generator) -> bool:
            while True:  # without a positive control there is no interval
                found = in_finding(claim, drawn.draw(generator), truth)
                if found is not None:
                    return found

        return holds

    yield "log-odds of a rank at the rate with the least mean loss", lambda g: at_rates(both.draw(g), least)
    yield "the same, over all rates not shown higher", lambda g: at_rates(both.draw(g), may_be_least)
    yield "C2 best: the fall to the highest rank", covered(curve, ladder, fall)
    yield "C3c: full minus the best adapter", covered(ratio, both, less)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print("| interval | runs | covers | 95 % interval |")
    print("| --- | --- | --- | --- |")
    for runs in (5, 9):
        for name, covers in coverages(runs):
            interval = power(covers, studies, SEED)
            bounds = f"[{interval.low:.3f}, {interval.high:.3f}]"
            print(f"| {name} | {runs} | {interval.mean:.3f} | {bounds} |", flush=True)


if __name__ == "__main__":
    main()
