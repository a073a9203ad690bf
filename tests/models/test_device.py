"""Where tensors live: what the environment may say, and what it is told when it is wrong."""

import pytest
import torch

from sublim_cli.errors import RecipeError
from sublim_cli.models import device as module
from sublim_cli.models.device import (
    DEVICE,
    THREADS,
    VISIBLE,
    device,
    device_record,
    single_gpu_environment,
    worker_devices,
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Each test asks anew; afterwards the session's own device and threads are back."""
    threads = torch.get_num_threads()
    monkeypatch.delenv(DEVICE, raising=False)
    monkeypatch.delenv(THREADS, raising=False)
    device.cache_clear()
    yield
    device.cache_clear()
    torch.set_num_threads(threads)


def test_one_thread_computes_unless_the_environment_says_otherwise(monkeypatch):
    device()
    assert torch.get_num_threads() == 1
    device.cache_clear()
    monkeypatch.setenv(THREADS, "2")
    device()
    assert torch.get_num_threads() == 2
    assert device_record()["threads"] == 2


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_threads_that_is_none_is_refused_by_name(wrong, monkeypatch):
    monkeypatch.setenv(THREADS, wrong)
    with pytest.raises(RecipeError, match=f"{THREADS}={wrong}: must be a whole number"):
        device()


def test_the_environment_chooses_the_device(monkeypatch):
    monkeypatch.setenv(DEVICE, "cpu")
    assert device() == torch.device("cpu")
    assert device_record()["device"] == "cpu"


def test_a_device_that_does_not_exist_is_refused_by_name(monkeypatch):
    monkeypatch.setenv(DEVICE, "banana")
    with pytest.raises(RecipeError, match=f"{DEVICE}=banana: not a device"):
        device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setenv(DEVICE, "cuda")
    with pytest.raises(RecipeError, match="no CUDA device"):
        device()


def test_workers_are_one_per_group_of_threads_and_never_none(monkeypatch):
    monkeypatch.setenv(DEVICE, "cpu")
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert worker_devices() == ("cpu",) * 6
    monkeypatch.setenv(THREADS, "4")
    assert worker_devices() == ("cpu",)
    monkeypatch.setenv(THREADS, "64")
    assert worker_devices() == ("cpu",)
    assert worker_devices(3) == ("cpu",) * 3


@pytest.mark.parametrize(
    ("environment", "gpu"),
    [
        ({}, "0"),
        ({VISIBLE: "4,7"}, "4"),
        ({VISIBLE: "7"}, "7"),
        ({DEVICE: "cuda"}, "0"),
        ({DEVICE: "cuda:2"}, "2"),
        ({DEVICE: "cuda:1", VISIBLE: "4, 7,"}, "7"),
        ({DEVICE: "cuda:1", VISIBLE: "GPU-5c1d,MIG-77aa"}, "MIG-77aa"),
        ({DEVICE: "cuda", VISIBLE: "4,7"}, "4"),
    ],
)
def test_a_process_sees_one_gpu_of_those_that_the_user_allows(environment, gpu):
    changed = {**environment, **single_gpu_environment(environment)}
    assert changed == {VISIBLE: gpu, **({DEVICE: "cuda:0"} if DEVICE in environment else {})}
    assert {**changed, **single_gpu_environment(changed)} == changed


@pytest.mark.parametrize("environment", [{DEVICE: "cpu"}, {VISIBLE: ""}, {DEVICE: "cuda:x"}, {DEVICE: "mps"}])
def test_where_no_gpu_is_wanted_or_allowed_nothing_changes(environment):
    assert single_gpu_environment(environment) == {}


def test_a_gpu_outside_of_those_that_are_visible_is_refused():
    with pytest.raises(RecipeError, match="SUBLIM_DEVICE=cuda:2: CUDA_VISIBLE_DEVICES=4,7 lists 2 GPUs"):
        single_gpu_environment({DEVICE: "cuda:2", VISIBLE: "4,7"})
