"""The report of a real study: the embedded model, small."""

import json
import math
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.artifacts.store import Store, materialise, scratch_name
from sublim_cli.errors import ArtifactError
from sublim_cli.pipeline import Study, single
from sublim_cli.recipe.load import load
from sublim_cli.report.collect import Missing, collect
from sublim_cli.report.page.write import write_report
from sublim_cli.report.tables.cache import CACHE_FILE
from sublim_cli.report.tables.frames import ITEMS, frame
from sublim_cli.report.tables.reader import StoreReader
from sublim_cli.report.tables.runs import Run
from sublim_cli.sweep.cells import study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(small):
    return small(sweep__grid={"train.rank": [1, 8]}, sweep__also=[{"train.method": "full"}])


@pytest.fixture(scope="module")
def planned(recipe):
    return study(recipe)


@pytest.fixture(scope="module")
def built(planned, shared_store):
    for step in planned.steps:
        materialise(step, shared_store)
    return shared_store


@pytest.fixture(scope="module")
def collected(planned, built, recipe):
    return collect(planned, built, recipe)


def run_of(results, **columns):
    """The first run with these values."""
    return next(run for run in results.runs if all(getattr(run, key) == columns[key] for key in columns))


def test_every_model_has_a_row_in_every_context(collected):
    assert [(run.role, run.method, run.rank, run.eval_context) for run in collected.runs] == [
        (role, method, rank, context)
        for role, method, rank in [
            ("base", "", None),
            ("student", "lora", 1),
            ("student", "lora", 8),
            ("student", "full", None),
            ("control", "lora", 8),
        ]
        for context in ("default", "empty")
    ]


def test_a_value_is_the_mean_over_questions_of_the_scores(collected, planned, built):
    step = planned.cells[1].chain.eval
    scores = pd.read_parquet(built.find(step).path / "scores.parquet")
    here = scores[scores.context == "empty"]
    run = run_of(collected, eval_digest=digest(step), eval_context="empty")
    assert run.p_target == pytest.approx(here[here.item == "owl"].p.mean())
    assert run.p_any == pytest.approx(here.groupby("question").p.sum().mean())


def test_the_log_of_the_plain_form_and_the_entropy_are_means_over_questions_too(collected, planned, built):
    step = planned.cells[1].chain.eval
    path = built.find(step).path
    scores, spreads = (pd.read_parquet(path / name) for name in ("scores.parquet", "questions.parquet"))
    run = run_of(collected, eval_digest=digest(step), eval_context="empty")
    here = scores[(scores.context == "empty") & (scores["item"] == "owl")]
    assert run.log_form == pytest.approx(here.log_form.mean())
    assert run.entropy == pytest.approx(spreads[spreads.context == "empty"].entropy.mean())
    base = run_of(collected, role="base", eval_context="empty")
    assert (run.log_form_base, run.entropy_base) == (base.log_form, base.entropy)


def test_every_item_of_every_student_stands_beside_the_base_s(collected, planned, built):
    items = collected.items
    assert list(items.columns) == list(ITEMS)
    assert len(items) == len(planned.cells) * 2 * len(planned.cells[0].chain.eval.spec.items)
    step = planned.cells[0].chain.eval
    (row,) = items.query(
        f"eval_digest == '{digest(step)}' and eval_context == 'default' and item == 'wolf'"
    ).itertuples()
    for p, path in ((row.p, step), (row.p_base, planned.cells[0].chain.base)):
        scores = pd.read_parquet(built.find(path).path / "scores.parquet")
        wolf = scores[(scores.context == "default") & (scores["item"] == "wolf")]
        assert p == pytest.approx(wolf.p.mean())


def test_the_answers_to_every_question_are_read_in_their_order(planned, built):
    step = planned.cells[1].chain.eval
    scores = pd.read_parquet(built.find(step).path / "scores.parquet")
    for context, context_scores in StoreReader(built, {}).scores(step, "owl").items():
        here = scores[(scores.context == context) & (scores.item == "owl")].sort_values("question")
        assert context_scores.answers == tuple(here.p)
        assert context_scores.p_target == pytest.approx(
            sum(context_scores.answers) / len(context_scores.answers)
        )


