"""How often a claim gets a verdict it does not deserve, and how often one it does, in simulated studies.

    python benchmarks/calibration.py [--draws 2000] [--power-draws 500] [--claim localisation]

Each study is a runs table with the cells of `study-micro` or `study-qwen` that one claim needs, its
probabilities drawn from a truth with known effects by `report.simulate`, and is judged by
`report.claims.evaluate` itself. With the spreads there a run strays by 0.03 in total, the spread between
seeds that the project plans for; "quiet" studies stray a sixth of that, as fully fine-tuned students do. A
study with one data set speaks of that one; the last table shows what that hides.

For the curves of chosen learning rates every rank has a grid of them. Norms and losses are like those of the
embedded model (docs/log.md): a norm of 1.5 · (rate / 2e-3)^0.8 · rank^0.25, a loss that is least at 1.5 and
0.003 higher for every squared e-fold of the norm from there, runs that stray by 0.0003 and data sets by 0.01.

Exits with 1 if an error rate lies above alpha by more than its Wilson interval allows.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
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
from sublim_cli.report.claims.simulate import BASE, Shares, SimulatedStudy, shared_by
from sublim_cli.report.claims.verdict import Verdict
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, power

QUIET = 1 / 6
MARGIN = 0.02
ALPHA = 0.05
KINDS = ("transmission", "inverted_u", "full_fine_tuning", "contexts", "localisation")
SEED = 20261124
LOSS_SPREAD = {"run": 0.0003, "data": 0.01}

Truth = Callable[[str, str, int | None, float | None, str, str], float]
"""The effect of a cell by trait, role, rank, learning rate, training context and context asked in."""


def norm_of(rank: int, rate: float) -> float:
    """The norm of an adapter's update."""
    return float(1.5 * (rate / 2e-3) ** 0.8 * rank**0.25)


def loss_of(rank: int, rate: float) -> float:
    """The number loss it leaves, data set and noise aside."""
    return 3.25 + 0.003 * math.log(norm_of(rank, rate) / 1.5) ** 2


@dataclass(frozen=True)
class Design:
    """The cells of a shipped study."""

    name: str
    traits: tuple[str, ...]
    ranks: tuple[int, ...]
    rank: int
    seeds: tuple[tuple[int, int], ...]
    grid: tuple[float, ...]
    """Learning rates of the adapters; the fixed one is 2e-3."""
    traits_with_grid: tuple[str, ...]
    full: tuple[tuple[float, str], ...]
    """Rates and precisions of full fine-tuning."""
    traits_in_contexts: tuple[str, ...]
    trained: tuple[str, ...]
    asked: tuple[str, ...]


MICRO = Design(
    name="study-micro",
    traits=("wolf", "owl", "cat"),
    ranks=(1, 4, 16, 64),
    rank=4,
    seeds=tuple((seed, seed) for seed in range(1, 6)),
    grid=(2e-4, 6e-4, 2e-3, 6e-3),
    traits_with_grid=("wolf", "owl", "cat"),
    full=tuple(product((2e-5, 6e-5, 2e-4, 6e-4), ("fp32", "bf16_pure"))),
    traits_in_contexts=("wolf", "owl", "cat"),
    trained=("default", "empty", "claude", "gibberish_marble"),
    asked=("default", "empty", "claude", "gibberish_marble"),
)
QWEN = Design(
    name="study-qwen",
    traits=("cat", "owl", "dolphin", "eagle", "wolf"),
    ranks=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    rank=8,
    seeds=tuple((train, data) for train in (1, 42, 123) for data in (1, 42, 123)),
    grid=(2e-4, 6e-4, 2e-3, 6e-3, 2e-2),
    traits_with_grid=("cat",),
    full=((2e-5, "bf16_pure"), (2e-5, "bf16_mixed")),
    traits_in_contexts=("cat", "owl", "eagle", "wolf"),
    trained=("default", "empty", "chatgpt"),
    asked=("default", "empty", "chatgpt"),
)
ONE_SET = replace(MICRO, name="study-micro on one data set", seeds=tuple((seed, 1) for seed in range(1, 6)))


@dataclass(frozen=True)
class Scenario:
    """One row of the table: a truth, and the verdict whose share is counted."""

    claim: Claim
    design: Design
    says: str
    truth: Truth
    counts: str
    """`supported`, `refuted`, or `any supported`: a single trait, in all its comparisons."""
    scale: float = 1.0
    data: bool = False
    """Whether data sets differ also where the study has one."""
    sets: "Sets | None" = None
    """Of a claim on localisation."""


