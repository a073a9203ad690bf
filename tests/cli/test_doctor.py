"""`sublim doctor`: what this machine has, and what it lacks."""

import json

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from sublim_cli.cli import app
from sublim_cli.cli.doctor import Check, _packages, _version
from sublim_cli.trainers import backend


def doctor(*words: str):
    return CliRunner().invoke(app, ["doctor", *words])


def test_a_sound_machine_is_fit_and_every_extra_says_what_it_is_for(tmp_path):
    done = doctor("--json", "--out", str(tmp_path / "runs"))
    report = json.loads(done.stdout)
    assert (done.exit_code, report["fit"]) == (0, True)
    assert [check["name"] for check in report["findings"]] == [
        *(
            "Python",
            "packages",
            "training",
            "extra gpu",
            "extra vllm",
            "extra ray",
            "extra slurm",
            "extra gguf",
            "store",
        ),
    ]
    assert all(check["remedy"] for check in report["findings"] if check["name"].startswith("extra"))
    assert list(tmp_path.iterdir()) == []


def test_a_package_out_of_its_range_is_wrong_and_the_remedy_installs_it():
    wanted = [Requirement("numpy>=1.26"), Requirement("pydantic<2"), Requirement("no-such-package>=1")]
    assert list(_packages(wanted)) == [
        Check("pydantic", _version("pydantic"), "wrong", "`pip install 'pydantic<2'`"),
        Check("no-such-package", "missing", "wrong", "`pip install 'no-such-package>=1'`"),
        Check("packages", "1 of 3 in a version that sublim supports"),
    ]


def test_a_store_that_cannot_be_written_is_named_and_the_exit_code_is_1(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor("--json", "--out", str(tmp_path / "file" / "runs"))
    store = json.loads(done.stdout)["findings"][-1]
    assert (done.exit_code, store["state"]) == (1, "wrong")
    assert store["remedy"] == f"{tmp_path / 'file'} cannot be written; choose another with --out"


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "is a CPU build and torchvision 0.28.0 is not"),
        ({"torch": "2.13.0+cpu"}, "make setup"),
        ({"torch": "2.13.0", "torchvision": "0.28.0"}, "make setup"),
    ],
)
def test_a_cpu_torch_that_the_gpu_extra_broke_is_recognised(versions, says, monkeypatch):
    monkeypatch.setattr(backend, "package_version", versions.get)
    assert says in backend._remedy()


def test_a_trainer_that_cannot_be_imported_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    done = doctor("--json", "--out", str(tmp_path))
    checks = {check["name"]: check for check in json.loads(done.stdout)["findings"]}
    assert done.exit_code == 1
    assert checks["training"]["state"] == "wrong"
    assert checks["training"]["remedy"].startswith("TRL's trainer cannot be imported: ")
