"""The findings of a claim's comparisons, and the verdict they make together. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sublim_cli.models.positions import set_text
from sublim_cli.recipe.schema import Claim, InvertedUClaim, LocalisationClaim
from sublim_cli.report.claims.effects import PValue, RunEffects, are_of_two_kinds
from sublim_cli.report.claims.pairing import Answers, Basis, Levels, over_questions
from sublim_cli.report.rates.choose import TITLE
from sublim_cli.stats import Interval, Seeds, clopper_pearson, holm
from sublim_cli.wording import count

Outcome = Literal["supported", "refuted", "underpowered", "incomplete", "descriptive"]

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
PART = {
    "a": "at one learning rate and precision",
    "b": "at every learning rate and precision of the study",
    "c": "compared with the best adapter, both at the least number loss",
}
"""The three questions of C3."""

TEST = {
    "C1": (
        "one-sided t tests over runs of log-odds, student minus control of the same seeds and student "
        "minus base, both above 0, Holm over traits; refuted where the first is below the margin"
    ),
    "C2": (
        "two-lines test on log2 rank over runs of log-odds, Holm over the traits that LoRA transmits; "
        "refuted where no rank lies the margin above the highest, or none above the lowest"
    ),
    "C3a": (
        "equivalence of log-odds to the control of the same seeds within the margin (two one-sided t "
        "tests over runs), Holm over the traits that LoRA transmits; refuted where the effect lies "
        "above the margin"
    ),
    "C3b": (
        "as C3a in every condition; refuted where any lies above the margin, Holm over traits and conditions"
    ),
    "C3c": (
        "one-sided t tests over runs of the effect in log-odds minus that of the best adapter of the "
        "same seeds: below minus the margin; refuted where it lies above that; Holm over the traits "
        "that LoRA transmits"
    ),
    "C4": (
        "the trait passes in its training context as in C1; in every other context equivalence to the "
        "control within the margin and an interaction above 0 (the effect in the training context minus "
        "that there, paired by run), one-sided t tests of log-odds, Holm over traits; refuted where the "
        "effect in another context lies above the margin, Holm over traits and contexts"
    ),
    "C5": (
        "one-sided t tests over runs of log-odds, each paired: the tokens alone keep more of the effect "
        "than random sets of as many, scattered and contiguous ones, without them more is lost than "
        "without such sets, and there is an effect as in C1, all above 0, Holm over traits; refuted "
        "where the effect, and what random sets leave of it, lie above the margin and one of the "
        "differences below it, Holm over all of them and traits"
    ),
}
WIDER = "over new runs and questions"
"""An interval of `stats.two_way_interval`; all others are over new runs, asked the same questions."""

TYPICAL_SHARE = 0.2
"""Where more than this share of runs may have the effect, its absence is known of the typical run only."""


@dataclass(frozen=True)
class Finding:
    """One comparison of a claim, in log-odds.

    `effect` is a difference of log-odds with its interval at level 1 - 2 alpha, which excludes a value where
    a one-sided test at alpha rejects it; `odds_ratio` is the same as a ratio. `margin` is the claim's. `p` is
    the p value of the test that supports the claim here and `p_against` that of the test that refutes it
    (None: this comparison cannot), corrected as the claim's rule says; `left_out` are the same two with
    broken runs left out. `detectable` is the smallest true effect that these runs find with a power of 0.8;
    `runs` the effect of each run by (train seed, data seed), `levels` the mean P(target). `also` holds the
    other quantities that the rule tests, in log-odds unless their name says otherwise.
    """

    target: str
    about: str
    effect: Interval | None
    p: float
    p_against: float | None
    left_out: tuple[float, float | None]
    margin: float
    detectable: float | None = None
    runs: Mapping[Seeds, float] = field(default_factory=dict)
    levels: Levels = field(default_factory=Levels)
    absent: Outcome | None = None
    """The outcome, if any, that says that an effect is not there."""
    also: Mapping[str, Interval] = field(default_factory=dict)

    def outcome(self, alpha: float, *, left_out: bool = False) -> Outcome:
        """The verdict on this comparison alone; `left_out`: without regard to broken runs."""
        p, p_against = self.left_out if left_out else (self.p, self.p_against)
        if p_against is not None and p_against <= alpha:
            return "refuted"
        return "supported" if p <= alpha else "underpowered"

    @property
    def odds_ratio(self) -> Interval | None:
        """`effect` as an odds ratio."""
        return self.effect.exponential() if self.effect else None

    @property
    def above(self) -> int:
        """Runs whose effect lies above the margin."""
        return sum(effect > self.margin for effect in self.runs.values())

    @property
    def share_above(self) -> Interval | None:
        """Their share, with the 95 % interval of Clopper and Pearson."""
        return clopper_pearson(self.above, len(self.runs)) if self.runs else None

    @property
    def of_typical_run(self) -> bool:
        """Whether the runs are too few to exclude that one in five has the effect, at 95 % one-sided."""
        return not self.runs or (clopper_pearson(self.above, len(self.runs), 0.9).high or 1.0) > TYPICAL_SHARE

    @property
    def two_kinds(self) -> bool:
        """Whether some runs lie above the margin and others within it, far apart."""
        return are_of_two_kinds(list(self.runs.values()), self.margin)


@dataclass(frozen=True)
class TraitVerdict:
    """The verdict on one trait: its outcome, or why the claim was not asked of it."""

    target: str
    outcome: Outcome
    word: str
    above: int | None = None
    """Runs above the margin, where the trait has one comparison."""
    runs: int | None = None
    not_asked: str = ""


@dataclass(frozen=True)
class Judged:
    """What a claim's rule found: its comparisons, their bases, the traits it was not asked of, notes."""

    findings: Sequence[Finding]
    bases: Sequence[Basis]
    notes: Sequence[str] = ()
    part: str = ""
    not_asked: Mapping[str, str] = field(default_factory=dict)
    descriptive: bool = False
    """Whether the comparisons are shown without a verdict."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim, and how many trainings were planned for it, broke or are missing.

    `outcome` is one word, `word` the whole phrase: `supported for 3 of 5 traits, on one data set`. `mean` is
    the random-effects mean of the effects over traits, in log-odds, where each trait has one comparison.
    """

    claim: Claim
    part: str
    outcome: Outcome
    word: str
    traits: tuple[TraitVerdict, ...]
    findings: tuple[Finding, ...]
    mean: Interval | None
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
        """Such as `C1` or `C3a`."""
        return f"{NUMBER[self.claim.kind]}{self.part}"

    @property
    def statement(self) -> str:
        """The claim in words."""
        statement = STATEMENT[self.claim.kind]
        if self.part:
            return f"{statement}, {PART[self.part]}"
        if isinstance(self.claim, InvertedUClaim) and self.claim.curve != "fixed":
            return f"{statement}, {TITLE[self.claim.curve]}"
        if isinstance(self.claim, LocalisationClaim):
            return f"{statement}: {set_text(self.claim.positions)}"
        return statement

    @property
    def test(self) -> str:
        """The rule in words."""
        return TEST[self.number]


