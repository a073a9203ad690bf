"""`sublim plan`: what a sweep would do, said without doing it."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.sweep.cells import study

TINY = (
    *("--rows", "132", "-s", "generate.held_out=20", "-s", "train.epochs=1"),
    *("-s", "eval.system_prompts=[default,empty]", "-s", "eval.nodes=8", "-s", "eval.uncovered=0.9"),
    *("-s", "sweep.grid={train.rank: [1, 2]}", "-s", "sweep.also=[]"),
)


@pytest.fixture
def planned(sublim, monkeypatch) -> Callable[..., dict]:
    """What `sublim plan` of the demo tells as JSON, in a directory."""

    def plan(*words: str, cwd: Path) -> dict:
        monkeypatch.chdir(cwd)
        code, out, err = sublim("plan", "-r", "demo", "--json", "-q", "--workers", "2", *words)
        assert code == 0, err
        return json.loads(out)

    return plan


def everything(root: Path) -> dict[str, tuple[int, str]]:
    """Every file under `root`, hidden ones too, with its time and content."""
    files = [one for one in sorted(root.rglob("*")) if one.is_file()]
    return {
        str(one.relative_to(root)): (one.stat().st_mtime_ns, hashlib.sha256(one.read_bytes()).hexdigest())
        for one in files
    }


@pytest.fixture(scope="module")
def swept(tmp_path_factory, small) -> Path:
    """A directory whose `runs` holds the tiny sweep of ranks 1 and 2."""
    cwd = tmp_path_factory.mktemp("swept")
    recipe = small(
        trait__target="wolf",
        sweep__grid={"train.rank": [1, 2]},
        sweep__also=[],
        eval__nodes=8,
        eval__uncovered=0.9,
    )
    for step in study(recipe).steps:
        materialise(step, Store(cwd / "runs"))
    return cwd


def test_a_plan_of_a_new_recipe_writes_nothing_and_loads_no_trainer(tmp_path):
    code = (
        "import sys; sys.argv = ['sublim', 'plan', '-r', 'demo', '--no-probe', '--json']\n"
        "from sublim_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'trl', 'peft', 'matplotlib'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert list(tmp_path.iterdir()) == []
    assert done.stderr.strip() == "set()"
    assert {name: told["total"][name] for name in ("steps", "built", "new", "unknown")} == {
        "steps": 27,
        "built": 0,
        "new": 27,
        "unknown": 27,
    }
    assert [one["role"] for one in told["cells"]] == ["student"] * 8 + ["control"] * 2


def test_steps_come_once_in_an_order_in_which_inputs_are_first(planned, tmp_path):
    steps = planned("--no-probe", cwd=tmp_path)["steps"]
    seen: set[str] = set()
    for one in steps:
        assert set(one["inputs"]) <= seen
        assert one["digest"] not in seen
        seen.add(one["digest"])
    shared = {one["label"]: one["cells"] for one in steps if one["cells"] > 1}
    assert shared == {
        "generate wolf data seed 1": 8,
        "filter wolf data seed 1": 8,
        "eval base": 10,
        "generate default teacher data seed 1": 2,
        "filter default teacher data seed 1": 2,
    }


def test_a_plan_of_a_finished_sweep_finds_nothing_to_do_and_touches_nothing(planned, swept):
    before = everything(swept)
    told = planned(*TINY, cwd=swept)
    assert told["total"] | {"disk_free": 0} == {
        **{"steps": 13, "built": 13, "new": 0, "unknown": 0, "seconds": 0, "elapsed": 0},
        **{"memory_mib": 0, "disk": 0, "disk_free": 0},
    }
    assert everything(swept) == before


def test_a_changed_field_is_named_with_what_it_invalidates(planned, swept):
    before = everything(swept)
    told = planned(*TINY, "-s", "train.learning_rate=1e-3", cwd=swept)
    new = [one for one in told["steps"] if not one["built"]]
    assert [one["kind"] for one in new] == ["train", "eval"] * 3
    for one in new:
        changes = [(change["field"], change["was"], change["now"]) for change in one["nearest"]["changes"]]
        assert changes == ([("train.learning_rate", 2e-3, 1e-3)] if one["kind"] == "train" else [])
        assert one["nearest"]["inputs_differ"] == (one["kind"] == "eval")
        assert not one["nearest"]["in_study"]
        assert one["cost"]["source"] == "like runs"
    assert everything(swept) == before


def test_added_cells_stand_beside_the_old_ones(planned, swept):
    told = planned(*TINY, "-s", "sweep.grid={train.rank: [1, 2, 16]}", cwd=swept)
    new = [one for one in told["steps"] if not one["built"]]
    assert [one["kind"] for one in new] == ["train", "eval"]
    (rank,) = new[0]["nearest"]["changes"]
    assert (rank["field"], rank["now"], new[0]["nearest"]["in_study"]) == ("train.rank", 16, True)
    assert new[0]["cost"]["source"] == "other settings"


def test_an_added_gate_belongs_to_the_cells_that_have_it(planned, swept):
    told = planned(*TINY, "-s", "eval.gates=[identity_only]", "--no-probe", cwd=swept)
    new = [one for one in told["steps"] if not one["built"]]
    assert [(one["kind"], one["cells"]) for one in new] == [("locate", 1)] * 4
    assert [one["built"] for one in told["cells"]] == [False, False, True]  # the control has no trait


def test_the_terminal_tells_the_change_the_time_and_the_power(sublim, swept, monkeypatch):
    monkeypatch.chdir(swept)
    monkeypatch.setenv("COLUMNS", "100")
    _, told, _ = sublim("plan", "-r", "demo", *TINY, "-s", "train.learning_rate=1e-3")
    flat = " ".join(told.split())
    assert "demo on micro: 2 students and 1 control in 13 steps; 7 built, 6 to build" in flat
    assert "train.learning_rate 2e-3 → 1e-3 3 train stays on disk, unused" in flat
    assert "3 new steps only because of the steps before" in flat
    assert "C1 cannot be judged: the study lacks" in flat
    assert "1 like run" in flat


def test_power_grows_with_seeds_and_with_the_odds_ratio(planned, tmp_path):
    def found(*words: str) -> float:
        told = planned("--no-probe", *words, cwd=tmp_path)
        return told["power"]["claims"][0]["supported"]["share"]["mean"]

    few = found("--odds-ratio", "1.6")
    assert found("--odds-ratio", "4") > few
    assert found("--odds-ratio", "1.6", "-s", "sweep.grid.train.seed=[1,2,3,4,5,6]") > few


@pytest.mark.slow
def test_a_probe_measures_what_no_record_tells_and_leaves_nothing_behind(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "sublim_cli", "plan", "-r", "demo", *TINY, "--json"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["total"]["unknown"] == 0
    assert told["not_measured"] == []
    assert {one["cost"]["source"] for one in told["steps"]} == {"probe"}
    assert told["total"]["seconds"] >= told["total"]["elapsed"] > 1
    assert [one.name for one in tmp_path.iterdir()] == ["scratch"]
    assert not list(scratch.glob("sublim*"))  # torch may leave a folder of its own


def test_a_model_that_is_not_here_gets_the_same_message_as_elsewhere(tmp_path):
    words = ("-r", "demo", "--model", "nobody/nothing-at-all")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    said = [
        subprocess.run(
            [sys.executable, "-m", "sublim_cli", command, *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        for command in ("plan", "sweep")
    ]
    assert [one.returncode for one in said] == [1, 1]
    assert said[0].stderr == said[1].stderr
    assert "is not on this machine" in said[0].stderr
