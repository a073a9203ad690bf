"""C5: the preference sits at certain tokens of the prompt. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from sublim_cli.models.positions import set_text
from sublim_cli.recipe.schema import LocalisationClaim, TextComplement
from sublim_cli.report.claims.effects import RunEffects, largest
from sublim_cli.report.claims.pairing import Basis, Comparison, RunIndex, TraitSetting
from sublim_cli.report.claims.transmission import transmits
from sublim_cli.report.claims.verdict import Finding, Judged, corrected, finding
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.stats import Seeds, log_odds
from sublim_cli.wording import condition_label, count

_ABOUT = {"kept": "kept by {} beyond {}", "lost": "lost under {} beyond {}"}
_KINDS = {"scattered": "random scattered sets", "window": "random windows"}
"""Random sets of as many tokens: drawn singly, and neighbours, as the tokens of a named set mostly are."""


def localisation(claim: LocalisationClaim, index: RunIndex, located: Sequence[LocatedRun]) -> Judged:
    """C5, five findings for each trait: there is an effect, and four about the set of tokens X.

    Null of support: there is no effect (C1's null), or X alone keeps no more of it than random sets of as
    many tokens, or without X no more is lost than without such sets; both for scattered and for contiguous
    random sets. Null of refutation: where random sets leave more than the margin of the effect, all four
    differences are the margin or more. Where they leave less,
    no set could pass, and nothing is refuted.
    """
    findings: list[Finding] = []
    bases: list[Basis] = []
    eval_context = claim.eval_context or claim.train_context
    gates: dict[tuple[str, str, str, str], list[LocatedRun]] = defaultdict(list)
    for row in located:
        gates[row.target, row.train_context, row.eval_context, row.part].append(row)
    for target in index.traits(claim):
        setting = TraitSetting(target, claim.train_context, eval_context)
        compared, basis = index.adapters_compared(claim, setting, claim.rank)
        bases.append(basis)
        if compared is None:
            continue
        effect = replace(transmits(claim, compared), p_against=None, absent=None)  # cannot refute C5
        findings.append(replace(effect, left_out=(effect.left_out[0], None)))
        for part, measure in zip(parts_of(claim), ("kept", "lost"), strict=True):
            rows = [row for row in gates[(*setting, part)] if row.condition == compared.condition]
            for kind, name in _KINDS.items():
                amounts, basis = _amounts(
                    setting, part, [r for r in rows if r.control_kind in ("", kind)], name
                )
                bases.append(basis)
                about = _ABOUT[measure].format(part, name)
                findings.append(_beyond_random(claim, compared, about, amounts))
    return Judged(corrected(findings), bases)


def parts_of(claim: LocalisationClaim) -> tuple[str, str]:
    """The gates that a claim needs, as the recipe names them: X alone, and all but X."""
    if isinstance(claim.positions, str):
        return f"{claim.positions}_only", f"no_{claim.positions}"
    return set_text(claim.positions), set_text(TextComplement(no_text=claim.positions.text))


class _Amounts(NamedTuple):
    """How much of a run's effect a set has in log-odds, and the mean of its random sets, by seeds."""

    named: RunEffects
    random: RunEffects


def _amounts(
    setting: TraitSetting, part: str, rows: Sequence[LocatedRun], kind: str
) -> tuple[_Amounts, Basis]:
    """The amounts of the runs that did not break, and what lacks."""
    lacks = []
    named = [row for row in rows if row.control is None]
    if not named:
        lacks.append(f"the gate {part} of students of {setting} (`eval.gates`, `eval.gate_contexts`)")
    if missing := sum(bool(row.missing) for row in named):
        lacks.append(f"{missing} of {count(len(named), 'run')} of the gate {part} of students of {setting}")
    of_sets: dict[tuple[Seeds, bool], list[float]] = defaultdict(list)
    for row in rows:
        amount = _amount(row)
        if amount is not None and not row.broken:
            of_sets[row.seeds, row.control is None].append(amount)
    amounts = {seeds: fmean(values) for (seeds, is_named), values in of_sets.items() if is_named}
    random = {seeds: fmean(values) for (seeds, is_named), values in of_sets.items() if not is_named}
    if amounts.keys() - random.keys():
        lacks.append(f"{kind} to compare with the gate {part}: `eval.gate_controls` is 0")
    broken = frozenset(row.seeds for row in named if row.broken)
    sets = _Amounts(RunEffects(amounts, amounts, amounts, broken), RunEffects(random, random, random, broken))
    return sets, Basis(tuple(lacks))


def _amount(row: LocatedRun) -> float | None:
    """What the set keeps, above the base, or what is lost without it, below the student; in log-odds."""
    if row.p_target is None or row.p_target_student is None or row.p_target_base is None:
        return None
    gated = log_odds(row.p_target)
    if row.measure == "kept":
        return gated - log_odds(row.p_target_base)
    return log_odds(row.p_target_student) - gated


def _beyond_random(claim: LocalisationClaim, compared: Comparison, about: str, amounts: _Amounts) -> Finding:
    """One set of tokens, run by run minus the mean of its random sets.

    p is that of the difference being 0 or less. p_against is the largest of three: those of the difference
    being the margin or more, of the effect being the margin or less, and of the room being the margin or less
    (the effect minus what random sets have of it): without room not even a set with all of the effect passes.
    """
    setting, condition, margin = compared.setting, compared.condition, claim.margin
    beyond = amounts.named.minus(amounts.random)
    room = compared.effects.minus(amounts.random)
    label = condition_label("student", condition.method, condition.rank)
    return finding(
        claim,
        setting.target,
        f"{label}, {setting.contexts}, {about}",
        beyond,
        p=beyond.above(),
        against=largest(beyond.below(margin), compared.effects.above(margin), room.above(margin)),
        levels=compared.levels,
        also={"room above random sets": room},
    )
