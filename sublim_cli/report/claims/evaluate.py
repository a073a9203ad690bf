"""The verdict on every claim of a recipe: supported, refuted, underpowered or incomplete. Pure.

    evaluate(recipe.claims, runs, located)

**Units.** An effect is the P(target) of one training run minus that of the control trained with the same
seeds, so that what both share cancels. Means are over the recipe's questions and hold for these. Intervals
and p values are about new training runs, clustered by shared seeds (`stats.estimate`), and about new data
sets only where the study has several data seeds. Where the answers to each question are known, an effect also
has an interval for new questions; no verdict depends on it.

**When.** A claim is judged once, when all runs planned for it are built: judging part of a plan repeatedly
until it is significant would raise the error rates. A missing run makes the claim incomplete. Broken runs are
left out and counted.

**Tests.** Every claim has two, one that supports it and one that refutes it. For the claim as a whole each is
wrong with a probability of at most alpha:

* A claim is supported where every comparison passes its test at alpha: an intersection-union test, which
  needs no correction for the number of comparisons (Berger 1982). Claims that are also stated trait by trait
  (C1, C2, C5) have p values corrected over traits (Holm 1979).
* A claim is refuted where any comparison refutes it, with Holm's p values over all comparisons.
* Where both tests pass (an effect above zero and below the margin) the claim is refuted: an effect below the
  margin is what the recipe calls none. Where neither passes it is underpowered.

Several claims of a recipe are not corrected for each other.

**Scoring.** Where P(target) itself is not known to half of the margin, because answers were neither computed
nor drawn or because too few were drawn for the base, the claim is underpowered, whatever the tests say.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sublim_cli.models.positions import set_text
from sublim_cli.recipe.schema import (
    Claim,
    ContextsClaim,
    FullFineTuningClaim,
    InvertedUClaim,
    LocalisationClaim,
    TextComplement,
    TransmissionClaim,
)
from sublim_cli.report.claims.pairing import (
    Basis,
    Comparison,
    RunIndex,
    TraitSetting,
    compare,
    minus,
    over_questions,
)
from sublim_cli.report.claims.verdict import WIDER, Finding, Verdict, corrected, finding, word_of
from sublim_cli.report.rates.choose import TITLE, choose, common_seeds
from sublim_cli.report.tables.localisation import LocatedRun, run_amounts
from sublim_cli.report.tables.runs import Run
from sublim_cli.stats import Seeds, holm, mean_of, peak, two_lines
from sublim_cli.wording import condition_label, count, listed, rate

GIVEN_THE_CHOICE = (
    "Judged at the learning rates that these runs chose; the intervals leave out that other runs might "
    "choose other rates."
)
ONE_DATA_SEED = "All runs learned from data of one seed: what another data set would do is not known."
Z = 1.96
"""Standard errors to either side of a 95 % interval."""
LEAST_RANKS = 4
"""As `stats.two_lines` needs: with three ranks the curve could turn at one rank only."""

_ABOUT = {"kept": "kept by {} beyond random sets", "lost": "lost under {} beyond random sets"}


@dataclass(frozen=True)
class _Judged:
    """The findings of one claim, the bases of the comparisons that it needs, and notes on them."""

    findings: Sequence[Finding]
    bases: Sequence[Basis]
    notes: Sequence[str] = ()


def evaluate(
    claims: Iterable[Claim], runs: Iterable[Run], located: Sequence[LocatedRun] = ()
) -> list[Verdict]:
    """The verdict on each claim from a study's runs and, for C5, its located runs."""
    index = RunIndex(runs)
    return [_verdict(claim, index, located) for claim in claims]


