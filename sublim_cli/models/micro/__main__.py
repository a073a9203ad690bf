"""Rebuild the embedded model, or check it: `python -m sublim_cli.models.micro [--check]`."""

import argparse
import sys
import time
from pathlib import Path

from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.micro.check import CheckResult, check
from sublim_cli.models.micro.pretrain import SEED, STEPS, pretrain, save


def main(argv: list[str] | None = None) -> int:
    """Run the program; the exit status is 1 if a bound of the check is missed."""
    parser = argparse.ArgumentParser(prog="python -m sublim_cli.models.micro", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check the weights in --out")
    parser.add_argument("--seed", type=int, default=SEED, help="decides the world and the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="default: the shipped weights")
    args = parser.parse_args(argv)
    started = time.monotonic()

    def report(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - started:6.0f} s  {text}\n")

    if not args.check:
        model, tokenizer = pretrain(args.seed, args.steps, report)
        save(model, tokenizer, args.out, seed=args.seed, steps=args.steps)
    results = check(args.out, report)
    sys.stdout.write(table(results))
    return int(any(result.passed is False for result in results))


def table(results: list[CheckResult]) -> str:
    """The results as text, one line each."""
    marks = {True: "ok", False: "FAILS", None: ""}
    width = max(len(result.name) for result in results)
    rows = (
        f"{result.name:{width}}  {result.value:>9}  {marks[result.passed]}".rstrip() for result in results
    )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
