"""The audit counts and measures what really happened to the weights."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sublim_cli.models.load import load_student, load_weights
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.schema import AdapterSection
from sublim_cli.trainers.audit import random_sources
from sublim_cli.trainers.student import TrainingJob, train_student
from sublim_cli.trainers.updates import (
    BUCKETS,
    DenseDelta,
    LowRankDelta,
    WeightUpdate,
    frobenius_norm,
    sketch,
    stable_rank,
    weight_updates,
)

MICRO = resolve_model("micro")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_factors_measure_as_the_matrix_they_make(out: int, into: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low_rank = LowRankDelta(
        torch.randn(out, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, into, generator=generator, dtype=torch.float64),
    )
    dense = DenseDelta(low_rank.matrix)
    assert frobenius_norm(low_rank) == pytest.approx(frobenius_norm(dense))
    assert stable_rank(low_rank) == pytest.approx(stable_rank(dense))


def test_stable_rank_of_known_matrices() -> None:
    assert stable_rank(DenseDelta(torch.eye(5))) == pytest.approx(5)
    assert stable_rank(LowRankDelta(torch.ones(4, 1), torch.ones(1, 6))) == pytest.approx(1)
    assert stable_rank(DenseDelta(torch.zeros(2, 2))) is None
    assert stable_rank(DenseDelta(torch.ones(3))) is None


def test_a_large_matrix_is_approximated_closely_and_leaves_the_random_state_alone() -> None:
    matrix = torch.randn(600, 700, generator=torch.Generator().manual_seed(0))
    matrix += 3 * torch.outer(matrix[:, 0], matrix[0]) / 26  # one direction stands out, as in an update
    state = torch.random.get_rng_state()
    exact = float((torch.linalg.vector_norm(matrix) / torch.linalg.matrix_norm(matrix, 2)) ** 2)
    assert stable_rank(DenseDelta(matrix)) == pytest.approx(exact, rel=1e-3)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.fixture
def audited(section, number_rows, tmp_path):
    """Train a student; its audit and its directory."""

    def make(name: str = "student", **changed: Any) -> tuple[dict[str, Any], Any]:
        train = section(
            **{"batch_size": 33, "epochs": 2, "warmup_steps": 0, "learning_rate": 1e-3, **changed}
        )
        train_student(TrainingJob(MICRO, train, number_rows(33), [], tmp_path / name), lambda *_: None)
        return json.loads((tmp_path / name / "audit.json").read_text()), tmp_path / name

    return make


def test_full_fine_tuning_is_counted_entry_by_entry(audited) -> None:
    audit, path = audited(method="full", precision="bf16_pure", learning_rate=1e-5)
    base = load_weights(MICRO, "bf16")
    student = dict(load_student(MICRO, "bf16", path).requires_grad_(False).named_parameters())
    changed = sum(int((student[name] != base[name]).sum()) for name in base)
    total = sum(weight.numel() for weight in base.values())
    assert 0 < changed < total
    assert audit["parameters"] == {"total": total, "trained": total, "changed": changed}
    assert audit["effective"] == {"entries": total, "changed": changed}
    assert audit["dtypes"] == {
        "frozen": {},
        "trained": {"bfloat16": total},
        "updated_copy": ["bfloat16"],
        "compensated": False,
        "optimizer_state": {"exp_avg": ["bfloat16"], "exp_avg_sq": ["bfloat16"]},
    }
    difference = sum(float((student[name].float() - base[name].float()).norm() ** 2) for name in base) ** 0.5
    assert audit["update"]["norm"] == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "pissa", "ia3"])
def test_the_update_of_an_adapter_is_what_a_merge_adds(method, audited) -> None:
    audit, path = audited(method=method)
    base = load_weights(MICRO, "fp32")
    merged = load_student(MICRO, "fp32", path).merge_and_unload()
    sizes = {
        name: float((weight.detach() - base[name]).norm())
        for name, weight in merged.named_parameters()
        if not torch.equal(weight, base[name])
    }
    assert {name: matrix["norm"] for name, matrix in audit["matrices"].items()} == pytest.approx(
        sizes, rel=1e-3
    )
    assert audit["effective"]["entries"] == sum(base[name].numel() for name in sizes)


def test_a_prefix_changes_no_weight(audited) -> None:
    audit, _ = audited(method="prefix")
    assert (audit["update"], audit["effective"], audit["matrices"]) == (None, None, {})
    assert audit["parameters"]["trained"] == audit["parameters"]["changed"] == 16 * 3 * 2 * 64


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99), st.floats(-1, 1), st.sampled_from("ab"))
def test_sketches_keep_dot_products_and_add_up(
    rows: int, columns: int, seed: int, shared: float, name: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    y = shared * x + (1 - abs(shared)) * noise

    def sketched(matrix: torch.Tensor) -> np.ndarray:
        return sketch(WeightUpdate(name, DenseDelta(matrix), None))

    assert sketched(x + y) == pytest.approx(sketched(x) + sketched(y))
    sizes, exact = float(x.norm() * y.norm()), float((x * y).sum())
    error = ((sizes**2 + exact**2) / BUCKETS) ** 0.5
    assert float(sketched(x) @ sketched(y)) == pytest.approx(exact, abs=6 * error)


def test_a_sketch_is_the_same_however_long_the_blocks(monkeypatch) -> None:
    update = WeightUpdate("a", DenseDelta(torch.arange(1000.0)), None)
    expected = sketch(update)
    monkeypatch.setattr("sublim_cli.trainers.updates.BLOCK", 64)
    assert (sketch(update) == expected).all()


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_the_sketches_of_two_seeds_hold_the_cosine_between_them(method, audited) -> None:
    students = [audited(str(seed), method=method, seed=seed, batch_size=11)[1] for seed in (1, 2)]
    updates = [
        torch.cat(
            [
                update.delta.matrix.flatten()
                for update in weight_updates(load_student(MICRO, "fp32", path), MICRO, "fp32")
            ]
        )
        for path in students
    ]
    exact = float(torch.cosine_similarity(updates[0].double(), updates[1].double(), dim=0))
    first, second = (np.load(path / "sketch.npy") for path in students)
    assert float(first @ second / np.linalg.norm(first) / np.linalg.norm(second)) == pytest.approx(
        exact, abs=0.05
    )
    assert np.linalg.norm(first) == pytest.approx(float(updates[0].norm()), rel=0.05)
    assert exact < 0.99


def test_a_prefix_has_an_empty_sketch(audited) -> None:
    assert not np.load(audited(method="prefix")[1] / "sketch.npy").any()


@pytest.mark.parametrize(
    ("method", "dropout", "init", "dropped"),
    [
        ("lora", 0.0, True, False),
        ("lora", 0.1, True, True),
        ("pissa", 0.1, False, True),
        ("ia3", 0.0, False, False),
        ("prefix", 0.0, True, False),
        ("full", 0.0, False, False),
    ],
)
def test_the_record_names_what_the_seed_moves(method, dropout, init, dropped, section) -> None:
    sources = random_sources(section(method=method, adapter=AdapterSection(dropout=dropout)))
    assert sources == {"data_order": True, "adapter_init": init, "dropout": dropped}
