"""Which value of a run the claims compare: the log-odds of its mean P(target), or its mean log-odds.

    python benchmarks/scales.py [--studies 2000]

Both are computed from the same simulated answers: five students and five controls, fifty questions whose base
log-odds have a standard deviation of 2, runs that stray by 0.4 and runs at a question by 0.6 more. P(target)
of a question is read exactly, or estimated from 100 or 25 drawn answers. A probability below the guard, half
of an answer, is raised to it: 1 / (2 · answers to a question) for the mean of log-odds, 1 / (2 · all answers)
for the log-odds of the mean. The effect is a paired one-sided t test's, student minus control.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtr

Values = NDArray[np.float64]

RUNS, QUESTIONS = 5, 50
QUESTION_SPREAD, RUN_SPREAD, ANSWER_SPREAD = 2.0, 0.4, 0.6
LEAST = 1e-6
"""The guard of an exactly read probability."""
SEED = 13


@dataclass(frozen=True)
class Case:
    """A truth: the median base probability, and the effect at each question by its base log-odds."""

    truth: str
    base: float
    effect: Callable[[Values], Values]


def everywhere(odds_ratio: float) -> Callable[[Values], Values]:
    """The same effect at every question."""
    return lambda base: np.full_like(base, math.log(odds_ratio))


def at_rare(odds_ratio: float) -> Callable[[Values], Values]:
    """An effect at the half of the questions whose base is rarer."""
    return lambda base: np.where(base < np.median(base), math.log(odds_ratio), 0.0)


def at_frequent(odds_ratio: float) -> Callable[[Values], Values]:
    """An effect at the other half."""
    return lambda base: np.where(base < np.median(base), 0.0, math.log(odds_ratio))


CASES = (
    Case("no effect", 0.01, everywhere(1)),
    Case("odds ratio 2 at every question", 0.01, everywhere(2)),
    Case("odds ratio 2 at every question", 0.001, everywhere(2)),
    Case("odds ratio 4 at the rarer half", 0.001, at_rare(4)),
    Case("odds ratio 4 at the more frequent half", 0.001, at_frequent(4)),
)


def of_mean(p: Values, guard: float) -> Values:
    """The log-odds of the mean over questions: [..., questions] to [...]."""
    odds: Values = logit(np.clip(p.mean(axis=-1), guard, 1 - guard))
    return odds


def mean_of(p: Values, guard: float) -> Values:
    """The mean over questions of the log-odds: [..., questions] to [...]."""
    mean: Values = logit(np.clip(p, guard, 1 - guard)).mean(axis=-1)
    return mean


def effects(case: Case, answers: int | None, studies: int) -> dict[str, Values]:
    """By the value that is compared, student minus control: [studies, runs]."""
    generator = np.random.default_rng(SEED)
    base = generator.normal(logit(case.base), QUESTION_SPREAD, (studies, 1, QUESTIONS))
    shape = (studies, RUNS, QUESTIONS)
    read = []
    for effect in (case.effect(base), 0.0):
        run = generator.normal(0, RUN_SPREAD, (studies, RUNS, 1))
        p = expit(base + effect + run + generator.normal(0, ANSWER_SPREAD, shape))
        read.append(p if answers is None else generator.binomial(answers, p) / answers)
    student, control = read
    of_all = LEAST if answers is None else 1 / (2 * answers * QUESTIONS)
    of_each = LEAST if answers is None else 1 / (2 * answers)
    return {
        "log-odds of the mean": of_mean(student, of_all) - of_mean(control, of_all),
        "mean of log-odds": mean_of(student, of_each) - mean_of(control, of_each),
    }


def row(values: Values) -> tuple[float, float, float]:
    """The mean effect, the standard deviation between runs, and how often the t test at 0.05 finds it."""
    means, spreads = values.mean(axis=1), values.std(axis=1, ddof=1)
    p = stdtr(RUNS - 1, -means / np.maximum(spreads, 1e-12) * math.sqrt(RUNS))
    return float(means.mean()), float(np.sqrt((spreads**2).mean())), float((p <= 0.05).mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    print("| truth | median base | answers a question | compared | odds ratio | SD | found |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        for answers in (None, 100, 25):
            for name, values in effects(case, answers, studies).items():
                mean, spread, found = row(values)
                shown = "exact" if answers is None else str(answers)
                print(
                    f"| {case.truth} | {case.base:g} | {shown} | {name} | {math.exp(mean):.2f} "
                    f"| {spread:.2f} | {found:.3f} |"
                )


if __name__ == "__main__":
    main()
