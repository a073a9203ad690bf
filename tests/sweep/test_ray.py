"""A sweep on Ray: two node processes on this machine, one of which is killed; never more than that."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

ray = pytest.importorskip(
    "ray.cluster_utils", reason="Ray is not installed; `pip install 'sublim[ray]'` adds it"
)

pytestmark = pytest.mark.slow


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
    until = time.monotonic() + 30
    while left := [one for one in family if alive(one)]:
        assert time.monotonic() < until, [Path(f"/proc/{one}/cmdline").read_text() for one in left]
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
    pids = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal()]
    found = {pid}
    while more := {one for one in pids if parent(one) in found} - found:
        found |= more
    return sorted(found - {pid})


def raylet(node) -> int:
    (found,) = node.all_processes["raylet"]
    return found.process.pid


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


def test_an_interrupt_ends_the_actors_and_keeps_finished_work(sublim, tiny, wait_for, tmp_path):
    running = sublim(*tiny(3), "--out", "store", "--launcher", "ray", "--workers", "1", "--json")
    wait_for(tmp_path / "store", "filter/*/artifact.json", running)
    family = descendants(running.pid)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, out) == (130, ""), err
    assert "interrupted: finished steps are kept" in err
    assert "Traceback" not in err
    until = time.monotonic() + 30
    while any(map(alive, family)):
        assert time.monotonic() < until
        time.sleep(0.2)
    done = sublim(*tiny(3), "--out", "store", "--workers", "1", "--json")
    out, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    assert not any(line.startswith("✓ filter wolf") for line in err.splitlines())
    assert json.loads(out)["preferences"]


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


def test_actors_that_ask_for_memory_build_what_loads_no_model_too(sublim, tiny, alone, checksums, tmp_path):
    """They hold every core of the cluster, so nobody else could filter the rows they wait for."""
    done = sublim(*tiny(3), "--out", "store", "--launcher", "ray", "--memory", "0.5")
    _, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    assert checksums(tmp_path / "store") == alone(3)
