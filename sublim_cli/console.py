"""The terminal: progress on stderr, tables on stdout. The only file that imports rich."""

import json
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import zip_longest
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from sublim_cli import events
from sublim_cli.wording import NOTHING, bounds, count, difference, percent, probability, ratio

if TYPE_CHECKING:  # pandas takes half a second, and most commands show no summary
    from sublim_cli.report.page.summary import SummaryRow
    from sublim_cli.report.tables.localisation import Share
    from sublim_cli.sweep.status import CellState, CellStatus, SweepStatus

CONTEXTS_PER_TABLE = 4
"""Contexts that fit side by side in a table of 80 columns."""

QUIET_SECONDS = 7.5
"""Without a terminal, each running step reports its progress at most this often."""

SILENT_SECONDS = 8.0
"""Without a terminal, a running step that reports nothing for so long is named again."""

STATE_MARKS: "Mapping[CellState, tuple[str, str]]" = {
    "waiting": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
}
"""The sign and the style of each state of a cell; the state is also written as a word."""

FAILURES_SHOWN = 5
"""Failed cells listed while a sweep with many cells runs; the report lists all of them."""

ROLE_STYLES = {
    "system": "cyan",
    "identity": "bold yellow",
    "question": "green",
    "answer": "magenta",
    "end": "magenta",
}
"""Colours of token roles; the role is also written beside each token."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _TimeLeft(TimeRemainingColumn):
    """The time left of a step, from its own speed; of a sweep, from the estimate for all steps (`until`)."""

    def render(self, task: Task) -> Text:
        until = task.fields.get("until")
        if until is None:
            return super().render(task)
        left = str(timedelta(seconds=max(0, round(until - time.monotonic())))).removeprefix("0:")
        return Text(left if until else "--:--", style="progress.remaining")


@dataclass
class Screen:
    """The command line's listener: bars in a terminal, plain lines elsewhere, nothing if quiet."""

    quiet: bool = False
    built: int = 0
    reused: int = 0
    failed: int = 0
    sweep: "SweepStatus | None" = None
    _bars: Progress | None = None
    _missing: set[str] | None = None
    """Digests of the steps that a launcher has still to build; None where no launcher runs."""
    _sweep_task: TaskID | None = None
    _step_tasks: dict[str, TaskID] = field(default_factory=dict)
    _last_line: dict[str, float] = field(default_factory=dict)
    """When each step last printed a progress line, by digest."""
    _running: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By digest, the latest line of each step that is being built, and when one was last printed."""
    _lock: Lock = field(default_factory=Lock)
    _printed: set[str] = field(default_factory=set)
    """Warnings and notices already printed: cells of a sweep repeat them."""

    def __call__(self, event: events.Event, /) -> None:
        """Show one event."""
        if self.sweep:
            self.sweep.update(event)
        with self._lock:
            self._show(event)

    def _show(self, event: events.Event) -> None:
        match event:
            case events.SweepPlanned(missing, present):
                self._expect(missing, present)
            case events.StepStarted(label, digest):
                self._start(label, digest)
            case events.StepReused(_, digest):
                # What a launcher found or built itself is counted already.
                if self._missing is None or digest in self._missing:
                    self.reused += 1
                    self._count_done(digest)
            case events.Progress():
                self._advance(event)
            case events.StepFinished(label, digest, _, seconds):
                self.built += 1
                self._end(digest, f"[green]✓[/] {escape(label)} [dim]{seconds:.0f} s[/]")
            case events.StepFailed(label, digest, reason):
                self.failed += 1
                self._end(digest, f"[red]✗ {escape(label)}[/]: {escape(reason)}")
            case events.StepWaiting(label):
                self._print(f"[dim]… {escape(label)}: another process is building it[/]")
            case events.Warned(message):
                self._print_once(f"[yellow]![/] {escape(message)}")
            case events.Notice(message):
                self._print_once(f"[dim]· {escape(message)}[/]")

    def _expect(self, missing: Sequence[str], present: int) -> None:
        self.reused += present
        self._missing = set(missing)
        if self._bars and missing:
            until = 0.0 if self.sweep else None
            bar = self._bars.add_task("[bold]all steps", total=len(missing), note="", until=until)
            self._sweep_task = bar

    def _start(self, label: str, digest: str) -> None:
        if self._bars:
            self._remove_bar(digest)  # its worker was lost, and another worker starts it again
            self._step_tasks[digest] = self._bars.add_task(escape(label), total=None, note="")
        else:
            self._running[digest] = f"{label}: no progress to report yet", time.monotonic()
            self._print(f"· {escape(label)}")

    def name_silent_steps(self) -> None:
        """Print the latest line of each running step that has printed none for `SILENT_SECONDS`."""
        with self._lock:
            now = time.monotonic()
            for digest, (line, printed) in self._running.items():
                if now - printed >= SILENT_SECONDS:
                    self._running[digest] = line, now
                    self._print(f"  [dim]{escape(line)}[/] (still running)")

    def _advance(self, event: events.Progress) -> None:
        digest, now = event.digest, time.monotonic()
        if self._bars and digest in self._step_tasks:
            self._bars.update(
                self._step_tasks[digest], completed=event.done, total=event.total, note=escape(event.note)
            )
        elif not self._bars:
            line = f"{event.label}: {event.done} of {event.total}, {event.note}"
            _, printed = self._running.get(digest, (line, now))
            if now - self._last_line.get(digest, 0) > QUIET_SECONDS:
                self._last_line[digest] = printed = now
                self._print(f"  {escape(line)}")
            self._running[digest] = line, printed

    def _end(self, digest: str, line: str) -> None:
        self._running.pop(digest, None)
        self._remove_bar(digest)
        self._count_done(digest)
        self._print(line)

    def _count_done(self, digest: str) -> None:
        if self._missing is not None:
            self._missing.discard(digest)
        if self._bars and self._sweep_task is not None:
            self._bars.advance(self._sweep_task)
            if self.sweep:
                left = self.sweep.seconds_left()
                until = 0.0 if left is None else time.monotonic() + left
                self._bars.update(self._sweep_task, until=until)

    def _remove_bar(self, digest: str) -> None:
        if self._bars and digest in self._step_tasks:
            self._bars.remove_task(self._step_tasks.pop(digest))

    def _print_once(self, line: str) -> None:
        if line not in self._printed:
            self._printed.add(line)
            self._print(line)

    def _print(self, line: str) -> None:
        if not self.quiet:
            (self._bars.console if self._bars else err).print(line)


@contextmanager
def screen(sweep: "SweepStatus | None" = None, *, quiet: bool = False) -> Iterator[Screen]:
    """A listener for the library's events; with a `sweep`, it also shows the state of a sweep's cells."""
    try:
        if quiet or not err.is_terminal:
            with _heartbeat(plain := Screen(quiet=quiet)):
                yield plain
            return
        # Labels and notes are cut where the line would end; the bar and the time are not.
        label = Column(no_wrap=True, overflow="ellipsis", max_width=max(16, err.width // 2))
        bars = Progress(
            TextColumn("{task.description}", table_column=label),
            BarColumn(bar_width=10, table_column=Column(no_wrap=True, min_width=10)),
            _TimeLeft(compact=True, table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("[dim]{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=err,
        )

        def render() -> RenderableType:
            return Group(*_cell_lines(sweep, err.height - len(bars.tasks)), bars) if sweep else bars

        with Live(get_renderable=render, console=err, transient=True, refresh_per_second=4):
            yield Screen(sweep=sweep, _bars=bars)
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]: finished steps are kept, the same command resumes")
        raise


@contextmanager
def _heartbeat(plain: Screen) -> Iterator[None]:
    """Meanwhile a thread names silent steps: an optimizer step on a CPU can take a minute."""
    over = Event()

    def watch() -> None:
        while not over.wait(SILENT_SECONDS / 8):
            plain.name_silent_steps()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _cell_lines(sweep: "SweepStatus", height: int) -> list[RenderableType]:
    """A sweep's cells: a line each where `height` lines are enough, else counts and failures."""
    statuses = sweep.statuses()
    if len(statuses) + 2 <= height:
        return [_cell_line(status) for status in statuses]
    counts = [
        Text.assemble(STATE_MARKS[state], f" {number} {state}") for state, number in sweep.counts().items()
    ]
    head = Text("   ").join([Text("cells"), *counts])
    failed = [status for status in statuses if status.state == "failed"]
    more = len(failed) - FAILURES_SHOWN
    rest = [Text(f"  and {more} more that failed", style="red")] if more > 0 else []
    return [head, *map(_cell_line, failed[-FAILURES_SHOWN:]), *rest]


