"""C4: transmission vanishes where training and evaluation contexts differ. Pure."""

from dataclasses import replace

from sublim_cli.recipe.schema import ContextsClaim
from sublim_cli.report.claims.effects import largest
from sublim_cli.report.claims.pairing import (
    Basis,
    Comparison,
    RunIndex,
    TraitSetting,
    answers_minus,
    over_questions,
)
from sublim_cli.report.claims.transmission import passes
from sublim_cli.report.claims.verdict import WIDER, Finding, Judged, corrected, finding
from sublim_cli.stats import ratio_interval
from sublim_cli.wording import condition_label

RETAINED = "share of the effect retained"
"""The effect in another context by that in the training context, both in log-odds."""


def contexts(claim: ContextsClaim, index: RunIndex) -> Judged:
    """C4, a finding for each trait, training context and other eval context.

    Null of support: the trait does not pass in the training context (C1's null), or the effect in the other
    context is the margin or more away from zero, or no smaller than in the training context. The last is the
    interaction: without it a tiny effect in both would be a trait that vanished. Null of refutation: no other
    context's effect lies above the margin.
    """
    findings: list[Finding] = []
    bases: list[Basis] = []
    for target in index.traits(claim):
        asked = index.contexts(claim, target, claim.rank)
        if not asked:
            bases.append(Basis((f"{condition_label('student', 'lora', claim.rank)} on {target}",)))
        for trained in claim.train_contexts or asked:
            eval_contexts = claim.eval_contexts or asked.get(trained, [])
            others = [context for context in eval_contexts if context != trained]
            if not others:
                lack = f"any other context that students of {target}, trained in {trained}, were asked in"
                bases.append(Basis((lack,)))
            home, basis = index.adapters_compared(claim, TraitSetting(target, trained, trained), claim.rank)
            bases.append(basis)
            for other in others:
                setting = TraitSetting(target, trained, other)
                away, basis = index.adapters_compared(claim, setting, claim.rank)
                bases.append(basis)
                if home and away:
                    findings.append(_vanishes(claim, home, away))
    return Judged(corrected(findings), bases)


def _vanishes(claim: ContextsClaim, home: Comparison, away: Comparison) -> Finding:
    """The effect in another context, compared with that in the training context."""
    interaction = home.effects.minus(away.effects)
    label = condition_label("student", "lora", claim.rank)
    comparison = finding(
        claim,
        away.setting.target,
        f"{label}, {away.setting.contexts}, minus the control",
        away.effects,
        p=largest(away.effects.within(claim.margin), interaction.above(), passes(home)),
        against=away.effects.above(claim.margin),
        levels=away.levels,
        answers=away.answers,
        absent="supported",
        also={
            "in the training context": home.effects,
            "interaction": interaction,
            "minus the base": away.base,
        },
    )
    level = 1 - 2 * claim.alpha
    pairs = sorted(home.effects.measured.keys() & away.effects.measured.keys())
    more = {}
    if pairs:
        effects = [away.effects.measured[seeds] for seeds in pairs]
        if share := ratio_interval(effects, [home.effects.measured[seeds] for seeds in pairs], pairs, level):
            more[RETAINED] = share
    if wider := over_questions(answers_minus(home.answers, away.answers), level):
        more[f"interaction {WIDER}"] = wider
    return replace(comparison, also={**comparison.also, **more})
