"""`python -m sublim_cli` is the same program as `sublim`."""

from sublim_cli.cli import main

main()
