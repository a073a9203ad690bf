"""C1, transmission, and where it holds: the positive control of the claims C2 and C3. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from sublim_cli.recipe.schema import ClaimSection, ContextsClaim, LocalisationClaim, TransmissionClaim
from sublim_cli.report.claims.effects import PValue, largest
from sublim_cli.report.claims.pairing import Basis, Comparison, RunIndex, TraitSetting
from sublim_cli.report.claims.verdict import Finding, Judged, corrected, finding
from sublim_cli.stats import holm
from sublim_cli.wording import condition_label, count


def transmission(claim: TransmissionClaim, index: RunIndex) -> Judged:
    """C1, a finding for each trait.

    Null of support: the mean of student minus control or that of student minus base is 0 or less. Both must
    be rejected, so p is the larger. Null of refutation: student minus control is the margin or more. Its
    rejection includes students that prefer the target *less* than the control, which is no transmission
    either. The base is no ground for refutation: training without the trait also moves a student.
    """
    findings, bases = [], []
    for target in index.traits(claim):
        setting = TraitSetting(target, claim.train_context, claim.train_context)
        compared, basis = index.adapters_compared(claim, setting, claim.rank)
        bases.append(basis)
        if compared:
            findings.append(transmits(claim, compared))
    return Judged(corrected(findings), bases)


def transmits(claim: TransmissionClaim | ContextsClaim | LocalisationClaim, compared: Comparison) -> Finding:
    """The finding of C1, which C5 needs too."""
    label = condition_label("student", "lora", claim.rank)
    return finding(
        claim,
        compared.setting.target,
        f"{label}, {compared.setting.contexts}, minus the control",
        compared.effects,
        p=passes(compared),
        against=compared.effects.below(claim.margin),
        levels=compared.levels,
        answers=compared.answers,
        absent="refuted",
        also={"minus the base": compared.base},
    )


def passes(compared: Comparison) -> PValue:
    """The p value of C1: of the null that students do not lie above their control or not above the base."""
    return largest(compared.effects.above(), compared.base.above())


@dataclass(frozen=True)
class PositiveControl:
    """The traits that LoRA transmits in a training context, why others are not among them, the bases."""

    asked: Sequence[str]
    not_asked: dict[str, str]
    bases: Sequence[Basis]


def positive_control(claim: ClaimSection, index: RunIndex, context: str) -> PositiveControl:
    """Where C1 holds in the training context `context` for any LoRA condition that has a control.

    A curve over ranks or full fine-tuning says nothing of a trait that adapters do not pass on either. The
    p value of a trait is the smallest of its conditions, corrected for their number (Bonferroni), then over
    traits (Holm).
    """
    p_values: dict[str, float] = {}
    best: dict[str, Comparison] = {}
    bases: list[Basis] = []
    for target in index.traits(claim):
        comparisons, basis = _adapters(index, TraitSetting(target, context, context))
        bases.append(basis)
        if comparisons:
            best[target] = min(comparisons, key=lambda compared: passes(compared).bounded)
            p_values[target] = min(1.0, len(comparisons) * passes(best[target]).bounded)
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    asked = [target for target, p in adjusted.items() if p <= claim.alpha]
    not_asked = {
        target: f"LoRA was not shown to transmit it, {_runs_above(best[target], claim.margin)}"
        for target in adjusted
        if target not in asked
    }
    return PositiveControl(asked, not_asked, bases)


def _adapters(index: RunIndex, setting: TraitSetting) -> tuple[list[Comparison], Basis]:
    """The LoRA students of a trait that have controls of the same seeds, or what lacks."""
    comparisons, bases = [], []
    for condition in index.lora(setting):
        if index.control(setting, condition)[0] is None:
            continue
        compared, basis = index.compared(setting, condition)
        if compared is not None:
            comparisons.append(compared)
            bases.append(basis)
    if not comparisons:
        lack = f"LoRA students and a control of the same seeds on {setting}, as a positive control"
        return [], Basis((lack,))
    return comparisons, Basis.joined(bases)


def _runs_above(compared: Comparison, margin: float) -> str:
    effects = compared.effects.measured
    above = sum(effect > margin for effect in effects.values())
    return f"{above} of {count(len(effects), 'run')} above the margin"
