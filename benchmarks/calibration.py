"""How often a claim gets a verdict it does not deserve, and how often one it does, in simulated studies.

    python benchmarks/calibration.py [--draws 2000] [--power-draws 500] [--claim contexts] [--only collapse]

Each study is a table of the runs that one claim needs, its probabilities drawn by `report.claims.simulate`
from a world whose truth is known, and is judged by `report.claims.evaluate` itself. Effects are odds ratios
and spreads standard deviations of log-odds, unless a world says otherwise; "controls quiet" means that theirs
is a fifth of the students'. A study with one data set speaks of that one.

For the curves of chosen learning rates every rank has a grid of them. Norms and losses are like those of the
embedded model (docs/log.md): a norm of 1.5 · (rate / 2e-3)^0.8 · rank^0.25, a loss that is least at 1.5 and
0.003 higher for every squared e-fold of the norm from there, runs that stray by 0.0003 and data sets by 0.01.

`benchmarks/results/calibration_old_rules.csv` holds the same shares under the rules of commit 60c7084: tests
on P(target) with an absolute margin of 0.02.

Exits with 1 if an error rate lies above alpha by more than its Wilson interval allows; the table of limits,
which says what the rules cannot hold, is not counted.
"""

import argparse
import csv
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtri

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
from sublim_cli.report.claims.simulate import Loss, Noise, SetShares, Shape, SimulatedStudy
from sublim_cli.report.claims.verdict import Verdict
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, power

ALPHA = 0.05
MARGIN = math.log(1.5)
"""The default margin in log-odds."""
STRONG = math.log(4)
SEED = 20261124
KINDS = ("transmission", "inverted_u", "full_fine_tuning", "contexts", "localisation")
BEFORE = Path(__file__).parent / "results" / "calibration_old_rules.csv"

Seeds = tuple[tuple[int, int], ...]
"""Of every run the training seed and the data seed."""

CROSSED: Seeds = tuple(product((1, 42, 123), (1, 42, 123)))
UNBALANCED: Seeds = ((1, 1), (2, 1), (3, 1), (4, 2), (5, 3))

Effect = Callable[[Run], float]


def own(runs: int) -> Seeds:
    """Runs that share no seed."""
    return tuple((seed, seed) for seed in range(1, runs + 1))


def one_data_set(runs: int) -> Seeds:
    """Runs that learned from the same data set."""
    return tuple((seed, 1) for seed in range(1, runs + 1))


@dataclass(frozen=True)
class Counted:
    """The verdicts that a table counts: those whose word the expression matches from its start."""

    name: str
    expression: str

    def holds(self, verdict: Verdict) -> bool:
        """Whether a verdict is counted."""
        return re.match(self.expression, verdict.word) is not None


SUPPORTED = Counted("supported", r"supported(?! for \d)")
SUPPORTED_ANY = Counted("supported, for any trait", r"supported")
REFUTED = Counted("refuted", r"refuted")
REFUTED_ALL = Counted("refuted, not only for the typical run", r"refuted(?!.*typical run)")
SUPPORTED_ALL = Counted("supported, not only for the typical run", r"supported(?!.*typical run)")
UNQUALIFIED = Counted("refuted, not only on one data set", r"refuted(?!.*one data set)")


@dataclass(frozen=True)
class Sets:
    """What named and random sets have of an effect: of the first trait's students, and of the others'."""

    first: SetShares
    others: SetShares


@dataclass(frozen=True, kw_only=True)
class World:
    """One row of a table: a truth, and the verdict whose share is counted."""

    claim: Claim
    runs: Sequence[Run]
    where: str
    """Design: seeds, base and noise in words."""
    truth: str
    effect: Effect
    counted: Counted
    question: str = ""
    """The number of the verdict that is looked at, of a claim that has several."""
    noise: Noise = field(default_factory=Noise)
    base: float | Callable[[Run], float] = 0.3
    spread: Callable[[Run], float] = lambda run: 1.0
    """Of a run, as a multiple of the noise's."""
    data: bool | None = None
    """Whether data sets differ; None: where the study has several."""
    transmits: float = 1.0
    collapses: Callable[[Run], float] | None = None
    loss: Loss | None = None
    sets: Sets | None = None

    @property
    def name(self) -> str:
        """Such as `C2 best`."""
        kind = self.question or f"C{KINDS.index(self.claim.kind) + 1}"
        curve = self.claim.curve if isinstance(self.claim, InvertedUClaim) else "fixed"
        return kind if curve == "fixed" else f"{kind} {curve}"

    @property
    def key(self) -> str:
        """Tells a world from the others."""
        return " | ".join((self.name, self.where, self.truth, self.counted.name))

    def study(self) -> SimulatedStudy:
        """The study whose runs are drawn."""
        several = len({run.data_seed for run in self.runs}) > 1
        return SimulatedStudy(
            self.runs,
            [self.effect(run) for run in self.runs],
            base=[self.base(run) for run in self.runs] if callable(self.base) else self.base,
            noise=self.noise,
            spreads=[self.noise.spread * self.spread(run) for run in self.runs],
            data=several if self.data is None else self.data,
            transmits=self.transmits,
            collapses=None if self.collapses is None else [self.collapses(run) for run in self.runs],
            loss=self.loss,
        )