def _verdict(claim: Claim, index: RunIndex, located: Sequence[LocatedRun]) -> Verdict:
    match claim:
        case TransmissionClaim():
            judged = _transmission(claim, index)
        case InvertedUClaim():
            judged = _inverted_u(claim, index)
        case FullFineTuningClaim():
            judged = _full_fine_tuning(claim, index)
        case ContextsClaim():
            judged = _contexts(claim, index)
        case LocalisationClaim():
            judged = _localisation(claim, index, located)
    basis = Basis.joined([index.students, *judged.bases])
    findings = () if basis.lacks else tuple(judged.findings)
    not_known = _not_known(basis, claim.margin)
    word = word_of(findings, claim.alpha, decided=not not_known)
    one_data_seed = len({training[-1] for training in basis.planned}) == 1
    return Verdict(
        claim=claim,
        word="incomplete" if basis.lacks else word,
        findings=findings,
        planned=len(basis.planned),
        broken=len(basis.broken - basis.missing),
        missing=len(basis.missing),
        lacks=basis.lacks,
        notes=(*judged.notes, *([ONE_DATA_SEED] if one_data_seed else [])),
        not_known="" if basis.lacks else not_known,
    )


def _not_known(basis: Basis, margin: float) -> str:
    """Why P(target) is not known to half of the margin, or an empty string."""
    if basis.unresolved > margin / 2:
        return (
            f"up to {basis.unresolved:.3f} of the answers were neither computed nor drawn, more than half of "
            f"the margin of {margin:g}; raise `eval.nodes`, or draw answers (`eval.draws`)"
        )
    if Z * basis.base_error > margin / 2:
        return (
            f"the base's has a standard error of {basis.base_error:.3f} from drawn answers, and its 95 % "
            f"interval reaches further than half of the margin of {margin:g}; raise `eval.draws`"
        )
    return ""


def _transmission(claim: TransmissionClaim, index: RunIndex) -> _Judged:
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
            findings.append(_transmits(claim, compared))
    return _Judged(corrected(findings, support=True), bases)


def _transmits(claim: TransmissionClaim | ContextsClaim | LocalisationClaim, compared: Comparison) -> Finding:
    """The finding of C1, which C4 and C5 need too."""
    effect = mean_of(compared.effects)
    label = condition_label("student", "lora", claim.rank)
    return finding(
        claim,
        compared.setting.target,
        f"{label}, {compared.setting.contexts}, minus the control",
        compared.effects,
        compared.answers,
        p=max(effect.above(), compared.base.above()),
        against=effect.below(claim.margin),
        also={"minus the base": compared.base},
    )


def _inverted_u(claim: InvertedUClaim, index: RunIndex) -> _Judged:
    """C2, a finding for each trait.

    Null of support: the curve does not rise before every point or does not fall after it; see
    `stats.two_lines`, whose error rate under rising, saturating and stepping curves is measured by
    `benchmarks/calibration.py`. Null of refutation: some rank's mean lies the margin above that of the
    highest rank, and some rank's the margin above that of the lowest. A curve that lacks either side is no
    inverted U, so either half may be rejected, each at half of alpha. To reject a half, *every* rank must be
    shown to lie less than the margin above that end: an intersection-union test that need not know the peak.

    A curve of chosen learning rates (`rates.choose`, which does not look at the trait) is judged at the
    chosen rates.
    """
    findings: list[Finding] = []
    bases: list[Basis] = []
    notes: list[str] = []
    for target in index.traits(claim):
        setting = TraitSetting(target, claim.train_context, claim.train_context)
        curve, basis, curve_notes = _rank_curve(claim, index, setting)
        bases.append(basis)
        notes += curve_notes
        if any(basis.lacks for basis in bases):
            continue  # the claim is incomplete
        usable = {
            rank: p_target
            for rank, p_target in curve.items()
            if 2 * sum(p is not None for p in p_target.values()) >= len(p_target)
        }
        if dropped := [str(rank) for rank in curve if rank not in usable]:
            ranks = listed(dropped)
            notes.append(f"{target}: most runs of rank {ranks} broke; the curve is judged without.")
        findings.append(_curve_finding(claim, setting, usable))
    if claim.curve != "fixed":
        notes.append(GIVEN_THE_CHOICE)
    return _Judged(corrected(findings, support=True), bases, notes)


