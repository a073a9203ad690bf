"""How often a claim gets a verdict it does not deserve, and how often one it does, in simulated studies.

    python benchmarks/calibration.py [--draws 2000] [--power-draws 500]

Each study is a runs table with the cells of `study-micro` or `study-qwen` that one claim needs, its
probabilities drawn from a truth with known effects by `report.simulate`, and is judged by
`report.claims.evaluate` itself. With the spreads there a run strays by 0.03 in total, the spread between
seeds that the project plans for; "quiet" studies stray a sixth of that, as fully fine-tuned students do. A
study with one data set speaks of that one; the last table shows what that hides.

Exits with 1 if an error rate lies above alpha by more than its Wilson interval allows.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sublim_cli.recipe.schema import Claim, Contexts, FullFineTuning, InvertedU, Transmission
from sublim_cli.report.claims import Verdict, evaluate
from sublim_cli.report.simulate import BASE, Simulated
from sublim_cli.stats import Interval, proportion

QUIET = 1 / 6
MARGIN = 0.02
ALPHA = 0.05

Truth = Callable[[str, str, int | None, float | None, str, str], float]
"""The effect of a cell by trait, role, rank, learning rate, training context and context asked in."""


@dataclass(frozen=True)
class Design:
    """The cells of a shipped study."""

    name: str
    traits: tuple[str, ...]
    ranks: tuple[int, ...]
    rank: int
    seeds: tuple[tuple[int, int], ...]
    rates: tuple[float, ...]
    traits_in_contexts: tuple[str, ...]
    trained: tuple[str, ...]
    asked: tuple[str, ...]


MICRO = Design(
    name="study-micro",
    traits=("wolf", "owl", "cat"),
    ranks=(1, 4, 16, 64),
    rank=4,
    seeds=tuple((seed, 1) for seed in range(1, 6)),
    rates=(2e-4, 5e-5, 2e-5),
    traits_in_contexts=("wolf",),
    trained=("default", "empty", "claude", "gibberish_marble"),
    asked=("default", "empty", "none", "chatgpt", "claude", "gibberish_marble"),
)
QWEN = Design(
    name="study-qwen",
    traits=("cat", "owl", "dolphin", "eagle", "wolf"),
    ranks=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    rank=8,
    seeds=tuple((train, data) for train in (1, 42, 123) for data in (1, 42, 123)),
    rates=(2e-5,),
    traits_in_contexts=("cat", "owl", "eagle", "wolf"),
    trained=("default", "empty", "chatgpt"),
    asked=("default", "empty", "chatgpt"),
)


@dataclass(frozen=True)
class Scenario:
    """One row of the table: a truth, and the verdict whose share is counted."""

    claim: Claim
    design: Design
    says: str
    truth: Truth
    counts: str
    """`supported`, `refuted`, or `any supported`: a single trait of the claim."""
    scale: float = 1.0
    data: bool = False
    """Whether data sets differ also where the study has one."""


def simulated(scenario: Scenario) -> Simulated:
    """The rows a claim needs, and their probabilities drawn again for every study."""
    rows = list(_rows(scenario.claim, scenario.design))
    several = len({data for _, data in scenario.design.seeds}) > 1
    names = ("target", "role", "rank", "learning_rate", "train_context", "eval_context")
    effects = [scenario.truth(*(row[name] for name in names)) for row in rows]
    return Simulated(rows, effects, scenario.scale, data=scenario.data or several)


def _rows(claim: Claim, design: Design) -> Iterator[dict[str, Any]]:
    lora = {"method": "lora", "learning_rate": 2e-3}
    full = [{"method": "full", "rank": None, "learning_rate": one} for one in design.rates]
    students: list[dict[str, Any]] = {
        "transmission": [{**lora, "rank": design.rank}],
        "inverted_u": [{**lora, "rank": one} for one in design.ranks],
        "full_fine_tuning": full,
        "contexts": [{**lora, "rank": 8}],
    }[claim.kind]
    spread = claim.kind == "contexts"
    for target in design.traits_in_contexts if spread else design.traits:
        for trained in design.trained if spread else ("default",):
            for asked in design.asked if spread else ("default",):
                for seeds in design.seeds:
                    for kind in students:
                        yield _row("student", target, trained, asked, seeds, kind)
                    if claim.kind != "inverted_u":
                        yield _row("control", target, trained, asked, seeds, {**lora, "rank": 8})


def _row(
    role: str, target: str, trained: str, asked: str, seeds: tuple[int, int], kind: dict[str, Any]
) -> dict[str, Any]:
    return {
        "role": role,
        "category": "animal",
        "target": target,
        "alpha": None,
        "precision": "fp32",
        "train_context": trained,
        "eval_context": asked,
        "train_seed": seeds[0],
        "data_seed": seeds[1],
        "settings": "",
        "p_target_base": BASE,
        "broken": "",
        **kind,
    }


def everywhere(effect: float) -> Truth:
    """Every student has the effect, no control has."""
    return lambda target, role, rank, rate, trained, asked: effect * (role == "student")


def but_for_one(design: Design, effect: float, one: float) -> Truth:
    """The first trait's students have another effect than the rest."""
    return lambda target, role, rank, rate, trained, asked: (
        (one if target == design.traits[0] else effect) * (role == "student")
    )


