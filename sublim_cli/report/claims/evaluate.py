"""The verdict on every claim of a recipe: supported, refuted, underpowered or incomplete. Pure.

    evaluate(recipe.claims, runs, located)

**Units.** An effect is the log-odds of the P(target) of one training run, its mean over the recipe's
questions, minus the log-odds of the control trained with the same seeds: the logarithm of an odds ratio, in
which a margin means the same at a base of 0.005 and of 0.5. Intervals and p values are about new training
runs, clustered by shared seeds (`stats.estimate`), and about new data sets only where the study has several
data seeds; else the verdict says `on one data set`. Where the answers to each question are known, an effect
also has an interval for new questions; no verdict depends on it.

**When.** A claim is judged once, when all runs planned for it are built: judging part of a plan repeatedly
until it is significant would raise the error rates. A missing run makes the claim incomplete.

**Tests.** Every claim has two for each trait, one that supports it and one that refutes it. Over traits each
is wrong with a probability of at most alpha:

* A trait is supported where every comparison of it passes its test: an intersection-union test, which needs
  no correction for the number of comparisons (Berger 1982). Its p value is corrected over traits (Holm 1979).
* A trait is refuted where any comparison refutes it, with Holm's p values over all comparisons of the claim.
* Where both tests pass (an effect above zero and below the margin) the trait is refuted: an effect below the
  margin is what the recipe calls none. Where neither passes it is underpowered.

The claim is `supported` where all traits are, `supported for k of m traits` where some are, else `refuted` in
the same way, else `underpowered`. Several claims of a recipe are not corrected for each other.

**Positive control.** A curve over ranks (C2) and full fine-tuning (C3) say nothing of a trait that LoRA does
not transmit either. They are asked of the traits for which C1 holds in the study's own runs.

**Broken runs** do not break at random. Every p value is the largest of three, with broken runs left out, at
no effect and at the largest effect seen (`effects.RunEffects`). What was decided without them and is not with
them is `underpowered (n broken)`.

**Few runs.** With fewer than 14 runs none of which has the effect, one run in five may still have it. A
verdict that something is absent then holds `for the typical run`.

**Scoring.** Answers that were neither computed nor drawn may all be the target or none of them: every test
takes the worst of both.
"""

from collections.abc import Iterable, Sequence

from sublim_cli.recipe.schema import (
    Claim,
    ContextsClaim,
    FullFineTuningClaim,
    InvertedUClaim,
    LocalisationClaim,
    TransmissionClaim,
)
from sublim_cli.report.claims.contexts import contexts
from sublim_cli.report.claims.full_fine_tuning import full_fine_tuning
from sublim_cli.report.claims.localisation import localisation
from sublim_cli.report.claims.pairing import Basis, RunIndex
from sublim_cli.report.claims.rank_curve import inverted_u
from sublim_cli.report.claims.transmission import transmission
from sublim_cli.report.claims.verdict import Finding, Judged, Outcome, Verdict, phrase, trait_verdicts
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Interval, mean_of, random_effects


def evaluate(
    claims: Iterable[Claim], runs: Iterable[Run], located: Sequence[LocatedRun] = ()
) -> list[Verdict]:
    """The verdicts on claims from a study's runs and, for C5, its located runs; three on a claim of C3."""
    index = RunIndex(runs)
    return [_verdict(claim, index, judged) for claim in claims for judged in _judge(claim, index, located)]


def _judge(claim: Claim, index: RunIndex, located: Sequence[LocatedRun]) -> list[Judged]:
    match claim:
        case TransmissionClaim():
            return [transmission(claim, index)]
        case InvertedUClaim():
            return [inverted_u(claim, index)]
        case FullFineTuningClaim():
            return full_fine_tuning(claim, index)
        case ContextsClaim():
            return [contexts(claim, index)]
        case LocalisationClaim():
            return [localisation(claim, index, located)]


def _verdict(claim: Claim, index: RunIndex, judged: Judged) -> Verdict:
    basis = Basis.joined([index.students, *judged.bases])
    broken = len(basis.broken - basis.missing)
    findings: tuple[Finding, ...] = () if basis.lacks else tuple(judged.findings)
    traits = () if basis.lacks or judged.descriptive else tuple(trait_verdicts(judged, claim.alpha, broken))
    outcome: Outcome = "incomplete"
    word = "incomplete"
    if not basis.lacks and judged.descriptive:
        outcome, word = "descriptive", "descriptive"
    elif not basis.lacks:
        outcome, word = phrase(
            traits,
            one_data_set=len({training[-1] for training in basis.planned}) == 1,
            broken=broken,
        )
    return Verdict(
        claim=claim,
        part=judged.part,
        outcome=outcome,
        word=word,
        traits=traits,
        findings=findings,
        mean=_mean_over_traits(findings, 1 - 2 * claim.alpha),
        planned=len(basis.planned),
        broken=broken,
        missing=len(basis.missing),
        lacks=basis.lacks,
        notes=tuple(judged.notes),
    )


def _mean_over_traits(findings: Sequence[Finding], level: float) -> Interval | None:
    """The random-effects mean, where every trait has one comparison."""
    if len({found.target for found in findings}) < len(findings):
        return None
    return random_effects([mean_of(found.runs) for found in findings], level)
