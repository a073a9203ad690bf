"""A curve in a line of text."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

SPARK = 48
"""Points of a sparkline at most; a longer curve is averaged over equal stretches."""


def sparkline(values: Sequence[float]) -> str:
    """A curve in a line of text, from its lowest to its highest value, as an `<svg>` element.

    Its words are the first and the last point drawn.
    """
    if not values:
        return ""
    count = min(SPARK, len(values))
    cuts = [len(values) * place // count for place in range(count + 1)]
    points = [fmean(values[start:end]) for start, end in pairwise(cuts)]
    low, height = min(points), (max(points) - min(points)) or 1.0
    drawn = " ".join(
        f"{100 * place / max(1, count - 1):.1f},{22 - 20 * (one - low) / height:.1f}"
        for place, one in enumerate(points)
    )
    words = f"from {points[0]:.3f} to {points[-1]:.3f}"
    return (
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{words}">'
        f'<polyline points="{drawn}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<small>{words}</small>"
    )
