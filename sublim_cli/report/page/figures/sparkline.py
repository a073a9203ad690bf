"""A curve in a line of text."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from markupsafe import Markup

SPARK = 48
"""Points of a sparkline at most; a longer curve is averaged over equal parts."""


def sparkline(values: Sequence[float]) -> Markup:
    """A curve from its lowest to its highest value as an `<svg>` element, and its ends in words."""
    if not values:
        return Markup()
    count = min(SPARK, len(values))
    cuts = [len(values) * index // count for index in range(count + 1)]
    points = [fmean(values[start:end]) for start, end in pairwise(cuts)]
    low, height = min(points), (max(points) - min(points)) or 1.0
    coordinates = " ".join(
        f"{100 * index / max(1, count - 1):.1f},{22 - 20 * (point - low) / height:.1f}"
        for index, point in enumerate(points)
    )
    words = f"from {points[0]:.3f} to {points[-1]:.3f}"
    return Markup(
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{words}">'
        f'<polyline points="{coordinates}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<small>{words}</small>"
    )
