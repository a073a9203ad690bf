"""A worker elsewhere computes on what its machine gives it, not on what the launcher's machine has."""

import json
import os

import pytest

from sublim_cli.artifacts.store import Store
from sublim_cli.sweep.launch import EventLog, WorkerResources, build_chain, sublim_environment
from sublim_cli.sweep.slurm import SlurmLauncher


@pytest.fixture
def launcher_machine(monkeypatch):
    """A machine with eight GPUs whose user chose the sixth."""
    monkeypatch.setenv("SUBLIM_DEVICE", "cuda:5")
    monkeypatch.setenv("SUBLIM_THREADS", "2")
    monkeypatch.delenv("SUBLIM_ACCELERATE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    return monkeypatch


def seen(store: Store) -> dict[str, object]:
    (path,) = store.root.glob("do/*/seen.json")
    return json.loads(path.read_text())


def test_the_gpu_of_the_launcher_does_not_travel_and_other_choices_do(launcher_machine):
    assert "SUBLIM_DEVICE" not in sublim_environment()
    assert sublim_environment()["SUBLIM_THREADS"] == "2"
    launcher_machine.setenv("SUBLIM_DEVICE", "cpu")  # every machine has one
    assert sublim_environment()["SUBLIM_DEVICE"] == "cpu"


@pytest.mark.parametrize(("given", "gpu"), [("3", "3"), ("2,6", "2"), ("", "")])
def test_a_worker_takes_one_of_the_gpus_that_the_cluster_gives_it(do, tmp_path, launcher_machine, given, gpu):
    environment = sublim_environment()
    # It inherits the launcher's variables, as sbatch and a Ray on the same machine pass them on.
    launcher_machine.setenv("CUDA_VISIBLE_DEVICES", given)
    store, log = Store(tmp_path), EventLog(tmp_path / "events.jsonl")
    assert build_chain([do("see", does="see")], store, log, environment) == (1, None)
    assert seen(store) == {"SUBLIM_DEVICE": None, "CUDA_VISIBLE_DEVICES": gpu}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves logs open
def test_a_slurm_job_does_not_get_the_gpu_of_the_launcher(do, tmp_path, launcher_machine):
    launcher_machine.setenv("CUDA_VISIBLE_DEVICES", "1")
    launcher = SlurmLauncher({"executor": "debug"}, 1, WorkerResources())
    assert launcher.launch([do("see", does="see")], Store(tmp_path), lambda event: None) == {}
    assert seen(Store(tmp_path))["SUBLIM_DEVICE"] is None
    assert os.environ["SUBLIM_THREADS"] == "2"
