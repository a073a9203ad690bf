"""How numbers and conditions are written: the same on the page, in figures and on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the terminal words its tables without scipy
    from sublim_cli.stats import Interval

NOTHING = "–"
_METHOD = {"lora": "LoRA", "full": "full fine-tuning"}


def condition_label(role: str, method: str, rank: int | None, parts: Sequence[str] = ()) -> str:
    """Such as `LoRA rank 8`, `full fine-tuning, lr 2e-05`, `control, LoRA rank 8`."""
    if role == "base":
        return ", ".join(["untouched base", *parts])
    name = _METHOD.get(method, method) + (f" rank {rank}" if rank is not None else "")
    label = ", ".join([name, *parts])
    return f"control, {label}" if role == "control" else label


def probability(value: float | None) -> str:
    """Three decimals; what would round to zero says so."""
    if value is None:
        return NOTHING
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def difference(value: float | None, decimals: int = 3) -> str:
    """With a sign, and three decimals if not told otherwise."""
    return NOTHING if value is None else _signed(f"{value:+.{decimals}f}")


def bounds(interval: "Interval | None") -> str:
    """Such as `[0.712, 0.876]`; nothing where one run or none leaves no interval."""
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"[{_signed(f'{interval.low:.3f}')}, {_signed(f'{interval.high:.3f}')}]"


def with_bounds(value: str, interval: "Interval") -> str:
    """A value as it is written, and its bounds if there are any: `0.794 [0.712, 0.876]`."""
    return f"{value} {bounds(interval)}".rstrip()


def ratio(value: float | None) -> str:
    """Such as `8.2×`: a few runs justify two digits."""
    if value is None:
        return NOTHING
    return f"{value:.1f}×" if value < 10 else f"{value:.0f}×"


def nats(value: float | None) -> str:
    """A loss with three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def share(value: float | None) -> str:
    """Such as `31 %`; what would round to none or to all says so."""
    if value is None:
        return NOTHING
    if 0 < value < 0.01:
        return "<1 %"
    return ">99 %" if 0.99 < value < 1 else f"{value:.0%}".replace("%", " %")


def percent(interval: "Interval | None") -> str:
    """A share with its bounds, in percent: `12 % [−3, 27]`."""
    if interval is None:
        return NOTHING
    mean = f"{_signed(f'{100 * interval.mean:.0f}')} %"
    if interval.low is None or interval.high is None:
        return mean
    return f"{mean} [{_signed(f'{100 * interval.low:.0f}')}, {_signed(f'{100 * interval.high:.0f}')}]"


def many(number: float | None) -> str:
    """Three digits of a large number, such as `284 k`, `1.54 B`."""
    if number is None:
        return NOTHING
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def rate(value: float | None) -> str:
    """A learning rate such as `2e-4`: always with an exponent, so that a column of them compares."""
    if value is None:
        return NOTHING
    digits, exponent = f"{value:.5e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Such as `42 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """Such as `1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Such as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _signed(text: str) -> str:
    """A number with a true minus, and a zero without a sign."""
    return text.lstrip("+-") if not float(text) else text.replace("-", "−")
