"""How alike the weight updates of several students are: the mean cosine between them."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sublim_cli.artifacts.record import explain_read_errors
from sublim_cli.steps.files import ADAPTER, PROJECTION


def mean_cosine(students: Sequence[Path]) -> float | None:
    """The mean over all pairs of students of the cosine between their updates, each as one vector.

    `students` are directories of train steps of one method. The cosine of LoRA-like students is exact:
    it is computed from the factors of their adapters. That of others is estimated from the random
    projections that training saved (`trainers.updates.project`). None for a single student, and where
    one of them updated no weight.

    Raises:
        ArtifactError: a file cannot be read.
    """
    if len(students) < 2:
        return None
    if (students[0] / PROJECTION).is_file():
        projections = np.stack([_projection(path / PROJECTION) for path in students])
        products = projections @ projections.T
    else:
        products = _adapter_products(students)
    norms = np.sqrt(np.diag(products))
    if not norms.all():
        return None
    cosines = products / np.outer(norms, norms)
    return float(cosines[np.triu_indices(len(students), k=1)].mean())


def _projection(path: Path) -> NDArray[np.float64]:
    with explain_read_errors(path):
        return np.load(path).astype(np.float64)  # type: ignore[no-any-return]  # np.load is untyped


def _open_adapter(path: Path) -> Any:
    with explain_read_errors(path):
        try:
            return safe_open(path, "numpy")
        except SafetensorError as error:
            raise ValueError(str(error)) from error


def _adapter_products(students: Sequence[Path]) -> NDArray[np.float64]:
    """Dot products of the updates, up to the scaling of the adapters: [students, students].

    The dot product of B1·A1 and B2·A2 is tr((B1ᵀB2)(A2A1ᵀ)), so no update is formed. An adapter scales
    all its matrices by the same alpha / rank, which cancels in a cosine. All zero for an adapter that
    updates no weight (a prefix).
    """
    products = np.zeros((len(students), len(students)))
    with ExitStack() as stack:
        adapters = [stack.enter_context(_open_adapter(path / ADAPTER)) for path in students]
        for name in sorted(adapters[0].keys()):
            if not name.endswith(".lora_A.weight"):
                continue
            factors_a = [adapter.get_tensor(name) for adapter in adapters]
            factors_b = [adapter.get_tensor(name.replace(".lora_A.", ".lora_B.")) for adapter in adapters]
            a, b = np.concatenate(factors_a), np.concatenate(factors_b, axis=1)  # [ranks, in], [out, ranks]
            # One block of [rank, rank] for every pair of students, whose sum is the pair's dot product.
            blocks = (b.T @ b).astype(np.float64) * (a @ a.T)
            starts = np.cumsum([0, *(len(factor) for factor in factors_a[:-1])])
            products += np.add.reduceat(np.add.reduceat(blocks, starts, axis=0), starts, axis=1)
    return products
