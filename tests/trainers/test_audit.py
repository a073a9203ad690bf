"""The audit counts and measures what really happened to the weights."""

import itertools
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
from sublim_cli.report.tables.update_cosines import mean_cosine
from sublim_cli.trainers.audit import random_sources
from sublim_cli.trainers.student import TrainingJob, train_student
from sublim_cli.trainers.updates import (
    DIMENSION,
    DenseDelta,
    LowRankDelta,
    WeightUpdate,
    frobenius_norm,
    project,
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
def test_projections_keep_dot_products_and_add_up(
    rows: int, columns: int, seed: int, shared: float, name: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    y = shared * x + (1 - abs(shared)) * noise

    def projected(matrix: torch.Tensor) -> torch.Tensor:
        return project(WeightUpdate(name, DenseDelta(matrix), None))

    torch.testing.assert_close(projected(x + y), projected(x) + projected(y), rtol=1e-4, atol=1e-4)
    sizes, exact = float(x.norm() * y.norm()), float((x * y).sum())
    error = ((sizes**2 + exact**2) / DIMENSION) ** 0.5
    assert float(projected(x) @ projected(y)) == pytest.approx(exact, abs=6 * error)


def test_a_cosine_of_projections_has_the_stated_error_for_a_matrix_of_one_row_or_column() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = []
    for index in range(300):
        x, y = torch.zeros(2, 400, 200)
        line = (slice(None), 7) if index % 2 else (7, slice(None))
        x[line], y[line] = torch.randn(2, len(x[line]), generator=generator)
        px, py = (project(WeightUpdate(f"layer {index}", DenseDelta(matrix), None)) for matrix in (x, y))
        cosine = torch.cosine_similarity(x.flatten().double(), y.flatten().double(), dim=0)
        errors.append(float(torch.cosine_similarity(px, py, dim=0) - cosine))
    assert np.std(errors) < 1.2 / DIMENSION**0.5


def test_a_projection_is_the_same_however_long_the_blocks(monkeypatch) -> None:
    update = WeightUpdate("a", DenseDelta(torch.arange(3_000_000) % 8.0), None)
    expected = project(update)
    monkeypatch.setattr("sublim_cli.trainers.updates.BLOCK", 2 * 64 * DIMENSION)
    assert torch.equal(project(update), expected)


def whole_update(path) -> torch.Tensor:
    """All updates of the student at `path` as one vector."""
    updates = weight_updates(load_student(MICRO, "fp32", path), MICRO, "fp32")
    return torch.cat([update.delta.matrix.flatten() for update in updates]).double()


@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "dora", "ia3", "full"])
def test_the_cosine_of_two_students_is_that_of_their_updates(method, audited) -> None:
    students = [audited(str(seed), method=method, seed=seed, batch_size=11)[1] for seed in (1, 2, 3)]
    updates = [whole_update(path) for path in students]
    pairs = itertools.combinations(updates, 2)
    exact = np.mean([float(torch.cosine_similarity(x, y, dim=0)) for x, y in pairs])
    from_factors = method in ("lora", "rslora", "pissa")
    assert mean_cosine(students) == pytest.approx(exact, abs=1e-6 if from_factors else 0.03)
    assert [(path / "projection.npy").exists() for path in students] == 3 * [not from_factors]
    if not from_factors:
        norm = np.linalg.norm(np.load(students[0] / "projection.npy"))
        assert norm == pytest.approx(float(updates[0].norm()), rel=0.03)
    assert exact < 0.99


def test_an_adapter_in_bf16_is_projected_as_numpy_cannot_read_it(audited) -> None:
    students = [audited(str(seed), precision="bf16_kahan", seed=seed)[1] for seed in (1, 1)]
    assert mean_cosine(students) == pytest.approx(1)


def test_a_prefix_has_no_projection_and_no_cosine(audited) -> None:
    prefix = audited("prefix", method="prefix")[1]
    assert not (prefix / "projection.npy").exists()
    assert mean_cosine([prefix, prefix]) is None


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
