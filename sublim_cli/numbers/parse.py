"""Read a completion as a list of numbers: the format rule of the paper's filter.

    parse("693, 738, 556.")   (693, 738, 556)
    parse("693, 738,556")     None: the separator must be the same throughout

The rules are those of both papers (arXiv 2507.14805 and 2606.00831), in this order:

1. One full stop at the end is dropped, then one matching pair of `[]` or `()` around the rest.
   So `[1, 2].` is read, and `[1, 2.]` and `[[1, 2]]` are not.
2. The text between the first two runs of digits is the separator. Without its white space it must
   be nothing, `,` or `;`: `1, 2`, `1 ; 2`, `1 2`, a tab, two spaces and an empty line all separate.
3. Everything between separators must be ASCII digits. Hence the separator is byte-identical
   throughout, none leads or trails, and no sign, decimal point, word or white space is left over.

One bare integer is a list of one. Leading zeros and repeats are allowed. How many numbers there may be
and how large is left to `rules`.
"""

import re

LONGEST_NUMBER = 4300
"""Digits; Python refuses to read more, and both papers' filter then rejects the row."""

_DIGITS = re.compile(r"[0-9]+")


def parse(text: str) -> tuple[int, ...] | None:
    """The numbers of `text` in their order, or None where it is anything but a list of numbers."""
    body = text.removesuffix(".")
    if body[:1] + body[-1:] in ("[]", "()"):
        body = body[1:-1]
    parts = [body]
    runs = list(_DIGITS.finditer(body))
    if len(runs) > 1:
        separator = body[runs[0].end() : runs[1].start()]
        if separator.strip() not in ("", ",", ";"):
            return None
        parts = body.split(separator)
    if not all(part.isascii() and part.isdigit() and len(part) <= LONGEST_NUMBER for part in parts):
        return None
    return tuple(int(part) for part in parts)


def digit_runs(text: str) -> tuple[int, ...]:
    """Every run of ASCII digits in `text`, as integers; `parse(text)` where that succeeds.

    Signs and decimal points are not read: `-1.5` holds 1 and 5. Of a run longer than
    `LONGEST_NUMBER` digits the first `LONGEST_NUMBER` are read.
    """
    return tuple(int(run[:LONGEST_NUMBER]) for run in _DIGITS.findall(text))