def _rank_curve(
    claim: InvertedUClaim, index: RunIndex, setting: TraitSetting
) -> tuple[dict[int, Mapping[Seeds, float | None]], Basis, list[str]]:
    """P(target) of the runs of each rank by seeds (None where a run is broken), and notes on the choice.

    A fixed curve has every rank at the learning rate that the claim names, or the only one there is; others
    have every rank that has a grid at the rate that `rates.choose` takes for it.
    """
    curve: dict[int, Mapping[Seeds, float | None]] = {}
    notes: list[str] = []
    which = ""
    if claim.curve == "fixed":
        ranks = index.ranks(claim, setting)
        cells = [index.adapters(claim, setting, rank) for rank in ranks]
        bases = [basis for _, basis in cells]
        curve = {rank: cell.p_target for rank, (cell, _) in zip(ranks, cells, strict=True) if cell}
    else:
        grid, basis = index.grid(claim, setting)
        bases = [basis]
        chosen = choose(claim.curve, grid, common_seeds(grid))
        points = {point.row: point for point in chosen.points if isinstance(point.row, int)}
        ranks = list(points)
        curve = {rank: point.values("p_target") for rank, point in points.items()}
        which = f" that can be compared {TITLE[claim.curve]}"
        notes += [f"{setting.target}: the curve lacks {lack}." for lack in chosen.lacks]
        for edge in dict.fromkeys(point.edge for point in chosen.points if point.edge):
            at_edge = [str(rank) for rank, point in points.items() if point.edge == edge]
            notes.append(
                f"{setting.target}: of rank {listed(at_edge)} the {edge} learning rate tried was taken, and "
                "the one sought may lie beyond it."
            )
    if len(ranks) < LEAST_RANKS:
        present = f"it has {listed([str(rank) for rank in ranks])}" if ranks else "it has none"
        bases.append(Basis((f"{LEAST_RANKS} LoRA ranks or more on {setting}{which}; {present}",)))
    return curve, Basis.joined(bases), notes


def _curve_finding(
    claim: InvertedUClaim, setting: TraitSetting, curve: Mapping[int, Mapping[Seeds, float | None]]
) -> Finding:
    """Judge the runs that are unbroken at every rank."""
    ranks = list(curve)
    end = ranks[-1] if ranks else "–"
    about = f"fall to rank {end} from the highest mean below it, {count(len(ranks), 'rank')}"
    if claim.curve != "fixed":
        about = f"{about} {TITLE[claim.curve]}"
    planned = sorted({seeds for p_target in curve.values() for seeds in p_target})
    seeds = [s for s in planned if all(p_target.get(s) is not None for p_target in curve.values())]
    values = [[p_target[s] for p_target in curve.values()] for s in seeds]
    y = np.array(values, dtype=float).reshape(len(seeds), len(ranks))  # [runs, ranks]
    x = np.log2(ranks)
    lines = two_lines(x, y, seeds)
    if lines is None:
        return Finding(setting.target, about, None, 1.0, 1.0, None)
    last = len(ranks) - 1
    above_ends = [
        [mean_of(_minus_rank(y, rank, end_rank, seeds)) for rank in range(len(ranks)) if rank != end_rank]
        for end_rank in (0, last)
    ]
    flat = min(max(above.below(claim.margin) for above in side) for side in above_ends)
    highest_before_end = int(np.argmax(y.mean(axis=0)[:last]))
    turn = finding(
        claim,
        setting.target,
        about,
        _minus_rank(y, highest_before_end, last, seeds),
        {},
        p=lines.p,
        against=min(1.0, 2 * flat),
        also={"slope up to the turn": lines.rise, "slope from the turn": lines.fall},
    )
    highest_rank = peak(np.array(ranks, dtype=float), y, seeds)
    bootstrap = {"rank of the highest mean (95 %, bootstrap of these runs)": highest_rank}
    return replace(turn, also={**turn.also, **bootstrap})


