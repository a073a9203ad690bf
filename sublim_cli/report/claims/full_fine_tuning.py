"""C3: full fine-tuning transmits no trait; three questions. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from sublim_cli.recipe.schema import FullFineTuningClaim
from sublim_cli.report.claims.effects import RunEffects, largest
from sublim_cli.report.claims.pairing import (
    Basis,
    Comparison,
    Levels,
    RunIndex,
    TraitSetting,
    compare_with_base,
)
from sublim_cli.report.claims.transmission import PositiveControl, positive_control
from sublim_cli.report.claims.verdict import Finding, Judged, corrected, finding, widened
from sublim_cli.report.rates.choose import BETA, not_shown_higher
from sublim_cli.report.tables.runs import Condition
from sublim_cli.stats import Seeds, mean_known, mean_of, ratio_interval
from sublim_cli.wording import condition_label, listed, rate

PAPER: dict[str, float | str] = {"learning_rate": 2e-5, "precision": "bf16_pure"}
"""The paper's full fine-tuning, from its public code."""

OF_ADAPTER = "ratio to the effect of the best adapter"
"""Of the effects in log-odds."""


def full_fine_tuning(claim: FullFineTuningClaim, index: RunIndex) -> list[Judged]:
    """C3a, C3b and C3c, of the traits that LoRA transmits."""
    control = positive_control(claim, index, claim.train_context)
    settings = [TraitSetting(t, claim.train_context, claim.train_context) for t in index.traits(claim)]
    traits = [_Compared.of(index, setting, asked=setting.target in control.asked) for setting in settings]
    return [
        _at_one_condition(claim, traits, control),
        _at_every_condition(claim, traits, control),
        _against_the_best_adapter(claim, index, traits, control),
    ]


@dataclass(frozen=True)
class _Compared:
    """The fully fine-tuned students of a trait compared with their controls; `asked`: LoRA transmits it."""

    setting: TraitSetting
    compared: Mapping[Condition, Comparison]
    bases: Mapping[Condition, Basis]
    asked: bool

    @staticmethod
    def of(index: RunIndex, setting: TraitSetting, *, asked: bool) -> "_Compared":
        compared, bases = {}, {}
        for condition in index.full(setting):
            comparison, bases[condition] = index.compared(setting, condition)
            if comparison:
                compared[condition] = comparison
        return _Compared(setting, compared, bases, asked)

    @property
    def basis(self) -> Basis:
        """Of all conditions; it lacks them where there is none."""
        if not self.bases:
            return Basis((f"full fine-tuning on {self.setting}",))
        return Basis.joined(list(self.bases.values()))


def _at_one_condition(
    claim: FullFineTuningClaim, traits: Sequence[_Compared], control: PositiveControl
) -> Judged:
    """C3a, a finding for each trait.

    Null of support: the effect is the margin or more away from zero; of refutation: it is not above it.
    """
    findings, bases = [], list(control.bases)
    for trait in traits:
        chosen = _literal(claim, list(trait.bases))
        if len(chosen) != 1:
            bases.append(trait.basis if not trait.bases else Basis((_which(trait, chosen),)))
            continue
        bases.append(trait.bases[chosen[0]])
        if trait.asked and (compared := trait.compared.get(chosen[0])):
            findings.append(_absent(claim, compared))
    return Judged(corrected(findings), bases, part="a", not_asked=control.not_asked)


def _literal(claim: FullFineTuningClaim, conditions: Sequence[Condition]) -> list[Condition]:
    """The condition that C3a means: what the claim names, else the paper's, else the only one."""
    named: dict[str, float | str | None] = {
        "learning_rate": claim.learning_rate,
        "precision": claim.precision,
    }
    left = list(conditions)
    for key, value in named.items():
        if value is not None:
            left = [condition for condition in left if getattr(condition, key) == value]
    for key, value in PAPER.items():
        if named[key] is None and len(left) > 1:
            left = [condition for condition in left if getattr(condition, key) == value] or left
    return left


def _which(trait: _Compared, chosen: Sequence[Condition]) -> str:
    there = ", ".join(f"lr {rate(c.learning_rate)} in {c.precision}" for c in chosen or trait.bases)
    return (
        f"one condition of full fine-tuning on {trait.setting}: the claim must name its `learning_rate` and "
        f"`precision` ({there})"
    )


def _at_every_condition(
    claim: FullFineTuningClaim, traits: Sequence[_Compared], control: PositiveControl
) -> Judged:
    """C3b, a finding for each trait and condition, each tested as in C3a."""
    findings = [
        _absent(claim, compared) for trait in traits if trait.asked for compared in trait.compared.values()
    ]
    bases = [*control.bases, *(trait.basis for trait in traits)]
    return Judged(corrected(findings), bases, part="b", not_asked=control.not_asked)


def _absent(claim: FullFineTuningClaim, compared: Comparison) -> Finding:
    return finding(
        claim,
        compared.setting.target,
        f"{_label(compared.condition)}, minus the control",
        compared.effects,
        p=compared.effects.within(claim.margin),
        against=compared.effects.above(claim.margin),
        levels=compared.levels,
        answers=compared.answers,
        absent="supported",
        also={"minus the base": compared.base},
    )


