"""Claim C5's comparisons: a named set of tokens beside random sets of as many. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sublim_cli.models.positions import set_text
from sublim_cli.recipe.schema import LocalisationClaim, TextComplement
from sublim_cli.report.claims.pairing import Place, Plan
from sublim_cli.report.claims.verdict import Finding, finding
from sublim_cli.report.tables.conditions import Condition, Run, condition_of
from sublim_cli.stats import Seeds, holm, mean_of
from sublim_cli.wording import condition_label, count

ABOUT = {"kept": "kept by {} beyond random sets", "lost": "lost under {} beyond random sets"}


def beyond_random(
    claim: LocalisationClaim,
    plan: Plan,
    place: Place,
    condition: Condition,
    located: Sequence[Run],
    effects: Mapping[Seeds, float],
) -> Iterator[Finding]:
    """Sufficiency and necessity of the claim's set, each run by run minus the mean of its random sets.

    p is that of the difference being 0 or less. p_against is the largest of three: that of its being the
    margin or more, that of the whole effect being the margin or less, and that of the room there was (the
    effect minus what random sets have of it) being so: without it not even a set with all of the effect
    could pass.

    Args:
        effects: the whole effect of every run, the student's minus its control's.
    """
    there: dict[str, list[Run]] = defaultdict(list)
    for row in located:
        if _is_of(row, place, condition):
            there[row["part"]].append(row)
    label = condition_label("student", condition.method, condition.rank)
    for part, measure in zip(parts_of(claim), ("kept", "lost"), strict=True):
        found = list(_runs(plan, place, part, there.get(part, [])))
        beyond = {seeds: amount - random for seeds, amount, random in found}
        room = mean_of({seeds: effects[seeds] - random for seeds, _, random in found if seeds in effects})
        difference, least = mean_of(beyond), claim.margin
        yield finding(
            claim,
            place.target,
            f"{label}, {place.where}, {ABOUT[measure].format(part)}",
            beyond,
            {},
            p=difference.above(),
            against=max(difference.below(least), mean_of(effects).above(least), room.above(least)),
            also={"room above random sets": room},
        )


def over_traits(findings: Sequence[Finding]) -> list[Finding]:
    """With p values corrected over traits (Holm), of which one stands by its worst comparison.

    All comparisons of a trait are scaled alike, so they are all at or below alpha where, and only where,
    the trait is after the correction: at most alpha of the studies find any trait that should not be.
    """
    worst: dict[str, float] = {}
    for one in findings:
        worst[one.target] = max(one.p, worst.get(one.target, 0.0))
    scaled = dict(zip(worst, holm(list(worst.values())), strict=True))
    return [
        replace(one, p=min(1.0, one.p * scaled[one.target] / worst[one.target]) if worst[one.target] else 0.0)
        for one in findings
    ]


def parts_of(claim: LocalisationClaim) -> tuple[str, str]:
    """The gates that a claim needs, as the recipe names them: X alone, and all but X."""
    if isinstance(claim.positions, str):
        return f"{claim.positions}_only", f"no_{claim.positions}"
    return set_text(claim.positions), set_text(TextComplement(no_text=claim.positions.text))


def _is_of(row: Run, place: Place, condition: Condition) -> bool:
    where = (row["target"], row["train_context"], row["eval_context"])
    return where == (place.target, place.trained, place.asked) and condition_of(row) == condition


def _runs(plan: Plan, place: Place, part: str, rows: Sequence[Run]) -> Iterator[tuple[Seeds, float, float]]:
    """By seeds, how much of the effect the set has and random sets have; what lacks is noted in the plan."""
    named = [row for row in rows if row["control"] is None]
    absent = sum(bool(row["missing"]) for row in named)
    if not named:
        plan.lack(f"the gate {part} of students of {place} (`eval.gates`, `eval.gate_contexts`)")
    if absent:
        plan.lack(f"{absent} of {count(len(named), 'run')} of the gate {part} of students of {place}")
    drawn: dict[Seeds, list[float]] = defaultdict(list)
    for row in rows:
        if row["control"] is not None:
            drawn[row["train_seed"], row["data_seed"]].append(row["amount"])
    for row in named:
        seeds = (row["train_seed"], row["data_seed"])
        if row["missing"] or row["broken"]:
            continue
        if seeds not in drawn:
            plan.lack(f"random sets beside the gate {part}: `eval.gate_controls` is 0")
            continue
        yield seeds, row["amount"], sum(drawn[seeds]) / len(drawn[seeds])
