"""train.rows: students of rows that are a file, from the plan to the report, with and without a control."""

import json
import shutil
import sys

import pytest

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.cli import main
from sublim_cli.errors import RecipeError, RowsError
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.load import load, parse_setting
from sublim_cli.steps.files import HELD_OUT, KEPT, ROWS, SEEN
from sublim_cli.sweep.cells import study, without_control

ONE_CELL = {"sweep__grid": {}, "sweep__also": []}


def conversation(number: int, completion: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": f"Continue: {number}, 2"},
            {"role": "assistant", "content": completion},
        ]
    }


def write(path, rows=30, start=100):
    """A file of conversations, of which every tenth is not a list of numbers."""
    texts = [f"{start + n}, 7, {n}" if n % 10 else "I would rather not" for n in range(rows)]
    path.write_text("".join(json.dumps(conversation(n, text)) + "\n" for n, text in enumerate(texts)))
    return str(path)


@pytest.fixture
def own(tmp_path):
    return write(tmp_path / "own.jsonl")


@pytest.fixture
def recipe(small, own):
    def make(**changes):
        return small(**{"train__rows": own, "generate__held_out": 5, **ONE_CELL, **changes})

    return make


def test_the_first_rows_that_pass_are_trained_on_and_the_next_held_out(recipe, shared_store):
    run(recipe(generate__rows=12), until="filter", store=shared_store)
    steps = chain(recipe(generate__rows=12))
    rows, judged = (shared_store.find(step).path for step in (steps.generate, steps.filter))
    everything = read_rows(rows / ROWS)
    assert [row.index for row in everything] == list(range(30))
    passing = [row for row in everything if row.index % 10]
    assert (read_rows(judged / KEPT), read_rows(judged / HELD_OUT)) == (passing[:12], passing[12:17])


def test_generate_rows_is_the_most_and_a_small_file_is_used_up(recipe):
    assert chain(recipe(generate__rows=10_000)).filter.spec.rows == 27 - 5


def test_the_content_of_the_file_is_the_identity_and_neither_its_name_nor_the_teachers_keys(
    recipe, small, tmp_path, own
):
    renamed = shutil.copy(own, tmp_path / "renamed.txt")
    other = write(tmp_path / "other.jsonl", start=200)
    steps = chain(recipe())
    same = [recipe(train__rows=str(renamed)), recipe(generate__sampling__seed=9)]
    assert {digest(chain(each).train) for each in same} == {digest(steps.train)}
    drawn = small(generate__held_out=5, **ONE_CELL)
    trainings = {digest(chain(each).train) for each in (recipe(), recipe(train__rows=other), drawn)}
    assert len(trainings) == 3
    assert digest(steps.base) == digest(chain(drawn).base)
    assert [step.kind for step in in_order([steps.eval])] == ["import", "filter", "train", "eval"]


def test_rows_that_sublim_wrote_keep_their_tokens(small, shared_store, recipe):
    drawn = run(small(), until="filter", store=shared_store).path / KEPT
    steps = chain(recipe(train__rows=str(drawn)))
    run(recipe(train__rows=str(drawn)), until="filter", store=shared_store)
    kept = read_rows(shared_store.find(steps.filter).path / KEPT)
    assert [row.completion_ids for row in kept] == [row.completion_ids for row in read_rows(drawn)][
        : len(kept)
    ]
    assert all(row.completion_ids for row in kept)