def finding(
    claim: Claim,
    target: str,
    about: str,
    effects: RunEffects,
    *,
    p: PValue,
    against: PValue | None,
    levels: Levels,
    answers: Answers | None = None,
    absent: Outcome | None = None,
    also: Mapping[str, RunEffects] | None = None,
) -> Finding:
    """The finding over the runs of `effects` (see `Finding`), and over questions where `answers` are known.

    `p` and `against` are those of the tests for and against the claim, not yet corrected.
    """
    mean, level = effects.mean, 1 - 2 * claim.alpha
    wider = over_questions(answers or {}, level)
    detectable = mean.detectable(claim.alpha)
    others = {name: other.mean for name, other in (also or {}).items()}
    return Finding(
        target=target,
        about=about,
        effect=mean.interval(level) if mean.n else None,
        p=p.bounded,
        p_against=against.bounded if against else None,
        left_out=(p.left_out, against.left_out if against else None),
        margin=claim.margin,
        detectable=detectable if math.isfinite(detectable) else None,
        runs=effects.measured,
        levels=levels,
        absent=absent,
        also={
            **({} if wider is None else {WIDER: wider}),
            **{name: estimate.interval(level) for name, estimate in others.items() if estimate.n},
        },
    )


def widened(found: Finding, intervals: Sequence[Interval]) -> Finding:
    """The finding with the union of these intervals, of all that may be the one sought."""
    lows = [interval.low for interval in intervals if interval.low is not None]
    highs = [interval.high for interval in intervals if interval.high is not None]
    if found.effect is None or not intervals or len(lows) < len(intervals):
        return found
    return replace(found, effect=replace(found.effect, low=min(lows), high=max(highs)))


