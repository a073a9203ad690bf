"""The mean cosine between students' updates: from the factors of adapters, and from projections."""

import itertools

import numpy as np
import pytest
from safetensors.numpy import save_file

from sublim_cli.errors import ArtifactError
from sublim_cli.report.tables.update_cosines import mean_cosine
from sublim_cli.steps.files import ADAPTER, PROJECTION

SHAPES = {"layers.0.q_proj": (12, 7), "layers.1.down_proj": (5, 9)}


def adapter(path, rank: int, rng: np.random.Generator) -> np.ndarray:
    """Write a LoRA adapter of random factors; its update as one vector."""
    path.mkdir()
    tensors, updates = {}, []
    for name, (rows, columns) in SHAPES.items():
        a = rng.standard_normal((rank, columns), dtype=np.float32)
        b = rng.standard_normal((rows, rank), dtype=np.float32)
        tensors |= {f"model.{name}.lora_A.weight": a, f"model.{name}.lora_B.weight": b}
        updates.append((b.astype(np.float64) @ a).ravel())
    save_file(tensors, path / ADAPTER)
    return np.concatenate(updates)


@pytest.mark.parametrize("ranks", [(1, 1), (4, 4, 4, 4), (2, 8, 3)])
def test_the_cosine_of_adapters_is_that_of_their_updates(ranks, tmp_path) -> None:
    rng = np.random.default_rng(1)
    paths = [tmp_path / str(index) for index in range(len(ranks))]
    updates = [adapter(path, rank, rng) for path, rank in zip(paths, ranks, strict=True)]
    pairs = itertools.combinations(updates, 2)
    exact = np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in pairs])
    assert mean_cosine(paths) == pytest.approx(exact, abs=1e-6)


def project(path, vector: list[float]):
    path.mkdir()
    np.save(path / PROJECTION, np.array(vector, dtype=np.float32))
    return path


def test_the_cosine_of_projections_is_the_mean_over_pairs(tmp_path) -> None:
    vectors = {"a": [1, 0], "b": [0, 2], "c": [3, 3]}
    paths = [project(tmp_path / name, vector) for name, vector in vectors.items()]
    assert mean_cosine(paths) == pytest.approx((0 + 2**-0.5 + 2**-0.5) / 3)


def test_there_is_none_for_one_student_or_where_one_updated_nothing(tmp_path) -> None:
    moved, still = project(tmp_path / "moved", [1, 0]), project(tmp_path / "still", [0, 0])
    assert mean_cosine([moved]) is None
    assert mean_cosine([moved, still]) is None


@pytest.mark.parametrize("file", [ADAPTER, PROJECTION])
def test_a_damaged_file_is_named(file, tmp_path) -> None:
    (tmp_path / file).write_bytes(b"0")
    with pytest.raises(ArtifactError, match=f"{file} cannot be read"):
        mean_cosine([tmp_path, tmp_path])