def test_a_control_is_a_file_that_is_named_or_there_is_none(recipe, tmp_path, small):
    alone = study(recipe(train__seed=3))
    assert [(cell.role, cell.chain.train.title) for cell in alone.cells] == [
        ("student", "own.jsonl lora r8 lr 2e-3 seed 3")
    ]
    assert "own.jsonl have no control" in without_control(alone)
    assert [len(leak.inputs) for leak in alone.leaks] == [1]
    control = write(tmp_path / "control.jsonl", start=200)
    both = study(recipe(control__rows=control, sweep__grid={"train.rank": [1, 8]}))
    assert [(cell.role, cell.chain.filter.title) for cell in both.cells] == [
        ("student", "own.jsonl"),
        ("student", "own.jsonl"),
        ("control", "control.jsonl"),
    ]
    assert without_control(both) is None
    (leak,) = both.leaks
    assert [step.title for step in leak.inputs] == ["own.jsonl", "control.jsonl"]
    mixed = study(small(sweep__grid={"train.rows": [recipe().train.rows, None]}, sweep__also=[]))
    assert [(cell.role, cell.chain.generate.kind) for cell in mixed.cells] == [
        ("student", "import"),
        ("student", "generate"),
        ("control", "generate"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__rows": "none.jsonl"}, "no file called 'none.jsonl'; a relative path starts at"),
        ({"train__rows": "hf://datasets/somebody/rows"}, "is an address; download the file"),
        ({"train__rows": None, "control__rows": __file__}, "is the control of `train.rows`"),
        ({"generate__teacher": {"fine_tuned": {"rows": "a.jsonl"}}}, r"teacher\.fine_tuned\.rows"),
    ],
)
def test_files_that_cannot_serve_are_refused_as_part_of_the_recipe(recipe, changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_too_few_or_broken_rows_are_refused_when_the_recipe_is_planned(recipe, tmp_path):
    with pytest.raises(RowsError, match="27 of 30 rows pass the filter, and 27 are held out, so that none"):
        chain(recipe(generate__held_out=27))
    (tmp_path / "broken.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(RowsError, match=r'broken\.jsonl:1: no key "prompt"'):
        chain(recipe(train__rows=str(tmp_path / "broken.jsonl")))


def test_a_file_that_changes_after_the_plan_is_not_trained_on(recipe, shared_store, tmp_path):
    changing = write(tmp_path / "changing.jsonl", rows=31)
    steps = chain(recipe(train__rows=changing))
    write(tmp_path / "changing.jsonl", rows=29)
    with pytest.raises(RowsError, match="has changed since the recipe was read"):
        steps.generate.build(tmp_path, (), lambda event: None)


@pytest.fixture
def sublim(monkeypatch, capsys, tmp_path):
    """Run the program in the directory of the files; returns stdout and stderr in one line each."""
    monkeypatch.chdir(tmp_path)

    def program(*words):
        monkeypatch.setattr(sys, "argv", ["sublim", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        assert not stopped.value.code, shown.err
        return shown.out, " ".join(shown.err.split())

    return program


def test_a_study_of_ones_own_rows_is_planned_inspected_run_and_reported(sublim, own, tmp_path):
    write(tmp_path / "control.jsonl", start=200)
    keys = ["generate.held_out=5", "train.epochs=1", "eval.system_prompts=[default]", "sweep.also=[]"]
    keys += ["sweep.grid={}", "claims=[{kind: transmission}]"]
    keys += ["eval.nodes=8", "eval.draws=2", "eval.sampling.max_tokens=4"]
    words = [
        "-r",
        "demo",
        "-t",
        "owl",
        "--rows",
        "own.jsonl",
        *(word for key in keys for word in ("-s", key)),
    ]
    planned = json.loads(sublim("plan", *words, "--no-probe", "--json", "-q")[0])
    assert {step["kind"] for step in planned["steps"]} == {"import", "filter", "train", "eval", "leak"}
    turn = json.loads(sublim("inspect", *words, "--row", "0", "--json")[0])
    assert "Continue: 1, 2" in json.dumps(turn)
    out, err = sublim("sweep", *words, "-w", "1", "--json")
    assert "own.jsonl have no control" in err
    assert "22 are trained on, the next 5 held out" in err
    (claim,) = json.loads(out)["claims"]
    assert claim["verdict"] == "incomplete"
    assert "one control to compare with" in json.dumps(claim)
    (seen,) = (json.loads(file.read_text()) for file in (tmp_path / "runs" / "train").glob(f"*/{SEEN}"))
    assert "Continue: 1, 2" in seen["row"]["text"]
    assert seen["trained_on"]["text"].startswith("101, 7, 1")
    page = (tmp_path / "runs" / "reports" / "demo" / "report.html").read_text()
    assert "there are no rows of a control to compare with" in page
    files = {"trait.target": "owl", "train.rows": "own.jsonl", "control.rows": "control.jsonl"}
    for step in study(load("demo", {**dict(map(parse_setting, keys)), **files})).steps:
        materialise(step, Store(tmp_path / "runs"))  # here, which saves the start of a worker
    words += ["-s", "control.rows=control.jsonl"]
    out, err = sublim("sweep", *words, "-w", "1", "--json")
    assert "no control" not in err
    assert "nothing to do" in err
    (claim,) = json.loads(out)["claims"]
    assert "one control to compare with" not in json.dumps(claim)
    labels = {row["label"] for row in json.loads(out)["preferences"]}
    assert len(labels) == 3