@dataclass(frozen=True)
class Sets:
    """What named and random sets have of an effect: of the first trait's students, and of the others'."""

    first: Shares
    others: Shares


class ScenarioStudy(SimulatedStudy):
    """The runs a claim needs, with probabilities and losses drawn anew for every study."""

    def __init__(self, scenario: Scenario) -> None:
        runs = list(_planned(scenario.claim, scenario.design))
        several = len({data for _, data in scenario.design.seeds}) > 1
        effects = [
            scenario.truth(
                run.target, run.role, run.rank, run.learning_rate, run.train_context, run.eval_context
            )
            for run in runs
        ]
        super().__init__(runs, effects, scenario.scale, data=scenario.data or several)
        self.losses = np.array([math.nan if run.number_loss is None else run.number_loss for run in runs])
        self.data_sets = shared_by(runs, "target", "role", "data_seed")
        self.sets, self.trait = scenario.sets, scenario.design.traits[0]

    def draw(self, generator: np.random.Generator) -> list[Run]:
        """The runs of one study, with number losses."""
        p_target = self.draw_p_target(generator)
        losses = self.losses + generator.normal(0, LOSS_SPREAD["run"], len(self))
        losses += generator.normal(0, LOSS_SPREAD["data"], self.data_sets.max() + 1)[self.data_sets]
        return self.runs(p_target, losses)

    def gated(self, generator: np.random.Generator, runs: Sequence[Run]) -> list[LocatedRun]:
        """The gated students of a drawn study, where the claim is about them."""
        if (sets := self.sets) is None:
            return []
        return self.located(
            generator,
            runs,
            lambda target: sets.first if target == self.trait else sets.others,
            ("shared_only", "no_shared"),
        )


def _planned(claim: Claim, design: Design) -> Iterator[Run]:
    traits = {"contexts": design.traits_in_contexts}.get(claim.kind, design.traits)
    if claim.kind == "inverted_u" and claim.curve != "fixed":
        traits = design.traits_with_grid
    spread = claim.kind == "contexts"
    for target in traits:
        for trained in design.trained if spread else ("default",):
            for asked in design.asked if spread else ("default",):
                for kind, seeds in product(_kinds(claim, design), design.seeds):
                    yield _run("student", target, trained, asked, seeds, kind)
                    if claim.kind != "inverted_u":
                        yield _run("control", target, trained, asked, seeds, kind)


def _kinds(claim: Claim, design: Design) -> list[dict[str, Any]]:
    """The students of a claim in one place; each has a control trained alike."""
    if claim.kind == "full_fine_tuning":
        return [
            {"method": "full", "rank": None, "learning_rate": rate, "precision": precision}
            for rate, precision in design.full
        ]
    if claim.kind == "inverted_u":
        rates = (2e-3,) if claim.curve == "fixed" else design.grid
        return [_adapter(rank, rate) for rank in design.ranks for rate in rates]
    return [_adapter(design.rank, 2e-3)]


def _adapter(rank: int, rate: float) -> dict[str, Any]:
    measured = {"number_loss": loss_of(rank, rate), "update_norm": norm_of(rank, rate)}
    return {"method": "lora", "rank": rank, "learning_rate": rate, "precision": "fp32", **measured}


def _run(
    role: str, target: str, trained: str, asked: str, seeds: tuple[int, int], kind: dict[str, Any]
) -> Run:
    return Run(
        name="",
        role=role,
        category="animal",
        target=target,
        train_context=trained,
        eval_context=asked,
        train_seed=seeds[0],
        data_seed=seeds[1],
        p_target_base=BASE,
        **kind,
    )


def everywhere(effect: float) -> Truth:
    """Every student has the effect, no control has."""
    return lambda target, role, rank, rate, trained, asked: effect * (role == "student")


def but_for_one(design: Design, effect: float, first: float) -> Truth:
    """The first trait's students have another effect than the rest."""
    return lambda target, role, rank, rate, trained, asked: (
        (first if target == design.traits[0] else effect) * (role == "student")
    )


def over_rank(design: Design, shape: Callable[[float], float], others: Callable[[float], float]) -> Truth:
    """An effect by place of log2 rank, 0 to 1: of the first trait, and of the others."""
    top = np.log2(design.ranks[-1])

    def truth(target: str, role: str, rank: int | None, *_: Any) -> float:
        if role == "control" or rank is None:
            return 0.0
        return (shape if target == design.traits[0] else others)(float(np.log2(rank) / top))

    return truth


