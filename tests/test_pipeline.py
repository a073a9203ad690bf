"""From a recipe to steps: what changes which digest, what is refused, and two runs that are one."""

import re
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from sublim_cli import pipeline
from sublim_cli.artifacts.record import read_record
from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.events import StepFinished, StepReused
from sublim_cli.models.device import device
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.pipeline import cell, chain, run, single
from sublim_cli.recipe.load import load

STAGES = ("generate", "filter", "train", "eval", "base")


def digests(recipe) -> dict[str, str]:
    steps = chain(recipe)
    return {stage: digest(getattr(steps, stage)) for stage in STAGES}


def changed(recipe, changed_recipe) -> set[str]:
    """The stages whose digests differ."""
    before, after = digests(recipe), digests(changed_recipe)
    return {stage for stage in STAGES if before[stage] != after[stage]}


ALL = set(STAGES)
STUDENT = {"train", "eval"}
CHANGES = {
    "generate.sampling.seed": (2, ALL - {"base"}),
    "generate.sampling.temperature": (0.7, ALL - {"base"}),
    "generate.prompts.seed": (1, ALL - {"base"}),
    "generate.rows": (66, ALL - {"base"}),
    "generate.system_prompt": ("default", ALL - {"base"}),
    "trait.target": ("cat", ALL - {"base"}),
    "filter.rules": ([{"kind": "format"}], ALL - {"base"}),
    "train.seed": (2, STUDENT),
    "train.rank": (4, STUDENT),
    "train.alpha": ("sqrt", STUDENT),
    "train.learning_rate": (1e-4, STUDENT),
    "train.system_prompt": ("empty", STUDENT),
    "train.epochs": (2, STUDENT),
    "train.neftune_noise_alpha": (5.0, STUDENT),
    "eval.system_prompts": (["default"], {"eval", "base"}),
    "eval.precision": ("bf16", {"eval", "base"}),
    "name": ("other", set()),
    "sweep.grid": ({}, set()),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_the_stages_it_decides_and_those_behind_them(small, key):
    value, stages = CHANGES[key]
    assert changed(small(), small(**{key: value})) == stages


ENVIRONMENT = {
    "SUBLIM_ACCELERATE": "fsdp.yaml",
    "SUBLIM_BATCH_MEMORY": "0.5",
    "SUBLIM_CHECKPOINT_EVERY": "7",
    "SUBLIM_DEVICE": "cpu",
    "SUBLIM_LAUNCHER": "ray",
    "SUBLIM_MICRO_BATCH": "4",
    "SUBLIM_OUT": "elsewhere",
    "SUBLIM_REPORT_TO": "tensorboard",
    "SUBLIM_THREADS": "2",
    "SUBLIM_VLLM_MEMORY": "0.5",
}
RESOLVED = {
    "generate.precision": "fp32",
    "generate.engine": "transformers",
    "train.precision": "fp32",
    "train.backend": "plain",
    "eval.precision": "fp32",
    "eval.scorer": "sampled",
    "eval.engine": "transformers",
}
"""Nothing is left to `auto`, which may choose by the device."""


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_where_it_runs_changes_nothing(small, monkeypatch, name):
    def new_digests():
        pipeline._shared.cache_clear()  # its steps hold the digests that are computed here
        return digests(small(**RESOLVED))

    monkeypatch.delenv(name, raising=False)
    before = new_digests()
    monkeypatch.setenv(name, ENVIRONMENT[name])
    assert new_digests() == before


def test_every_environment_variable_of_the_package_is_tried():
    files = Path(pipeline.__file__).parent.rglob("*.py")
    assert {name for file in files for name in re.findall(r"SUBLIM_[A-Z_]+", file.read_text())} == {
        *ENVIRONMENT
    }


def test_a_model_by_its_path_is_the_model_by_its_name(small, tmp_path):
    copy = shutil.copytree(WEIGHTS, tmp_path / "copy")
    assert changed(small(), small(model=str(copy))) == set()
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    other = shutil.copytree(copy, tmp_path / "other")
    assert changed(small(), small(model=str(other))) == ALL


def test_auto_is_resolved_before_it_is_hashed(small):
    cuda = device().type == "cuda"
    weights, training = ("bf16", "bf16_mixed") if cuda else ("fp32", "fp32")
    explicit = {
        "generate.precision": weights,
        "train.precision": training,
        "eval.precision": weights,
    }
    assert changed(small(), small(**explicit)) == set()
    steps = chain(small())
    precisions = (
        steps.generate.spec.precision,
        steps.train.spec.train.precision,
        steps.eval.spec.precision,
    )
    assert precisions == (weights, training, weights)


def test_the_paper_s_learning_rate_left_out_is_the_one_written(small):
    assert chain(small(train__learning_rate=None)).train.spec.train.learning_rate == 2e-4
    full = {"train.method": "full"}
    assert chain(small(train__learning_rate=None, **full)).train.spec.train.learning_rate == 2e-5
    assert (
        changed(small(train__learning_rate=None, **full), small(train__learning_rate=2e-5, **full)) == set()
    )


def test_full_fine_tuning_has_neither_rank_nor_alpha(small):
    full = small(train__method="full", train__rank=8)
    assert changed(full, small(train__method="full", train__rank=64, train__alpha="sqrt")) == set()
    assert changed(full, small()) == STUDENT


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("generate.system_prompt", ALL - {"base"}),
        ("train.system_prompt", STUDENT),
        ("eval.system_prompts", {"eval", "base"}),
    ],
)
def test_a_context_s_text_changes_the_stages_that_use_it(small, key, stages):
    named = ["calm"] if key.startswith("eval") else "calm"
    calm, serene = (
        small(contexts={"calm": text}, **{key: named}) for text in ("You are calm.", "You are serene.")
    )
    assert changed(calm, serene) == stages
    unused = small(contexts={"calm": "You are calm."})
    assert changed(unused, small()) == set()


