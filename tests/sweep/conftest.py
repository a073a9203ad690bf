"""What the launchers' tests share: a sweep of twelve small cells, and how its artifacts are compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sublim_cli.artifacts.record import checksum, read_record
from sublim_cli.artifacts.step import Artifact, Step
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.cli import main
from sublim_cli.errors import RowsError
from sublim_cli.recipe.load import load, parse_setting
from sublim_cli.recipe.schema import Section
from sublim_cli.sweep.cells import Study, study

TINY: dict[str, Any] = {
    "generate.rows": 66,
    "generate.held_out": 10,
    "generate.sampling.max_tokens": 24,
    "filter.rules": "[{kind: count, most: 12}]",
    "train.epochs": 1,
    "eval.system_prompts": "[none]",
    "eval.uncovered": 0.3,
    "eval.nodes": 16,
    "eval.draws": 2,
    "sweep.also": "[]",
}
"""The demo's recipe at its smallest: two optimizer steps, one context, a loose bound and two draws."""

GRIDS = {3: "{train.rank: [1, 2], train.seed: [1]}", 12: "{train.rank: [1, 2, 4, 8, 16], train.seed: [1, 2]}"}
"""Grids by the number of cells they make together with their controls."""


def words(cells: int, **more: Any) -> list[str]:
    """The sweep of `cells` cells as it is typed, without its store and launcher."""
    settings = {
        **TINY,
        "sweep.grid": GRIDS[cells],
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    flags = [word for name, value in settings.items() for word in ("-s", f"{name}={value}")]
    return ["sweep", "-r", "demo", *flags]


class Deed(Section):
    name: str
    does: str = "write"


@dataclass(frozen=True)
class Do:
    """A step that writes its name or what it sees, or fails in one of the ways steps fail."""

    kind: ClassVar[str] = "do"
    version: ClassVar[int] = 1
    spec: Deed
    inputs: tuple[Step, ...] = ()

    @property
    def label(self) -> str:
        return self.spec.name

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener) -> dict[str, object]:
        match self.spec.does:
            case "refuse":
                raise RowsError("no rows")
            case "crash":
                raise ZeroDivisionError("a defect")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "see":
                names = ("SUBLIM_DEVICE", "CUDA_VISIBLE_DEVICES")
                seen = {name: os.environ.get(name) for name in names}
                (out / "seen.json").write_text(json.dumps(seen))
            case _:
                (out / "name.txt").write_text(self.spec.name)
        return {}


@pytest.fixture(scope="session")
def do() -> Callable[..., Do]:
    """Make such a step; `does` is one of the ways."""

    def make(name: str, *inputs: Step, does: str = "write") -> Do:
        return Do(Deed(name=name, does=does), inputs)

    return make


@pytest.fixture(scope="session")
def tiny() -> Callable[..., list[str]]:
    """See `words`."""
    return words


@pytest.fixture(scope="session")
def tiny_study() -> Callable[..., Study]:
    """The study that `tiny` types."""

    def plan(cells: int, **more: Any) -> Study:
        return study(load("demo", dict(map(parse_setting, words(cells, **more)[4::2]))))

    return plan


@pytest.fixture(scope="session")
def finished() -> Callable[[Path], dict[str, int]]:
    """Every artifact in place in a store by its label, and the file that proves it.

    One whose builder died between its record and its new name is not: pathlib's `*` would match it.
    """

    def read(store: Path) -> dict[str, int]:
        records = store.glob("*/[0-9a-f]*/artifact.json")
        return {read_record(record.parent)["label"]: record.stat().st_ino for record in records}

    return read


@pytest.fixture(scope="session")
def checksums() -> Callable[[Path], dict[str, str]]:
    """The payload of every artifact in a store, by its kind and digest."""

    def read(store: Path) -> dict[str, str]:
        directories = (directory.parent for directory in store.glob("*/[0-9a-f]*/artifact.json"))
        return {
            f"{directory.parent.name}/{directory.name}": checksum(read_record(directory))
            for directory in directories
        }

    return read


@pytest.fixture(scope="session")
def alone_store(tmp_path_factory, tiny_study) -> Callable[[int], Path]:
    """What a sweep of so many cells leaves when its steps are built one after another in this process."""
    stores: dict[int, Path] = {}

    def build(cells: int) -> Path:
        if cells not in stores:
            store = Store(tmp_path_factory.mktemp(f"alone{cells}"))
            for step in tiny_study(cells).steps:
                materialise(step, store)
            stores[cells] = store.root
        return stores[cells]

    return build


@pytest.fixture(scope="session")
def alone(alone_store, checksums) -> Callable[[int], dict[str, str]]:
    """The checksums of `alone_store`."""
    return lambda cells: checksums(alone_store(cells))


@pytest.fixture
def sublim_here(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process, its workers in theirs; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sublim", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def sublim(tmp_path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start the program in a process group of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "sublim_cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., Path]:
    """Wait until a store holds a path that matches; the process must go on running meanwhile."""

    def wait(store: Path, pattern: str, running: "subprocess.Popen[str]") -> Path:
        while not (paths := list(store.glob(pattern))):
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        return paths[0]

    return wait