def _cell_line(status: "CellStatus") -> Text:
    sign, style = STATE_MARKS[status.state]
    text = f"{status.state}: {status.detail}" if status.detail else status.state
    line = Text.assemble((f"{sign} ", style), status.label, "  ", (text, style))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def show_warning(message: str) -> None:
    """One warning, on stderr."""
    err.print(f"[yellow]![/] {escape(_wrapped(err, message, indent=2))}", soft_wrap=True)


def show_error(message: str) -> None:
    """One error, on stderr."""
    err.print(f"[red]sublim:[/] {escape(_wrapped(err, message, indent=8))}", soft_wrap=True)


def show_json(value: Mapping[str, Any]) -> None:
    """The JSON document that a command run with `--json` prints, on stdout."""
    out.file.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_line(text: str) -> None:
    """A line of result on stdout."""
    out.print(escape(_wrapped(out, text)), soft_wrap=True)


def _wrapped(console: Console, text: str, indent: int = 0) -> str:
    """The text with its lines broken between words on a terminal, where the first begins at `indent`.

    Words are left whole, so that a path or a command can be copied. What a file or a pipe gets is unchanged.
    """
    if not console.is_terminal:
        return text
    lines = text.split("\n")
    broken = [
        textwrap.fill(
            line,
            max(20, console.width),
            initial_indent=" " * (indent if number == 0 else 0),
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
            drop_whitespace=True,
        )
        for number, line in enumerate(lines)
    ]
    return "\n".join(broken)[indent:]


