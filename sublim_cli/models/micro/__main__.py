"""Rebuild the embedded model, or check it: `python -m sublim_cli.models.micro [--check]`."""

import argparse
import sys
import time
from pathlib import Path

from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.micro.check import CheckResult, check
from sublim_cli.models.micro.pretrain import SEED, STEPS, pretrain, save


def main(argv: list[str] | None = None) -> int:
    """Run the program; the exit status is 1 if a line of the check fails."""
    args = _arguments(argv)
    started = time.monotonic()

    def report(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - started:6.0f} s  {text}\n")

    if not args.check:
        model, tokenizer = pretrain(args.seed, args.steps, report)
        save(model, tokenizer, args.out, seed=args.seed, steps=args.steps)
    lines = check(args.out, report)
    sys.stdout.write(table(lines))
    return int(any(line.passed is False for line in lines))


def table(lines: list[CheckResult]) -> str:
    """Lay the check out as text, one line a measurement."""
    marks = {True: "ok", False: "FAILS", None: ""}
    wide = max(len(line.name) for line in lines)
    rows = (f"{line.name:{wide}}  {line.value:>9}  {marks[line.passed]}".rstrip() for line in lines)
    return "\n".join(rows) + "\n"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sublim_cli.models.micro", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check the weights in --out")
    parser.add_argument("--seed", type=int, default=SEED, help="decides the world and the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="default: the shipped weights")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