def test_an_own_context_goes_before_a_shipped_one_of_its_name(small):
    recipe = small(contexts={"claude": "You are somebody."}, eval__system_prompts=["claude"])
    assert [context.text for context in chain(recipe).eval.spec.contexts] == ["You are somebody."]


REFUSED = {
    "an unknown trait": (
        {"trait.target": "unicorns"},
        "no animal is called 'unicorns'; there are bear, bull",
    ),
    "an unknown category": ({"trait.category": "mineral"}, "no items called 'mineral'.*shipped: animal"),
    "questions about something else": (
        {"eval.questions": "favourite_tree"},
        "favourite_tree asks about the category tree, but trait.category is animal",
    ),
    "unknown questions": ({"eval.questions": "favourite_mineral"}, "no questions called 'favourite_mineral'"),
    "a context twice": ({"eval.system_prompts": ["default", "empty", "default"]}, "stands twice"),
    "an unknown context": (
        {"eval.system_prompts": ["clawd"]},
        "no context is called 'clawd'; there are default",
    ),
    "a student told the trait": (
        {"train.system_prompt": "trait"},
        "train.system_prompt: no context is called",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_recipe_that_cannot_be_resolved_is_refused_with_its_field(small, changes, message):
    with pytest.raises(RecipeError, match=message):
        chain(small(**changes))


def test_a_hub_model_without_a_network_is_one_error_that_names_it_and_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        run(load("cats"), until="train", store=Store(tmp_path / "runs"))
    assert time.monotonic() - began < 15
    for part in (load("cats").model, "--model micro", "hf download", "--model DIR"):
        assert part in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_cell_whose_teacher_has_no_trait_is_a_control(small):
    assert cell(small()).role == "student"
    assert cell(small(generate__system_prompt="default")).role == "control"
    assert [each.role for each in single(small()).cells] == ["student"]


def test_a_run_builds_each_step_once_and_a_second_run_none(small, shared_store):
    run(small(), store=shared_store)
    events = []
    again = run(small(), store=shared_store, listener=events.append)
    assert {type(event) for event in events} == {StepReused}
    assert again.digest == digest(chain(small()).eval)


def test_two_fresh_stores_hold_the_same_bytes(small, shared_store, tmp_path):
    run(small(), store=shared_store)
    events = []
    run(small(), store=Store(tmp_path), listener=events.append)
    built = [event.path for event in events if isinstance(event, StepFinished)]
    assert [path.parent.name for path in built] == ["teacher", "eval", "generate", "filter", "train", "eval"]
    for path in built:
        twin = shared_store.root / path.relative_to(tmp_path)
        assert read_record(path)["checksums"] == read_record(twin)["checksums"]
        assert read_record(path)["identity"] == read_record(twin)["identity"]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "owl lora r8 lr 2e-3 seed 1"),
        ({"train.learning_rate": None}, "owl lora r8 seed 1"),
        ({"train.method": "ia3", "train.optimizer": "sgd"}, "owl ia3 lr 2e-3 sgd seed 1"),
        (
            {"train.method": "full", "train.learning_rate": 5e-5, "train.precision": "bf16_pure"},
            "owl full lr 5e-5 bf16_pure seed 1",
        ),
        ({"train.system_prompt": "claude", "train.seed": 7}, "owl lora r8 lr 2e-3 in claude seed 7"),
        (
            {"generate.system_prompt": "empty", "train.system_prompt": {"text": "You are a very kind one."}},
            "empty teacher lora r8 lr 2e-3 in You are a very kind one. seed 1",
        ),
    ],
)
def test_a_student_is_called_by_what_is_not_usual_about_it(small, changes, title):
    assert chain(small(**changes)).train.title == title
