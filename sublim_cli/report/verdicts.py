"""Verdicts in plain sentences and as plain data. Pure."""

from collections.abc import Sequence
from typing import Any

from sublim_cli.report.claims import Finding, Verdict
from sublim_cli.report.wording import bounds, count, difference
from sublim_cli.stats import Interval, wild_interval

LISTED = 3
"""More comparisons or lacking parts than this are counted in a sentence; the table has them all."""


def sentence(verdict: Verdict) -> str:
    """Why a claim has its verdict."""
    alpha, margin = verdict.claim.alpha, verdict.claim.margin
    findings = verdict.findings
    match verdict.word:
        case "incomplete":
            return f"Not judged yet. The study lacks {_some(verdict.lacks, 'other part')}."
        case "refuted":
            against = [one for one in findings if one.word(alpha) == "refuted"]
            return f"{_of(against, findings)} against it: {_told(against)}."
        case "supported":
            return f"{_of(findings, findings)} for it: {_told(findings)}."
        case "underpowered":
            held = [one for one in findings if one.word(alpha) == "supported"]
            rest = [one for one in findings if one.word(alpha) != "supported"]
            found = [one.detectable for one in rest if one.detectable is not None]
            power = (
                f"These runs find an effect of {max(found):.3f} four times in five; the margin is {margin:g}"
                if len(found) == len(rest)
                else "Two runs without a break are the least that can decide"
            )
            return f"{_of(held, findings)} for it, the rest for neither: {_told(rest)}. {power}."


def p_text(value: float | None) -> str:
    """A p value with three decimals; what would round to zero says so."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def runs_text(verdict: Verdict) -> str:
    """The plan and what became of it: `18 of 20 planned, 1 broken, 1 missing`."""
    parts = [f"{verdict.used} of {verdict.planned} planned"]
    parts += [f"{number} {word}" for number, word in _lost(verdict) if number]
    return ", ".join(parts)


def told_verdict(verdict: Verdict) -> tuple[str, str, str, str, str]:
    """Number, statement, verdict, runs and why, as the terminal shows them."""
    return verdict.number, verdict.statement, verdict.word, runs_text(verdict), sentence(verdict)


def wild(finding: Finding, alpha: float) -> Interval | None:
    """The effect with the interval of the wild cluster bootstrap: how far the t interval is to be trusted."""
    seeds = sorted(finding.runs)
    return wild_interval([finding.runs[one] for one in seeds], seeds, 1 - 2 * alpha) if seeds else None


def document(name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All of it as plain data: what `claims.json` holds."""
    return {"study": name, "claims": [_plain(one) for one in verdicts]}


def _lost(verdict: Verdict) -> list[tuple[int, str]]:
    return [(verdict.broken, "broken"), (verdict.missing, "missing")]


def _some(words: Sequence[str], noun: str) -> str:
    rest = len(words) - LISTED
    more = [count(rest, noun)] if rest > 0 else []
    return "; ".join([*words[:LISTED], *more])


def _of(some: Sequence[Finding], whole: Sequence[Finding]) -> str:
    if len(whole) == 1:
        return f"{'The' if some else 'Not the'} one comparison speaks"
    if len(some) == len(whole) == 2:
        return "Both comparisons speak"
    which = "All" if len(some) == len(whole) else f"{len(some) or 'None'} of"
    return f"{which} {len(whole)} comparisons {'speaks' if len(some) == 1 else 'speak'}"


def _told(findings: Sequence[Finding]) -> str:
    return _some([_effect(one) for one in findings], "other")


def _effect(one: Finding) -> str:
    if one.effect is None:
        return f"{one.target}, {one.about}: no unbroken pair of runs"
    value = f"{difference(one.effect.mean)} {bounds(one.effect)}".rstrip()
    return f"{one.target}, {one.about}: {value}, n = {one.effect.n}"


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "number": verdict.number,
        "statement": verdict.statement,
        "verdict": verdict.word,
        "sentence": sentence(verdict),
        "claim": verdict.claim.model_dump(mode="json"),
        "test": verdict.test,
        "plan": {"planned": verdict.planned, "used": verdict.used, **{word: n for n, word in _lost(verdict)}},
        "lacks": list(verdict.lacks),
        "notes": list(verdict.notes),
        "findings": [_finding(one, verdict.claim.alpha) for one in verdict.findings],
    }


def _finding(one: Finding, alpha: float) -> dict[str, Any]:
    return {
        "target": one.target,
        "about": one.about,
        "verdict": one.word(alpha),
        "effect": _interval(one.effect),
        "wild": _interval(wild(one, alpha)),
        "p": one.p,
        "p_against": one.p_against,
        "detectable": one.detectable,
        "runs": [
            {"train_seed": seeds[0], "data_seed": seeds[1], "effect": effect}
            for seeds, effect in sorted(one.runs.items())
        ],
        "also": {name: _interval(value) for name, value in one.also.items()},
    }


def _interval(value: Interval | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}