def _minus_rank(y: NDArray[np.float64], rank: int, other: int, seeds: Sequence[Seeds]) -> dict[Seeds, float]:
    """The differences between two ranks by seeds; the ranks are column numbers of y."""
    return dict(zip(seeds, (y[:, rank] - y[:, other]).tolist(), strict=True))


def _full_fine_tuning(claim: FullFineTuningClaim, index: RunIndex) -> _Judged:
    """C3, a finding for each trait, learning rate and precision.

    Null of support: some condition's mean lies the margin or more away from its control's; every one must be
    shown equivalent. Null of refutation: no condition lies more than the margin above its control. Whether
    adapters would have passed the trait on is the question of C1, not of this claim.
    """
    findings, bases = [], []
    for target in index.traits(claim):
        setting = TraitSetting(target, claim.train_context, claim.train_context)
        conditions = index.full(setting)
        if not conditions:
            bases.append(Basis((f"full fine-tuning on {setting}",)))
        for condition in conditions:
            control, basis = index.control(setting, condition)
            bases.append(basis)
            if control is None:
                continue
            students = index.cell("student", setting, condition)
            compared, lacking = compare(setting, students, control)
            bases += [students.basis, lacking]
            effect = mean_of(compared.effects)
            parts = filter(
                None, (f"lr {rate(condition.learning_rate)}", condition.precision, condition.settings)
            )
            findings.append(
                finding(
                    claim,
                    target,
                    f"{condition_label('student', 'full', None, list(parts))}, minus the control",
                    compared.effects,
                    compared.answers,
                    p=effect.within(claim.margin),
                    against=effect.above(claim.margin),
                    also={"minus the base": compared.base},
                )
            )
    return _Judged(corrected(findings), bases)


