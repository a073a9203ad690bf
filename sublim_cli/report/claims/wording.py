"""Verdicts in plain sentences and as plain data. Pure."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from sublim_cli.report.claims.contexts import RETAINED
from sublim_cli.report.claims.full_fine_tuning import OF_ADAPTER
from sublim_cli.report.claims.sensitivity import AtMargin, Sensitivity, WithoutSeed
from sublim_cli.report.claims.verdict import Finding, TraitVerdict, Verdict
from sublim_cli.stats import Interval
from sublim_cli.wording import NOTHING, count, listed, percent, ratio

LONGEST = 200
"""Characters of a sentence."""


def headline(verdicts: Sequence[Verdict]) -> str:
    """What was decided: `Of 6 claims, 2 are supported (C1 and C4) and 1 is refuted (C2).`.

    Empty where nothing was.
    """
    parts = []
    for outcome in ("supported", "refuted"):
        numbers = [verdict.number for verdict in verdicts if verdict.outcome == outcome]
        if numbers and len(verdicts) == 1:
            return f"The one claim, {numbers[0]}, is {outcome}."
        if numbers:
            is_or_are = "is" if len(numbers) == 1 else "are"
            parts.append(f"{len(numbers)} {is_or_are} {outcome} ({listed(numbers)})")
    return f"Of {len(verdicts)} claims, {listed(parts)}." if parts else ""


def margins_text(margins: Sequence[AtMargin]) -> str:
    """The outcomes by margin: `supported up to an odds ratio of 2, underpowered from 2.5`."""
    runs = [list(group) for _, group in groupby(margins, key=lambda at: at.outcome)]
    if len(runs) == 1:
        return f"{runs[0][0].outcome} at all of them"
    words = [f"{runs[0][0].outcome} up to an odds ratio of {runs[0][-1].odds_ratio:g}"]
    for run in runs[1:-1]:
        first, last = run[0].odds_ratio, run[-1].odds_ratio
        between = f"at {first:g}" if first == last else f"from {first:g} to {last:g}"
        words.append(f"{run[0].outcome} {between}")
    return ", ".join([*words, f"{runs[-1][0].outcome} from {runs[-1][0].odds_ratio:g}"])


def seeds_text(seeds: Sequence[WithoutSeed]) -> str:
    """On which seeds a verdict hangs: `Without train seed 3 it is refuted; without any other, the same.`."""
    changed: dict[str, list[str]] = {}
    for without in seeds:
        if not without.same:
            changed.setdefault(without.word, []).append(without.seed)
    if not changed:
        return "The same without any one seed."
    words = [
        f"without {_either(named) if len(named) < len(seeds) else 'any one seed'} it is {word}"
        for word, named in changed.items()
    ]
    rest = sum(without.same for without in seeds)
    end = "; without any other, the same." if rest else "."
    text = "; ".join(words)
    return f"{text[0].upper()}{text[1:]}{end}"


def _either(seeds: Sequence[str]) -> str:
    """`train seed 1, 3 or data seed 2`."""
    by_kind = [
        (kind, [seed.removeprefix(kind) for seed in group])
        for kind, group in groupby(seeds, key=lambda seed: seed.rpartition(" ")[0])
    ]
    return " or ".join(f"{kind}{' or'.join(numbers)}" for kind, numbers in by_kind)


def sentence(verdict: Verdict) -> str:
    """What was seen, in one sentence of at most `LONGEST` characters."""
    if verdict.lacks:
        rest = len(verdict.lacks) - 1
        more = f", and {count(rest, 'other part')}" if rest else ""
        return _within(f"Not judged yet: the study lacks {verdict.lacks[0]}", f"{more}.")
    known = [found for found in verdict.findings if found.effect]
    if not known:
        targets = [trait.target for trait in verdict.traits if trait.not_asked]
        nothing = (
            f"Nothing was asked: over all LoRA conditions, corrected for their number, LoRA was not shown to "
            f"transmit {listed(targets)}"
        )
        return _within(nothing if targets else NO_PAIR, ".")
    match verdict.number:
        case "C1":
            text = _names(verdict, known, "Students")
        case "C2":
            text = _falls(known)
        case "C3a":
            text = _names(verdict, known, "Fully fine-tuned students")
        case "C3b":
            text = _largest(known, "condition of full fine-tuning", "conditions of full fine-tuning")
        case "C3c":
            text = _of_adapter(known)
        case "C4":
            text = _retained(known, verdict.claim.alpha)
        case _:
            text = _beyond_random(known)
    skipped = [trait.target for trait in verdict.traits if trait.not_asked]
    return _within(text, f" Not asked: {listed(skipped)}." if skipped else "")


NO_PAIR = "No unbroken pair of runs to compare"


def odds(interval: Interval | None) -> str:
    """An odds ratio with its bounds, `6.2 [3.9, 9.8]`, of an interval of log-odds."""
    if interval is None:
        return NOTHING
    value = interval.exponential()
    if value.low is None or value.high is None:
        return _digits(value.mean)
    return f"{_digits(value.mean)} [{_digits(value.low)}, {_digits(value.high)}]"


def as_odds(value: float | None) -> str:
    """A difference of log-odds as an odds ratio."""
    return NOTHING if value is None else _digits(math.exp(value))


def p_text(value: float | None) -> str:
    """A p value with three decimals; `<0.001` where it would round to zero."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def runs_text(verdict: Verdict) -> str:
    """How many trainings were planned and used: `18 of 20 planned, 1 broken, 1 missing`."""
    parts = [f"{verdict.used} of {verdict.planned} planned"]
    parts += [f"{verdict.broken} broken"] if verdict.broken else []
    parts += [f"{verdict.missing} missing"] if verdict.missing else []
    return ", ".join(parts)


