"""What the study decides: every claim of the recipe as supported, refuted, underpowered or incomplete. Pure.

evaluate(recipe.claims, records(results.runs))

The unit is the training run. A student is compared with the control of the same seeds, so what the two
share (the context's base rate, the seed's data order) cancels; runs that share a seed with other runs are
clustered by it (`stats.estimate`). Means are over the recipe's questions and hold for those; intervals and
p values are about new training runs, and about new data sets only where the study has several data seeds.
An interval for new questions, too, stands beside an effect where it is called that.

A claim is judged once, when all that was planned for it is there. A look at half of a plan, taken again
until it pleases, would break the error rates, so a missing run makes a claim incomplete. Broken runs are
left out and counted.

Two tests stand behind each verdict, one that the claim must pass to be supported and one to be refuted.
Neither passes wrongly with a probability above alpha, for the claim as a whole:

* A claim that says "everywhere" is supported where every one of its comparisons passes. If it is false in
  one, that one has to pass wrongly, which happens with at most alpha: an intersection-union test needs no
  correction (Berger 1982). Where traits are also spoken of one by one, their p values are Holm's.
* It is refuted by any one comparison, so there the p values are always Holm's.
* A claim that passes both (an effect above zero and shown to be below the margin) is refuted: below the
  margin is what the recipe calls no effect. That takes from the first rate and leaves the second.

Several claims are several questions; nothing is corrected across them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sublim_cli.recipe.schema import (
    AdapterClaim,
    Claim,
    ContextsClaim,
    FullFineTuningClaim,
    InvertedUClaim,
    LocalisationClaim,
    TransmissionClaim,
)
from sublim_cli.report.claims.localisation import beyond_random, over_traits
from sublim_cli.report.claims.pairing import (
    Answers,
    Effects,
    Place,
    Plan,
    minus,
    over_questions,
    placed,
    unasked,
)
from sublim_cli.report.claims.verdict import WIDER, Finding, Verdict, corrected, finding, word_of
from sublim_cli.report.rates.choose import TITLE, choose, common_seeds
from sublim_cli.report.tables.conditions import Condition, Run
from sublim_cli.stats import Estimate, Interval, Seeds, mean_of, peak, two_lines
from sublim_cli.wording import condition_label, count, listed, rate

Curves = NDArray[np.float64]
GIVEN_THE_CHOICE = (
    "Judged given the learning rates that these runs chose: that other runs might choose others is in no "
    "interval."
)
LEAST_RANKS = 4
"""Two lines through fewer are no test."""


def evaluate(
    claims: Iterable[Claim],
    runs: Sequence[Run],
    answers: Answers = unasked,
    located: Sequence[Run] = (),
) -> list[Verdict]:
    """The verdict on each claim from the rows of a runs table, see `conditions.records`.

    `answers` gives a run's questions one by one. No verdict rests on them; where they are known an effect
    is also given for new questions. `located` are the rows of `localisation.located_table`.
    """
    every = placed(runs)
    return [_verdict(claim, Plan(every, answers), located) for claim in claims]


def _verdict(claim: Claim, plan: Plan, located: Sequence[Run]) -> Verdict:
    notes: list[str] = []
    match claim:
        case TransmissionClaim():
            findings = _transmission(claim, plan)
        case InvertedUClaim():
            findings = _inverted_u(claim, plan, notes)
        case FullFineTuningClaim():
            findings = _full_fine_tuning(claim, plan)
        case ContextsClaim():
            findings = _contexts(claim, plan)
        case LocalisationClaim():
            findings = _localisation(claim, plan, located)
    if plan.lacks:
        findings = []
    return Verdict(
        claim=claim,
        word="incomplete" if plan.lacks else word_of(findings, claim.alpha),
        findings=tuple(findings),
        planned=len(plan.planned),
        broken=len(plan.broken - plan.missing),
        missing=len(plan.missing),
        lacks=tuple(plan.lacks),
        notes=(*notes, *_seeds(plan)),
    )


def _seeds(plan: Plan) -> Iterator[str]:
    if len(plan.data_seeds) == 1:
        yield "All runs learned from data of one seed: what another data set would do is not known."


def _transmission(claim: TransmissionClaim, plan: Plan) -> list[Finding]:
    """C1, a finding for each trait.

    Null of support: the mean of student minus control or that of student minus base is 0 or less. Both
    must be rejected, so p is the larger. Null of refutation: student minus control is the margin or more.
    Being equivalent to the control implies its rejection; a student *less* fond of the target than the
    control is no transmission either. The base is no ground for refutation: training without the trait
    moves a student too.
    """
    traits = plan.traits(claim)
    found = [
        _passed(claim, plan, Place(one, claim.train_context, claim.train_context), claim.rank)
        for one in traits
    ]
    return corrected([one for one in found if one], support=True)


def _passed(
    claim: TransmissionClaim | ContextsClaim | LocalisationClaim, plan: Plan, place: Place, rank: int
) -> Finding | None:
    if (effects := _effects(claim, plan, place, rank)) is None:
        return None
    control, base = mean_of(effects.control), effects.base
    label = condition_label("student", "lora", rank)
    return finding(
        claim,
        place.target,
        f"{label}, {place.where}, minus the control",
        effects.control,
        effects.answers,
        p=max(control.above(), base.above()),
        against=control.below(claim.margin),
        also={"minus the base": base},
    )


@dataclass(frozen=True)
class _Effects:
    """A cell beside its control, by seeds, and beside the base."""

    control: dict[Seeds, float]
    answers: Effects
    base: Estimate


def _effects(claim: AdapterClaim, plan: Plan, place: Place, rank: int) -> _Effects | None:
    chosen = plan.adapters(claim, place, rank)
    control = plan.control(place, chosen[0]) if chosen else None
    if chosen is None or control is None:
        return None
    own = chosen[1]
    return _Effects(plan.paired(own, control, place), plan.by_question(own, control), plan.base(own, place))


def _inverted_u(claim: InvertedUClaim, plan: Plan, notes: list[str]) -> list[Finding]:
    """C2, a finding for each trait.

    Null of support: the curve does not rise before every point or does not fall after it; see
    `stats.two_lines`, whose rate under rising, saturating and stepping curves is measured by
    `benchmarks/calibration.py`. Null of refutation: some rank's mean lies the margin above that of the
    highest rank, and some rank's the margin above that of the lowest. A curve that misses either side is
    no inverted U, so either may be rejected, each at half of alpha: for that *every* rank must be shown
    to lie less than the margin above the end, an intersection-union test that needs not know the peak.

    On a curve of chosen learning rates (`rates.choose`, which does not look at the trait) both are judged
    given the choice.
    """
    found = [
        _curve(claim, plan, Place(one, claim.train_context, claim.train_context), notes)
        for one in plan.traits(claim)
    ]
    if claim.curve != "fixed":
        notes.append(GIVEN_THE_CHOICE)
    return corrected([one for one in found if one], support=True)


def _curve(claim: InvertedUClaim, plan: Plan, place: Place, notes: list[str]) -> Finding | None:
    cells = _fixed(claim, plan, place) if claim.curve == "fixed" else _chosen(claim, plan, place, notes)
    if plan.lacks:
        return None
    kept = {rank: one for rank, one in cells.items() if 2 * _whole(one) >= len(one)}
    if gone := [str(rank) for rank in cells if rank not in kept]:
        notes.append(f"{place.target}: most runs of rank {listed(gone)} broke; the curve is judged without.")
    seeds = [one for one in sorted(set().union(*kept.values())) if _in_all(kept, one)]
    y = np.array([[values[one] for values in kept.values()] for one in seeds], dtype=float)
    return _turn(claim, place, list(kept), y.reshape(len(seeds), len(kept)), seeds)


Heights = Mapping[Seeds, float | None]
"""P(target) of the runs of one rank; None where one is broken."""


def _fixed(claim: InvertedUClaim, plan: Plan, place: Place) -> dict[int, Heights]:
    """Every rank at the learning rate that the claim names, or the only one there is."""
    ranks = plan.ranks(claim, place)
    cells = {rank: chosen[1] for rank in ranks if (chosen := plan.adapters(claim, place, rank))}
    _enough(plan, place, ranks, "")
    return {
        rank: {seeds: None if run is None else run["p_target"] for seeds, run in values.items()}
        for rank, values in cells.items()
    }


def _chosen(claim: InvertedUClaim, plan: Plan, place: Place, notes: list[str]) -> dict[int, Heights]:
    """Every rank at the learning rate that `rates.choose` takes for it; the others have none."""
    grid = plan.grid(claim, place)
    found = choose(claim.curve, grid, common_seeds(grid))
    ranks = [rank for rank in found.choices if isinstance(rank, int)]
    _enough(plan, place, ranks, f" that can be compared {TITLE[claim.curve]}")
    told = [f"the curve lacks {one}" for one in found.lacks]
    edges: dict[str, list[str]] = {}
    for rank in ranks:
        if edge := found.choices[rank].edge:
            edges.setdefault(edge, []).append(str(rank))
    told += [
        f"of rank {listed(own)} the {edge} learning rate tried was taken, and the one sought may lie "
        "beyond it"
        for edge, own in edges.items()
    ]
    notes.extend(f"{place.target}: {one}." for one in told)
    return {rank: found.choices[rank].values(grid[rank], "p_target") for rank in ranks}


def _enough(plan: Plan, place: Place, ranks: Sequence[int], which: str) -> None:
    if len(ranks) < LEAST_RANKS:
        there = f"it has {listed(list(map(str, ranks)))}" if ranks else "it has none"
        plan.lack(f"{LEAST_RANKS} LoRA ranks or more on {place}{which}; {there}")


def _whole(values: Heights) -> int:
    return sum(one is not None for one in values.values())


def _in_all(cells: Mapping[int, Heights], seeds: Seeds) -> bool:
    return all(values.get(seeds) is not None for values in cells.values())


def _turn(
    claim: InvertedUClaim, place: Place, ranks: Sequence[int], y: Curves, seeds: Sequence[Seeds]
) -> Finding:
    """Judge curves that are there at every rank: y is [runs, ranks]."""
    end = ranks[-1] if ranks else "–"
    about = f"fall to rank {end} from the highest mean below it, {count(len(ranks), 'rank')}"
    if claim.curve != "fixed":
        about = f"{about} {TITLE[claim.curve]}"
    x = np.log2(ranks)
    lines = two_lines(x, y, seeds)
    if lines is None:
        return Finding(place.target, about, None, 1.0, 1.0, None)
    last = len(ranks) - 1
    above = [
        [mean_of(_differences(y, one, end, seeds)) for one in range(len(ranks)) if one != end]
        for end in (0, last)
    ]
    top = peak(x, y, seeds)
    falls = _differences(y, int(np.argmax(y.mean(axis=0)[:last])), last, seeds)
    flat = min(max(one.below(claim.margin) for one in side) for side in above)
    found = finding(
        claim,
        place.target,
        about,
        falls,
        {},
        p=lines.p,
        against=min(1.0, 2 * flat),
        also={"slope up to the turn": lines.rise, "slope from the turn": lines.fall},
    )
    turn = {
        "rank of the highest mean (95 %, bootstrap of these runs)": Interval(
            2**top.mean, _power(top.low), _power(top.high), top.n
        )
    }
    return replace(found, also={**found.also, **turn})


def _differences(y: Curves, one: int, other: int, seeds: Sequence[Seeds]) -> dict[Seeds, float]:
    return dict(zip(seeds, (y[:, one] - y[:, other]).tolist(), strict=True))


def _power(log: float | None) -> float | None:
    return None if log is None else 2**log


def _full_fine_tuning(claim: FullFineTuningClaim, plan: Plan) -> list[Finding]:
    """C3, a finding for each trait, learning rate and precision.

    Null of support: some condition's mean lies the margin or more away from its control's; every one must
    be shown equivalent. Null of refutation: no condition lies more than the margin above its control. Said
    of what training in full does, not of whether adapters would have passed the trait: that is C1's.
    """
    places = [Place(one, claim.train_context, claim.train_context) for one in plan.traits(claim)]
    found = [_condition(claim, plan, place, one) for place in places for one in plan.full(place)]
    return corrected([one for one in found if one])


def _condition(claim: FullFineTuningClaim, plan: Plan, place: Place, condition: Condition) -> Finding | None:
    control = plan.control(place, condition)
    if control is None:
        return None
    values = plan.values("student", place, condition)
    runs = plan.paired(values, control, place)
    effect = mean_of(runs)
    told = [f"lr {rate(condition.learning_rate)}", condition.precision, condition.settings]
    return finding(
        claim,
        place.target,
        f"{', '.join(['full fine-tuning', *filter(None, told)])}, minus the control",
        runs,
        plan.by_question(values, control),
        p=effect.within(claim.margin),
        against=effect.above(claim.margin),
        also={"minus the base": plan.base(values, place)},
    )


def _contexts(claim: ContextsClaim, plan: Plan) -> list[Finding]:
    """C4, a finding for each trait, training context and context it was asked in.

    Null of support: somewhere the trait does not pass in its training context (C1's null), or another
    context's effect is the margin or more, or it is no smaller than the training context's. The last is
    the interaction: without it two effects of 0.01 would be a trait that vanished. Null of refutation:
    no other context's effect lies above the margin.
    """
    found: list[Finding] = []
    for target in plan.traits(claim):
        there = plan.contexts(claim, target, claim.rank)
        if not there:
            plan.lack(f"{condition_label('student', 'lora', claim.rank)} on {target}")
        for trained in claim.train_contexts or tuple(there):
            others = claim.eval_contexts or tuple(there.get(trained, []))
            found += _context(claim, plan, target, trained, [one for one in others if one != trained])
    return corrected(found)


def _context(
    claim: ContextsClaim, plan: Plan, target: str, trained: str, others: Sequence[str]
) -> Iterator[Finding]:
    own = Place(target, trained, trained)
    if not others:
        plan.lack(f"any other context that students of {target}, trained in {trained}, were asked in")
    home = _effects(claim, plan, own, claim.rank)
    if passed := _passed(claim, plan, own, claim.rank):
        yield replace(passed, p_against=None)  # no trait to lose refutes nothing
    for other in others:
        place = replace(own, asked=other)
        effects = _effects(claim, plan, place, claim.rank)
        if home is None or effects is None:
            continue
        yield _elsewhere(claim, place, home, effects)


def _elsewhere(claim: ContextsClaim, place: Place, home: _Effects, effects: _Effects) -> Finding:
    effect = mean_of(effects.control)
    pairs = home.control.keys() & effects.control.keys()
    interaction = mean_of({seeds: home.control[seeds] - effects.control[seeds] for seeds in pairs})
    label = condition_label("student", "lora", claim.rank)
    found = finding(
        claim,
        place.target,
        f"{label}, trained in {place.trained} and asked in {place.asked}, minus the control",
        effects.control,
        effects.answers,
        p=max(effect.within(claim.margin), interaction.above()),
        against=effect.above(claim.margin),
        also={"interaction": interaction, "minus the base": effects.base},
    )
    wider = over_questions(minus(home.answers, effects.answers), 1 - 2 * claim.alpha)
    return found if wider is None else replace(found, also={**found.also, f"interaction {WIDER}": wider})


def _localisation(claim: LocalisationClaim, plan: Plan, located: Sequence[Run]) -> list[Finding]:
    """C5, three findings for each trait: there is an effect, and two about X (`sets.beyond_random`).

    Null of support: there is none (C1's null), or X alone keeps no more of it than random sets of as many
    tokens, or without X no more is lost than without such sets. Null of refutation: where random sets leave
    more than the margin of the effect, both differences are the margin or more. Where they leave less, no
    set could pass, and nothing is refuted.
    """
    asked = claim.eval_context or claim.train_context
    found: list[Finding] = []
    for target in plan.traits(claim):
        place = Place(target, claim.train_context, asked)
        chosen = plan.adapters(claim, place, claim.rank)
        effect = _passed(claim, plan, place, claim.rank)
        if chosen is None or effect is None:
            continue
        found.append(replace(effect, p_against=None))
        found += beyond_random(claim, plan, place, chosen[0], located, effect.runs)
    return corrected(over_traits(found))