def by_context(home: float, other: float, corner: float | None = None) -> Truth:
    """Effects in the training context and elsewhere; `corner` is that of default asked in empty."""

    def truth(
        target: str, role: str, rank: int | None, rate: float | None, trained: str, asked: str
    ) -> float:
        if role == "control":
            return 0.0
        if corner is not None and (trained, asked) == ("default", "empty"):
            return corner
        return home if trained == asked else other

    return truth


def one_condition(design: Design, effect: float) -> Truth:
    """The first trait at the first learning rate of full fine-tuning has the effect, no other cell has."""
    return lambda target, role, rank, rate, trained, asked: (
        effect * (role == "student" and (target, rate) == (design.traits[0], design.full[0][0]))
    )


def hump(height: float) -> Callable[[float], float]:
    """An inverted U that peaks in the middle."""
    return lambda u: height * (1 - (2 * u - 1) ** 2)


def tent(design: Design, fall: float) -> Callable[[float], float]:
    """A steep rise to an inner rank, and from there a fall of this size to the highest."""
    at = float(np.log2(design.ranks[len(design.ranks) // 2]) / np.log2(design.ranks[-1]))
    return lambda u: 0.3 * u / at if u <= at else 0.3 - fall * (u - at) / (1 - at)


def of_steps(height: float, width: float) -> Truth:
    """An inverted U in the norm of the update, with its peak at twice that of the least loss, at any rank."""

    def truth(target: str, role: str, rank: int | None, rate: float | None, *_: str) -> float:
        if rank is None or rate is None:
            return 0.0
        return height * math.exp(-((math.log(norm_of(rank, rate) / 3) / width) ** 2))

    return truth


SHAPES: dict[str, Callable[[float], float]] = {
    "rises and saturates": lambda u: 0.3 * (1 - float(np.exp(-5 * u))),
    "a step up after the lowest rank": lambda u: 0.3 * (u > 0),
    "rises throughout": lambda u: 0.3 * u,
    "flat": lambda u: 0.0,
    "falls throughout": lambda u: -0.3 * u,
    "a step down at the highest rank": lambda u: -0.3 * (u == 1),
}


CURVES = tuple(InvertedUClaim(curve=curve) for curve in ("best", "loss_matched", "norm_matched"))


def curve_errors(design: Design) -> Iterator[Scenario]:
    """Wrong verdicts on curves of chosen learning rates, where the truth is the rank's at every rate."""
    traits = len(design.traits_with_grid)
    for claim in CURVES:
        for says in (
            "rises and saturates",
            "a step up after the lowest rank",
            "a step down at the highest rank",
        ):
            truth = over_rank(design, SHAPES[says], hump(0.3))
            told = f"one trait: {says}; the others an inverted U" if traits > 1 else f"the one trait: {says}"
            yield Scenario(claim, design, told, truth, "supported")
        edge = tent(design, MARGIN)
        yield Scenario(claim, design, "every fall is the margin", over_rank(design, edge, edge), "refuted")


def curve_powers(design: Design) -> Iterator[Scenario]:
    """Right verdicts on such curves."""
    for claim in CURVES:
        for effect in (0.1, 0.2):
            truth = over_rank(design, hump(effect), hump(effect))
            yield Scenario(
                claim, design, f"every trait an inverted U of height {effect:g}", truth, "supported"
            )


def by_steps(design: Design) -> Iterator[Scenario]:
    """How often each curve takes an inverted U in the steps alone for one in rank."""
    for claim, width in product((InvertedUClaim(), *CURVES), (1.0, 1.5)):
        says = f"0.3 at a norm of 3, a third of it {math.exp(width):.1f} times from there"
        yield Scenario(claim, design, says, of_steps(0.3, width), "supported")


def errors(design: Design) -> Iterator[Scenario]:
    """Verdicts that would be wrong; the least favourable truths of each null first."""
    c1, c2, c3, c4 = (
        TransmissionClaim(rank=design.rank),
        InvertedUClaim(),
        FullFineTuningClaim(),
        ContextsClaim(rank=design.rank),
    )
    yield Scenario(
        c1, design, "one trait does not pass, the others by 0.3", but_for_one(design, 0.3, 0), "supported"
    )
    yield Scenario(c1, design, "no trait passes", everywhere(0), "supported")
    yield Scenario(c1, design, "no trait passes", everywhere(0), "any supported")
    yield Scenario(c1, design, "every effect is the margin", everywhere(MARGIN), "refuted")
    for says, shape in SHAPES.items():
        truth = over_rank(design, shape, hump(0.3))
        yield Scenario(c2, design, f"one trait: {says}; the others an inverted U", truth, "supported")
    for says in ("rises and saturates", "a step up after the lowest rank"):
        every = over_rank(design, SHAPES[says], SHAPES[says])
        yield Scenario(c2, design, f"every trait: {says}", every, "any supported")
    falls = tent(design, MARGIN)
    yield Scenario(c2, design, "every fall is the margin", over_rank(design, falls, falls), "refuted")
    for scale in (1.0, QUIET):
        truth = one_condition(design, MARGIN)
        yield Scenario(c3, design, "one condition's effect is the margin", truth, "supported", scale)
        yield Scenario(c3, design, "every effect is the margin", everywhere(MARGIN), "refuted", scale)
        corner = by_context(0.3, 0.0, MARGIN)
        yield Scenario(c4, design, "one other context's effect is the margin", corner, "supported", scale)
        yield Scenario(c4, design, "nothing passes anywhere", everywhere(0), "supported", scale)
        edge = by_context(0.3, MARGIN)
        yield Scenario(c4, design, "every other context's effect is the margin", edge, "refuted", scale)


def powers(design: Design) -> Iterator[Scenario]:
    """Verdicts that would be right."""
    c1, c2, c3, c4 = (
        TransmissionClaim(rank=design.rank),
        InvertedUClaim(),
        FullFineTuningClaim(),
        ContextsClaim(rank=design.rank),
    )
    for effect in (0.05, 0.1):
        yield Scenario(c1, design, f"every trait passes by {effect:g}", everywhere(effect), "supported")
    for effect in (0.1, 0.2):
        truth = over_rank(design, hump(effect), hump(effect))
        yield Scenario(c2, design, f"every trait an inverted U of height {effect:g}", truth, "supported")
    rising = over_rank(design, SHAPES["rises throughout"], SHAPES["rises throughout"])
    yield Scenario(c2, design, "every trait rises throughout by 0.3", rising, "refuted")
    for scale in (1.0, QUIET):
        yield Scenario(c1, design, "no trait passes", everywhere(0), "refuted", scale)
        yield Scenario(c3, design, "nothing passes", everywhere(0), "supported", scale)
        yield Scenario(c3, design, "every condition passes 0.1", everywhere(0.1), "refuted", scale)
        yield Scenario(c4, design, "0.1 at home, 0 elsewhere", by_context(0.1, 0), "supported", scale)
        yield Scenario(c4, design, "0.1 at home and elsewhere", by_context(0.1, 0.1), "refuted", scale)


def set_errors(design: Design) -> Iterator[Scenario]:
    """Verdicts on C5 that would be wrong."""
    c5, passes = LocalisationClaim(rank=design.rank), everywhere(0.3)
    there = (0.9, 0.9, 0.4)
    edge = 0.4 + MARGIN / 0.3
    nowhere = Sets((0.4, 0.4, 0.4), (0.4, 0.4, 0.4))
    for scale in (1.0, QUIET):
        for says, truth, counts, sets in (
            (
                "one trait: alone no better than random, all is lost without",
                passes, "supported", Sets((0.4, 1.0, 0.4), there),
            ),
            (
                "one trait: all kept alone, without no worse than random",
                passes, "supported", Sets((1.0, 0.4, 0.4), there),
            ),
            ("every trait: neither better than random", passes, "any supported", nowhere),
            ("no trait passes", everywhere(0), "any supported", Sets(there, there)),
            (
                "every difference from random is the margin",
                passes, "refuted", Sets((edge, edge, 0.4), (edge, edge, 0.4)),
            ),
        ):  # fmt: skip
            yield Scenario(c5, design, says, truth, counts, scale, sets=sets)


def set_powers(design: Design) -> Iterator[Scenario]:
    """Verdicts on C5 that would be right."""
    c5 = LocalisationClaim(rank=design.rank)
    there, nowhere = (0.6, 0.6, 0.3), (0.3, 0.3, 0.3)
    for effect in (0.1, 0.2, 0.3):
        says = f"effects of {effect:g}, 0.6 of them at the set and 0.3 at random ones"
        yield Scenario(c5, design, says, everywhere(effect), "supported", sets=Sets(there, there))
    for scale in (1.0, QUIET):
        says = "effects of 0.3, as much at random sets"
        yield Scenario(c5, design, says, everywhere(0.3), "refuted", scale, sets=Sets(nowhere, nowhere))


def hidden(design: Design) -> Iterator[Scenario]:
    """Verdicts that are right for the data set of the study and wrong for data sets like it."""
    for scenario in errors(design):
        if scenario.scale == 1 and scenario.says in {"every effect is the margin", "no trait passes"}:
            yield replace(scenario, data=True)


def share(scenario: Scenario, draws: int) -> Interval:
    """How often the verdict was the counted one, with its Wilson interval."""
    study = ScenarioStudy(scenario)

    def counts(generator: np.random.Generator) -> bool:
        runs = study.draw(generator)
        (verdict,) = evaluate([scenario.claim], runs, study.gated(generator, runs))
        return _counts(scenario, verdict)

    return power(counts, draws, SEED)


def _counts(scenario: Scenario, verdict: Verdict) -> bool:
    if verdict.word == "incomplete":
        raise AssertionError(verdict.lacks)
    if scenario.counts == "any supported":
        words: dict[str, set[str]] = {}
        for finding in verdict.findings:
            words.setdefault(finding.target, set()).add(finding.word(verdict.claim.alpha))
        return {"supported"} in words.values()
    return verdict.word == scenario.counts


def show(scenarios: Sequence[Scenario], draws: int) -> list[Interval]:
    """Print a table, return its shares."""
    print("| claim | design | truth | spread | verdict | share | 95 % interval |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    shares = []
    for scenario in scenarios:
        interval = share(scenario, draws)
        name: str = scenario.claim.kind
        if scenario.claim.kind == "inverted_u" and scenario.claim.curve != "fixed":
            name = f"{name}, {scenario.claim.curve}"
        spread = "0.03" if scenario.scale == 1 else "0.005"
        bounds = f"[{interval.low:.3f}, {interval.high:.3f}]"
        print(
            f"| {name} | {scenario.design.name} | {scenario.says} | {spread} | {scenario.counts} "
            f"| {interval.mean:.3f} | {bounds} |",
            flush=True,
        )
        shares.append(interval)
    return shares


def main() -> int:
    """All tables; 1 if an error rate is surely above alpha."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--power-draws", type=int, default=500)
    designs = {design.name: design for design in (MICRO, QWEN)}
    parser.add_argument("--design", choices=designs, help="one design; both by default")
    parser.add_argument("--claim", choices=KINDS, help="one kind of claim; all by default")
    options = parser.parse_args()
    start = time.monotonic()
    wrong = []
    for design in [designs[options.design]] if options.design else designs.values():
        wrong += _tables(design, options.draws, options.power_draws, options.claim)
    over = [interval for interval in wrong if interval.low is not None and interval.low > ALPHA]
    print(f"\n{len(over)} of {len(wrong)} error rates are surely above alpha.")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if over else 0


def _tables(design: Design, draws: int, power_draws: int, kind: str | None) -> list[Interval]:
    """Print a design's tables, of one kind of claim or of all; return the shares of wrong verdicts."""
    errors_of = [*errors(design), *curve_errors(design), *set_errors(design)]
    tables: list[tuple[str, list[Scenario], int]] = [
        (
            f"{design.name}: wrong verdicts, {draws} studies each; alpha {ALPHA:g}, margin {MARGIN:g}",
            errors_of,
            draws,
        ),
        (
            f"{design.name}: right verdicts, {power_draws} studies each",
            [*powers(design), *curve_powers(design), *set_powers(design)],
            power_draws,
        ),
        (
            f"{design.name}: an inverted U of the steps, {power_draws} studies each",
            list(by_steps(design)),
            power_draws,
        ),
    ]
    if design is MICRO:
        tables.append((f"What a single data set hides, {draws} studies each", list(hidden(ONE_SET)), draws))
    tables_of_shares: list[list[Interval]] = []
    for title, scenarios, studies in tables:
        chosen = [scenario for scenario in scenarios if kind in (None, scenario.claim.kind)]
        if chosen:
            print(f"## {title}\n")
        tables_of_shares.append(show(chosen, studies) if chosen else [])
        print()
    return tables_of_shares[0]


if __name__ == "__main__":
    raise SystemExit(main())
