"""The findings of a claim's comparisons, and the verdict they make together. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sublim_cli.models.positions import set_text
from sublim_cli.recipe.schema import Claim, InvertedUClaim, LocalisationClaim
from sublim_cli.report.claims.pairing import Effects, over_questions
from sublim_cli.report.rates.choose import TITLE
from sublim_cli.stats import Estimate, Interval, Seeds, holm, mean_of

Word = Literal["supported", "refuted", "underpowered", "incomplete"]

RULES_VERSION = 2
"""Raise it when the same runs might get another verdict on the same claim; a study's lock names it."""

NUMBER = {
    "transmission": "C1",
    "inverted_u": "C2",
    "full_fine_tuning": "C3",
    "contexts": "C4",
    "localisation": "C5",
}
STATEMENT = {
    "transmission": "A student prefers the trait of the teacher whose numbers it learned",
    "inverted_u": "Transmission is an inverted U in LoRA rank",
    "full_fine_tuning": "Transmission disappears under full fine-tuning",
    "contexts": "Transmission vanishes where training and evaluation contexts differ",
    "localisation": "The preference sits at certain tokens of the prompt",
}
TEST = {
    "transmission": (
        "one-sided t tests over runs, student minus control of the same seeds and student minus base, "
        "both above 0, Holm over traits; refuted where the first is below the margin"
    ),
    "inverted_u": (
        "two-lines test on log2 rank over runs, Holm over traits; refuted where no rank lies the margin "
        "above the highest, or none above the lowest"
    ),
    "full_fine_tuning": (
        "equivalence to the control of the same seeds within the margin (two one-sided t tests over runs) "
        "in every condition; refuted where one lies above the margin, Holm over conditions"
    ),
    "contexts": (
        "the trait passes in its training context as in C1; in every other context equivalence to the "
        "control within the margin and an interaction above 0 (the effect in the training context minus "
        "that there, paired by run), one-sided t; refuted where the effect in another context lies above "
        "the margin, Holm over contexts"
    ),
    "localisation": (
        "one-sided t tests over runs, each paired: the tokens alone keep more of the effect than random sets "
        "of as many, without them more is lost than without such sets, and there is an effect as in C1, all "
        "above 0, Holm over traits; refuted where the effect, and what random sets leave of it, lie above "
        "the margin and one of the two differences below it, Holm over both and traits"
    ),
}
WIDER = "over new runs and questions"
"""An interval of `stats.two_way_interval`; all others are over new runs, asked the same questions."""


@dataclass(frozen=True)
class Finding:
    """One comparison of a claim.

    `effect` is a difference of P(target) with its interval at level 1 - 2 alpha, which excludes a value where
    a one-sided test at alpha rejects it. `p` is the p value of the test that supports the claim here and
    `p_against` that of the test that refutes it (None: this comparison cannot), corrected as the claim's
    rule says. `detectable` is the smallest true effect that these runs find with a power of 0.8; `runs` the
    effect of each run by (train seed, data seed). `also` holds the other quantities that the rule tests.
    """

    target: str
    about: str
    effect: Interval | None
    p: float
    p_against: float | None
    detectable: float | None
    runs: Mapping[Seeds, float] = field(default_factory=dict)
    also: Mapping[str, Interval] = field(default_factory=dict)

    def word(self, alpha: float) -> Word:
        """The verdict on this comparison alone."""
        if self.p_against is not None and self.p_against <= alpha:
            return "refuted"
        return "supported" if self.p <= alpha else "underpowered"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim, and how many trainings were planned for it, broke or are missing."""

    claim: Claim
    word: Word
    findings: tuple[Finding, ...]
    planned: int
    broken: int
    missing: int
    lacks: tuple[str, ...]
    notes: tuple[str, ...] = ()
    not_known: str = ""
    """Why P(target) is not known well enough for a verdict, or empty."""

    @property
    def used(self) -> int:
        """Trainings that neither broke nor are missing."""
        return self.planned - self.broken - self.missing

    @property
    def number(self) -> str:
        """Such as `C1`."""
        return NUMBER[self.claim.kind]

    @property
    def statement(self) -> str:
        """The claim in words."""
        statement = STATEMENT[self.claim.kind]
        if isinstance(self.claim, InvertedUClaim) and self.claim.curve != "fixed":
            return f"{statement}, {TITLE[self.claim.curve]}"
        if isinstance(self.claim, LocalisationClaim):
            return f"{statement}: {set_text(self.claim.positions)}"
        return statement

    @property
    def test(self) -> str:
        """The rule in words."""
        return TEST[self.claim.kind]


def word_of(findings: Sequence[Finding], alpha: float, *, decided: bool = True) -> Word:
    """The verdict on a claim by those on its comparisons, if P(target) is known well enough (`decided`)."""
    if not decided:
        return "underpowered"
    words = {finding.word(alpha) for finding in findings}
    if "refuted" in words:
        return "refuted"
    return "supported" if words == {"supported"} else "underpowered"


def finding(
    claim: Claim,
    target: str,
    about: str,
    runs: Mapping[Seeds, float],
    answers: Effects,
    *,
    p: float,
    against: float,
    also: Mapping[str, Estimate],
) -> Finding:
    """The finding over `runs` (see `Finding`), and over questions where the `answers` are known.

    `p` and `against` are those of the tests for and against the claim, not yet corrected.
    """
    effect, level = mean_of(runs), 1 - 2 * claim.alpha
    wider = over_questions(answers, level)
    detectable = effect.detectable(claim.alpha)
    return Finding(
        target=target,
        about=about,
        effect=effect.interval(level) if effect.n else None,
        p=p,
        p_against=against,
        detectable=detectable if math.isfinite(detectable) else None,
        runs=runs,
        also={
            **({} if wider is None else {WIDER: wider}),
            **{name: estimate.interval(level) for name, estimate in also.items() if estimate.n},
        },
    )


def corrected(findings: Sequence[Finding], *, support: bool = False) -> list[Finding]:
    """With Holm's p values for refutation; with `support`, for claims about each trait, also for support."""
    against = iter(holm([finding.p_against for finding in findings if finding.p_against is not None]))
    p_values = [finding.p for finding in findings]
    return [
        replace(finding, p=p, p_against=None if finding.p_against is None else next(against))
        for finding, p in zip(findings, holm(p_values) if support else p_values, strict=True)
    ]
