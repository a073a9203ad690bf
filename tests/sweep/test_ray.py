"""A sweep on Ray: two node processes on this machine, one of which is killed; never more than that."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import SublimError
from sublim_cli.events import Event, Warned
from sublim_cli.sweep.launch import EventLog, WorkerResources

ray = pytest.importorskip(
    "ray.cluster_utils", reason="Ray is not installed; `pip install 'sublim[ray]'` adds it"
)

from sublim_cli.sweep import ray as launcher_file  # noqa: E402  # needs Ray

pytestmark = pytest.mark.slow

ENDING = 30.0
"""Seconds in which all processes of a cluster have to end."""


@pytest.fixture
def cluster(monkeypatch):
    """Two raylets of one CPU each, which leave nothing behind."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = ray.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    family = descendants(os.getpid())
    made.shutdown()
    until = time.monotonic() + ENDING
    while left := [pid for pid in family if alive(pid)]:
        assert time.monotonic() < until, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        time.sleep(0.2)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    family = {pid}
    while more := {other for other in pids if parent(other) in family} - family:
        family |= more
    return sorted(family - {pid})


def raylet(node) -> int:
    (raylet_process,) = node.all_processes["raylet"]
    return raylet_process.process.pid


def test_a_killed_node_s_cell_goes_to_another_and_every_cell_is_there_once(
    cluster, sublim, tiny, alone, checksums, tmp_path
):
    victim = next(node for node in cluster.worker_nodes)
    flags = ["--launcher", "ray", "--ray-address", cluster.address]
    running = sublim(*tiny(3), "--out", "store", *flags)
    pid = wait_until_at_work(raylet(victim), tmp_path / "store" / "train", running)
    cluster.remove_node(victim, allow_graceful=False)
    out, err = running.communicate(timeout=900)
    assert running.returncode == 0, err
    assert "its worker was lost" in err
    assert not alive(pid)
    built = [line.rsplit(" ", 2)[0] for line in err.splitlines() if line.startswith("✓")]
    assert len(built) == len(set(built)) == 13
    assert checksums(tmp_path / "store") == alone(3)
    assert not list((tmp_path / "store").glob("*/.*-*"))
    assert "report.html" in out


def wait_until_at_work(node: int, where: Path, running) -> int:
    """The process of `node` that trains, once there is one: its number is in the scratch directory's name."""
    while True:
        for scratch in where.glob(".*-*-*-*"):
            pid = int(scratch.name.split("-")[2])
            if parent(pid) == node:
                return pid
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)


def test_an_interrupt_ends_the_tasks_and_keeps_finished_work(sublim, tiny, wait_for, tmp_path):
    running = sublim(*tiny(3), "--out", "store", "--launcher", "ray", "--workers", "1", "--json")
    wait_for(tmp_path / "store", "filter/*/artifact.json", running)
    family = descendants(running.pid)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, ""), err
    assert "interrupted: finished steps are kept" in err
    assert "Traceback" not in err
    until = time.monotonic() + ENDING
    while any(map(alive, family)):
        assert time.monotonic() < until
        time.sleep(0.2)
    done = sublim(*tiny(3), "--out", "store", "--workers", "1", "--json")
    out, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    assert not any(line.startswith("✓ filter wolf") for line in err.splitlines())
    assert json.loads(out)["preferences"]


def test_a_step_whose_worker_is_lost_three_times_has_failed(do, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    events: list[Event] = []
    fatal = do("fatal", does="die")
    launcher = launcher_file.RayLauncher(None, 1, WorkerResources())
    failed = launcher.launch([do("user", fatal), do("fine")], Store(tmp_path), events.append)
    reason = failed[digest(fatal)]
    assert reason.startswith("its worker was lost 3 times (")
    assert failed == {
        digest(fatal): reason,
        digest(do("user", fatal)): f"needs fatal, which failed: {reason}",
    }
    warning = Warned("fatal: its worker was lost; another one starts the step again")
    assert [event for event in events if isinstance(event, Warned)] == [warning] * 2
    assert Store(tmp_path).find(do("fine")) is not None
    assert not list(tmp_path.glob(".ray-*"))


def test_a_worker_that_does_not_see_the_store_says_so(do, tmp_path):
    log = EventLog(tmp_path / "elsewhere" / "events.jsonl")
    with pytest.raises(SublimError, match=r"does not see the store .*; let --out be a directory that all"):
        launcher_file._build((do("a"),), Store(tmp_path), log, {})


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--ray-address", "127.0.0.1:1"], 1, "no Ray cluster answers there; `ray start --head` starts one"),
        (["--gpus", "64"], 2, "no machine here has what a worker asks for (1 CPU, 64 GPU); lower --gpus"),
    ],
)
def test_a_cluster_that_cannot_do_it_is_one_sentence(sublim, tiny, flags, code, message):
    running = sublim(*tiny(3), "--launcher", "ray", *flags)
    _, err = running.communicate(timeout=120)
    assert running.returncode == code, err
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_steps_that_ask_for_memory_leave_room_for_those_without_a_model(
    sublim, tiny, alone, checksums, tmp_path
):
    done = sublim(*tiny(3), "--out", "store", "--launcher", "ray", "--memory", "0.5")
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    assert checksums(tmp_path / "store") == alone(3)