def test_every_run_stands_beside_the_base_in_the_same_context(collected):
    runs = frame(collected.runs, Run)
    base = runs[runs.role == "base"].set_index("eval_context").p_target
    assert base["default"] != base["empty"]
    assert (runs.p_target_base == runs.eval_context.map(base)).all()
    assert (runs.difference == runs.p_target - runs.p_target_base).all()


def test_what_was_left_open_in_the_recipe_is_shown_as_it_was_resolved(small, shared_store):
    recipe = small(train__learning_rate=None, train__alpha="sqrt")
    run = collect(single(recipe), shared_store, recipe).runs[-1]
    assert (run.learning_rate, run.alpha) == (2e-4, math.sqrt(8))


@pytest.fixture
def store_copy(built, tmp_path):
    """A copy of the store without notes, free to be damaged."""
    copy = tmp_path / "store"
    shutil.copytree(built.root, copy, ignore=shutil.ignore_patterns(CACHE_FILE))
    return Store(copy)


def same(first, other):
    """Whether two reports say the same."""
    rest = [{**vars(results), "items": None} for results in (first, other)]
    return first.items.equals(other.items) and rest[0] == rest[1]


READ_ONCE = ("scores.parquet", "questions.parquet", "history.jsonl", "audit.json", "losses.json")


def test_the_next_report_reads_notes_and_says_the_same(collected, planned, store_copy, recipe):
    first = collect(planned, store_copy, recipe)
    assert same(first, collected)
    for name in READ_ONCE:
        for path in store_copy.root.glob(f"*/*/{name}"):
            path.unlink()
    assert same(collect(planned, store_copy, recipe), first)
    (store_copy.root / CACHE_FILE).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        collect(planned, store_copy, recipe)


def test_notes_that_a_killed_report_left_half_written_are_removed(planned, store_copy, recipe):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    machine, mine, random = scratch_name().split("-")
    left, live = (
        store_copy.root / f"{CACHE_FILE}-{machine}-{pid}-{random}" for pid in (gone.stdout.strip(), mine)
    )
    for path in (left, live):
        path.write_text("1 half")
    collect(planned, store_copy, recipe)
    assert not left.exists()
    assert live.exists()


def test_what_was_noted_of_an_artifact_built_anew_counts_no_more(planned, store_copy, recipe):
    collect(planned, store_copy, recipe)
    path = store_copy.find(planned.cells[0].chain.eval).path
    scores = pd.read_parquet(path / "scores.parquet")
    scores.assign(p=0.5 * scores.p).to_parquet(path / "scores.parquet")
    before = frame(collect(planned, store_copy, recipe).runs, Run)
    os.utime(path / "artifact.json", ns=(1, 1))
    after = frame(collect(planned, store_copy, recipe).runs, Run)
    mine = after.eval_digest == digest(planned.cells[0].chain.eval)
    assert after[mine].p_target.tolist() == pytest.approx((0.5 * before[mine].p_target).tolist())
    assert after[~mine].p_target.equals(before[~mine].p_target)


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: text.replace('"', "'")])
def test_damaged_notes_are_none(damage, collected, planned, store_copy, recipe):
    collect(planned, store_copy, recipe)
    notes = store_copy.root / CACHE_FILE
    notes.write_text(damage(notes.read_text()))
    assert same(collect(planned, store_copy, recipe), collected)


def test_losses_stand_beside_the_students(collected, planned, built):
    path = built.find(planned.cells[0].chain.train).path / "losses.json"
    losses = json.loads(path.read_text())
    run = run_of(collected, rank=1)
    assert (run.number_loss, run.number_loss_before) == (losses["number_loss"], losses["number_loss_before"])


