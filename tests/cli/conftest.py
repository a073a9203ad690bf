"""What the command line's tests share: the program, as it is typed."""

import sys

import pytest

from sublim_cli.cli import main


@pytest.fixture
def sublim(monkeypatch, capsys, tmp_path):
    """Run the program in a directory of its own; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sublim", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run
