"""Without a terminal a running step is named at least every ten seconds, whatever it reports."""

import io
import time

import pytest
from rich.console import Console

from sublim_cli import console
from sublim_cli.events import Progress, StepFailed, StepFinished, StepStarted


@pytest.fixture
def written(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=text, width=200))
    monkeypatch.setattr(console, "SILENT_SECONDS", 0.2)
    return lambda: text.getvalue().splitlines()


def test_a_silent_step_is_named_again_with_its_latest_progress(written, tmp_path):
    with console.screen() as screen:
        screen(StepStarted("train a", "1"))
        time.sleep(0.5)
        assert written()[1:] == ["  train a: no progress to report yet (still running)"] * (
            len(written()) - 1
        )
        assert len(written()) >= 2
        screen(Progress("train a", 3, 24, "loss 1.0", "1"))
        screen(Progress("train a", 4, 24, "loss 0.9", "1"))  # too soon after the other to be printed
        time.sleep(0.5)
        assert written()[-1] == "  train a: 4 of 24, loss 0.9 (still running)"
        screen(StepFinished("train a", "1", tmp_path, 1.0))
        screen(StepStarted("eval a", "2"))
        screen(StepFailed("eval a", "2", "no"))
        finished = written()
        time.sleep(0.5)
        assert written() == finished


def test_a_screen_that_is_quiet_names_nothing(written):
    with console.screen(quiet=True) as screen:
        screen(StepStarted("train a", "1"))
        time.sleep(0.5)
    assert written() == []


def test_the_longest_silence_is_below_ten_seconds():
    assert max(console.QUIET_SECONDS, console.SILENT_SECONDS * 9 / 8) < 10


@pytest.mark.parametrize(
    ("show", "stream"),
    [(console.show_line, "out"), (console.show_warning, "err"), (console.show_error, "err")],
)
def test_a_sentence_breaks_between_words_on_a_terminal_and_nowhere_in_a_file(monkeypatch, show, stream):
    path = "/a/path/" + 100 * "x"
    sentence = f"The file {path} holds [no rows] of `train.method: lora`, and " + 20 * "more words follow "
    for terminal in (True, False):
        text = io.StringIO()
        monkeypatch.setattr(
            console,
            stream,
            Console(file=text, width=80, force_terminal=terminal, color_system=None, highlight=False),
        )
        show(sentence.strip())
        lines = text.getvalue().splitlines()
        assert " ".join(" ".join(lines).split()).endswith(sentence.strip())
        if terminal:
            assert max(len(line) for line in lines if path not in line) <= 80
            assert sum(path in line for line in lines) == 1
        else:
            assert len(lines) == 1


def test_the_table_of_verdicts_fits_80_columns(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=text, width=80, highlight=False))
    word = (
        "supported for 3 of 5 traits, refuted for 1, for the typical run, on one data set, with runs of two "
    )
    word += "kinds"
    runs = "118 of 120 planned, 1 broken, 1 missing"
    console.show_verdicts(
        [("C3a", "A statement", word, runs, "What was seen."), ("C1", "Another", "refuted", runs, "No.")]
    )
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-4:] == ["C3a: A statement.", "    What was seen.", "C1: Another.", "    No."]
    words = " ".join(" ".join(lines[:-4]).split())
    assert all(part in words for part in ("C3a", "C1 refuted", "planned, 1 broken", "with runs of two kinds"))
