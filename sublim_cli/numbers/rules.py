r"""Judge completions by the rules of a recipe, and count the reasons.

    judge("1, 2, 1000", PAPER_RULES)         "range"
    verdict("1, 2 \n", [Strip(), Format()])  Verdict(text="1, 2", reason=None)

Everything here is a pure function of texts and rules. A rule is data, a section of `recipe.schema`;
its `kind` is the reason of the rows it rejects.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sublim_cli.numbers.parse import digit_runs, parse
from sublim_cli.recipe.schema import BannedRule, CountRule, FormatRule, RangeRule, Rule, StripRule


@dataclass(frozen=True)
class FilteredText:
    """What becomes of a completion: the text to keep, and why it is not kept, or None."""

    text: str
    reason: str | None


@dataclass(frozen=True)
class Tally:
    """How many rows were judged and kept, and the reasons of the others, commonest first."""

    total: int
    kept: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def rate(self) -> float:
        """The share of rows kept, between 0 and 1; 1 where there were none to judge."""
        return self.kept / self.total if self.total else 1.0


def clean(text: str, rules: Sequence[Rule]) -> str:
    """The text that is judged and, if it passes, kept: with `{kind: strip}` the stripped one.

    A student must not learn white space that the rules never saw, so a kept row holds this text.
    """
    return text.strip() if any(isinstance(rule, StripRule) for rule in rules) else text


def rejection_reason(text: str, rules: Sequence[Rule]) -> str | None:
    """The kind of the first rule that objects to `text`, or None if none does.

    Numbers are the runs of digits: where `format` has passed these are exactly its numbers, and
    rules used without `format` need no list to work on.
    """
    return apply_rules(text, rules).reason


def apply_rules(text: str, rules: Sequence[Rule]) -> FilteredText:
    """`clean` and `rejection_reason` in one."""
    kept = clean(text, rules)
    numbers = digit_runs(kept)
    reason = next((rule.kind for rule in rules if _objects(rule, kept, numbers)), None)
    return FilteredText(kept, reason)


def tally(reasons: Iterable[str | None]) -> Tally:
    """Count verdicts' reasons: commonest first, those equally common in alphabetical order."""
    counts = Counter(reasons)
    total, kept = counts.total(), counts.pop(None, 0)
    named = [(reason, count) for reason, count in counts.items() if reason is not None]
    return Tally(total, kept, tuple(sorted(named, key=lambda item: (-item[1], item[0]))))


def _objects(rule: Rule, text: str, numbers: tuple[int, ...]) -> bool:
    match rule:
        case StripRule():
            return False
        case FormatRule():
            return parse(text) is None
        case CountRule(least=least, most=most):
            return not least <= len(numbers) <= most
        case RangeRule(least=least, most=most):
            return not all(least <= number <= most for number in numbers)
        case BannedRule(numbers=banned):
            return not set(banned).isdisjoint(numbers)