# Runs.


def adapter(rank: int, rate: float = 2e-3) -> dict[str, Any]:
    """The columns of a LoRA student."""
    return {
        "method": "lora",
        "rank": rank,
        "learning_rate": rate,
        "precision": "fp32",
        "number_loss": loss_of(rank, rate),
        "update_norm": norm_of(rank, rate),
    }


def full(rate: float, precision: str) -> dict[str, Any]:
    """The columns of a fully fine-tuned student."""
    return {
        "method": "full",
        "rank": None,
        "learning_rate": rate,
        "precision": precision,
        "number_loss": 3.25 + 0.003 * math.log(rate / 6e-5) ** 2,
    }


def norm_of(rank: int, rate: float) -> float:
    """The norm of an adapter's update."""
    return float(1.5 * (rate / 2e-3) ** 0.8 * rank**0.25)


def loss_of(rank: int, rate: float) -> float:
    """The number loss it leaves, data set and noise aside."""
    return 3.25 + 0.003 * math.log(norm_of(rank, rate) / 1.5) ** 2


def cells(
    traits: Sequence[str],
    kinds: Sequence[dict[str, Any]],
    seeds: Seeds,
    contexts: Iterable[tuple[str, str]] = (("default", "default"),),
    roles: Sequence[str] = ("student", "control"),
) -> list[Run]:
    """Runs of every trait, kind and role, trained and asked in these contexts."""
    return [
        Run(
            name="",
            role=role,
            category="animal",
            target=target,
            train_context=trained,
            eval_context=asked,
            train_seed=train_seed,
            data_seed=data_seed,
            **kind,
        )
        for target, (trained, asked), kind, role, (train_seed, data_seed) in product(
            traits, contexts, kinds, roles, seeds
        )
    ]


@dataclass(frozen=True)
class Design:
    """The cells of a shipped study."""

    name: str
    traits: tuple[str, ...]
    ranks: tuple[int, ...]
    rank: int
    seeds: Seeds
    spread: float
    """Of the log-odds between runs."""
    grid: tuple[float, ...]
    """Learning rates of the adapters; the fixed one is 2e-3."""
    traits_with_grid: tuple[str, ...]
    full: tuple[tuple[float, str], ...]
    """Rates and precisions of full fine-tuning."""
    traits_in_contexts: tuple[str, ...]
    contexts: tuple[str, ...]
    """Those that they are trained and asked in."""

    def where(self, spread: float | None = None) -> str:
        """The design and the spread in words."""
        return f"{self.name}, SD {self.spread if spread is None else spread:g}"

    def runs(self, claim: Claim) -> list[Run]:
        """Those that a claim needs."""
        match claim:
            case InvertedUClaim(curve="fixed"):
                ladder = cells(
                    self.traits, [adapter(rank) for rank in self.ranks], self.seeds, roles=["student"]
                )
                return ladder + self.at_rank(roles=["control"])
            case InvertedUClaim():
                kinds = [adapter(rank, rate) for rank in self.ranks for rate in self.grid]
                grid = cells(self.traits_with_grid, kinds, self.seeds, roles=["student"])
                return grid + self.at_rank(roles=["control"])
            case FullFineTuningClaim():
                return self.at_rank() + cells(self.traits, [full(*kind) for kind in self.full], self.seeds)
            case ContextsClaim():
                contexts = product(self.contexts, self.contexts)
                return cells(self.traits_in_contexts, [adapter(self.rank)], self.seeds, contexts)
        return self.at_rank()

    def at_rank(self, roles: Sequence[str] = ("student", "control")) -> list[Run]:
        """The adapters of the rank at which claims are made, and their controls."""
        return cells(self.traits, [adapter(self.rank)], self.seeds, roles=roles)


MICRO = Design(
    name="study-micro",
    traits=("wolf", "owl", "cat"),
    ranks=(1, 4, 16, 64),
    rank=4,
    seeds=own(5),
    spread=0.3,
    grid=(2e-4, 6e-4, 2e-3, 6e-3),
    traits_with_grid=("wolf", "owl", "cat"),
    full=tuple(product((2e-5, 6e-5, 2e-4, 6e-4), ("fp32", "bf16_pure"))),
    traits_in_contexts=("wolf", "owl", "cat"),
    contexts=("default", "empty", "claude", "gibberish_marble"),
)
QWEN = Design(
    name="study-qwen",
    traits=("cat", "owl", "dolphin", "eagle", "wolf"),
    ranks=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    rank=8,
    seeds=CROSSED,
    spread=0.6,
    grid=(2e-4, 6e-4, 2e-3, 6e-3, 2e-2),
    traits_with_grid=("cat",),
    full=((2e-5, "bf16_pure"), (2e-5, "bf16_mixed")),
    traits_in_contexts=("cat", "owl", "eagle", "wolf"),
    contexts=("default", "empty", "chatgpt"),
)
DESIGNS = {design.name: design for design in (MICRO, QWEN)}

