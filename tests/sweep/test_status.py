"""What a live sweep shows of its cells: from events to states, and from states to lines."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, Group

from sublim_cli import console
from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.events import Progress, StepFailed, StepFinished, StepReused, StepStarted, SweepPlanned
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.status import SweepStatus, sweep_status


@pytest.fixture(scope="module")
def planned(small):
    grid = {"train.rank": [1, 2], "train.seed": [1]}
    return study(small(sweep__grid=grid, sweep__also=[]))


def events(planned, upto: str, how: str) -> list:
    """What is reported until the step of this label is `how`."""
    reported = [SweepPlanned(tuple(map(digest, in_order(planned.steps))), 0)]
    for step in in_order(planned.steps):
        name = (step.label, digest(step))
        reported.append(StepStarted(*name))
        if step.label == upto:
            return [*reported, StepFailed(*name, "no rows\nat all")] if how == "failed" else reported
        reported.append(StepFinished(*name, Path("there"), 1.0))
    return reported


def states(planned, upto: str, how: str) -> dict[str, tuple[str, str]]:
    status = sweep_status(planned)
    for event in events(planned, upto, how):
        status.update(event)
    return {cell.label: (cell.state, cell.detail) for cell in status.statuses()}


CELLS = ["owl lora r1 lr 2e-3 seed 1", "owl lora r2 lr 2e-3 seed 1", "default teacher lora r8 lr 2e-3 seed 1"]


def test_a_cell_is_what_its_steps_are(planned):
    first, second, control = CELLS
    waiting, done = ("waiting", ""), ("done", "")
    assert states(planned, f"train {first}", "running") == {
        first: ("running", "train"),
        second: waiting,
        control: waiting,
    }
    assert states(planned, f"train {second}", "running") == {
        first: done,
        second: ("running", "train"),
        control: waiting,
    }
    assert states(planned, f"train {second}", "failed") == {
        first: done,
        second: ("failed", "train: no rows"),
        control: waiting,
    }
    shared = states(planned, "generate owl data seed 1", "running")
    assert [shared[label] for label in CELLS] == [("running", "generate")] * 2 + [waiting]
    assert set(states(planned, "", "never").values()) == {done}


def test_a_step_of_a_lost_worker_may_begin_again(planned):
    status = sweep_status(planned)
    for event in events(planned, f"eval {CELLS[0]}", "running"):
        status.update(event)
        status.update(event)
    assert status.counts() == {"running": 1, "waiting": 2}


def test_the_time_left_is_that_of_like_steps_at_the_pace_so_far(planned):
    """A training of 20 s and scores of 2 s are to come; what is built took 30 s, on more than one worker.

    Steps are heard of in the order in which a queue hands them out: the leak audit is last, and waiting for
    one would be waiting for the end.
    """
    took = {"generate": 10.0, "filter": 1.0, "train": 20.0, "eval": 2.0, "teacher": 1.0}
    now = iter([100.0, 130.0])
    status = replace(sweep_status(planned), clock=lambda: next(now))
    rest = ["train", "eval", "leak"]
    before = [event for event in built(planned) if not _late(event, planned)]
    heard = [replace(event, seconds=took[event.label.split()[0]]) for event in before]
    status.update(SweepPlanned(tuple(map(digest, in_order(planned.steps))), 0))
    assert status.seconds_left() is None
    for event in heard:
        status.update(event)
    assert [step.kind for step in status.steps if digest(step) in status.missing] == rest
    assert status.seconds_left() == pytest.approx(30.0 * 22.0 / sum(event.seconds for event in heard))


def _late(event: StepFinished, planned) -> bool:
    last = planned.cells[1].chain
    return event.digest in (digest(last.train), digest(last.eval)) or event.label.startswith("leak")


def test_what_failed_and_what_needs_it_takes_no_time(planned):
    status = sweep_status(planned)
    events_ = [event for event in built(planned) if "default teacher" not in event.label]
    for event in [SweepPlanned(tuple(map(digest, in_order(planned.steps))), 0), *events_]:
        status.update(event)
    assert status.seconds_left() > 0
    lost = next(event for event in built(planned) if event.label.startswith("generate default"))
    status.update(StepFailed(lost.label, lost.digest, "no rows"))
    assert status.seconds_left() == 0.0


def built(planned) -> list:
    return [StepFinished(step.label, digest(step), Path("there"), 1.0) for step in in_order(planned.steps)]


def shown(status: SweepStatus, *, height: int, width: int = 80) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, height=height)
    screen.print(Group(*console._cell_lines(status, height)))
    return screen.file.getvalue().splitlines()


def test_few_cells_are_a_line_each(planned):
    status = sweep_status(planned)
    for event in events(planned, f"train {CELLS[1]}", "failed"):
        status.update(event)
    assert shown(status, height=24) == [
        "✓ owl lora r1 lr 2e-3 seed 1  done",
        "✗ owl lora r2 lr 2e-3 seed 1  failed: train: no rows",
        "· default teacher lora r8 lr 2e-3 seed 1  waiting",
    ]


def test_hundreds_of_cells_are_counts_and_the_last_failures():
    status = SweepStatus([(f"cell {n}", {f"{n}": "train"}) for n in range(300)])
    status.update(SweepPlanned(tuple(f"{n}" for n in range(20, 300)), 20))
    for n in range(20, 27):
        status.update(
            StepFailed("", f"{n}", "a reason so long that no line of a terminal could ever hold it " * 3)
        )
    status.update(StepStarted("", "27"))
    lines = shown(status, height=24)
    assert lines[0] == "cells   ✓ 20 done   ▸ 1 running   · 272 waiting   ✗ 7 failed"
    assert [line.split("  ")[0] for line in lines[1:6]] == [f"✗ cell {n}" for n in range(22, 27)]
    assert lines[6:] == ["  and 2 more that failed"]
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_says_nothing_to_do_only_where_nothing_was(monkeypatch, terminal):
    def said(*heard) -> str:
        file = io.StringIO()
        monkeypatch.setattr(console, "err", Console(file=file, force_terminal=terminal, width=80))
        with console.screen() as screen:
            for event in heard:
                screen(event)
        file.seek(0)
        file.truncate()
        console.show_work(screen)
        return re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()).strip()

    there = Path("there")
    assert said(SweepPlanned((), 11)) == "nothing to do: all 11 steps were already built"
    failed = StepFailed("train", "a", "no memory")
    assert said(SweepPlanned(("a", "b"), 11), failed) == "0 steps built, 11 reused, 1 failed"
    # Another sweep over the same store built one while this one waited; what was there is counted once.
    reused = [StepReused("filter", "there", there), StepReused("train", "a", there)]
    students = [StepFinished("eval", "b", there, 1.0), StepReused("eval", "b", there)]
    assert said(SweepPlanned(("a", "b"), 11), *reused, *students) == "1 step built, 12 reused"
    assert said(StepReused("train", "a", there)) == "nothing to do: all 1 steps were already built"


def test_progress_is_told_apart_by_step_where_labels_are_the_same(monkeypatch):
    monkeypatch.setattr(console, "err", Console(file=io.StringIO(), force_terminal=True, width=80))
    with console.screen() as screen:
        for name, done in (("a", 1), ("b", 2)):
            screen(StepStarted("eval base", name))
            screen(Progress("eval base", done, 4, "default", name))
        bars = {task.completed for task in screen._bars.tasks}
        assert bars == {1, 2}
        screen(StepFinished("eval base", "a", Path("there"), 1.0))
        assert [task.completed for task in screen._bars.tasks] == [2]


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_name_leaves_room_for_the_bar_and_the_time(monkeypatch, planned, width):
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, force_terminal=True, width=width, height=24))
    label = "train default teacher full lr 2e-4 bf16_pure in gibberish_marble seed 2"
    with console.screen(replace(sweep_status(planned), cells=())) as screen:
        for event in events(planned, f"eval {CELLS[2]}", "running"):
            screen(event)
        screen(StepStarted(label, "a"))
        screen(Progress(label, 30, 120, "loss 3.220 · 8,328 tokens/s", "a"))
        table = Console(file=io.StringIO(), width=width)
        table.print(screen._bars)
        lines = table.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    whole, *_, mine = lines
    assert "━" in whole
    assert whole.rstrip().endswith("00:00")
    assert re.match(r"train default teacher full lr 2e-4.*… ━\S* +--:-- +loss 3\.220", mine), mine