def trait_text(trait: TraitVerdict) -> str:
    """The verdict on one trait: `owl: supported, 5 of 5 runs above the margin`."""
    runs = "" if trait.runs is None else f", {trait.above} of {count(trait.runs, 'run')} above the margin"
    return f"{trait.target}: {trait.word}{runs}"


def verdict_row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    """Number, statement, verdict, runs and why, as the terminal shows them."""
    return verdict.number, verdict.statement, verdict.word, runs_text(verdict), sentence(verdict)


def document(
    name: str, verdicts: Sequence[Verdict], sensitivities: Sequence[Sensitivity] = ()
) -> dict[str, Any]:
    """Everything as plain data: what `claims.json` holds; `sensitivities` are those of the verdicts."""
    known = sensitivities or [Sensitivity()] * len(verdicts)
    return {
        "study": name,
        "claims": [
            {
                "number": verdict.number,
                "statement": verdict.statement,
                "verdict": verdict.word,
                "outcome": verdict.outcome,
                "sentence": sentence(verdict),
                "claim": verdict.claim.model_dump(mode="json"),
                "test": verdict.test,
                "traits": [asdict(trait) for trait in verdict.traits],
                "mean_over_traits": None if verdict.mean is None else asdict(verdict.mean),
                "plan": {
                    "planned": verdict.planned,
                    "used": verdict.used,
                    "broken": verdict.broken,
                    "missing": verdict.missing,
                },
                "at_margins": [asdict(at) for at in sensitivity.margins],
                "without_seeds": [asdict(without) for without in sensitivity.seeds],
                "lacks": list(verdict.lacks),
                "notes": list(verdict.notes),
                "findings": [_finding_document(found, verdict.claim.alpha) for found in verdict.findings],
            }
            for verdict, sensitivity in zip(verdicts, known, strict=True)
        ],
    }


def _finding_document(found: Finding, alpha: float) -> dict[str, Any]:
    values = asdict(found)
    p, p_against = values.pop("left_out")
    return {
        "target": found.target,
        "about": found.about,
        "verdict": found.outcome(alpha),
        **values,
        "p_without_broken": p,
        "p_against_without_broken": p_against,
        "odds_ratio": asdict(found.odds_ratio) if found.odds_ratio else None,
        "runs_above_margin": asdict(found.share_above) if found.share_above else None,
        "runs": [
            {"train_seed": seeds[0], "data_seed": seeds[1], "effect": effect}
            for seeds, effect in sorted(found.runs.items())
        ],
    }


