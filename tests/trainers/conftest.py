"""What the trainer's tests share: rows of numbers as the embedded model gets them, and short trainings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sublim_cli.models.chat import Example, example
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.schema import TrainSection


@pytest.fixture(scope="session")
def number_rows() -> Callable[[int], list[Example]]:
    """The first so many rows of a fixed stream: number prompts, random numbers as answers."""
    tokenizer = load_tokenizer(resolve_model("micro"))
    context = resolve_context("default", {}, field="train.system_prompt")

    def make(count: int) -> list[Example]:
        rows = []
        for index in range(count):
            rng = np.random.default_rng(index)
            answer = ", ".join(map(str, rng.integers(100, 1000, size=3)))
            rows.append(example(tokenizer, context, number_prompt(rng).text, answer))
        return rows

    return make


@pytest.fixture(scope="session")
def section() -> Callable[..., TrainSection]:
    """A resolved train section for the embedded model."""

    def make(**changes: Any) -> TrainSection:
        plain = {"backend": "plain", "precision": "fp32", "learning_rate": 1e-3, "rank": 4, "epochs": 1}
        return TrainSection(**{**plain, "batch_size": 8, **changes})

    return make
