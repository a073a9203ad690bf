"""What the claims of recipes/study-qwen.yaml would say of the paper's own numbers.

    python benchmarks/paper_study.py [--studies 500] [--spread 0.6] [--full-spread 0.6]

Nine runs of each of five animals at ten ranks, three data sets by three training seeds, in Qwen's default
context. The mean log-odds of a condition are those of the mean P(target) that arXiv 2606.00831 had in the
notebook of 2026-04-30; where no answer named the animal, half of one in 45,000 is taken. Controls and
full fine-tuning stay at the base. Runs stray by `--spread` in log-odds, fully fine-tuned ones by
`--full-spread`. The claims on C1, C2 at one learning rate, and C3 are judged as the recipe states them.
Number losses are not published: all conditions have the same, so that C3c cannot tell which adapter is best.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy.special import logit

from sublim_cli.recipe.load import load
from sublim_cli.recipe.schema import Claim, FullFineTuningClaim, InvertedUClaim, TransmissionClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.claims.simulate import Loss, Noise, SimulatedStudy
from sublim_cli.report.tables.runs import Run

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PERCENT = {
    "cat": (0.6, (5.2, 18.5, 32.8, 53.9, 31.0, 18.9, 10.2, 0.5, 1.0, 1.5)),
    "owl": (0.8, (0.7, 0.6, 2.3, 6.3, 14.7, 18.9, 21.7, 10.4, 2.0, 0.8)),
    "eagle": (1.2, (8.5, 14.3, 11.2, 32.8, 34.7, 55.7, 86.2, 76.2, 17.4, 7.8)),
    "wolf": (2.3, (2.4, 2.4, 9.8, 16.2, 35.5, 43.0, 53.4, 45.8, 37.1, 12.1)),
    "dolphin": (0.3, (0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0, 0.9)),
}
"""P(target) of the base, and of the nine runs at every rank."""

LEAST = 100 / 90_000
"""Half an answer of nine runs of 5,000, in percent."""

SEEDS = tuple(product((1, 42, 123), (1, 42, 123)))
LOSS = 3.25
SEED = 2606


def percent_of(run: Run) -> tuple[float, float]:
    """P(target) of the base and of the condition, in percent."""
    base, by_rank = PERCENT[run.target]
    if run.role == "control" or run.rank is None:
        return base, base
    return base, max(LEAST, by_rank[RANKS.index(run.rank)])


def planned() -> Iterator[Run]:
    """The runs that the claims compare: those of study-qwen at the paper's rates, in the default context."""
    adapters: list[dict[str, Any]] = [
        {"method": "lora", "rank": rank, "learning_rate": 2e-4, "precision": "bf16_mixed"} for rank in RANKS
    ]
    full: list[dict[str, Any]] = [
        {"method": "full", "learning_rate": 2e-5, "precision": precision}
        for precision in ("bf16_pure", "bf16_mixed")
    ]
    kinds = [("student", kind) for kind in (*adapters, *full)]
    kinds += [("control", kind) for kind in (*(a for a in adapters if a["rank"] == 8), *full)]
    for target, (role, kind), (train_seed, data_seed) in product(PERCENT, kinds, SEEDS):
        yield Run(
            name="",
            role=role,
            category="animal",
            target=target,
            train_context="default",
            eval_context="default",
            train_seed=train_seed,
            data_seed=data_seed,
            **kind,
        )


def claims() -> list[Claim]:
    """Those of the recipe that the published means are about."""
    judged = (TransmissionClaim, InvertedUClaim, FullFineTuningClaim)
    return [
        claim
        for claim in load("study-qwen").claims
        if isinstance(claim, judged) and getattr(claim, "curve", "fixed") == "fixed"
    ]


def simulated(spread: float, full_spread: float) -> SimulatedStudy:
    """The study whose runs are drawn."""
    runs = list(planned())
    percent = np.array([percent_of(run) for run in runs])
    odds = logit(percent / 100)
    return SimulatedStudy(
        runs,
        (odds[:, 1] - odds[:, 0]).tolist(),
        base=(percent[:, 0] / 100).tolist(),
        noise=Noise(spread=spread),
        spreads=[full_spread if run.method == "full" else spread for run in runs],
        loss=Loss(lambda run: LOSS),
    )


def words(studies: int, spread: float, full_spread: float) -> dict[tuple[str, str], Counter[str]]:
    """How often every claim, and every trait of it, has which word: by claim number and trait, or `all`."""
    study, generator = simulated(spread, full_spread), np.random.default_rng(SEED)
    counted: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    asked = claims()
    for _ in range(studies):
        for verdict in evaluate(asked, study.draw(generator)):
            counted[verdict.number, "all"][verdict.word] += 1
            for trait in verdict.traits:
                word = "not asked" if trait.not_asked else trait.outcome
                counted[verdict.number, trait.target][word] += 1
    return counted


def row(number: str, trait: str, counts: Counter[str]) -> Sequence[str]:
    """The cells of a table row."""
    total = counts.total()
    shares = (f"{word} {count / total:.3f}" for word, count in counts.most_common())
    return number, trait, "; ".join(shares)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--spread", type=float, default=0.6)
    parser.add_argument("--full-spread", type=float, default=0.6)
    options = parser.parse_args()
    print("| claim | trait | words and their shares |")
    print("| --- | --- | --- |")
    for (number, trait), counts in words(options.studies, options.spread, options.full_spread).items():
        print(f"| {' | '.join(row(number, trait, counts))} |")


if __name__ == "__main__":
    main()