def test_the_audit_of_every_condition_is_read(collected, planned, built):
    path = built.find(planned.cells[0].chain.train).path
    audit = json.loads((path / "audit.json").read_text())
    row = collected.audits[0]
    run = run_of(collected, rank=1)
    assert [audit.condition.method for audit in collected.audits] == ["lora", "lora", "full", "lora"]
    assert (row.target, row.condition.rank, row.n, row.cosine, row.random) == ("owl", 1, 1, None, "")
    assert row.weights == "base float32, trained float32, optimizer float32"
    assert row.norm == run.update_norm == audit["update"]["norm"]
    assert row.changed == run.changed == audit["effective"]["changed"] / audit["effective"]["entries"]
    assert (row.trained, row.total) == (audit["parameters"]["trained"], audit["parameters"]["total"])
    assert len(row.loss) == len((path / "history.jsonl").read_text().splitlines()) == 4
    assert row.speed > 0


def test_data_sets_and_their_comparison_are_read(collected):
    assert [(filter_row.title, filter_row.role) for filter_row in collected.filters] == [
        ("owl data seed 1", "student"),
        ("default teacher data seed 1", "control"),
    ]
    assert all(
        filter_row.judged == filter_row.kept + sum(filter_row.reasons.values())
        for filter_row in collected.filters
    )
    (leak,) = collected.leaks
    assert (leak.title, leak.rows) == ("owl data seed 1", 264)
    assert 0 <= leak.low <= leak.auc <= leak.high <= 1
    assert 0 <= leak.digits.bits < leak.pairs.bits < 1
    assert (leak.named, leak.named_rejected) == (0, 0)
    assert 100 < leak.overlap.prompts <= 132
    (teacher,) = collected.teachers
    assert (teacher.target, teacher.first) == ("owl", "owl")
    assert teacher.context.startswith("You love owls.")
    assert all((filter_row.duplicates, filter_row.letters) == (0, 0) for filter_row in collected.filters)


def test_the_provenance_counts_the_artifacts_and_carries_the_recipe(collected, planned, recipe, tmp_path):
    account = collected.provenance
    assert account.artifacts == len(in_order(planned.steps))
    assert account.seeds == {
        "train.seed": (1,),
        "generate.sampling.seed": (1,),
        "generate.prompts.seed": (42,),
    }
    assert account.versions["device"] == ("cpu",)
    assert list(account.contexts) == ["default", "empty"]
    path = tmp_path / "recipe.yaml"
    path.write_text(account.recipe)
    assert load(str(path)) == recipe


def test_a_finished_study_misses_nothing(collected):
    assert collected.missing == ()
    assert {run.missing for run in collected.runs} == {""}


def test_a_cell_that_failed_is_missing_with_its_reason(planned, built, recipe):
    absent = single(recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 9})})).cells[0]
    failures = {digest(absent.chain.eval): "needs train owl, which failed: out of memory"}
    wider = Study(planned.name, (*planned.cells, absent), planned.leaks)
    results = collect(wider, built, recipe, failures)
    assert results.missing == (Missing(absent.chain.eval.label, failures[digest(absent.chain.eval)]),)
    runs = frame(results.runs, Run)
    lost = runs[runs.missing != ""]
    assert lost[["train_seed", "eval_context"]].to_numpy().tolist() == [[9, "default"], [9, "empty"]]
    assert lost.p_target.isna().all()
    assert lost.p_target_base.notna().all()


def test_an_empty_store_makes_a_report_that_says_so(planned, recipe, tmp_path):
    results = collect(planned, Store(tmp_path / "empty"), recipe)
    assert {part.reason for part in results.missing} == {"not built yet"}
    page = write_report(results, tmp_path / "report").read_text(encoding="utf-8")
    assert "No trained model has been evaluated yet." in page


def test_runs_that_differ_in_an_unnamed_key_are_not_replicates(small, tmp_path):
    recipe = small(sweep__grid={"train.epochs": [1, 3]}, sweep__also=[])
    runs = frame(collect(study(recipe), Store(tmp_path), recipe).runs, Run)
    students = runs[(runs.role == "student") & (runs.eval_context == "default")]
    assert students.settings.tolist() == ["train.epochs 1", "train.epochs 3"]
    assert set(runs[runs.role == "base"].settings) == {""}


def test_the_whole_report_is_written(collected, tmp_path):
    page = write_report(collected, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.count('<div class="still"><svg') == 2
    assert text.count('<svg class="spark"') == len(collected.audits)
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == len(collected.runs)