def _label(condition: Condition) -> str:
    parts = filter(None, (f"lr {rate(condition.learning_rate)}", condition.precision, condition.settings))
    return condition_label("student", condition.method, condition.rank, list(parts))


def _against_the_best_adapter(
    claim: FullFineTuningClaim, index: RunIndex, traits: Sequence[_Compared], control: PositiveControl
) -> Judged:
    """C3c, a finding for each trait: full fine-tuning's effect minus the best adapter's, run by run.

    Null of support: the difference is minus the margin or more; of refutation: it is minus the margin or
    less. Effects are those on the base, which the difference does not contain: controls trained as each
    adapter are rarely there. Best is the least number loss, over ranks and learning rates, or over learning
    rates and precisions. Without pilot runs every pair that may be the best is tested.
    """
    findings, bases = [], [*control.bases, *(trait.basis for trait in traits)]
    for trait in traits:
        setting, methods = trait.setting, []
        for conditions in (list(trait.compared), index.lora(setting)):
            best, lacks = _best(claim, index, setting, conditions)
            cells = {condition: index.cell("student", setting, condition) for condition in conditions}
            against_base = [compare_with_base(setting, cells[condition]) for condition in best]
            bases += [Basis(lacks), *(cell.basis for cell in cells.values())]
            bases += [basis for _, basis in against_base]
            methods.append([_Best(c, effects) for c, (effects, _) in zip(best, against_base, strict=True)])
        if trait.asked and all(methods):
            runs = index.cell("student", setting, methods[0][0].condition).runs.values()
            tested = [run for run in runs if run.train_seed not in (claim.choose_on or ())]
            levels = Levels(
                students=mean_known(run.p_target for run in tested),
                base=mean_known(run.p_target_base for run in tested),
            )
            findings.append(_less_than_adapter(claim, setting.target, list(product(*methods)), levels))
    return Judged(corrected(findings), bases, part="c", not_asked=control.not_asked)


class _Best(NamedTuple):
    """A condition that has or may have the least number loss, and the effects of its students on the base."""

    condition: Condition
    effects: RunEffects


def _best(
    claim: FullFineTuningClaim, index: RunIndex, setting: TraitSetting, conditions: Sequence[Condition]
) -> tuple[list[Condition], tuple[str, ...]]:
    """The condition of the least mean loss, without pilot runs also others that may have it; what lacks."""
    losses: dict[Condition, dict[Seeds, float]] = {}
    for condition in conditions:
        by_seeds = {run.seeds: run.number_loss for run in index.runs(setting, [condition])}
        if claim.choose_on is not None:
            by_seeds = {seeds: loss for seeds, loss in by_seeds.items() if seeds[0] in claim.choose_on}
        losses[condition] = {seeds: loss for seeds, loss in by_seeds.items() if loss is not None}
    if len(conditions) <= 1:
        return list(conditions), ()
    if without := [condition for condition in conditions if not losses[condition]]:
        labels = listed([_label(condition) for condition in without[:3]])
        where = f" at train seed {listed([str(s) for s in claim.choose_on])}" if claim.choose_on else ""
        return [], (f"the held-out number loss of {labels} on {setting}{where}",)
    least = min(conditions, key=lambda condition: mean_of(losses[condition]).mean)
    if claim.choose_on is not None:
        return [least], ()
    return [least, *(c for c in not_shown_higher(losses, BETA / 2) if c != least)], ()


def _less_than_adapter(
    claim: FullFineTuningClaim, target: str, pairs: Sequence[tuple[_Best, ...]], levels: Levels
) -> Finding:
    """Over the pairs that may be the best; the first is shown."""

    def tested(effects: RunEffects) -> RunEffects:
        seeds = {s for s in {*effects.measured, *effects.broken} if s[0] not in (claim.choose_on or ())}
        return effects.only(seeds)

    # The base cancels, and with it what is not known of it.
    differences = [replace(tested(full.effects.minus(lora.effects)), error=0.0) for full, lora in pairs]
    beta = BETA if len(pairs) > 1 else 0.0
    full, adapter = pairs[0]
    found = finding(
        claim,
        target,
        f"{_label(full.condition)}, minus {_label(adapter.condition)}",
        differences[0],
        p=largest(*(difference.below(-claim.margin) for difference in differences)).plus(beta),
        against=largest(*(difference.above(-claim.margin) for difference in differences)).plus(beta),
        levels=levels,
        also={"full fine-tuning": tested(full.effects), "the best adapter": tested(adapter.effects)},
    )
    seeds = sorted(differences[0].measured)
    share = None
    if seeds:
        over, under = ([best.effects.measured[s] for s in seeds] for best in (full, adapter))
        share = ratio_interval(over, under, seeds, 1 - 2 * claim.alpha)
    ratio = {OF_ADAPTER: share} if share else {}
    intervals = [
        difference.mean.interval(1 - 2 * claim.alpha) for difference in differences if difference.measured
    ]
    return widened(replace(found, also={**found.also, **ratio}), intervals)
