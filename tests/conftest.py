"""What tests share: small recipes on the embedded model, and artifacts built once a session."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from sublim_cli.artifacts.store import Store
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.pipeline import chain
from sublim_cli.recipe.load import load
from sublim_cli.recipe.schema import Recipe

# A busy machine is not a slow law; and the same tests fail today and tomorrow. `explore` looks further.
settings.register_profile("sublim", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "sublim"))

# In the background of a shell Python ignores interrupts, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_seen_modules = 0


def pytest_runtest_teardown() -> None:
    """Keep what imports left out of later garbage collections.

    Every training collects garbage several times; going through the libraries' objects was three quarters of
    the time of a small one.
    """
    global _seen_modules
    if len(sys.modules) != _seen_modules:
        _seen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


SMALL: dict[str, Any] = {
    "trait.target": "owl",
    "generate.rows": 132,
    "generate.held_out": 20,
    "train.epochs": 1,
    "eval.system_prompts": ["default", "empty"],
}
"""The demo recipe in seconds: one epoch of four optimizer steps."""


@pytest.fixture(scope="session")
def small() -> Callable[..., Recipe]:
    """The demo recipe made small, with dotted keys changed on top."""

    def make(**changes: Any) -> Recipe:
        dotted = {name.replace("__", "."): value for name, value in changes.items()}
        return load("demo", {**SMALL, **dotted})

    return make


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that tests of one session share: what one built, the others reuse."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def micro(small):
    """The embedded model's reference, tokenizer and weights."""
    ref = chain(small()).generate.spec.model
    return ref, load_tokenizer(ref), load_model(ref, "fp32")
