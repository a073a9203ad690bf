"""How a verdict depends on the margin and on any one seed. Pure.

    sensitivities(verdicts, runs, located)

Every claim is judged again by `evaluate` with other margins, and without the runs of each train or data seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from sublim_cli.recipe.schema import Claim, InvertedUClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.verdict import Outcome, Verdict
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import AskedModel, Run

Row = TypeVar("Row", bound=AskedModel)

MARGINS = (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Odds ratios at which claims are judged, beside their own margins."""


@dataclass(frozen=True)
class AtMargin:
    """The verdict at one margin, an odds ratio; `own`: it is the claim's."""

    odds_ratio: float
    outcome: Outcome
    word: str
    own: bool


@dataclass(frozen=True)
class WithoutSeed:
    """The verdict without the runs of one seed; `same`: it decides every trait as with them."""

    seed: str
    """Such as `train seed 3`."""
    outcome: Outcome
    word: str
    same: bool


@dataclass(frozen=True)
class Sensitivity:
    """Of one verdict: that at every margin, ascending, and that without each seed.

    Both are empty where the claim is incomplete or descriptive, or too dear to judge again.
    """

    margins: tuple[AtMargin, ...] = ()
    seeds: tuple[WithoutSeed, ...] = ()


def sensitivities(
    verdicts: Sequence[Verdict], runs: Sequence[Run], located: Sequence[LocatedRun] = ()
) -> list[Sensitivity]:
    """One for each of the verdicts that `evaluate` gave on these runs."""
    found: list[Sensitivity] = []
    for claim, group in groupby(verdicts, key=lambda verdict: verdict.claim):
        parts = list(group)
        if _is_judged_again(parts):
            found += _of_claim(claim, parts, runs, located)
        else:
            found += [Sensitivity()] * len(parts)
    return found


def _is_judged_again(parts: Sequence[Verdict]) -> bool:
    """A curve of best rates without pilot runs tests up to `rank_curve.MOST_CURVES` curves each time."""
    claim = parts[0].claim
    dear = isinstance(claim, InvertedUClaim) and claim.curve == "best" and claim.choose_on is None
    return not dear and any(verdict.outcome not in ("incomplete", "descriptive") for verdict in parts)


def _of_claim(
    claim: Claim, parts: Sequence[Verdict], runs: Sequence[Run], located: Sequence[LocatedRun]
) -> list[Sensitivity]:
    own = claim.margin_odds_ratio
    margins = sorted({*MARGINS, own})
    others = [claim.model_copy(update={"margin_odds_ratio": odds}) for odds in margins if odds != own]
    judged = iter(evaluate(others, runs, located))
    at_margins = {odds: parts if odds == own else [next(judged) for _ in parts] for odds in margins}
    without = {
        seed: evaluate([claim], _left(runs, column, value), _left(located, column, value))
        for seed, (column, value) in _seeds(claim, runs).items()
    }
    return [
        Sensitivity(
            tuple(
                AtMargin(odds, verdicts[part].outcome, verdicts[part].word, odds == own)
                for odds, verdicts in at_margins.items()
            ),
            tuple(
                WithoutSeed(
                    seed,
                    verdicts[part].outcome,
                    verdicts[part].word,
                    _decided(verdicts[part]) == _decided(verdict),
                )
                for seed, verdicts in without.items()
            ),
        )
        if verdict.outcome not in ("incomplete", "descriptive")
        else Sensitivity()
        for part, verdict in enumerate(parts)
    ]


def _seeds(claim: Claim, runs: Sequence[Run]) -> dict[str, tuple[str, int]]:
    """The seeds to leave out one by one: those of training, and of data where there are several.

    Seeds that chose the learning rates are kept, and of those that leave the same runs one is named.
    """
    pilots: tuple[int, ...] = getattr(claim, "choose_on", None) or ()
    trained = [run for run in runs if run.role != "base" and run.train_seed not in pilots]
    groups: dict[frozenset[int], tuple[str, tuple[str, int]]] = {}
    for column in ("train_seed", "data_seed"):
        values = {getattr(run, column) for run in trained} - {None}
        for value in sorted(values if len(values) > 1 else ()):
            rows = frozenset(i for i, run in enumerate(trained) if getattr(run, column) == value)
            groups.setdefault(rows, (f"{column.replace('_', ' ')} {value}", (column, value)))
    return dict(groups.values())


def _left(rows: Sequence[Row], column: str, value: int) -> list[Row]:
    return [row for row in rows if getattr(row, column) != value]


def _decided(verdict: Verdict) -> object:
    """What must not change: the outcome, and that of every trait. The number of runs is in the words too."""
    return verdict.outcome, [(trait.target, trait.outcome) for trait in verdict.traits]
