"""Verdicts in plain sentences and as plain data. Pure."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sublim_cli.recipe.schema import FullFineTuningClaim
from sublim_cli.report.claims.verdict import Finding, Verdict
from sublim_cli.wording import count, difference, listed, with_bounds

OUTCOME = {
    "supported": "supported",
    "refuted": "refuted",
    "underpowered": "left open by these runs",
    "incomplete": "not judged yet",
}
"""A verdict within a sentence."""

LISTED = 3
"""Comparisons or lacking parts that a sentence names; the rest is counted, and the table has them all."""


def headline(verdicts: Sequence[Verdict]) -> str:
    """All verdicts in a sentence, such as `Of 3 claims, 1 is refuted and 2 are not judged yet.`."""
    words = [verdict.word for verdict in verdicts]
    if len(words) == 1:
        return f"The one claim is {OUTCOME[words[0]]}."
    counts = [(words.count(word), outcome) for word, outcome in OUTCOME.items() if word in words]
    parts = [f"{number} {'is' if number == 1 else 'are'} {outcome}" for number, outcome in counts]
    return f"Of {len(words)} claims, {listed(parts)}."


def sentence(verdict: Verdict) -> str:
    """Why a claim has its verdict."""
    alpha, findings = verdict.claim.alpha, verdict.findings
    if verdict.not_known:
        return f"Not decided: P(target) is not known well enough: {verdict.not_known}."
    match verdict.word:
        case "incomplete":
            return f"Not judged yet. The study lacks {_first(verdict.lacks, 'other part')}."
        case "refuted":
            against = [finding for finding in findings if finding.word(alpha) == "refuted"]
            return f"{_subject(against, findings, 'contradict')} it: {_effects(against)}."
        case "supported":
            text = f"{_subject(findings, findings, 'support')} it: {_effects(findings)}."
            # That nothing passes says as much as the effect that these runs would have found.
            if isinstance(verdict.claim, FullFineTuningClaim):
                return f"{text} {_power(verdict, findings)}."
            return text
        case "underpowered":
            held = [finding for finding in findings if finding.word(alpha) == "supported"]
            rest = [finding for finding in findings if finding not in held]
            still_open = "The one comparison is" if len(rest) == 1 else f"{_all(len(rest))} are"
            if held:
                others = "the other one is" if len(rest) == 1 else f"the other {len(rest)} are"
                still_open = f"{_subject(held, findings, 'support')} it, {others}"
            text = f"These runs do not decide it. {still_open} open: {_effects(rest)}."
            return f"{text} {_power(verdict, rest)}."


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


def verdict_row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    """Number, statement, verdict, runs and why, as the terminal shows them."""
    return verdict.number, verdict.statement, verdict.word, runs_text(verdict), sentence(verdict)


def document(name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything as plain data: what `claims.json` holds."""
    return {
        "study": name,
        "claims": [
            {
                "number": verdict.number,
                "statement": verdict.statement,
                "verdict": verdict.word,
                "sentence": sentence(verdict),
                "claim": verdict.claim.model_dump(mode="json"),
                "test": verdict.test,
                "plan": {
                    "planned": verdict.planned,
                    "used": verdict.used,
                    "broken": verdict.broken,
                    "missing": verdict.missing,
                },
                "lacks": list(verdict.lacks),
                "notes": list(verdict.notes),
                "findings": [
                    {
                        "target": finding.target,
                        "about": finding.about,
                        "verdict": finding.word(verdict.claim.alpha),
                        **asdict(finding),
                        "runs": [
                            {"train_seed": seeds[0], "data_seed": seeds[1], "effect": effect}
                            for seeds, effect in sorted(finding.runs.items())
                        ],
                    }
                    for finding in verdict.findings
                ],
            }
            for verdict in verdicts
        ],
    }


def _first(texts: Sequence[str], noun: str) -> str:
    rest = len(texts) - LISTED
    more = [count(rest, noun)] if rest > 0 else []
    return "; ".join([*texts[:LISTED], *more])


def _subject(some: Sequence[Finding], findings: Sequence[Finding], verb: str) -> str:
    """Such as `The one comparison supports`, `2 of 5 comparisons contradict`."""
    if len(findings) == 1:
        return f"The one comparison {verb}s"
    if len(some) == len(findings):
        return f"{_all(len(findings))} {verb}"
    return f"{len(some)} of {len(findings)} comparisons {verb}{'s' if len(some) == 1 else ''}"


def _all(number: int) -> str:
    return "Both comparisons" if number == 2 else f"All {number} comparisons"


def _power(verdict: Verdict, findings: Sequence[Finding]) -> str:
    detectable = [finding.detectable for finding in findings if finding.detectable is not None]
    if len(detectable) < len(findings):
        return "It takes two unbroken runs of each at the least"
    return (
        f"Four times in five, such runs find an effect of {max(detectable):.3f} or more; the margin is "
        f"{verdict.claim.margin:g}"
    )


def _effects(findings: Sequence[Finding]) -> str:
    texts = []
    for finding in findings:
        effect, about = finding.effect, f"for {finding.target}, {finding.about}"
        if effect is None:
            texts.append(f"no unbroken pair of runs {about}")
        else:
            value = with_bounds(difference(effect.mean), effect)
            texts.append(f"{value} {about} ({count(effect.n, 'run')})")
    return _first(texts, "other")
