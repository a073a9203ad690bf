"""Verdicts in plain sentences and as plain data. Pure."""

from collections.abc import Sequence
from typing import Any

from sublim_cli.recipe.schema import FullFineTuningClaim
from sublim_cli.report.claims.verdict import Finding, Verdict
from sublim_cli.stats import Interval
from sublim_cli.wording import bounds, count, difference, listed

OUTCOME = {
    "supported": "supported",
    "refuted": "refuted",
    "underpowered": "left open by these runs",
    "incomplete": "not judged yet",
}
"""A verdict as a part of a sentence."""

LISTED = 3
"""More comparisons or lacking parts than this are counted in a sentence; the table has them all."""


def headline(verdicts: Sequence[Verdict]) -> str:
    """All verdicts in a sentence, such as `Of 3 claims, 1 is refuted and 2 are not judged yet.`."""
    words = [one.word for one in verdicts]
    if len(words) == 1:
        return f"The one claim is {OUTCOME[words[0]]}."
    counted = [(words.count(word), told) for word, told in OUTCOME.items() if word in words]
    parts = [f"{number} {'is' if number == 1 else 'are'} {told}" for number, told in counted]
    return f"Of {len(words)} claims, {listed(parts)}."


def sentence(verdict: Verdict) -> str:
    """Why a claim has its verdict."""
    alpha, findings = verdict.claim.alpha, verdict.findings
    held = [one for one in findings if one.word(alpha) == "supported"]
    match verdict.word:
        case "incomplete":
            return f"Not judged yet. The study lacks {_some(verdict.lacks, 'other part')}."
        case "refuted":
            against = [one for one in findings if one.word(alpha) == "refuted"]
            return f"{_which(against, findings, 'contradict')} it: {_told(against)}."
        case "supported":
            told = f"{_which(findings, findings, 'support')} it: {_told(findings)}."
            # "Nothing passes" is worth what these runs would have seen.
            return (
                f"{told} {_power(verdict, findings)}."
                if isinstance(verdict.claim, FullFineTuningClaim)
                else told
            )
        case "underpowered":
            rest = [one for one in findings if one not in held]
            return (
                f"These runs do not decide it. {_open(held, rest)}: {_told(rest)}. {_power(verdict, rest)}."
            )


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


def verdict_row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    """Number, statement, verdict, runs and why, as the terminal shows them."""
    return verdict.number, verdict.statement, verdict.word, runs_text(verdict), sentence(verdict)


def document(name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All of it as plain data: what `claims.json` holds."""
    return {"study": name, "claims": [_plain(one) for one in verdicts]}


def _lost(verdict: Verdict) -> list[tuple[int, str]]:
    return [(verdict.broken, "broken"), (verdict.missing, "missing")]


def _some(words: Sequence[str], noun: str) -> str:
    rest = len(words) - LISTED
    more = [count(rest, noun)] if rest > 0 else []
    return "; ".join([*words[:LISTED], *more])


def _which(some: Sequence[Finding], whole: Sequence[Finding], verb: str) -> str:
    """Such as `The one comparison supports`, `2 of 5 comparisons contradict`."""
    if len(whole) == 1:
        return f"The one comparison {verb}s"
    if len(some) == len(whole):
        return f"{_every(len(whole))} {verb}"
    return f"{len(some)} of {len(whole)} comparisons {verb}{'s' if len(some) == 1 else ''}"


def _every(number: int) -> str:
    return "Both comparisons" if number == 2 else f"All {number} comparisons"


def _open(held: Sequence[Finding], rest: Sequence[Finding]) -> str:
    if held:
        others = "the other one is" if len(rest) == 1 else f"the other {len(rest)} are"
        return f"{_which(held, [*held, *rest], 'support')} it, {others} open"
    return "The one comparison is open" if len(rest) == 1 else f"{_every(len(rest))} are open"


def _power(verdict: Verdict, rest: Sequence[Finding]) -> str:
    found = [one.detectable for one in rest if one.detectable is not None]
    if len(found) < len(rest):
        return "It takes two unbroken runs of each at the least"
    effect, margin = max(found), verdict.claim.margin
    return f"Four times in five, such runs find an effect of {effect:.3f} or more; the margin is {margin:g}"


def _told(findings: Sequence[Finding]) -> str:
    return _some([_effect(one) for one in findings], "other")


def _effect(one: Finding) -> str:
    if one.effect is None:
        return f"no unbroken pair of runs for {one.target}, {one.about}"
    value = f"{difference(one.effect.mean)} {bounds(one.effect)}".rstrip()
    return f"{value} for {one.target}, {one.about} ({count(one.effect.n, 'run')})"


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