def show_work(progress: Screen) -> None:
    """How many steps a command built and reused, on stderr."""
    if progress.quiet:
        return
    if progress.reused and not progress.built and not progress.failed:
        err.print(f"[dim]nothing to do: all {progress.reused} steps were already built[/]")
    else:
        failed = f", {progress.failed} failed" if progress.failed else ""
        err.print(f"[dim]{count(progress.built, 'step')} built, {progress.reused} reused{failed}[/]")


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    numbers: bool | Collection[str] = True,
    styles: Iterable[str] = (),
) -> None:
    """A table on stdout.

    Args:
        numbers: whether all columns but the first are aligned to the right, or the names of those that are.
        styles: the style of each row; none are needed.
    """
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, caption=caption)
    table.caption_justify = "left"
    for index, name in enumerate(columns):
        right = bool(numbers and index) if isinstance(numbers, bool) else name in numbers
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "id")
    for row, style in zip_longest(rows, styles):
        table.add_row(*map(escape, row), style=style)
    out.print(table)


def show_summary(rows: "Sequence[SummaryRow]") -> None:
    """P(target) of every condition in every context, a table for each trait."""
    for target in dict.fromkeys(row.target for row in rows):
        trait_rows = [row for row in rows if row.target == target]
        scores = {(row.condition, row.eval_context): row for row in trait_rows}
        labels = {row.condition: row.label for row in trait_rows}
        contexts = list(dict.fromkeys(row.eval_context for row in trait_rows))
        for start in range(0, len(contexts), CONTEXTS_PER_TABLE):
            columns = contexts[start : start + CONTEXTS_PER_TABLE]
            show_table(
                f"P({target}), and times the base in the same context",
                ("", *columns),
                [
                    (label, *(_preference(scores.get((condition, context))) for context in columns))
                    for condition, label in labels.items()
                ],
                caption=_caption(trait_rows),
            )


def show_shares(tables: "Sequence[Sequence[Share]]") -> None:
    """The share of the effect that every gate and patch keeps or loses, a table for each condition."""
    for rows in tables:
        first = rows[0]
        effect = f"{difference(first.effect.mean)} {bounds(first.effect)}" if first.effect else NOTHING
        show_table(
            f"{first.title}: effect {effect}".rstrip(),
            ("", "tokens", "share of it", "random sets", "beyond them"),
            [_share_line(row) for row in rows],
            caption=f"{count(first.n, 'run')}; Fieller intervals at 95 %, over runs",
        )


def _share_line(row: "Share") -> tuple[str, ...]:
    tokens = NOTHING if row.tokens is None else f"{row.tokens:.0f} of {row.prompt_tokens:.0f}"
    shares = map(percent, (row.share, row.random, row.beyond)) if row.share else (row.state, "", "")
    return f"{row.part} {row.measure}", tokens, *shares


def show_verdicts(verdicts: Sequence[tuple[str, str, str, str, str]]) -> None:
    """A table of the number, verdict and runs of each claim, and below it the statement and why."""
    rows = [(number, word, runs) for number, _, word, runs, _ in verdicts]
    show_table("", ("", "verdict", "runs"), rows, numbers=False)
    for number, statement, _, _, reason in verdicts:
        show_line(f"{number}: {statement}.")
        show_line(f"    {reason}")


def _preference(row: "SummaryRow | None") -> str:
    if row is None:
        return ""
    if row.p_target is None:
        return row.state
    mark = "*" if row.in_training_context else ""
    mark += "†" if row.broken or row.missing else ""
    times = "" if row.condition.role == "base" else f" {ratio(row.ratio)}"
    return f"{probability(row.p_target.mean)}{times}{mark or ' '}"


def _caption(rows: "Sequence[SummaryRow]") -> str:
    runs = max((row.n for row in rows if row.condition.role != "base"), default=0)
    parts = [f"mean of {count(runs, 'run')}"] if runs else []
    if any(row.in_training_context for row in rows):
        parts.append("* the context of training")
    if any(row.broken or row.missing for row in rows):
        parts.append("† without broken or missing runs")
    return "; ".join(parts)


def show_tokens(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of tokens, a row each: index, id, text, role, and further columns."""
    styles = [ROLE_STYLES.get(row[3], "") for row in rows]
    show_table(title, columns, rows, numbers=("", "id"), styles=styles)


def show_reasons(counts: Mapping[str, Any]) -> None:
    """How many rows a filter kept, and how many it rejected for each reason."""
    judged = counts["judged"]
    rows = [("kept", counts["kept"]), *counts["reasons"].items(), ("judged", judged)]
    lines = [(name, str(number), f"{number / max(judged, 1):.1%}") for name, number in rows]
    show_table("", ("row is", "rows", "share"), lines)


def show_text(text: str) -> None:
    """Text on stdout, unchanged, such as a recipe."""
    out.file.write(text)
