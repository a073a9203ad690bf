"""Which recipe keys differ within a study beyond those that have a column of their own.

Runs that differ in such a key are not replicates; their text keeps them apart in every summary.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sublim_cli.pipeline import Cell
from sublim_cli.recipe.schema import Recipe, Section

_EXCLUDED = frozenset(
    {
        "name",
        "trait.category",
        "trait.target",
        "train.method",
        "train.rank",
        "train.learning_rate",
        "train.precision",
        "train.system_prompt",
        "train.seed",
        "generate.sampling.seed",
        "generate.prompts.seed",
        "eval.system_prompts",
        "eval.gates",
        "eval.patches",
        "eval.gate_contexts",
        "eval.gate_controls",
        "eval.gate_seed",
    }
)
"""Keys with a column of their own; gates and patches, which change no run; seeds, which make replicates."""

_SHARED = ("chat_template", "trait", "generate", "filter", "control", "eval")
"""Sections that many cells of a study share: each is flattened once."""

_OF_ADAPTERS = frozenset({"train.alpha"})
"""Keys that full fine-tuning ignores: that its cells lack them tells no adapters apart."""

_NOT_OF_A_CELL = ("sweep", "contexts", "claims")
"""Sections that are the same for all cells; a context is written out in the section that uses it."""


def varied_keys(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """For every cell the keys in which the cells of its role differ, and its values of them."""
    flat = [_keys(cell) for cell in cells]
    seen: dict[tuple[str, str], Counter[str]] = {}
    for cell, keys in zip(cells, flat, strict=True):
        for key, value in keys.items():
            seen.setdefault((cell.role, key), Counter())[value] += 1
    cells_of_role: Counter[str] = Counter(cell.role for cell in cells)
    # A text in place of a name, or another variable of a template, is a key that other cells lack.
    varied = {
        (role, key)
        for (role, key), values in seen.items()
        if len(values) > 1 or (values.total() < cells_of_role[role] and key not in _OF_ADAPTERS)
    }
    return [
        {key: value for key, value in keys.items() if (cell.role, key) in varied}
        for cell, keys in zip(cells, flat, strict=True)
    ]


def settings_text(keys: Mapping[str, str]) -> str:
    """Such as `train.epochs 3, generate.rows 1000`; empty where nothing differs."""
    return ", ".join(f"{key} {value}" for key, value in keys.items())


def base_settings(keys: Mapping[str, str]) -> str:
    """The keys in which untouched bases can differ, in words: the model and how it is asked."""
    names = [
        key for key in keys if key in ("model", "revision") or key.startswith(("chat_template.", "eval."))
    ]
    return settings_text({key: keys[key] for key in names})


def _keys(cell: Cell) -> dict[str, str]:
    keys: dict[str, str] = {}
    for name in Recipe.model_fields:
        value = getattr(cell.recipe, name)
        if name == "train":
            keys |= _train(cell.recipe.train.model_dump_json(exclude={"seed"}))
        elif name not in _NOT_OF_A_CELL:
            keys |= _section(name, value) if name in _SHARED else _flat({name: value})
    if cell.recipe.train.method == "full":
        keys = {key: value for key, value in keys.items() if key not in _OF_ADAPTERS}
    return keys


@lru_cache
def _section(name: str, section: Section) -> dict[str, str]:
    return _flat(section.model_dump(mode="json"), f"{name}.")


@lru_cache(maxsize=4096)
def _train(section: str) -> dict[str, str]:
    """The section is JSON: one with a learning rate for every rank cannot be hashed."""
    return _flat(json.loads(section), "train.")


@lru_cache(typed=True)  # 1 and 1.0 are written differently
def _scalar(value: str | float | bool | None) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Dotted keys and their values as text, without the excluded keys."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{key}.")
        elif key not in _EXCLUDED:
            nested = isinstance(value, list | dict)
            flat[key] = json.dumps(value) if nested else _scalar(value)
    return flat
