"""Every method trains the embedded model, and what it saves scores as what it trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from sublim_cli.artifacts.record import checksums
from sublim_cli.backends.exact import ExactScorer
from sublim_cli.errors import RecipeError
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_student, load_tokenizer, meta_model
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.questions import load_items, load_questions
from sublim_cli.recipe.schema import AdapterSection, QloraSection, TrainSection
from sublim_cli.trainers.methods import add_method, alpha
from sublim_cli.trainers.optimizers import make_optimizer
from sublim_cli.trainers.precision import base_precision
from sublim_cli.trainers.sft import fit
from sublim_cli.trainers.student import (
    TrainingJob,
    load_trainable,
    save_pissa_start,
    save_student,
    train_student,
    without_autocast,
)

MICRO = resolve_model("micro")

EVERY: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora with dropout": {"adapter": AdapterSection(dropout=0.2)},
    "rslora": {"method": "rslora"},
    "dora": {"method": "dora"},
    "nf4": {"method": "qlora"},
    "int8": {"method": "qlora", "qlora": QloraSection(quantize="int8")},
    "pissa": {"method": "pissa"},
    "ia3": {"method": "ia3", "learning_rate": 1e-2},
    "prefix": {"method": "prefix", "learning_rate": 1e-2},
    "full": {"method": "full", "learning_rate": 1e-4},
    "full, bf16_mixed": {"method": "full", "learning_rate": 1e-4, "precision": "bf16_mixed"},
    "full, bf16_pure": {"method": "full", "learning_rate": 1e-4, "precision": "bf16_pure"},
    "full, bf16_kahan": {"method": "full", "learning_rate": 1e-4, "precision": "bf16_kahan"},
    "pissa, bf16_mixed": {"method": "pissa", "precision": "bf16_mixed"},
    "prefix, bf16_mixed": {"method": "prefix", "precision": "bf16_mixed"},
    "nf4, bf16_mixed": {"method": "qlora", "precision": "bf16_mixed"},
}


def scores(model: Any) -> list[float]:
    """P(item) for every item and question, in one context."""
    tokenizer = load_tokenizer(MICRO)
    context = resolve_context("default", {}, field="eval.system_prompts")
    items = load_items("animal").items
    questions = load_questions("favourite_animal").questions[:6]
    prompts = [prompt_ids(tokenizer, context, question) for question in questions]
    return [p for answer in ExactScorer(model, tokenizer).score(prompts, items) for p in answer.p]


def largest_gap(first: Sequence[float], second: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def two_steps(section):
    """A section of two steps that both move weights."""

    def make(**changes: Any) -> TrainSection:
        return section(
            **{
                "batch_size": 33,
                "epochs": 2,
                "warmup_steps": 0,
                "schedule": "constant_with_warmup",
                **changes,
            }
        )

    return make


@pytest.mark.parametrize("name", EVERY)
def test_a_student_scores_the_same_before_and_after_a_reload(name, two_steps, number_rows, tmp_path) -> None:
    train = two_steps(**EVERY[name])
    model = load_trainable(MICRO, train)
    untouched = scores(load_student(MICRO, base_precision(train), None, _quantize(train)))
    begun = save_pissa_start(model, train, tmp_path / "begun")
    optimizer = make_optimizer(model, train)
    fit(model, load_tokenizer(MICRO), number_rows(33), train, lambda *_: None, optimizer=optimizer)
    live = scores(without_autocast(model).eval())
    save_student(model, tmp_path / "student", begun)
    reloaded = scores(load_student(MICRO, base_precision(train), tmp_path / "student", _quantize(train)))
    assert largest_gap(live, untouched) > 1e-5
    assert largest_gap(live, reloaded) < 1e-6


def _quantize(train: TrainSection) -> str | None:
    return train.qlora.quantize if train.method == "qlora" else None


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "prefix"])
def test_a_method_with_a_random_start_repeats_with_its_seed_and_differs_with_another(
    method, two_steps, number_rows, tmp_path
) -> None:
    sums = [
        _weights(two_steps(method=method, seed=seed), number_rows(33), tmp_path / f"{index}")
        for index, seed in enumerate([1, 1, 2])
    ]
    assert sums[0] == sums[1]
    assert sums[0] != sums[2]


def test_seeds_of_full_fine_tuning_differ_by_the_order_of_rows_and_the_record_says_so(
    section, number_rows, tmp_path
) -> None:
    for seed in (1, 2):
        train = section(method="full", seed=seed, learning_rate=1e-4, batch_size=11, warmup_steps=0)
        train_student(TrainingJob(MICRO, train, number_rows(33), [], tmp_path / str(seed)), lambda *_: None)
    first, second = (checksums(tmp_path / str(seed))["model.safetensors"] for seed in (1, 2))
    audit = json.loads((tmp_path / "1" / "audit.json").read_text())
    assert first != second
    assert audit["random_sources"] == {"data_order": True, "adapter_init": False, "dropout": False}


def test_the_whole_artifact_of_a_student_repeats(two_steps, number_rows, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_student(
            TrainingJob(MICRO, two_steps(), number_rows(33), number_rows(5), tmp_path / name), lambda *_: None
        )
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")


def _weights(train: TrainSection, rows: Any, out: Path) -> dict[str, str]:
    train_student(TrainingJob(MICRO, train, rows, [], out), lambda *_: None)
    return {name: sum_ for name, sum_ in checksums(out).items() if name.startswith("adapter")}


def test_adapters_of_a_quantised_base_are_trained_and_saved_in_fp32(two_steps, number_rows, tmp_path) -> None:
    train_student(
        TrainingJob(MICRO, two_steps(method="qlora"), number_rows(33), [], tmp_path), lambda *_: None
    )
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118  # no mapping
    dtypes = json.loads((tmp_path / "audit.json").read_text())["dtypes"]
    assert (dtypes["trained"], dtypes["optimizer_state"]["exp_avg"]) == ({"float32": 14208}, ["float32"])
    assert "nf4" in dtypes["frozen"]


@pytest.mark.parametrize(
    ("adapter", "modules"),
    [
        (AdapterSection(), 21),
        (AdapterSection(targets="attention"), 12),
        (AdapterSection(targets="mlp", layers=(1, 2)), 6),
        (AdapterSection(targets=("q_proj",), layers=(2, 2)), 1),
    ],
)
def test_adapters_sit_where_the_recipe_says(adapter, modules, section, micro) -> None:
    model = load_trainable(MICRO, section(adapter=adapter))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"adapter": AdapterSection(targets=("q_proj", "wq"))},
            "train.adapter.targets: this model has no module wq; it has down_proj, gate_proj, k_proj, "
            "o_proj, q_proj, up_proj, v_proj",
        ),
        (
            {"adapter": AdapterSection(layers=(1, 3))},
            "train.adapter.layers: [1, 3] must be two layers in order, from 0 to 2",
        ),
        (
            {"method": "pissa", "rank": 65},
            "train.rank: 65 is above 64, all that this model allows under `pissa`",
        ),
    ],
)
def test_what_the_model_lacks_is_refused_by_name(changes, message, section) -> None:
    with pytest.raises(RecipeError) as caught:
        load_trainable(MICRO, section(**changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(("rule", "value"), [("rank", 16.0), ("sqrt", 4.0), (10.0, 10.0)])
def test_alpha_follows_its_rule(rule, value) -> None:
    assert alpha(TrainSection(rank=16, alpha=rule)) == value


def test_full_fine_tuning_adds_nothing_to_the_model(section) -> None:
    model = meta_model(MICRO)
    assert add_method(model, section(method="full")) is model
    assert all(weight.requires_grad for weight in model.parameters())