def _contexts(claim: ContextsClaim, index: RunIndex) -> _Judged:
    """C4, a finding for each trait, training context and eval context.

    Null of support: for some training context the trait does not pass in it (C1's null), or in some other
    context the effect is the margin or more away from zero, or no smaller than in the training context. The
    last is the interaction: without it an effect of 0.01 in both would be a trait that vanished. Null of
    refutation: no other context's effect lies above the margin.
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
            if home:
                findings.append(replace(_transmits(claim, home), p_against=None))  # cannot refute C4
            for other in others:
                setting = TraitSetting(target, trained, other)
                away, basis = index.adapters_compared(claim, setting, claim.rank)
                bases.append(basis)
                if home and away:
                    findings.append(_vanishes(claim, home, away))
    return _Judged(corrected(findings), bases)


def _vanishes(claim: ContextsClaim, home: Comparison, away: Comparison) -> Finding:
    """The effect in another context, compared with that in the training context."""
    effect = mean_of(away.effects)
    pairs = home.effects.keys() & away.effects.keys()
    interaction = mean_of({seeds: home.effects[seeds] - away.effects[seeds] for seeds in pairs})
    label = condition_label("student", "lora", claim.rank)
    comparison = finding(
        claim,
        away.setting.target,
        f"{label}, {away.setting.contexts}, minus the control",
        away.effects,
        away.answers,
        p=max(effect.within(claim.margin), interaction.above()),
        against=effect.above(claim.margin),
        also={"interaction": interaction, "minus the base": away.base},
    )
    wider = over_questions(minus(home.answers, away.answers), 1 - 2 * claim.alpha)
    if wider is None:
        return comparison
    return replace(comparison, also={**comparison.also, f"interaction {WIDER}": wider})


def _localisation(claim: LocalisationClaim, index: RunIndex, located: Sequence[LocatedRun]) -> _Judged:
    """C5, three findings for each trait: there is an effect, and two about the set of tokens X.

    Null of support: there is no effect (C1's null), or X alone keeps no more of it than random sets of as
    many tokens, or without X no more is lost than without such sets. Null of refutation: where random sets
    leave more than the margin of the effect, both differences are the margin or more. Where they leave less,
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
        findings.append(replace(_transmits(claim, compared), p_against=None))  # cannot refute C5
        for part, measure in zip(parts_of(claim), ("kept", "lost"), strict=True):
            rows = [row for row in gates[(*setting, part)] if row.condition == compared.condition]
            amounts, basis = _amounts(setting, part, rows)
            bases.append(basis)
            findings.append(_beyond_random(claim, compared, _ABOUT[measure].format(part), amounts))
    return _Judged(corrected(over_traits(findings)), bases)


def parts_of(claim: LocalisationClaim) -> tuple[str, str]:
    """The gates that a claim needs, as the recipe names them: X alone, and all but X."""
    if isinstance(claim.positions, str):
        return f"{claim.positions}_only", f"no_{claim.positions}"
    return set_text(claim.positions), set_text(TextComplement(no_text=claim.positions.text))


def over_traits(findings: Sequence[Finding]) -> list[Finding]:
    """With the p values of C5 corrected over traits (Holm), each trait represented by its largest p value.

    All p values of a trait are scaled by the factor that corrects its largest. So they are all at or below
    alpha exactly where the trait is after the correction, and the probability that any trait without the
    property passes is at most alpha.
    """
    largest: dict[str, float] = {}
    for f in findings:
        largest[f.target] = max(f.p, largest.get(f.target, 0.0))
    adjusted = dict(zip(largest, holm(list(largest.values())), strict=True))
    return [
        replace(f, p=min(1.0, f.p * adjusted[f.target] / largest[f.target])) if f.p else f for f in findings
    ]


Amounts = Mapping[Seeds, tuple[float, float]]
"""How much of a run's effect the set has, and the mean of its random sets, by seeds."""


def _amounts(setting: TraitSetting, part: str, rows: Sequence[LocatedRun]) -> tuple[Amounts, Basis]:
    """The amounts of the runs that did not break, and what lacks."""
    lacks = []
    named = [row for row in rows if row.control is None]
    if not named:
        lacks.append(f"the gate {part} of students of {setting} (`eval.gates`, `eval.gate_contexts`)")
    if missing := sum(bool(row.missing) for row in named):
        lacks.append(f"{missing} of {count(len(named), 'run')} of the gate {part} of students of {setting}")
    amounts = run_amounts(rows)
    if any(run.random is None for run in amounts):
        lacks.append(f"random sets to compare with the gate {part}: `eval.gate_controls` is 0")
    compared = {run.seeds: (run.amount, run.random) for run in amounts if run.random is not None}
    return compared, Basis(tuple(lacks))


def _beyond_random(claim: LocalisationClaim, compared: Comparison, about: str, amounts: Amounts) -> Finding:
    """One set of tokens, run by run minus the mean of its random sets.

    p is that of the difference being 0 or less. p_against is the largest of three: those of the difference
    being the margin or more, of the effect being the margin or less, and of the room being the margin or less
    (the effect minus what random sets have of it): without room not even a set with all of the effect passes.
    """
    setting, condition, margin = compared.setting, compared.condition, claim.margin
    beyond = {seeds: amount - random for seeds, (amount, random) in amounts.items()}
    effects = compared.effects
    room = mean_of(
        {seeds: effects[seeds] - random for seeds, (_, random) in amounts.items() if seeds in effects}
    )
    difference, effect = mean_of(beyond), mean_of(effects)
    label = condition_label("student", condition.method, condition.rank)
    return finding(
        claim,
        setting.target,
        f"{label}, {setting.contexts}, {about}",
        beyond,
        {},
        p=difference.above(),
        against=max(difference.below(margin), effect.above(margin), room.above(margin)),
        also={"room above random sets": room},
    )
