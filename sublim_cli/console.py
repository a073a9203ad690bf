"""What is shown: progress on stderr, tables on stdout. The only file that imports rich."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from sublim_cli.events import (
    Event,
    Notice,
    StepFailed,
    StepFinished,
    StepReused,
    StepStarted,
    StepWaiting,
    SweepPlanned,
    Warned,
)
from sublim_cli.events import Progress as StepProgress
from sublim_cli.wording import NOTHING, bounds, count, difference, percent, probability, ratio

if TYPE_CHECKING:  # pandas takes half a second, and most commands show no summary
    from sublim_cli.report.page.summary import SummaryRow
    from sublim_cli.report.tables.localisation import Share, ShareTable
    from sublim_cli.sweep.board import Board, Row, State

CONTEXTS_ABREAST = 4
"""Contexts a table can hold at 80 columns."""

QUIET_SECONDS = 10.0
"""Without a terminal, a running step says how far it is at most this often."""

MARKS: "Mapping[State, tuple[str, str]]" = {
    "waiting": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
}
"""How a cell's state is shown: a sign and a style; the word stands beside them."""

FAILURES_SHOWN = 5
"""Failed cells named while a sweep of many cells runs; the report names all."""

ROLE_STYLES = {
    "system": "cyan",
    "identity": "bold yellow",
    "question": "green",
    "answer": "magenta",
    "end": "magenta",
}
"""Colours of token roles; every token's role is written beside it too."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class _Remaining(TimeRemainingColumn):
    """The time a step has left at its own pace; a sweep's, whose steps differ, is told to it as `until`."""

    def render(self, task: Task) -> Text:
        until = task.fields.get("until")
        if until is None:
            return super().render(task)
        minutes, seconds = divmod(max(0, round(until - time.monotonic())), 60)
        hours, minutes = divmod(minutes, 60)
        told = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
        return Text(told if until else "--:--", style="progress.remaining")


@dataclass
class Screen:
    """The command line's listener: bars in a terminal, plain lines elsewhere, nothing if quiet."""

    quiet: bool = False
    built: int = 0
    reused: int = 0
    failed: int = 0
    board: "Board | None" = None
    _bars: Progress | None = None
    _missing: set[str] | None = None
    """Digests of what a launcher has still to build; None where none has planned anything."""
    _whole: TaskID | None = None
    _tasks: dict[str, TaskID] = field(default_factory=dict)
    _said: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def __call__(self, event: Event, /) -> None:
        """Show one event."""
        if self.board:
            self.board.hear(event)
        self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case SweepPlanned(missing, present):
                self._expect(missing, present)
            case StepStarted(label, name):
                self._begin(label, name)
            case StepReused(_, name):
                self._reuse(name)
            case StepProgress():
                self._advance(event)
            case StepFinished() | StepFailed():
                self._end(event)
            case StepWaiting(label):
                self._say(f"[dim]… {escape(label)}: another process is building it[/]")
            case Warned() | Notice():
                self._once(event)

    def _expect(self, missing: Sequence[str], present: int) -> None:
        self.reused += present
        self._missing = set(missing)
        if self._bars and missing:
            until = 0.0 if self.board else None
            self._whole = self._bars.add_task("[bold]all steps", total=len(missing), note="", until=until)

    def _reuse(self, name: str) -> None:
        """Count what another process built; what a launcher found there or built is counted already."""
        if self._missing is None or name in self._missing:
            self.reused += 1
            self._settle(name)

    def _settle(self, name: str) -> None:
        if self._missing is not None:
            self._missing.discard(name)
        if self._bars and self._whole is not None:
            self._bars.advance(self._whole)
            if self.board:
                left = self.board.left()
                until = 0.0 if left is None else time.monotonic() + left
                self._bars.update(self._whole, until=until)

    def _begin(self, label: str, name: str) -> None:
        if self._bars:
            self._drop(name)  # its worker was lost, and another one begins it anew
            self._tasks[name] = self._bars.add_task(escape(label), total=None, note="")
        else:
            self._say(f"· {escape(label)}")

    def _advance(self, event: StepProgress) -> None:
        name = event.digest
        if self._bars and name in self._tasks:
            self._bars.update(
                self._tasks[name], completed=event.done, total=event.total, note=escape(event.note)
            )
        elif not self._bars and time.monotonic() - self._said.get(name, 0) > QUIET_SECONDS:
            self._said[name] = time.monotonic()
            self._say(f"  {escape(event.label)}: {event.done} of {event.total}, {event.note}")

    def _end(self, event: StepFinished | StepFailed) -> None:
        self._drop(event.digest)
        self._settle(event.digest)
        name = escape(event.label)
        if isinstance(event, StepFailed):
            self.failed += 1
            self._say(f"[red]✗ {name}[/]: {escape(event.reason)}")
        else:
            self.built += 1
            self._say(f"[green]✓[/] {name} [dim]{event.seconds:.0f} s[/]")

    def _drop(self, name: str) -> None:
        if self._bars and name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))

    def _once(self, event: Warned | Notice) -> None:
        """Say what every cell of a sweep would say again."""
        if event.message not in self._told:
            self._told.add(event.message)
            text = escape(event.message)
            self._say(f"[yellow]![/] {text}" if isinstance(event, Warned) else f"[dim]· {text}[/]")

    def _say(self, line: str) -> None:
        if not self.quiet:
            (self._bars.console if self._bars else err).print(line)