# Truths.


def everywhere(effect: float) -> Effect:
    """Every student has the effect, no control has."""
    return lambda run: effect * (run.role == "student")


def none(run: Run) -> float:
    """No run has an effect."""
    return 0.0


def but_for_one(trait: str, effect: float, first: float) -> Effect:
    """One trait's students have another effect than the rest."""
    return lambda run: (first if run.target == trait else effect) * (run.role == "student")


def of_method(effects: dict[str, float]) -> Effect:
    """The effect of a student by its method."""
    return lambda run: effects[run.method] * (run.role == "student")


def over_rank(design: Design, shape: Callable[[float], float], others: Callable[[float], float]) -> Effect:
    """An effect by place of log2 rank, 0 to 1: of the first trait, and of the others."""
    top = math.log2(design.ranks[-1])

    def effect(run: Run) -> float:
        if run.role == "control" or run.rank is None:
            return 0.0
        return (shape if run.target == design.traits[0] else others)(math.log2(run.rank) / top)

    return effect


def by_context(home: float, other: float, corner: float | None = None) -> Effect:
    """Effects in the training context and elsewhere; `corner` is that of default asked in empty."""

    def effect(run: Run) -> float:
        if run.role == "control":
            return 0.0
        if corner is not None and (run.train_context, run.eval_context) == ("default", "empty"):
            return corner
        return home if run.train_context == run.eval_context else other

    return effect


def one_condition(design: Design, effect: float) -> Effect:
    """Of full fine-tuning the first trait at the first rate alone has the effect; adapters transmit."""

    def of(run: Run) -> float:
        if run.role == "control":
            return 0.0
        if run.method == "lora":
            return STRONG
        return effect * ((run.target, run.learning_rate) == (design.traits[0], design.full[0][0]))

    return of


def times(factor: float, shape: Callable[[float], float]) -> Callable[[float], float]:
    """The same shape, as many times as high."""
    return lambda u: factor * shape(u)


def hump(height: float) -> Callable[[float], float]:
    """An inverted U that peaks in the middle."""
    return lambda u: height * (1 - (2 * u - 1) ** 2)