def corrected(findings: Sequence[Finding]) -> list[Finding]:
    """With Holm's p values: for support over traits, for refutation over all comparisons.

    A trait is supported where all its comparisons are, so it is represented by its largest p value, and all
    its p values are scaled by the factor that corrects that one. So they are at or below alpha exactly where
    the trait is, and the probability that any trait without the property passes is at most alpha. The factor
    can be smaller where broken runs count, since it depends on the order of traits; then the p value without
    them stands.
    """
    supports = _over_traits([f.target for f in findings], [f.p for f in findings])
    supports_left_out = _over_traits([f.target for f in findings], [f.left_out[0] for f in findings])
    refutes = _over_comparisons([f.p_against for f in findings])
    refutes_left_out = _over_comparisons([f.left_out[1] for f in findings])
    return [
        replace(f, p=max(p, p_left_out), p_against=against, left_out=(p_left_out, against_left_out))
        for f, p, p_left_out, against, against_left_out in zip(
            findings, supports, supports_left_out, refutes, refutes_left_out, strict=True
        )
    ]


def _over_traits(targets: Sequence[str], p_values: Sequence[float]) -> list[float]:
    largest: dict[str, float] = {}
    for target, p in zip(targets, p_values, strict=True):
        largest[target] = max(p, largest.get(target, 0.0))
    adjusted = dict(zip(largest, holm(list(largest.values())), strict=True))
    return [
        min(1.0, p * adjusted[target] / largest[target]) if p else p
        for target, p in zip(targets, p_values, strict=True)
    ]


def _over_comparisons(p_values: Sequence[float | None]) -> list[float | None]:
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def trait_verdicts(judged: Judged, alpha: float, broken: int) -> list[TraitVerdict]:
    """The verdict on each trait of a claim, by name; `broken` counts the trainings that broke."""
    by_target: dict[str, list[Finding]] = {}
    for found in judged.findings:
        by_target.setdefault(found.target, []).append(found)
    verdicts = [_trait_verdict(target, findings, alpha, broken) for target, findings in by_target.items()]
    verdicts += [
        TraitVerdict(target, "underpowered", f"not asked: {why}", not_asked=why)
        for target, why in judged.not_asked.items()
    ]
    return sorted(verdicts, key=lambda verdict: verdict.target)


def _trait_verdict(target: str, findings: Sequence[Finding], alpha: float, broken: int) -> TraitVerdict:
    outcome = _outcome([found.outcome(alpha) for found in findings])
    without_broken = _outcome([found.outcome(alpha, left_out=True) for found in findings])
    word: str = outcome
    if outcome == "underpowered" and without_broken != outcome:
        word = f"{outcome} ({broken} broken)"
    if any(found.absent == outcome and found.of_typical_run for found in findings):
        word = f"{word} for the typical run"
    above = runs = None
    if len(findings) == 1:
        (found,) = findings
        above, runs = found.above, len(found.runs)
        if found.two_kinds:
            word = f"{word}, runs of two kinds ({above} of {runs} above the margin)"
    return TraitVerdict(target, outcome, word, above, runs)


def _outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a trait, by those of its comparisons."""
    if "refuted" in outcomes:
        return "refuted"
    return "supported" if set(outcomes) == {"supported"} else "underpowered"


def phrase(traits: Sequence[TraitVerdict], *, one_data_set: bool, broken: int) -> tuple[Outcome, str]:
    """The outcome of a claim and its phrase, from the verdicts on the traits it was asked of."""
    asked = [trait for trait in traits if not trait.not_asked]
    supported = [trait for trait in asked if trait.outcome == "supported"]
    refuted = [trait for trait in asked if trait.outcome == "refuted"]
    if not asked and traits:
        return "underpowered", "underpowered (no trait that LoRA surely transmits)"
    if not supported and not refuted:
        at_fault = any("broken)" in trait.word for trait in asked)
        return "underpowered", f"underpowered ({broken} broken)" if at_fault else "underpowered"
    outcome: Outcome = "supported" if supported else "refuted"
    some = supported or refuted
    words: list[str] = [outcome]
    if len(some) < len(asked):
        words = [f"{outcome} for {len(some)} of {count(len(asked), 'trait')}"]
        if supported and refuted:
            words.append(f"refuted for {len(refuted)}")
    if any("typical" in trait.word for trait in some):
        words.append("for the typical run")
    if one_data_set:
        words.append("on one data set")
    if two_kinds := sum("two kinds" in trait.word for trait in some):
        of_traits = f" for {count(two_kinds, 'trait')}" if len(asked) > 1 else ""
        words.append(f"with runs of two kinds{of_traits}")
    return outcome, (" " if len(words) <= 2 or len(asked) == len(some) else ", ").join(words)