@contextmanager
def screen(board: "Board | None" = None, *, quiet: bool = False) -> Iterator[Screen]:
    """A screen to hand to the library as its listener; with a `board`, it shows a sweep's cells too."""
    try:
        with _screen(board, quiet) as shown:
            yield shown
    except KeyboardInterrupt:
        err.print("[yellow]interrupted[/]: finished steps are kept, the same command goes on from there")
        raise


@contextmanager
def _screen(board: "Board | None", quiet: bool) -> Iterator[Screen]:
    if quiet or not err.is_terminal:
        yield Screen(quiet=quiet)
        return
    # Names and notes are cut where the line would end, the bar and the time are not.
    name = Column(no_wrap=True, overflow="ellipsis", max_width=max(16, err.width // 2))
    time_left = Column(no_wrap=True, min_width=7)
    bars = Progress(
        TextColumn("{task.description}", table_column=name),
        BarColumn(bar_width=10, table_column=Column(no_wrap=True, min_width=10)),
        _Remaining(compact=True, table_column=time_left),
        TextColumn("[dim]{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=err,
    )

    def shown() -> RenderableType:
        return Group(*_cells(board, err.height - len(bars.tasks)), bars) if board else bars

    with Live(get_renderable=shown, console=err, transient=True, refresh_per_second=4):
        yield Screen(board=board, _bars=bars)


def _cells(board: "Board", height: int) -> list[RenderableType]:
    """A sweep's cells: one a line where the terminal has `height` for them, else counts and failures."""
    if len(board.rows) + 2 <= height:
        return [_line(board, row) for row in board.rows]
    counts = [Text.assemble(MARKS[state], f" {number} {state}") for state, number in board.counts().items()]
    head = Text("   ").join([Text("cells"), *counts])
    failed = [row for row in board.rows if board.state(row)[0] == "failed"]
    more = len(failed) - FAILURES_SHOWN
    rest = [Text(f"  and {more} more that failed", style="red")] if more > 0 else []
    return [head, *(_line(board, row) for row in failed[-FAILURES_SHOWN:]), *rest]


def _line(board: "Board", row: "Row") -> Text:
    state, word = board.state(row)
    sign, style = MARKS[state]
    said = f"{state}{': ' if word else ''}{word}"
    line = Text.assemble((f"{sign} ", style), row.label, "  ", (said, style))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def show_warning(message: str) -> None:
    """One warning, on stderr."""
    err.print(f"[yellow]![/] {escape(message)}", soft_wrap=True)


def show_error(message: str) -> None:
    """One error, on stderr."""
    err.print(f"[red]sublim:[/] {escape(message)}", soft_wrap=True)


def show_json(value: Mapping[str, Any]) -> None:
    """The one JSON document of a command run with `--json`."""
    out.file.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_line(text: str) -> None:
    """A line of result on stdout."""
    out.print(escape(text), soft_wrap=True)


def show_work(shown: Screen) -> None:
    """What a run built and what it found, on stderr."""
    if shown.quiet:
        return
    if shown.reused and not shown.built and not shown.failed:
        err.print(f"[dim]nothing to do: all {shown.reused} steps were already built[/]")
    else:
        failed = f", {shown.failed} failed" if shown.failed else ""
        err.print(f"[dim]{count(shown.built, 'step')} built, {shown.reused} reused{failed}[/]")


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    numbers: bool = True,
) -> None:
    """A table on stdout: the first column left, the others right if they hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, caption=caption)
    table.caption_justify = "left"
    for place, name in enumerate(columns):
        justify: Any = "right" if numbers and place else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def show_summary(rows: "Sequence[SummaryRow]") -> None:
    """P(target) of every condition in every context, a table for each trait."""
    traits = dict.fromkeys(row.target for row in rows)
    for target in traits:
        mine = [row for row in rows if row.target == target]
        contexts = list(dict.fromkeys(row.eval_context for row in mine))
        for start in range(0, len(contexts), CONTEXTS_ABREAST):
            _show_trait(target, contexts[start : start + CONTEXTS_ABREAST], mine)


def show_shares(tables: "Sequence[ShareTable]") -> None:
    """The share of the effect that every gate and patch keeps or loses, a table for each condition."""
    for table in tables:
        effect = (
            f"{difference(table.effect.mean)} {bounds(table.effect)}".rstrip() if table.effect else NOTHING
        )
        show_table(
            f"{table.title}: effect {effect}".rstrip(),
            ("", "tokens", "share of it", "random sets", "beyond them"),
            [_share(one) for one in table.rows],
            caption=f"{count(table.rows[0].n, 'run')}; Fieller intervals at 95 %, over runs",
        )


def _share(one: "Share") -> tuple[str, ...]:
    tokens = NOTHING if one.tokens is None else f"{one.tokens:.0f} of {one.prompt_tokens:.0f}"
    told = map(percent, (one.share, one.random, one.beyond)) if one.share else (one.state, "", "")
    return f"{one.part} {one.measure}", tokens, *told


def show_verdicts(verdicts: Sequence[tuple[str, str, str, str, str]]) -> None:
    """Every claim with its verdict, and below the table why: `report.verdicts.told_verdict`."""
    show_table("", ("", "claim", "verdict", "runs"), [one[:4] for one in verdicts], numbers=False)
    for number, *_, why in verdicts:
        show_line(f"{number}: {why}")


def _show_trait(target: str, contexts: Sequence[str], rows: "Sequence[SummaryRow]") -> None:
    conditions = dict.fromkeys(row.condition for row in rows)
    cells = {(row.condition, row.eval_context): row for row in rows}
    labels = {row.condition: row.label for row in rows}
    lines = [
        (labels[one], *(_preference(cells.get((one, context))) for context in contexts)) for one in conditions
    ]
    show_table(
        f"P({target}), and times the base in the same context",
        ("", *contexts),
        lines,
        caption=_caption(rows),
    )


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
    """A table of tokens, a row each: place, id, text, role, and whatever columns follow."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None)
    for name in columns:
        number = name in ("", "id")
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=name == "id")
    for row in rows:
        table.add_row(*map(escape, row), style=ROLE_STYLES.get(row[3], ""))
    out.print(table)


def show_reasons(counts: Mapping[str, Any]) -> None:
    """The table of a filter's reasons: rows and shares."""
    judged = counts["judged"]
    rows = [("kept", counts["kept"]), *counts["reasons"].items(), ("judged", judged)]
    share = [(name, str(count), f"{count / max(judged, 1):.1%}") for name, count in rows]
    show_table("", ("row is", "rows", "share"), share)


def show_text(text: str) -> None:
    """Text as it is, such as a recipe."""
    out.file.write(text)