def tent(design: Design, fall: float) -> Callable[[float], float]:
    """A steep rise to an inner rank, and from there a fall of this size to the highest."""
    at = math.log2(design.ranks[len(design.ranks) // 2]) / math.log2(design.ranks[-1])
    return lambda u: STRONG * u / at if u <= at else STRONG - fall * (u - at) / (1 - at)


def of_steps(height: float, width: float) -> Effect:
    """An inverted U in the norm of the update, with its peak at twice that of the least loss, at any rank."""

    def effect(run: Run) -> float:
        if run.role == "control" or run.rank is None or run.learning_rate is None:
            return 0.0
        return height * math.exp(-((math.log(norm_of(run.rank, run.learning_rate) / 3) / width) ** 2))

    return effect


def quiet_controls(run: Run) -> float:
    """The spread of controls is a fifth of the students', as in study-micro: 0.055 against 0.27."""
    return 1.0 if run.role == "student" else 0.2


def effect_of_mean(base: float, mean: float, spread: float) -> float:
    """The effect in log-odds at which logit-normal runs have this mean P(target)."""
    normal = spread * ndtri((np.arange(4000) + 0.5) / 4000)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + normal).mean() < mean else (low, middle)
    return low - float(logit(base))


SHAPES: dict[str, Callable[[float], float]] = {
    "rises and saturates": lambda u: STRONG * (1 - math.exp(-5 * u)),
    "a step up after the lowest rank": lambda u: STRONG * (u > 0),
    "rises throughout": lambda u: STRONG * u,
    "flat": lambda u: STRONG,
    "falls throughout": lambda u: STRONG * (2 - u),
    "a step down at the highest rank": lambda u: STRONG * (2 - (u == 1)),
}
"""All transmit at inner ranks: of a trait that does not, C2 is not asked."""

CURVES = tuple(InvertedUClaim(curve=curve) for curve in ("best", "loss_matched", "norm_matched"))

# Worlds in which the counted verdict is wrong.


def reported() -> Iterator[World]:
    """The worlds of the report that ended the rules on P(target), and the same at the margin in log-odds."""
    c1, c2, c4 = TransmissionClaim(rank=4), InvertedUClaim(), ContextsClaim(rank=4)
    for runs, spread in product((5, 9), (0.6, 1.0)):
        for says, effect in (
            ("mean P 0.02 above the base", effect_of_mean(0.005, 0.025, spread)),
            ("odds ratio 1.5", MARGIN),
        ):
            yield World(
                claim=c1,
                runs=cells(["cat"], [adapter(4)], own(runs)),
                where=f"{runs} runs, base 0.005, SD {spread:g}, controls quiet",
                truth=says,
                effect=everywhere(effect),
                counted=REFUTED,
                noise=Noise(spread=spread),
                base=0.005,
                spread=quiet_controls,
            )
    for runs in (3, 5, 9):
        yield World(
            claim=c1,
            runs=cells(["cat"], [adapter(4)], own(runs)),
            where=f"{runs} runs, base 0.3, SD 0.03",
            truth="one run in five transmits, by 0.25; the others do not",
            effect=everywhere(float(logit(0.55) - logit(0.3))),
            counted=REFUTED_ALL,
            noise=Noise(spread=0.03),
            transmits=0.2,
        )
    yield from nulls([5], [0.9], [Noise(spread=0.6), Noise(spread=1.0)])
    lora, trait = adapter(4), ["cat"]
    for noise, base in (
        (Noise("log P", spread=0.6), 0.02),
        (Noise("log P", spread=0.15), 0.02),
        (Noise(spread=1.0), 0.9),
        (Noise(spread=0.15), 0.9),
    ):
        where = f"5 runs, base {base:g}, {noise_text(noise)}, controls quiet"
        for question, every in product(("C3a", "C3b"), (False, True)):
            yield full_at_margin(noise, base, question, REFUTED if every else SUPPORTED, every=every)
        names = ("default", "empty", "claude")
        yield World(
            claim=c4,
            runs=cells(trait, [lora], own(5), product(names, names)),
            where=where,
            truth="vanishes, but in one context it is at the margin",
            effect=by_context(STRONG, 0.0, MARGIN),
            counted=SUPPORTED,
            noise=noise,
            base=base,
            spread=quiet_controls,
        )
    for runs in (5, 9):
        ladder = cells(trait, [adapter(rank) for rank in MICRO.ranks], own(runs), roles=["student"])
        high = times(2, SHAPES["rises and saturates"])
        for fifth in (0.2, 0.4):
            yield World(
                claim=c2,
                runs=ladder + cells(trait, [lora], own(runs), roles=["control"]),
                where=f"{runs} runs, base 0.3, SD 0.15",
                truth=f"rises and saturates at 16; {fifth:.0%} of rank 64 collapse, marked broken",
                effect=over_rank(MICRO, high, high),
                counted=REFUTED_ALL,
                noise=Noise(spread=0.15),
                collapses=at_rank_64(fifth),
            )
    yield from close_losses(5)
    yield from close_losses(9)
    for seeds, says in (
        (UNBALANCED, "5 runs, data sets used 3 + 1 + 1 times"),
        (one_data_set(5), "5 runs on one data set"),
    ):
        one = seeds != UNBALANCED
        yield World(
            claim=c1,
            runs=cells(["cat"], [adapter(4)], seeds),
            where=f"{says}, which differ; base 0.3, SD 0.15",
            truth="odds ratio 1.5",
            effect=everywhere(MARGIN),
            counted=UNQUALIFIED if one else REFUTED,
            noise=Noise(spread=0.15),
            data=True,
        )
        yield World(
            claim=c1,
            runs=cells(["cat"], [adapter(4)], seeds),
            where=f"{says}, which differ; base 0.3, SD 0.15",
            truth="no effect",
            effect=none,
            counted=Counted("supported, not only on one data set", r"supported(?!.*one data set)"),
            noise=Noise(spread=0.15),
            data=True,
        )


def full_at_margin(noise: Noise, base: float, question: str, counted: Counted, *, every: bool) -> World:
    """C3 with quiet controls: every condition of full fine-tuning at the margin, or the paper's alone."""

    def effect(run: Run) -> float:
        if run.role == "control":
            return 0.0
        if run.method == "lora":
            return STRONG
        return MARGIN * (every or (run.learning_rate, run.precision) == (2e-5, "bf16_pure"))

    return World(
        claim=FullFineTuningClaim(),
        question=question,
        runs=cells(["cat"], [adapter(4), *(full(*kind) for kind in MICRO.full)], own(5)),
        where=f"5 runs, base {base:g}, {noise_text(noise)}, controls quiet",
        truth=f"{'every full condition' if every else 'full fine-tuning as in the paper'} at the margin",
        effect=effect,
        counted=counted,
        noise=noise,
        base=base,
        spread=quiet_controls,
    )


def at_rank_64(share: float) -> Callable[[Run], float]:
    """The probability that a run collapses: this share of the students of rank 64."""
    return lambda run: share * (run.role == "student" and run.rank == 64)


def noise_text(noise: Noise) -> str:
    """The scale, shape and spread in words."""
    skew = f" by {(math.exp(noise.skew**2) + 2) * math.sqrt(math.expm1(noise.skew**2)):.1f}"
    shape = {"normal": "", "heavy-tailed": "heavy-tailed "}.get(noise.shape, f"{noise.shape}{skew}, ")
    return f"{shape}SD {noise.spread:g}" + ("" if noise.scale == "log-odds" else f" of {noise.scale}")


def nulls(runs: Sequence[int], bases: Sequence[float], noises: Sequence[Noise]) -> Iterator[World]:
    """C1 with quiet controls: no effect, and effects at the margin."""
    for number, base, noise in product(runs, bases, noises):
        for says, size, counted in (("no effect", 0.0, SUPPORTED), ("odds ratio 1.5", MARGIN, REFUTED)):
            yield World(
                claim=TransmissionClaim(rank=4),
                runs=cells(["cat"], [adapter(4)], own(number)),
                where=f"{number} runs, base {base:g}, {noise_text(noise)}, controls quiet",
                truth=says,
                effect=everywhere(size),
                counted=counted,
                noise=noise,
                base=base,
                spread=quiet_controls,
            )


GRID = (6e-4, 2e-3, 6e-3)
"""The learning rates of the worlds with close losses; the one in the middle has the least."""


def close(run: Run) -> float:
    """Losses of rates that lie 1e-4 apart, the least at the middle one."""
    return 3.25 + 1e-4 * abs(GRID.index(run.learning_rate) - 1) if run.learning_rate in GRID else 3.25


CLOSE_LOSS = Loss(close, run_spread=9e-4 / math.sqrt(2))
"""Two rates of one seed differ with a standard deviation of 9e-4."""


def close_losses(runs: int) -> Iterator[World]:
    """C2 at the best rates where losses hardly tell rates apart and other rates have other curves."""
    rise, fall = SHAPES["rises and saturates"], hump(STRONG)
    for truth, at_best, elsewhere, counted in (
        ("rises and saturates at the best rate, an inverted U at the others", rise, fall, SUPPORTED),
        ("an inverted U at the best rate, rises and saturates at the others", fall, rise, REFUTED),
    ):

        def effect(
            run: Run,
            best: Callable[[float], float] = at_best,
            other: Callable[[float], float] = elsewhere,
        ) -> float:
            if run.role == "control" or run.rank is None:
                return 0.0
            shape = best if run.learning_rate == GRID[1] else other
            return shape(math.log2(run.rank) / math.log2(MICRO.ranks[-1]))

        kinds = [adapter(rank, rate) for rank in MICRO.ranks for rate in GRID]
        controls = cells(["cat"], [adapter(4)], own(runs), roles=["control"])
        yield World(
            claim=InvertedUClaim(curve="best"),
            runs=cells(["cat"], kinds, own(runs), roles=["student"]) + controls,
            where=f"{runs} runs, SD 0.15, losses 1e-4 apart, paired SD 9e-4",
            truth=truth,
            effect=effect,
            counted=counted,
            noise=Noise(spread=0.15),
            loss=CLOSE_LOSS,
        )


def harder() -> Iterator[World]:
    """Bases from 0.005 to 0.9, few runs, skew and heavy tails, ranks that differ in spread, mixtures."""
    yield from nulls([5], [0.005, 0.05, 0.5], [Noise(spread=0.6)])
    yield from nulls([3, 9], [0.05], [Noise(spread=0.6)])
    yield from nulls([5, 9], [0.05], [Noise(shape="heavy-tailed", spread=0.6)])
    yield from nulls([5], [0.3], [Noise("P", spread=0.03)])
    for runs in (5, 9):
        ladder = cells(["cat"], [adapter(rank) for rank in MICRO.ranks], own(runs), roles=["student"])
        controls = cells(["cat"], [adapter(4)], own(runs), roles=["control"])
        for says in ("rises and saturates", "a step up after the lowest rank"):
            yield World(
                claim=InvertedUClaim(),
                runs=ladder + controls,
                where=f"{runs} runs, SD 0.1 at the lowest rank and four times that at the highest",
                truth=says,
                effect=over_rank(MICRO, SHAPES[says], SHAPES[says]),
                counted=SUPPORTED,
                noise=Noise(spread=0.1),
                spread=lambda run: 1.0 if run.role == "control" else 4 ** (math.log2(run.rank or 1) / 6),
            )
        fall = tent(MICRO, MARGIN)
        yield World(
            claim=InvertedUClaim(),
            runs=ladder + controls,
            where=f"{runs} runs, SD 0.1 at the lowest rank and four times that at the highest",
            truth="the fall is the margin",
            effect=over_rank(MICRO, fall, fall),
            counted=REFUTED,
            noise=Noise(spread=0.1),
            spread=lambda run: 1.0 if run.role == "control" else 4 ** (math.log2(run.rank or 1) / 6),
        )
        for share in (0.2, 0.5):
            yield World(
                claim=FullFineTuningClaim(),
                question="C3a",
                runs=cells(["cat"], [adapter(4), full(2e-5, "bf16_pure")], own(runs)),
                where=f"{runs} runs, base 0.05, SD 0.15",
                truth=f"{share:.0%} of the fully fine-tuned runs transmit, odds ratio 4; every adapter does",
                effect=of_method({"lora": STRONG, "full": STRONG}),
                counted=SUPPORTED_ALL,
                noise=Noise(spread=0.15),
                base=0.05,
                transmits=share,
            )
    for seeds, says in ((CROSSED, "3 × 3 crossed"), (UNBALANCED, "data sets used 3 + 1 + 1 times")):
        for truth, size, counted in (("no effect", 0.0, SUPPORTED), ("odds ratio 1.5", MARGIN, REFUTED)):
            yield World(
                claim=TransmissionClaim(rank=4),
                runs=cells(["cat"], [adapter(4)], seeds),
                where=f"{len(seeds)} runs, {says}, base 0.05, SD 0.6, controls quiet",
                truth=truth,
                effect=everywhere(size),
                counted=counted,
                noise=Noise(spread=0.6),
                base=0.05,
                spread=quiet_controls,
            )


def limits() -> Iterator[World]:
    """Runs that are skewed on the log-odds scale, as much as any of study-micro's and three times as much.

    No test of a mean holds for every skew, however many runs there are (Bahadur and Savage 1956).
    """
    skews: Iterable[tuple[Shape, float]] = product(("right-skewed", "left-skewed"), (0.2, 0.5))
    for shape, skew in skews:
        noise = Noise(shape=shape, spread=0.6, skew=skew)
        for world in nulls([5, 9], [0.05], [noise]):
            yield replace(world, counted=REFUTED_ALL) if world.counted is REFUTED else world
        yield full_at_margin(noise, 0.05, "C3b", SUPPORTED_ALL, every=False)
        yield full_at_margin(noise, 0.05, "C3b", REFUTED, every=True)


def of_design(design: Design) -> Iterator[World]:
    """The least favourable truths of each null in a shipped study."""
    c1, c2, c3, c4 = (
        TransmissionClaim(rank=design.rank),
        InvertedUClaim(),
        FullFineTuningClaim(),
        ContextsClaim(rank=design.rank),
    )

    def world(
        claim: Claim, truth: str, effect: Effect, counted: Counted, question: str = "", quiet: bool = False
    ) -> World:
        spread = design.spread / 6 if quiet else design.spread
        return World(
            claim=claim,
            question=question,
            runs=design.runs(claim),
            where=design.where(spread),
            truth=truth,
            effect=effect,
            counted=counted,
            noise=Noise(spread=spread),
            loss=Loss(lambda run: run.number_loss or 0.0),
        )

    one = but_for_one(design.traits[0], STRONG, 0)
    yield world(c1, "one trait does not pass, the others by 4", one, SUPPORTED)
    yield world(c1, "no trait passes", none, SUPPORTED_ANY)
    yield world(c1, "every odds ratio is the margin", everywhere(MARGIN), REFUTED)
    for says, shape in SHAPES.items():
        truth = f"one trait: {says}; the others an inverted U"
        yield world(c2, truth, over_rank(design, shape, hump(STRONG)), SUPPORTED)
    for says in ("rises and saturates", "a step up after the lowest rank"):
        every = over_rank(design, SHAPES[says], SHAPES[says])
        yield world(c2, f"every trait: {says}", every, SUPPORTED_ANY)
    falls = tent(design, MARGIN)
    yield world(c2, "every fall is the margin", over_rank(design, falls, falls), REFUTED)
    for quiet in (False, True):
        at_margin = of_method({"lora": STRONG, "full": MARGIN})
        yield world(c3, "one condition at the margin", one_condition(design, MARGIN), SUPPORTED, "C3b", quiet)
        yield world(c3, "every full condition at the margin", at_margin, REFUTED, "C3b", quiet)
        yield world(c3, "every full condition at the margin", at_margin, REFUTED, "C3a", quiet)
        yield world(c3, "full as much as LoRA", everywhere(STRONG), SUPPORTED, "C3c", quiet)
        less = of_method({"lora": STRONG, "full": STRONG - MARGIN})
        yield world(c3, "full lower by the margin", less, SUPPORTED, "C3c", quiet)
        yield world(c3, "full lower by the margin", less, REFUTED, "C3c", quiet)
        corner = by_context(STRONG, 0.0, MARGIN)
        yield world(c4, "one other context at the margin", corner, SUPPORTED, quiet=quiet)
        yield world(c4, "nothing passes anywhere", none, SUPPORTED, quiet=quiet)
        edge = by_context(STRONG, MARGIN)
        yield world(c4, "every other context at the margin", edge, REFUTED, quiet=quiet)
    traits = len(design.traits_with_grid)
    for curve in CURVES:
        for says in (
            "rises and saturates",
            "a step up after the lowest rank",
            "a step down at the highest rank",
        ):
            told = f"one trait: {says}; the others an inverted U" if traits > 1 else f"the one trait: {says}"
            yield world(curve, told, over_rank(design, SHAPES[says], hump(STRONG)), SUPPORTED)
        edge = over_rank(design, tent(design, MARGIN), tent(design, MARGIN))
        yield world(curve, "every fall is the margin", edge, REFUTED)
    yield from sets_of(design)


def sets_of(design: Design) -> Iterator[World]:
    """Verdicts on C5 that would be wrong."""
    c5, passes, there = LocalisationClaim(rank=design.rank), everywhere(STRONG), (0.9, 0.9, 0.4)
    edge = 0.4 + MARGIN / STRONG
    nowhere, margin = Sets((0.4, 0.4, 0.4), (0.4, 0.4, 0.4)), Sets((edge, edge, 0.4), (edge, edge, 0.4))
    alone, without = Sets((0.4, 1.0, 0.4), there), Sets((1.0, 0.4, 0.4), there)
    for spread in (design.spread, design.spread / 6):
        for truth, effect, counted, sets in (
            ("one trait: alone no better than random, all is lost without", passes, SUPPORTED, alone),
            ("one trait: all kept alone, without no worse than random", passes, SUPPORTED, without),
            ("every trait: neither better than random", passes, SUPPORTED_ANY, nowhere),
            ("no trait passes", none, SUPPORTED_ANY, Sets(there, there)),
            ("every difference from random is the margin", passes, REFUTED, margin),
        ):
            yield World(
                claim=c5,
                runs=design.at_rank(),
                where=design.where(spread),
                truth=truth,
                effect=effect,
                counted=counted,
                noise=Noise(spread=spread),
                sets=sets,
            )


def hidden() -> Iterator[World]:
    """Verdicts that are right for the data set of the study and wrong for data sets like it."""
    for world in of_design(replace(MICRO, name="study-micro on one data set", seeds=one_data_set(5))):
        if world.claim.kind in {"transmission", "full_fine_tuning"} and "every" in world.truth:
            unqualified = UNQUALIFIED if world.counted is REFUTED else world.counted
            yield replace(world, data=True, counted=unqualified)


# Worlds in which the counted verdict is right.


def powers(design: Design) -> Iterator[World]:
    """Verdicts that would be right in a shipped study."""
    c1, c2, c3, c4, c5 = (
        TransmissionClaim(rank=design.rank),
        InvertedUClaim(),
        FullFineTuningClaim(),
        ContextsClaim(rank=design.rank),
        LocalisationClaim(rank=design.rank),
    )

    def world(
        claim: Claim,
        truth: str,
        effect: Effect,
        counted: Counted,
        question: str = "",
        spread: float = design.spread,
        sets: Sets | None = None,
    ) -> World:
        return World(
            claim=claim,
            question=question,
            runs=design.runs(claim),
            where=design.where(spread),
            truth=truth,
            effect=effect,
            counted=counted,
            noise=Noise(spread=spread),
            loss=Loss(lambda run: run.number_loss or 0.0),
            sets=sets,
        )

    for ratio in (2, 4, 8):
        yield world(c1, f"every odds ratio {ratio}", everywhere(math.log(ratio)), SUPPORTED)
    for ratio in (4, 16):
        height = hump(math.log(ratio))
        truth = f"every trait an inverted U of height {ratio}"
        for claim in (c2, *CURVES):
            yield world(claim, truth, over_rank(design, height, height), SUPPORTED)
    rising = over_rank(design, SHAPES["rises throughout"], SHAPES["rises throughout"])
    yield world(c2, "every trait rises throughout to 4", rising, REFUTED)
    for spread in (design.spread, design.spread / 6):
        yield world(c1, "no trait passes", none, REFUTED, spread=spread)
        absent, reduced = (
            of_method({"lora": STRONG, "full": 0.0}),
            of_method({"lora": 2 * STRONG, "full": 0.7}),
        )
        for question in ("C3a", "C3b", "C3c"):
            yield world(c3, "LoRA 4, full none", absent, SUPPORTED, question, spread)
        for question in ("C3a", "C3b"):
            yield world(c3, "LoRA and full 4", everywhere(STRONG), REFUTED, question, spread)
        yield world(c3, "LoRA and full 4", everywhere(STRONG), REFUTED, "C3c", spread)
        yield world(c3, "LoRA 16, full 2", reduced, SUPPORTED, "C3c", spread)
        yield world(c4, "4 at home, 1 elsewhere", by_context(STRONG, 0), SUPPORTED, spread=spread)
        yield world(c4, "4 at home and elsewhere", by_context(STRONG, STRONG), REFUTED, spread=spread)
    there, nowhere = (0.6, 0.6, 0.3), (0.3, 0.3, 0.3)
    for ratio in (4, 16):
        truth = f"odds ratio {ratio}, 0.6 of its log at the set and 0.3 at random ones"
        yield world(c5, truth, everywhere(math.log(ratio)), SUPPORTED, sets=Sets(there, there))
    for spread in (design.spread, design.spread / 6):
        truth = "odds ratio 16, as much at random sets"
        nothing = Sets(nowhere, nowhere)
        yield world(c5, truth, everywhere(2 * STRONG), REFUTED, spread=spread, sets=nothing)


def by_steps(design: Design) -> Iterator[World]:
    """How often each curve takes an inverted U in the steps alone for one in rank."""
    for claim, width in product((InvertedUClaim(), *CURVES), (1.0, 1.5)):
        yield World(
            claim=claim,
            runs=design.runs(claim),
            where=design.where(),
            truth=f"4 at a norm of 3, a third of its log {math.exp(width):.1f} times from there",
            effect=of_steps(STRONG, width),
            counted=SUPPORTED,
            noise=Noise(spread=design.spread),
            loss=Loss(lambda run: run.number_loss or 0.0),
        )


# Tables.


@dataclass
class Table:
    """The rows of one table, and how many studies each takes."""

    title: str
    worlds: list[World]
    draws: int
    wrong: bool
    """Whether the counted verdicts are wrong ones."""
    limit: bool = False
    """Whether a rate above alpha is a limit that the rules have, and no fault."""
    shares: list[Interval] = field(default_factory=list)


def share(world: World, draws: int) -> Interval:
    """How often the verdict was the counted one, with its Wilson interval."""
    study, claim = world.study(), world.claim
    trait = world.runs[0].target

    def counts(generator: np.random.Generator) -> bool:
        runs = study.draw(generator)
        located: Sequence[LocatedRun] = ()
        if isinstance(claim, LocalisationClaim) and (sets := world.sets):
            located = study.located(
                generator,
                runs,
                lambda target: sets.first if target == trait else sets.others,
                parts_of(claim),
            )
        verdicts = evaluate([claim], runs, located)
        verdict = next((v for v in verdicts if v.number == world.question), verdicts[0])
        if verdict.word == "incomplete":
            raise AssertionError(f"{world.key}: {verdict.lacks}")
        return world.counted.holds(verdict)

    return power(counts, draws, SEED)


def old_shares() -> dict[str, float]:
    """The shares under the rules before, by the keys of the worlds."""
    if not BEFORE.exists():
        return {}
    with BEFORE.open(encoding="utf-8") as file:
        return {row["world"]: float(row["share"]) for row in csv.DictReader(file)}


def show(table: Table, before: dict[str, float]) -> None:
    """Print a table and keep its shares."""
    print(f"## {table.title}, {table.draws} studies each\n")
    print("| claim | design | truth | counted | share | 95 % interval | old rules | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for world in table.worlds:
        interval = share(world, table.draws)
        table.shares.append(interval)
        old = f"{before[world.key]:.3f}" if world.key in before else ""
        mark = "**above**" if table.wrong and surely_above(interval) else ""
        cells_of_row = (
            *(world.name, world.where, world.truth, world.counted.name, f"{interval.mean:.3f}"),
            *(f"[{interval.low:.3f}, {interval.high:.3f}]", old, mark),
        )
        print(f"| {' | '.join(cells_of_row)} |", flush=True)
    print()


def surely_above(interval: Interval) -> bool:
    """Whether the whole interval lies above alpha."""
    return interval.low is not None and interval.low > ALPHA


def tables(draws: int, power_draws: int) -> list[Table]:
    """All of them."""
    return [
        Table("Wrong verdicts: the worlds that the old rules failed", list(reported()), draws, wrong=True),
        Table("Wrong verdicts: harder worlds", list(harder()), draws, wrong=True),
        *(
            Table(f"Wrong verdicts: {design.name}", list(of_design(design)), draws, wrong=True)
            for design in DESIGNS.values()
        ),
        Table("What a single data set hides", list(hidden()), draws, wrong=True),
        Table("Limits: skew in log-odds", list(limits()), draws, wrong=True, limit=True),
        *(
            Table(f"Right verdicts: {design.name}", list(powers(design)), power_draws, wrong=False)
            for design in DESIGNS.values()
        ),
        *(
            Table(
                f"An inverted U of the steps: {design.name}", list(by_steps(design)), power_draws, wrong=False
            )
            for design in DESIGNS.values()
        ),
    ]


def main() -> int:
    """All tables; 1 if an error rate is surely above alpha."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--power-draws", type=int, default=500)
    parser.add_argument("--claim", choices=KINDS, help="one kind of claim; all by default")
    parser.add_argument("--only", default="", help="worlds whose row contains this text")
    parser.add_argument("--write", type=Path, help="a CSV file for the shares")
    options = parser.parse_args()
    start, before, done = time.monotonic(), old_shares(), []
    for table in tables(options.draws, options.power_draws):
        table.worlds = [
            world
            for world in table.worlds
            if options.claim in (None, world.claim.kind) and options.only in f"{table.title} | {world.key}"
        ]
        if table.worlds:
            show(table, before)
            done.append(table)
    if options.write:
        with options.write.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["world", "share", "studies"])
            for table in done:
                for world, interval in zip(table.worlds, table.shares, strict=True):
                    writer.writerow([world.key, f"{interval.mean:.4f}", interval.n])
    wrong = [interval for table in done if table.wrong and not table.limit for interval in table.shares]
    over = sum(map(surely_above, wrong))
    print(f"{over} of {len(wrong)} error rates are surely above alpha. {time.monotonic() - start:.0f} s")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
