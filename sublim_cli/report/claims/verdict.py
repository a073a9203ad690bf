"""What a claim's comparisons found, and the verdict they add up to. Pure."""

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

    `effect` is a difference of P(target) with the interval at level 1 - 2 alpha that its one-sided tests
    belong to. `p` is that of the claim holding here and `p_against` that of its not holding, corrected as
    the claim's rule says; `detectable` the smallest true effect these runs find four times in five; `runs`
    the effect of each run by (train seed, data seed). `also` holds what else the rule looks at.
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
    """What the runs say of one claim, and the plan they were made for."""

    claim: Claim
    word: Word
    findings: tuple[Finding, ...]
    planned: int
    broken: int
    missing: int
    lacks: tuple[str, ...]
    notes: tuple[str, ...] = ()

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
        said = STATEMENT[self.claim.kind]
        if isinstance(self.claim, InvertedUClaim) and self.claim.curve != "fixed":
            return f"{said}, {TITLE[self.claim.curve]}"
        if isinstance(self.claim, LocalisationClaim):
            return f"{said}: {set_text(self.claim.positions)}"
        return said

    @property
    def test(self) -> str:
        """The rule in words."""
        return TEST[self.claim.kind]


def word_of(findings: Sequence[Finding], alpha: float) -> Word:
    """The verdict on a claim by those on its comparisons."""
    words = {one.word(alpha) for one in findings}
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
    """A comparison of runs by their seeds, and of their questions one by one where those are known."""
    effect, level = mean_of(runs), 1 - 2 * claim.alpha
    wider = over_questions(answers, level)
    return Finding(
        target=target,
        about=about,
        effect=effect.interval(level) if effect.n else None,
        p=p,
        p_against=against,
        detectable=found if math.isfinite(found := effect.detectable(claim.alpha)) else None,
        runs=runs,
        also={
            **({} if wider is None else {WIDER: wider}),
            **{name: one.interval(level) for name, one in also.items() if one.n},
        },
    )


def corrected(findings: Sequence[Finding], *, support: bool = False) -> list[Finding]:
    """With Holm's p values for refutation, and where traits are spoken of one by one also for support."""
    against = iter(holm([one.p_against for one in findings if one.p_against is not None]))
    own = [one.p for one in findings]
    return [
        replace(one, p=p, p_against=None if one.p_against is None else next(against))
        for one, p in zip(findings, holm(own) if support else own, strict=True)
    ]