def _within(text: str, end: str) -> str:
    """The text with its end, cut so that both are at most `LONGEST` characters."""
    room = LONGEST - len(end)
    return f"{text if len(text) <= room else text[: room - 1].rstrip() + '…'}{end}"


def _digits(value: float) -> str:
    """Two digits, as a few runs justify; a large number without an exponent."""
    if value < 1:
        return f"{value:.2g}"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _runs(findings: Sequence[Finding]) -> str:
    return f"{sum(f.above for f in findings)} of {count(sum(len(f.runs) for f in findings), 'run')}"


def _names(verdict: Verdict, known: Sequence[Finding], students: str) -> str:
    if len(known) == 1:
        (found,) = known
        levels = found.levels
        times = ratio(levels.students / levels.base) if levels.students and levels.base else NOTHING
        return (
            f"{students} of the {found.target} teacher name {found.target} {times.replace('×', ' ×')} as "
            f"often as the untouched model, odds ratio {odds(found.effect)}, {_runs(known)}."
        )
    least, most = _extremes(known)
    return (
        f"{students} name the trait of their teacher with odds {odds(verdict.mean)} × those of controls over "
        f"{count(len(known), 'trait')}, {_of(least)} to {_of(most)}; {_runs(known)}."
    )


def _falls(known: Sequence[Finding]) -> str:
    least, most = _extremes(known)
    if least is most:
        return f"For {least.target}, {least.about}: odds ratio {odds(least.effect)}, {_runs(known)}."
    return (
        f"From their peaks the curves fall to the highest rank by odds ratios of {odds(least.effect)} "
        f"({least.target}) to {odds(most.effect)} ({most.target}), {_runs(known)}."
    )


def _largest(known: Sequence[Finding], one: str, many: str) -> str:
    _, most = _extremes(known)
    of = f"In the one {one}" if len(known) == 1 else f"Over {len(known)} {many}"
    about = most.about.removesuffix(", minus the control")
    largest = "the" if len(known) == 1 else "the largest"
    size = f"{odds(most.effect)} ({most.target}, {about}), {_runs([most])}"
    return f"{of} {largest} odds ratio to controls is {size}."


def _of_adapter(known: Sequence[Finding]) -> str:
    shares = [f"{_share(found.also.get(OF_ADAPTER))} for {found.target}" for found in known]
    return f"Of the best adapter's effect in log-odds full fine-tuning has {listed(shares)}."


def _retained(known: Sequence[Finding], alpha: float) -> str:
    with_share = [found for found in known if RETAINED in found.also]
    if not with_share:
        return _largest(known, "other context", "comparisons in other contexts")
    most = max(with_share, key=lambda found: found.also[RETAINED].mean)
    where = most.about.removesuffix(", minus the control").partition(", ")[2]
    above = sum(found.outcome(alpha) == "refuted" for found in known)
    return (
        f"Of {count(len(known), 'comparison')} {above} show the trait elsewhere; the most retained is "
        f"{_share(most.also[RETAINED])} of the effect ({most.target}, {where})."
    )


def _beyond_random(known: Sequence[Finding]) -> str:
    sets = [found for found in known if " beyond random " in found.about]
    if not sets:
        return _largest(known, "comparison", "comparisons")
    least, _ = _extremes(sets)
    about = least.about.split(", ", 3)[-1]
    size = f"{odds(least.effect)} for {least.target}, {_runs([least])}"
    return f"The least difference is {about}: odds ratio {size}."


def _share(interval: Interval | None) -> str:
    return "an open share" if interval is None else percent(interval)


def _extremes(findings: Sequence[Finding]) -> tuple[Finding, Finding]:
    """The findings of the least and the largest effect."""
    ordered = sorted(findings, key=lambda found: found.effect.mean if found.effect else 0.0)
    return ordered[0], ordered[-1]


def _of(found: Finding) -> str:
    return f"{_digits(found.odds_ratio.mean) if found.odds_ratio else NOTHING} ({found.target})"
