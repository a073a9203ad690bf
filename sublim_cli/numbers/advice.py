"""Say why few rows pass the filter, and which change of one rule would let most of the rejected rows pass.

Each change is tried on the rejected rows, so the number of rows it would keep is counted, not estimated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sublim_cli.numbers.parse import digit_runs
from sublim_cli.numbers.rules import rejection_reason, tally
from sublim_cli.recipe.schema import CountRule, RangeRule, Rule, StripRule

LOW_PASS_RATE = 0.20
"""Below this share of kept rows something is wrong with the rules or the teacher."""

WORTH_SAYING = 0.05
"""A change is named only if it would keep more than this share of the rejected rows."""

OUTLIERS = 0.10
"""Share of the rejected rows that a widened bound may leave out, so that one extreme row does not set it."""

EXAMPLE_LENGTH = 60
"""Characters of the rejected row that is quoted."""


@dataclass(frozen=True)
class RuleChange:
    """A recipe's rules with one added or changed, and the words that say so."""

    words: str
    rules: tuple[Rule, ...]


def advice(texts: Sequence[str], rules: Sequence[Rule]) -> str | None:
    """A few sentences for a pass rate under `LOW_PASS_RATE`, None where enough of `texts` pass."""
    reasons = [rejection_reason(text, rules) for text in texts]
    counts = tally(reasons)
    if counts.rate >= LOW_PASS_RATE:
        return None
    reason, count = counts.reasons[0]
    example = texts[reasons.index(reason)]
    quoted = repr(example)
    if len(example) > EXAMPLE_LENGTH:  # both ends, as either may be at fault
        half = EXAMPLE_LENGTH // 2
        quoted = f"{example[:half]!r} … {example[-half:]!r}"
    rejected = [text for text, reason in zip(texts, reasons, strict=True) if reason]
    remedy = (
        "No change of one rule would mend this: read some of the completions, "
        "the teacher may not be answering with numbers at all."
    )
    if best := best_change(rejected, rules):
        remedy = f"{best[0].words} would keep {best[1]} of the {len(rejected)}."
    return (
        f"{counts.kept} of {counts.total} rows passed the filter ({100 * counts.rate:.1f} %). "
        f"Most of the others fail `{reason}` ({count} of {len(rejected)}), for example {quoted}. {remedy}"
    )


def best_change(rejected: Sequence[str], rules: Sequence[Rule]) -> tuple[RuleChange, int] | None:
    """The change that keeps most of the rejected texts, and how many; None if none helps."""
    tried = [
        (change, sum(rejection_reason(text, change.rules) is None for text in rejected))
        for change in _changes(rejected, tuple(rules))
    ]
    best = max(tried, key=lambda pair: pair[1], default=None)
    return best if best and best[1] > WORTH_SAYING * len(rejected) else None


def _changes(rejected: Sequence[str], rules: tuple[Rule, ...]) -> Iterator[RuleChange]:
    """The changes to try, simplest first: of two that keep equally many rows the first is named."""
    if not any(isinstance(rule, StripRule) for rule in rules):
        yield RuleChange("Putting {kind: strip} first in filter.rules (or --strip)", (StripRule(), *rules))
    for i, rule in enumerate(rules):
        failing = [digit_runs(text) for text in rejected if rejection_reason(text, rules) == rule.kind]
        wider = _widened(rule, failing) if failing else None
        if wider is not None:
            words = f"Writing {_as_yaml(wider)} for {_as_yaml(rule)} in filter.rules"
            yield RuleChange(words, (*rules[:i], wider, *rules[i + 1 :]))


def _widened(rule: Rule, failing: Sequence[tuple[int, ...]]) -> CountRule | RangeRule | None:
    """`rule` with bounds that admit most of the rows it rejects, None for a rule without bounds."""
    if isinstance(rule, CountRule):
        lows = highs = [len(numbers) for numbers in failing]
    elif isinstance(rule, RangeRule):
        lows, highs = [min(numbers) for numbers in failing], [max(numbers) for numbers in failing]
    else:
        return None
    last = len(failing) - 1
    outliers = int(OUTLIERS * last)
    least, most = sorted(lows)[outliers], sorted(highs)[last - outliers]
    return type(rule)(least=min(rule.least, least), most=max(rule.most, most))


def _as_yaml(rule: Rule) -> str:
    fields = ", ".join(f"{name}: {value}" for name, value in rule)
    return f"{{{fields}}}"
