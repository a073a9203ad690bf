"""What a step will take: straight lines through records, and workers that share the steps."""

from pathlib import Path

import pytest

from sublim_cli.artifacts.record import ArtifactRecord
from sublim_cli.artifacts.step import digest, identity, in_order
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.estimate import Costs, makespan

HERE = {"device": "cpu", "threads": 1}


def record(step, root: Path, seconds: float, **facts) -> ArtifactRecord:
    """A record of `step` as a build would leave it, beside a payload of 1,000 bytes."""
    path = root / step.kind / digest(step)
    path.mkdir(parents=True)
    (path / "payload").write_bytes(b"0" * 1000)
    known = {"seconds": seconds, "process_peak_mib": 700, **HERE, **facts}
    return ArtifactRecord(path, step.kind, digest(step), identity(step), known)


def trains(small, **changes):
    return [cell.chain.train for cell in study(small(**changes)).cells]


def test_seconds_grow_with_the_rows_trained_on(small, tmp_path):
    short = trains(small)[0]
    costs = Costs([record(short.inputs[0], tmp_path, 0.1), record(short, tmp_path, 3.0)], HERE)
    long = trains(small, train__epochs=4)[0]
    cost = costs.estimate(long)
    assert (cost.seconds, cost.source, cost.records) == (12.0, "like runs", 1)
    assert (cost.memory, cost.disk) == (700, 1000)


def test_a_training_whose_rows_are_gone_says_nothing(small, tmp_path):
    """The rows were deleted to save disk, and with their record how many there were."""
    short = trains(small)[0]
    costs = Costs([record(short, tmp_path, 3.0)], HERE)
    assert costs.estimate(short) is None


def test_two_sizes_tell_the_start_from_the_work(small, tmp_path):
    records = []
    for epochs, seconds in ((1, 10 + 2.0), (3, 10 + 6.0)):
        train = trains(small, train__epochs=epochs)[0]
        records.append(record(train, tmp_path, seconds))
        if epochs == 1:
            records.append(record(train.inputs[0], tmp_path, 0.1))
    cost = Costs(records, HERE).estimate(trains(small, train__epochs=10)[0])
    assert cost.seconds == pytest.approx(10 + 20.0)


def test_a_build_on_another_device_or_of_another_method_says_nothing(small, tmp_path):
    lora = trains(small)[0]
    rows = record(lora.inputs[0], tmp_path, 0.1)
    elsewhere = record(lora, tmp_path, 3.0, device="NVIDIA H100")
    assert Costs([rows, elsewhere], HERE).estimate(lora) is None
    here = Costs([rows, record(lora, tmp_path / "here", 3.0)], HERE)
    full = next(train for train in trains(small) if train.spec.train.method == "full")
    assert here.estimate(full) is None


def test_every_step_of_a_study_has_a_cost_once_the_like_of_it_was_built(small, tmp_path):
    planned = study(small(eval__gates=["identity_only"], eval__patches=[{"positions": "no_identity"}]))
    steps = in_order(planned.steps)
    assert {"teacher", "locate", "leak", "eval"} < {step.kind for step in steps}
    costs = Costs([record(step, tmp_path, 2.0) for step in steps], HERE)
    assert all(costs.estimate(step) is not None for step in steps)


def test_more_random_sets_beside_a_gate_take_longer(small, tmp_path):
    few, many = (
        study(small(eval__gates=["no_shared"], eval__gate_controls=controls)).cells[0].chain.locate[1]
        for controls in (1, 9)
    )
    cost = Costs([record(few.inputs[0], tmp_path, 3.0), record(few, tmp_path, 2.0)], HERE).estimate(many)
    assert cost.seconds == pytest.approx(10.0)


def test_the_nearest_settings_stand_in_and_say_so(small, tmp_path):
    first, *_, last = trains(small, sweep__grid={"train.rank": [1, 64]}, sweep__also=[])[:2]
    costs = Costs([record(first.inputs[0], tmp_path, 0.1), record(first, tmp_path, 3.0)], HERE)
    assert costs.estimate(last).source == "other settings"


def test_a_devices_own_count_of_memory_goes_before_the_process(small, tmp_path):
    train = trains(small)[0]
    rows = record(train.inputs[0], tmp_path, 0.1)
    costs = Costs([rows, record(train, tmp_path, 3.0, peak_memory_mib=9000)], HERE)
    assert costs.estimate(train).memory == 9000


def test_workers_share_what_is_ready_and_wait_for_inputs(small):
    steps = in_order(study(small()).steps)
    seconds = {digest(step): {"train": 10.0, "eval": 1.0}.get(step.kind, 0.0) for step in steps}
    alone = makespan(steps, seconds, 1)
    assert alone == sum(seconds.values()) == 10 * 10 + 11
    assert alone / 2 <= makespan(steps, seconds, 2) < alone / 2 + 10
    # With a worker for every student nothing is left but one training and its scores.
    assert makespan(steps, seconds, 20) == 11.0
