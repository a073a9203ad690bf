"""Which backend trains a student, and what is said where Unsloth cannot."""

import os
import subprocess
import sys

import pytest
import torch

from sublim_cli.errors import MissingExtra, RecipeError
from sublim_cli.trainers import backend
from sublim_cli.trainers.backend import resolve_backend
from sublim_cli.trainers.unsloth import PATCHED, environment

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@pytest.fixture
def gpu_with_unsloth(monkeypatch):
    """A machine that has both, as far as the choice of a backend can see."""
    monkeypatch.setattr(backend, "on_cuda", lambda: True)
    monkeypatch.setattr(backend, "find_spec", lambda name: object())


@NO_GPU
@pytest.mark.parametrize("installed", [True, False])
def test_unsloth_without_a_gpu_is_one_sentence_that_names_plain(section, installed, monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(RecipeError) as caught:
        resolve_backend(section(backend="unsloth", precision="bf16_mixed"))
    assert str(caught.value) == (
        "train.backend: unsloth: Unsloth needs a CUDA device and none is in use here. "
        "`train.backend: plain` works here"
    )
    assert caught.value.exit_code == 2


@NO_GPU
def test_auto_without_a_gpu_is_plain_and_says_why(section):
    assert resolve_backend(section(backend="auto")) == (
        "plain",
        "Unsloth needs a CUDA device and none is in use here",
    )


def test_a_gpu_without_the_extra_names_the_command(section, monkeypatch):
    monkeypatch.setattr(backend, "on_cuda", lambda: True)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'sublim.gpu.'. adds Unsloth"):
        resolve_backend(section(backend="unsloth", precision="bf16_mixed"))


@pytest.mark.usefixtures("gpu_with_unsloth")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "unsloth"),
        ({"method": "rslora"}, "unsloth"),
        ({"method": "qlora"}, "unsloth"),
        ({"adapter": {"targets": "attention"}}, "unsloth"),
        ({"adapter": {"targets": ("q_proj", "k_proj", "v_proj")}}, "unsloth"),
        ({"adapter": {"targets": ("q_proj",)}}, "plain"),
        ({"adapter": {"dropout": 0.1}}, "plain"),
        ({"method": "qlora", "qlora": {"quantize": "int8"}}, "plain"),
        ({"method": "dora"}, "plain"),
        ({"method": "full"}, "plain"),
        ({"precision": "fp32"}, "plain"),
        ({"precision": "bf16_pure"}, "plain"),
        ({"method": "qlora", "precision": "fp32"}, "plain"),
    ],
)
def test_auto_takes_unsloth_on_its_fast_path_alone(section, changes, expected):
    asked = section(**{"backend": "auto", "precision": "bf16_mixed", **changes})
    assert resolve_backend(asked)[0] == expected
    if expected == "plain":
        with pytest.raises(RecipeError, match="fast path"):
            resolve_backend(asked.model_copy(update={"backend": "unsloth"}))


@NO_GPU
def test_the_command_line_refuses_unsloth_without_a_gpu(tmp_path):
    words = ["train", "-r", "demo", "-s", "train.backend=unsloth"]
    done = subprocess.run(
        [sys.executable, "-m", "sublim_cli", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    flat = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "Unsloth needs a CUDA device" in flat
    assert "`train.backend: plain` works here" in flat
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_unsloth_is_refused_where_others_were_imported_first(tmp_path):
    code = (
        "import transformers, sys\n"
        "from sublim_cli.errors import ModelError\n"
        "from sublim_cli.trainers.unsloth import import_unsloth\n"
        "try: import_unsloth()\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "has to be imported before transformers" in done.stdout


def test_the_process_for_unsloth_starts_without_what_it_patches(tmp_path):
    code = (
        "import sys, sublim_cli.trainers.subprocess_trainer; "
        "print(sorted(set(sys.argv[1:]) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *PATCHED, "torch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_its_cache_is_out_of_the_working_directory_and_it_sees_its_own_card(monkeypatch, tmp_path):
    monkeypatch.setenv("SUBLIM_DEVICE", "cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    variables = environment(tmp_path, os.environ)
    assert variables["UNSLOTH_COMPILE_LOCATION"] == str(tmp_path / "unsloth")
    assert variables["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert (variables["SUBLIM_DEVICE"], variables["CUDA_VISIBLE_DEVICES"]) == ("cuda:0", "7")
