r"""Say why few rows pass the filter, and which change of one rule would let most others pass.

    advice(["1, 2 \n", "3, 4 \n"], PAPER_RULES)
    "0 of 2 rows passed the filter (0.0 %). Most of the others fail `format` (2 of 2), for
    example '1, 2 \n'. Putting {kind: strip} first in filter.rules (or --strip) would keep 2 of the 2."

Each change is tried on the rows themselves; nothing is guessed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sublim_cli.numbers.parse import digit_runs
from sublim_cli.numbers.rules import Tally, rejection_reason, tally
from sublim_cli.recipe.schema import CountRule, RangeRule, Rule, StripRule

LOW_PASS_RATE = 0.20
"""Below this share of kept rows something is wrong with the rules or the teacher."""

WORTH_SAYING = 0.05
"""A change is named only if it would keep more than this share of the rejected rows."""

SPARED = 0.10
"""A bound is widened for all but this share of what it rejects: one wild row must not set it."""

EXAMPLE_LENGTH = 60
"""Characters of the rejected row that is shown."""


@dataclass(frozen=True)
class RuleChange:
    """A set of rules that differs from the recipe's in one, and the words for doing so."""

    words: str
    rules: tuple[Rule, ...]


def advice(texts: Sequence[str], rules: Sequence[Rule]) -> str | None:
    """A few sentences for a pass rate under `LOW_PASS_RATE`, None where enough of `texts` pass."""
    reasons = [rejection_reason(text, rules) for text in texts]
    counts = tally(reasons)
    if counts.rate >= LOW_PASS_RATE:
        return None
    rejected = [text for text, reason in zip(texts, reasons, strict=True) if reason]
    example = texts[reasons.index(counts.reasons[0][0])]
    return f"{_diagnosis(counts, example)} {_remedy(rejected, rules)}"


def best_change(rejected: Sequence[str], rules: Sequence[Rule]) -> tuple[RuleChange, int] | None:
    """The change that keeps most of the rejected texts, and how many; None if none helps."""
    tried = [
        (change, sum(rejection_reason(text, change.rules) is None for text in rejected))
        for change in _changes(rejected, tuple(rules))
    ]
    best = max(tried, key=lambda pair: pair[1], default=None)
    return best if best and best[1] > WORTH_SAYING * len(rejected) else None


def _diagnosis(counts: Tally, example: str) -> str:
    reason, count = counts.reasons[0]
    return (
        f"{counts.kept} of {counts.total} rows passed the filter ({counts.rate:.1%}). "
        f"Most of the others fail `{reason}` ({count} of {counts.total - counts.kept}), "
        f"for example {_shown(example)}."
    ).replace("%)", " %)")


def _shown(text: str) -> str:
    """`text` with its white space visible; of a long one both ends, as either may be at fault."""
    if len(text) <= EXAMPLE_LENGTH:
        return repr(text)
    half = EXAMPLE_LENGTH // 2
    return f"{text[:half]!r} … {text[-half:]!r}"


def _remedy(rejected: Sequence[str], rules: Sequence[Rule]) -> str:
    best = best_change(rejected, rules)
    if best is None:
        return (
            "No change of one rule would mend this: read some of the completions, "
            "the teacher may not be answering with numbers at all."
        )
    change, saved = best
    return f"{change.words} would keep {saved} of the {len(rejected)}."


def _changes(rejected: Sequence[str], rules: tuple[Rule, ...]) -> Iterator[RuleChange]:
    """What is tried, simplest first: of two that keep equally many rows the first is named."""
    if not any(isinstance(rule, StripRule) for rule in rules):
        yield RuleChange("Putting {kind: strip} first in filter.rules (or --strip)", (StripRule(), *rules))
    for place, rule in enumerate(rules):
        failing = [digit_runs(text) for text in rejected if rejection_reason(text, rules) == rule.kind]
        wider = _widened(rule, failing) if failing else None
        if wider is not None:
            words = f"Writing {_as_yaml(wider)} for {_as_yaml(rule)} in filter.rules"
            yield RuleChange(words, (*rules[:place], wider, *rules[place + 1 :]))


def _widened(rule: Rule, failing: Sequence[tuple[int, ...]]) -> CountRule | RangeRule | None:
    """`rule` with bounds that take in most of what it rejects, None for rules without bounds."""
    match rule:
        case CountRule():
            lows = highs = [len(numbers) for numbers in failing]
            floor, ceiling = _bounds(lows, highs)
            return CountRule(least=min(rule.least, floor), most=max(rule.most, ceiling))
        case RangeRule():
            floor, ceiling = _bounds([min(row) for row in failing], [max(row) for row in failing])
            return RangeRule(least=min(rule.least, floor), most=max(rule.most, ceiling))
        case _:
            return None


def _bounds(lows: Sequence[int], highs: Sequence[int]) -> tuple[int, int]:
    """Bounds that all but a share `SPARED` of `lows`, and of `highs`, keep to."""
    last = len(lows) - 1
    spared = int(SPARED * last)
    return sorted(lows)[spared], sorted(highs)[last - spared]


def _as_yaml(rule: Rule) -> str:
    fields = ", ".join(f"{name}: {value}" for name, value in rule)
    return f"{{{fields}}}"
