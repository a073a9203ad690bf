"""A sweep on worker processes: shared steps once, failures contained, the same bits as alone."""

import json
import os

import pytest

from sublim_cli.artifacts.record import checksum, read_record
from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.events import Event, StepFailed, StepFinished, SweepPlanned
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


def test_workers_and_a_single_process_make_the_same_bits(tiny_study, tmp_path):
    also = "[{train.method: full}]"
    planned = tiny_study(3, sweep__grid="{train.rank: [2], train.seed: [1]}", sweep__also=also)
    swept, alone = Store(tmp_path / "swept"), Store(tmp_path / "alone")
    assert TWO.launch(planned.steps, swept, lambda event: None) == {}
    for step in planned.steps:
        materialise(step, alone)
    for step in in_order(planned.steps):
        pair = [store.find(step) for store in (swept, alone)]
        assert None not in pair
        records = [read_record(artifact.path) for artifact in pair if artifact]
        assert checksum(records[0]) == checksum(records[1]), step.label


def test_more_ranks_and_seeds_reuse_all_that_is_there(tiny_study, finished, tmp_path):
    store, events = Store(tmp_path), list[Event]()
    for step in tiny_study(3, sweep__grid="{train.rank: [1], train.seed: [1]}").steps:
        materialise(step, store)
    before = finished(tmp_path)
    assert len(before) == 11
    planned = tiny_study(3, sweep__grid="{train.rank: [1, 2], train.seed: [1, 2]}")
    assert LocalLauncher(("cpu",)).launch(planned.steps, store, events.append) == {}
    # The new rank at both seeds, the old one at the new seed, the new seed's control: trained and scored.
    students = ["wolf lora r2 lr 2e-3 seed 1", "wolf lora r2 lr 2e-3 seed 2", "wolf lora r1 lr 2e-3 seed 2"]
    students += ["default teacher lora r8 lr 2e-3 seed 2"]
    built = {event.label for event in events if isinstance(event, StepFinished)}
    assert built == {f"{kind} {student}" for kind in ("train", "eval") for student in students}
    assert before.items() <= finished(tmp_path).items()
