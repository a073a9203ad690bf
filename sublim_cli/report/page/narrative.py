"""What was seen, in a few plain sentences computed from the numbers. Never a verdict."""

from collections.abc import Iterator, Sequence

from sublim_cli.report.collect import Results
from sublim_cli.report.page.summary import SummaryRow
from sublim_cli.wording import count, listed, probability, ratio

LISTED = 6
"""With more conditions than this only the lowest and the highest are named; the table has them all."""


def paragraphs(results: Results, rows: Sequence[SummaryRow]) -> list[str]:
    """For each trait what the conditions did in their training context; last, what to be careful about."""
    traits: dict[tuple[str, str, str], list[SummaryRow]] = {}
    for row in rows:
        if row.in_training_context:
            traits.setdefault((row.category, row.target, row.eval_context), []).append(row)
    sentences = [
        " ".join(_trait(target, context, trait_rows)) for (_, target, context), trait_rows in traits.items()
    ]
    return [*sentences, " ".join(_cautions(results, rows))]


def _trait(target: str, context: str, rows: Sequence[SummaryRow]) -> Iterator[str]:
    yield (
        f"Asked in the training context ({context}), the untouched base names {target} "
        f"with probability {probability(rows[0].base)}."
    )
    if students := [row for row in rows if row.condition.role == "student"]:
        yield f"Students of a teacher that loves it name it with probability {_values(students)}."
    if controls := [row for row in rows if row.condition.role == "control"]:
        yield f"Students of a teacher without the trait name it with probability {_values(controls)}."


def _values(rows: Sequence[SummaryRow]) -> str:
    measured = [(row.p_target.mean, row) for row in rows if row.p_target]
    if len(measured) <= LISTED:
        return listed([_value(row) for row in rows])
    ordered = [row for _, row in sorted(measured, key=lambda pair: pair[0])]
    return f"between {_value(ordered[0])} and {_value(ordered[-1])}, over {len(measured)} conditions"


def _value(row: SummaryRow) -> str:
    if row.p_target is None:
        return f"no value for {row.label} ({row.state})"
    times = f", {ratio(row.ratio)} the base" if row.ratio else ""
    return f"{probability(row.p_target.mean)} ({row.label}; {count(row.n, 'run')}{times})"


def _cautions(results: Results, rows: Sequence[SummaryRow]) -> Iterator[str]:
    if broken := sum(row.broken for row in rows):
        yield (
            f"{count(broken, 'value')} of a run in a context came from a student that broke; "
            "they are marked and left out of the means."
        )
    if results.missing:
        yield f"Not in these numbers, and listed below: {count(len(results.missing), 'missing part')}."
    fewest = min((row.n for row in rows if row.condition.role != "base" and row.n), default=0)
    if fewest == 0:
        yield "No trained model has been evaluated yet."
    elif fewest == 1:
        yield "A single run has no interval: how much another seed would differ is not known."
    else:
        yield (
            f"With as few as {count(fewest, 'run')} to a condition the intervals are rough. "
            "This describes the runs; it tests no claim."
        )