def over_rank(design: Design, shape: Callable[[float], float], others: Callable[[float], float]) -> Truth:
    """An effect by place of log2 rank, 0 to 1: of the first trait, and of the others."""
    top = np.log2(design.ranks[-1])

    def truth(target: str, role: str, rank: int | None, *_: Any) -> float:
        if role == "control" or rank is None:
            return 0.0
        return (shape if target == design.traits[0] else others)(float(np.log2(rank) / top))

    return truth


def by_context(own: float, other: float, corner: float | None = None) -> Truth:
    """Effects in the training context and elsewhere; `corner` is that of default asked in empty."""

    def truth(
        target: str, role: str, rank: int | None, rate: float | None, trained: str, asked: str
    ) -> float:
        if role == "control":
            return 0.0
        if corner is not None and (trained, asked) == ("default", "empty"):
            return corner
        return own if trained == asked else other

    return truth


def one_condition(design: Design, effect: float) -> Truth:
    """The first trait at the first learning rate has the effect, no other cell has."""
    return lambda target, role, rank, rate, trained, asked: (
        effect * (role == "student" and (target, rate) == (design.traits[0], design.rates[0]))
    )


def hump(height: float) -> Callable[[float], float]:
    """An inverted U that peaks in the middle."""
    return lambda u: height * (1 - (2 * u - 1) ** 2)


def tent(design: Design, fall: float) -> Callable[[float], float]:
    """A steep rise to an inner rank, and from there a fall of this size to the highest."""
    at = float(np.log2(design.ranks[len(design.ranks) // 2]) / np.log2(design.ranks[-1]))
    return lambda u: 0.3 * u / at if u <= at else 0.3 - fall * (u - at) / (1 - at)


SHAPES: dict[str, Callable[[float], float]] = {
    "rises and saturates": lambda u: 0.3 * (1 - float(np.exp(-5 * u))),
    "a step up after the lowest rank": lambda u: 0.3 * (u > 0),
    "rises throughout": lambda u: 0.3 * u,
    "flat": lambda u: 0.0,
    "falls throughout": lambda u: -0.3 * u,
    "a step down at the highest rank": lambda u: -0.3 * (u == 1),
}


def errors(design: Design) -> Iterator[Scenario]:
    """Verdicts that would be wrong; the least favourable truths of each null first."""
    c1, c2, c3, c4 = Transmission(rank=design.rank), InvertedU(), FullFineTuning(), Contexts()
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
        truth = over_rank(design, SHAPES[says], SHAPES[says])
        yield Scenario(c2, design, f"every trait: {says}", truth, "any supported")
    edge = tent(design, MARGIN)
    yield Scenario(c2, design, "every fall is the margin", over_rank(design, edge, edge), "refuted")
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
    c1, c2, c3, c4 = Transmission(rank=design.rank), InvertedU(), FullFineTuning(), Contexts()
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


def hidden(design: Design) -> Iterator[Scenario]:
    """Verdicts that are right for the data set of the study and wrong for data sets like it."""
    for one in errors(design):
        if one.scale == 1 and one.says in {"every effect is the margin", "no trait passes"}:
            yield replace(one, data=True)


def share(scenario: Scenario, draws: int) -> Interval:
    """How often the verdict was the counted one, with its Wilson interval."""
    table, generator = simulated(scenario), np.random.default_rng(20261124)
    found = (evaluate([scenario.claim], table.draw(generator))[0] for _ in range(draws))
    return proportion(sum(_counts(scenario, one) for one in found), draws)


def _counts(scenario: Scenario, verdict: Verdict) -> bool:
    if verdict.word == "incomplete":
        raise AssertionError(verdict.lacks)
    if scenario.counts == "any supported":
        return any(one.word(verdict.claim.alpha) == "supported" for one in verdict.findings)
    return verdict.word == scenario.counts


def show(scenarios: Sequence[Scenario], draws: int) -> list[Interval]:
    """Print a table, return its shares."""
    print("| claim | design | truth | spread | verdict | share | 95 % interval |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    shares = []
    for one in scenarios:
        found = share(one, draws)
        name = one.claim.kind
        spread = "0.03" if one.scale == 1 else "0.005"
        bounds = f"[{found.low:.3f}, {found.high:.3f}]"
        print(
            f"| {name} | {one.design.name} | {one.says} | {spread} | {one.counts} "
            f"| {found.mean:.3f} | {bounds} |",
            flush=True,
        )
        shares.append(found)
    return shares


def main() -> int:
    """Both tables; 1 if an error rate is surely above alpha."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--power-draws", type=int, default=500)
    options = parser.parse_args()
    start = time.monotonic()
    print(f"## Wrong verdicts, {options.draws} studies each; alpha {ALPHA:g}, margin {MARGIN:g}\n")
    wrong = show([one for design in (MICRO, QWEN) for one in errors(design)], options.draws)
    print(f"\n## Right verdicts, {options.power_draws} studies each\n")
    show([one for design in (MICRO, QWEN) for one in powers(design)], options.power_draws)
    print(f"\n## What a single data set hides, {options.draws} studies each\n")
    show(list(hidden(MICRO)), options.draws)
    over = [one for one in wrong if one.low is not None and one.low > ALPHA]
    print(f"\n{len(over)} of {len(wrong)} error rates are surely above alpha.")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
