r"""Judge completions by the rules of a recipe, and count the reasons for rejection.

    rejection_reason("1, 2, 1000", PAPER_RULES)            "range"
    apply_rules("1, 2 \n", [StripRule(), FormatRule()])    FilteredText(text="1, 2", reason=None)

Everything here is a pure function of texts and rules. A rule is a section of `recipe.schema`; its `kind` is
the reason given for the rows it rejects.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sublim_cli.numbers.parse import digit_runs, parse
from sublim_cli.recipe.schema import BannedRule, CountRule, FormatRule, RangeRule, Rule, StripRule


@dataclass(frozen=True)
class FilteredText:
    """The text that was judged and is kept if it passes; `reason` is None then, else the rule it fails."""

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


def apply_rules(text: str, rules: Sequence[Rule]) -> FilteredText:
    """Judge `text`, or with `{kind: strip}` the stripped text; the first rule that objects is the reason.

    A kept row holds the text that was judged, so that a student learns no white space the rules did not see.
    Rules on numbers judge the runs of digits, which are the list's numbers if `format` passes.
    """
    if any(isinstance(rule, StripRule) for rule in rules):
        text = text.strip()
    numbers = digit_runs(text)
    return FilteredText(text, next((rule.kind for rule in rules if _objects(rule, text, numbers)), None))


def rejection_reason(text: str, rules: Sequence[Rule]) -> str | None:
    """The kind of the first rule that objects to `text`, or None if it passes; see `apply_rules`."""
    return apply_rules(text, rules).reason


def tally(reasons: Iterable[str | None]) -> Tally:
    """Count the reasons: commonest first, those equally common in alphabetical order."""
    counts = Counter(reasons)
    total, kept = counts.total(), counts.pop(None, 0)
    rejections = [(reason, count) for reason, count in counts.items() if reason is not None]
    return Tally(total, kept, tuple(sorted(rejections, key=lambda pair: (-pair[1], pair[0]))))


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
