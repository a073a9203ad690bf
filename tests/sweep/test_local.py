"""A sweep on worker processes: shared steps once, failures contained, the same bits as alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sublim_cli.artifacts.record import checksum, read_record
from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.events import Event, StepFailed, StepFinished, SweepPlanned
from sublim_cli.recipe.load import load, parse_setting
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.launch import FAILURES, attempt
from sublim_cli.sweep.local import LocalLauncher, worker_environment

TWO = LocalLauncher(("cpu", "cpu"))


def test_a_failed_step_stops_only_what_needs_it(do, tmp_path):
    store, events = Store(tmp_path), list[Event]()
    refused, crashed, died = do("refused", does="refuse"), do("crashed", does="crash"), do("died", does="die")
    child, grandchild = do("child", refused), do("grandchild", do("child", refused))
    fine = do("fine", do("input"))
    failed = TWO.launch([grandchild, child, crashed, died, fine], store, events.append)
    assert store.find(fine) is not None
    note = store.root / FAILURES / f"do-{digest(crashed)}.txt"
    assert failed == {
        digest(refused): "no rows",
        digest(child): "needs refused, which failed: no rows",
        digest(grandchild): "needs child, which failed: needs refused, which failed: no rows",
        digest(crashed): f"ZeroDivisionError: a defect (details in {note})",
        digest(died): (
            "its worker process died (killed, most often for want of memory; fewer --workers need less)"
        ),
    }
    assert "a defect" in note.read_text()
    assert {event.label for event in events if isinstance(event, StepFailed)} == {
        "refused",
        "crashed",
        "died",
    }


def test_where_details_cannot_be_written_the_reason_is_still_told(do, tmp_path):
    store = Store(tmp_path)
    (tmp_path / FAILURES).write_text("in the way")
    reason = attempt(do("crash", does="crash"), store, lambda event: None)
    assert reason == "ZeroDivisionError: a defect (details could not be written: File exists)"


def test_a_second_launch_builds_only_what_is_missing(do, tmp_path):
    store, events = Store(tmp_path), list[Event]()
    TWO.launch([do("a"), do("b", do("a"))], store, events.append)
    events.clear()
    TWO.launch([do("a"), do("b", do("a")), do("c", do("a"))], store, events.append)
    assert [event for event in events if isinstance(event, SweepPlanned)] == [
        SweepPlanned((digest(do("c", do("a"))),), present=2)
    ]
    assert [event.label for event in events if isinstance(event, StepFinished)] == ["c"]


@pytest.mark.parametrize(
    ("visible", "devices", "gpus"),
    [
        (None, ("cuda:0", "cuda:1"), {"0", "1"}),
        ("4,7", ("cuda:0", "cuda:1"), {"4", "7"}),
        ("GPU-a,GPU-b", ("cuda:1",), {"GPU-b"}),
    ],
)
def test_a_worker_sees_its_own_gpu_alone(do, tmp_path, monkeypatch, visible, devices, gpus):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("SUBLIM_DEVICE", "cuda")
    steps = [do(f"see {index}", does="see") for index in range(2 * len(devices))]
    before = dict(os.environ)
    # Both workers get a step before the first is done: the launcher sends to each in turn.
    assert LocalLauncher(devices).launch(steps, Store(tmp_path), lambda event: None) == {}
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("do/*/seen.json")]
    assert {worker["CUDA_VISIBLE_DEVICES"] for worker in seen} == gpus
    assert {worker["SUBLIM_DEVICE"] for worker in seen} == {"cuda:0"}
    assert os.environ == before


def test_a_worker_whose_processes_take_a_gpu_each_sees_all(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("SUBLIM_ACCELERATE", "data-parallel.yaml")
    assert worker_environment("cuda:1") == {"SUBLIM_DEVICE": "cuda:1"}


def test_workers_and_a_single_process_make_the_same_bits(small, tmp_path):
    grid, also = {"train.rank": [2], "train.seed": [1]}, [{"train.method": "full"}]
    planned = study(small(sweep__grid=grid, sweep__also=also, eval__system_prompts=["none"]))
    swept, alone = Store(tmp_path / "swept"), Store(tmp_path / "alone")
    assert TWO.launch(planned.steps, swept, lambda event: None) == {}
    for step in planned.steps:
        materialise(step, alone)
    for step in in_order(planned.steps):
        pair = [store.find(step) for store in (swept, alone)]
        assert None not in pair
        records = [read_record(artifact.path) for artifact in pair if artifact]
        assert checksum(records[0]) == checksum(records[1]), step.label


def sweep(store: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sublim_cli", "sweep", "-r", "demo", "--rows", "132"]
    settings = ["generate.held_out=20", "train.epochs=1", "eval.system_prompts=[default]"]
    settings += ["sweep.grid={train.rank: [1, 2], train.seed: [1]}", "sweep.also=[]"]
    flags = [word for setting in settings for word in ("-s", setting)]
    return subprocess.Popen(
        [*command, *flags, "--out", str(store), "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(store: Path, *words: str) -> tuple[int, list[dict[str, object]]]:
    out, err = (running := sweep(store, *words)).communicate()
    assert running.returncode is not None
    return running.returncode, json.loads(out)["preferences"] if out else [{"stderr": err}]


def wait_for(path: Path, pattern: str, running: subprocess.Popen[str]) -> None:
    while not list(path.glob(pattern)):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)


def test_a_sweep_killed_in_mid_training_finishes_with_the_same_table(tmp_path):
    undisturbed = outcome(tmp_path / "quiet")
    assert undisturbed[0] == 0, undisturbed
    running = sweep(tmp_path / "killed")
    wait_for(tmp_path / "killed", "train/.*", running)
    running.kill()
    running.communicate()
    assert outcome(tmp_path / "killed") == undisturbed
    assert not list((tmp_path / "killed").glob("*/.*-*"))


def test_an_interrupt_exits_130_and_keeps_finished_work(tmp_path):
    running = sweep(tmp_path)
    wait_for(tmp_path, "filter/*/artifact.json", running)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130
    assert "interrupted: finished steps are kept" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("generate/[0-9a-f]*/artifact.json"))
    assert not list(tmp_path.glob("*/.*-*"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_cell_that_fails_is_reported_and_the_rest_is_there(tmp_path, workers):
    # Prompts fit, some rows do not: every training step refuses, every base score is built.
    code, rows = outcome(tmp_path, "--workers", workers, "-s", "train.max_length=100")
    assert code == 1
    assert {row["label"] for row in rows if row["missing"]} == {
        "LoRA rank 1",
        "LoRA rank 2",
        "control, LoRA rank 8",
    }
    assert [row["n"] for row in rows if row["label"] == "untouched base"] == [1]


def built(err: str) -> set[str]:
    return {line[2:].rsplit(" ", 2)[0] for line in err.splitlines() if line.startswith("✓")}


def test_more_ranks_and_seeds_reuse_all_that_is_there(tiny, finished, tmp_path):
    store, grids = (
        Store(tmp_path),
        ("{train.rank: [1], train.seed: [1]}", "{train.rank: [1, 2], train.seed: [1, 2]}"),
    )
    labels, before = [], {}
    for grid in grids:
        before = finished(tmp_path)
        words, events = tiny(3, sweep__grid=grid), list[Event]()
        planned = study(load("demo", dict(map(parse_setting, words[4::2]))))
        assert LocalLauncher(("cpu",)).launch(planned.steps, store, events.append) == {}
        labels.append({event.label for event in events if isinstance(event, StepFinished)})
    # The new rank at both seeds, the old one at the new seed, the new seed's control: trained and scored.
    students = ["wolf lora r2 lr 2e-3 seed 1", "wolf lora r2 lr 2e-3 seed 2", "wolf lora r1 lr 2e-3 seed 2"]
    students += ["default teacher lora r8 lr 2e-3 seed 2"]
    assert labels[1] == {f"{kind} {student}" for kind in ("train", "eval") for student in students}
    assert len(before) == len(labels[0]) == 11
    assert before.items() <= finished(tmp_path).items()


def test_a_cell_that_always_fails_is_marked_and_tried_again(sublim, tiny, tmp_path):
    grid = "{train.learning_rate: [2.0e-3, 1.0e+30], train.seed: [1]}"  # the second one diverges
    words = [*tiny(3, sweep__grid=grid, train__epochs=4), "--out", "store", "--workers", "1", "--json"]
    outcomes = []
    for _ in range(2):
        running = sublim(*words)
        out, err = running.communicate()
        assert running.returncode == 1, err
        assert "training diverged" in err
        assert "nothing to do" not in err
        missing = {row["label"] for row in json.loads(out)["preferences"] if row["missing"]}
        page = (tmp_path / "store" / "reports" / "demo" / "report.html").read_text()
        assert "training diverged" in page
        outcomes.append((missing, len(built(err))))
    assert outcomes[0][0] == outcomes[1][0] == {"LoRA rank 8, lr 1e30"}
    assert outcomes[1][1] == 0
    assert outcomes[0][1] > 8


@pytest.mark.slow
def test_two_sweeps_at_once_build_each_step_once(sublim, tiny, alone, checksums, tmp_path):
    both = [sublim(*tiny(3), "--out", "store", "--workers", "1") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not built(said[0]) & built(said[1])
    assert len(built(said[0]) | built(said[1])) == 13
    assert checksums(tmp_path / "store") == alone(3)
