"""A study goes on with what `auto` stood for when it was planned, on every machine."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from sublim_cli import pipeline
from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.backends import engine
from sublim_cli.cli import main
from sublim_cli.errors import ArtifactError, ModelError, RecipeError
from sublim_cli.models import reference
from sublim_cli.recipe.load import load
from sublim_cli.sweep.cells import study
from sublim_cli.sweep.manifest import (
    MANIFESTS,
    check_buildable,
    plan_study,
    recipe_identity,
    record_study,
)
from sublim_cli.trainers import backend

SMALLEST = {
    "generate.rows": 33,
    "generate.held_out": 0,
    "generate.sampling.max_tokens": 24,
    "filter.rules": [{"kind": "count", "most": 12}],
    "train.epochs": 1,
    "eval.scorer": "sampled",
    "eval.samples": 1,
    "eval.sampling.max_tokens": 1,
    "eval.system_prompts": ["none"],
    "sweep.grid": {"train.rank": [1]},
    "sweep.also": [],
    "claims": [],
}


def words(command: str, **more: object) -> list[str]:
    settings = {**SMALLEST, **{name.replace("__", "."): value for name, value in more.items()}}
    flags = [word for key, value in settings.items() for word in ("-s", f"{key}={json.dumps(value)}")]
    return [command, "-r", "demo", *flags]


@pytest.fixture
def pretend(monkeypatch):
    """Make this machine look like another one to everything that resolves `auto`."""

    def become(*, cuda: bool = False, extras: tuple[str, ...] = ()) -> None:
        for module in (pipeline, engine, backend):
            monkeypatch.setattr(module, "on_cuda", lambda: cuda)
        for module in (engine, backend):
            monkeypatch.setattr(module, "find_spec", lambda name: object() if name in extras else None)

    return become


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A store of a machine with a CUDA device and without extras, as far as `auto` could see."""
    store = Store(tmp_path_factory.mktemp("swept"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline, engine, backend):
            patch.setattr(module, "on_cuda", lambda: True)
        planned, _ = plan_study(recipe(), store)
        record_study(recipe(), planned, store)
    for step in planned.steps:
        materialise(step, store)
    return store.root


@pytest.fixture
def store(swept, tmp_path) -> Store:
    """A copy of it, as on a laptop."""
    return Store(Path(shutil.copytree(swept, tmp_path / "runs")))


def recipe(**changes: object):
    return load("demo", {**SMALLEST, **{name.replace("__", "."): value for name, value in changes.items()}})


def digests(planned) -> set[str]:
    return {digest(step) for step in planned.steps}


@pytest.fixture
def sublim_here(monkeypatch, capsys, store):
    """Run the program in this process beside the store `runs`; returns exit code, stdout and stderr."""
    monkeypatch.chdir(store.root.parent)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sublim", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, " ".join(shown.err.split())

    return run


def test_a_report_on_a_machine_without_the_gpu_finds_everything(sublim_here, store, pretend):
    tables = []
    for cuda in (False, True):
        pretend(cuda=cuda)
        code, shown, _ = sublim_here(*words("report"), "--json")
        assert code == 0
        tables.append(json.loads(shown)["preferences"])
    page = (store.root / "reports" / "demo" / "report.html").read_text(encoding="utf-8")
    assert tables[0] == tables[1] != []
    assert "not built yet" not in page


def test_an_extra_that_was_installed_since_renames_nothing_and_is_one_line(sublim_here, store, pretend):
    pretend(cuda=True, extras=("unsloth", "vllm"))
    (file,) = (store.root / MANIFESTS).iterdir()
    before = file.stat().st_ino
    code, _, said = sublim_here(*words("sweep"))
    assert code == 0
    assert "nothing to do: all 11 steps were already built" in said
    assert "train.backend plain" in said
    assert "generate.engine transformers" in said
    assert "`--set generate.engine=vllm` asks for that" in said
    assert file.stat().st_ino != before  # the study is planned anew, with the same resolution
    assert json.loads(file.read_text(encoding="utf-8"))["machine"] == {
        **{"cuda": True, "unsloth": False, "vllm": False}
    }


def test_a_key_that_is_named_wins_and_the_rest_stays_as_recorded(store, pretend):
    pretend(cuda=True, extras=("unsloth", "vllm"))
    planned, _ = plan_study(recipe(train__backend="unsloth"), store)
    old, _ = plan_study(recipe(), store)
    assert {cell.chain.train.spec.train.backend for cell in planned.cells} == {"unsloth"}
    assert {cell.chain.generate.spec.engine for cell in planned.cells} == {"transformers"}
    assert [digest(cell.chain.filter) for cell in planned.cells] == [
        digest(cell.chain.filter) for cell in old.cells
    ]


def test_cells_that_are_added_are_trained_like_those_in_the_store(store, pretend):
    pretend(cuda=True, extras=("unsloth",))
    grown = {"sweep.grid": {"train.rank": [1, 2]}}
    planned, said = plan_study(load("demo", {**SMALLEST, **grown}), store)
    assert {cell.chain.train.spec.train.backend for cell in planned.cells} == {"plain"}
    assert digests(plan_study(recipe(), store)[0]) <= digests(planned)
    assert said is not None


def test_a_record_of_which_nothing_was_built_binds_no_other_machine(tmp_path, pretend):
    store = Store(tmp_path / "runs")
    pretend(cuda=False)
    planned, _ = plan_study(recipe(), store)
    record_study(recipe(), planned, store)
    pretend(cuda=True)
    again, said = plan_study(recipe(), store)
    assert {cell.chain.train.spec.train.precision for cell in again.cells} == {"bf16_mixed"}
    assert said is None


def test_a_machine_joins_one_that_is_building_but_not_what_it_cannot_build(tmp_path, pretend):
    store = Store(tmp_path / "runs")
    pretend(cuda=True, extras=("unsloth",))
    planned, _ = plan_study(recipe(), store)
    record_study(recipe(), planned, store)
    pretend(cuda=False)
    with store.claim(planned.cells[0].chain.generate):
        joined, said = plan_study(recipe(), store)
    assert digests(joined) == digests(planned)
    assert said is not None
    check_buildable(joined, [joined.cells[0].chain.generate])
    with pytest.raises(
        RecipeError, match=r"train\.backend: unsloth: Unsloth needs a CUDA device.*goes on there"
    ):
        check_buildable(joined, [joined.cells[0].chain.train])


def test_a_report_needs_neither_the_model_nor_an_extra_that_the_recipe_names(tmp_path, pretend, monkeypatch):
    store = Store(tmp_path / "runs")
    gone = tmp_path / "model"
    shutil.copytree(reference.micro.WEIGHTS, gone)
    wanted = recipe(model=str(gone), train__backend="unsloth", train__precision="bf16_mixed")
    pretend(cuda=True, extras=("unsloth",))
    planned, _ = plan_study(wanted, store)
    record_study(wanted, planned, store)
    pretend(cuda=False)
    shutil.rmtree(gone)
    reference._pin.cache_clear()
    with store.claim(planned.cells[0].chain.generate):
        read, _ = plan_study(wanted, store, reading=True)
        with pytest.raises(ModelError, match="there is no directory"):
            plan_study(wanted, store)
    assert digests(read) == digests(planned)


def test_a_model_of_the_hub_stays_at_the_commit_that_was_planned(tmp_path, monkeypatch):
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr(reference, "_commit", lambda name, revision: next(commits))
    store, wanted = Store(tmp_path / "runs"), recipe(model="somebody/some-model")
    planned, _ = plan_study(wanted, store)
    record_study(wanted, planned, store)
    reference._pin.cache_clear()
    with store.claim(planned.cells[0].chain.generate):
        again, said = plan_study(wanted, store)
    assert digests(again) == digests(planned)
    assert "somebody/some-model aaaaaaaaaaaa" in said


def test_of_two_records_the_one_with_more_in_the_store_is_taken(store, pretend):
    pretend(cuda=False)
    other, grown = recipe(generate__rows=66), load("demo", {**SMALLEST, "sweep.grid": {"train.rank": [1, 2]}})
    record_study(other, study(other), store)  # newer, for another machine, and nothing of it is built
    planned, _ = plan_study(grown, store)
    assert {cell.chain.train.spec.train.precision for cell in planned.cells} == {"bf16_mixed"}


def test_the_manifest_says_what_auto_stood_for_and_why(store):
    (file,) = (store.root / MANIFESTS).iterdir()
    manifest = json.loads(file.read_text(encoding="utf-8"))
    table = {row["key"]: (row["value"], row["reason"], row["cells"]) for row in manifest["auto"]}
    assert table["train.precision"] == ("bf16_mixed", "with a CUDA device", 2)
    assert table["train.backend"] == ("plain", "Unsloth is not installed", 2)
    assert table["eval.engine"] == ("transformers", "vLLM is not installed", 2)
    assert {cell["role"] for cell in manifest["cells"]} == {"student", "control"}
    for cell in manifest["cells"]:
        assert (store.root / "eval" / cell["steps"]["eval"]).is_dir()
    assert manifest["cells"][0]["settings"]["train.rank"] == 1


def test_recipes_that_differ_in_the_kind_of_a_rule_alone_have_a_manifest_each():
    kinds = ("strip", "format", "count")
    assert len({recipe_identity(recipe(filter__rules=[{"kind": kind}])) for kind in kinds}) == 3
    assert recipe_identity(recipe()) == recipe_identity(recipe(claims=[{"kind": "transmission"}]))


def test_a_report_says_that_code_or_files_have_changed_since(sublim_here, store, pretend, monkeypatch):
    pretend(cuda=False)
    monkeypatch.setattr(pipeline.EvalStep, "version", 99)
    _, _, said = sublim_here(*words("report"))
    assert "steps of this study had other digests when it was planned" in said


def test_a_damaged_manifest_is_named(store):
    (file,) = (store.root / MANIFESTS).iterdir()
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"manifests.*cannot be read.*delete it"):
        plan_study(recipe(), store)
