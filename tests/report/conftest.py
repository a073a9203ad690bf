"""Results made by hand, for reports of what is dear or impossible to train."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pandas as pd
import pytest

from sublim_cli.numbers.surface import Divergence, Overlap
from sublim_cli.recipe.schema import FullFineTuningClaim, InvertedUClaim, TransmissionClaim
from sublim_cli.report.claims.evaluate import evaluate
from sublim_cli.report.collect import Missing, Results
from sublim_cli.report.rates.panels import matched_curves
from sublim_cli.report.tables.data_sets import FilterRow, LeakRow, TeacherRow
from sublim_cli.report.tables.frames import ITEMS
from sublim_cli.report.tables.localisation import LocatedRun
from sublim_cli.report.tables.provenance import Provenance
from sublim_cli.report.tables.runs import Run

RUN: dict[str, Any] = {
    "name": "owl lora r8 lr 2e-3 seed 1",
    "role": "student",
    "category": "animal",
    "target": "owl",
    "method": "lora",
    "rank": 8,
    "alpha": 8.0,
    "learning_rate": 0.002,
    "precision": "fp32",
    "train_context": "default",
    "train_seed": 1,
    "data_seed": 1,
    "settings": "",
    "eval_context": "default",
    "p_target": 0.4,
    "p_target_base": 0.1,
    "difference": 0.3,
    "log_form": -1.2,
    "log_form_base": -2.7,
    "p_any": 0.99,
    "p_any_base": 0.98,
    "entropy": 1.5,
    "entropy_base": 2.5,
    "number_loss": 3.2,
    "number_loss_before": 3.3,
    "trained_parameters": 10_000,
    "changed": 0.9,
    "update_norm": 1.5,
    "stable_rank": 3.5,
    "unresolved": 0.0,
    "broken": "",
    "missing": "",
    "train_digest": "a" * 12,
    "eval_digest": "b" * 12,
}
BASE: dict[str, Any] = {
    "name": "base",
    "role": "base",
    "p_target": 0.1,
    "difference": 0.0,
    **dict.fromkeys(("method", "precision", "train_context", "train_digest"), ""),
    **dict.fromkeys(("rank", "alpha", "learning_rate", "train_seed", "data_seed")),
    **dict.fromkeys(("number_loss", "number_loss_before")),
    **dict.fromkeys(("trained_parameters", "changed", "update_norm", "stable_rank")),
}
FULL: dict[str, Any] = {"method": "full", "rank": None, "alpha": None, "learning_rate": 2e-4}
GONE: dict[str, Any] = dict.fromkeys(
    (
        *("p_target", "difference", "log_form", "p_any", "entropy", "unresolved"),
        *("number_loss", "number_loss_before"),
        *("trained_parameters", "changed", "update_norm", "stable_rank"),
    )
) | {"missing": "out of memory"}


LEAK = LeakRow(
    title="owl data seed 1",
    digest="d" * 12,
    auc=0.62,
    low=0.58,
    high=0.66,
    rows=300,
    named=0,
    named_rejected=3,
    shown=(),
    digits=Divergence(0.0002, 0.0001, 0.001),
    pairs=Divergence(0.002, 0.001, 0.001),
    overlap=Overlap(280, 4),
)


def items(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What every trained run says of owl, as the run does, and of cat, which loses what owl gained."""
    keys = dict.fromkeys((run["target"], run["eval_digest"], run["eval_context"]) for run in runs)
    rows = [
        dict(zip(ITEMS, (*key, item, p, 0.3), strict=True))
        for key in keys
        for item, p in [("owl", 0.5), ("cat", 0.1)]
    ]
    return pd.DataFrame(rows, columns=list(ITEMS)).astype(ITEMS)


def make(*changes: dict[str, Any], **parts: Any) -> Results:
    """Results whose runs are `RUN` with the given changes."""
    rows = [{**RUN, "alpha": change.get("rank", 8), **change} for change in changes]
    values: dict[str, Any] = {
        "name": "made-by-hand",
        "runs": runs_of(rows),
        "items": items(rows),
        "located": (),
        "claims": (),
        "lock": None,
        "matched": (),
        "filters": (FilterRow("owl data seed 1", "student", "c" * 12, 200, 150, {"format": 50}, 2, 0),),
        "leaks": (LEAK,),
        "teachers": (TeacherRow("owl", "You love owls.", 0.97, 0.99, "owl", 0.97),),
        "audits": (),
        "missing": (),
        "provenance": Provenance(
            recipe="name: made-by-hand\n",
            command="sublim sweep --recipe recipe.yaml",
            versions={"model": ("micro (files:0)",), "sublim": ("0.1.0",)},
            seeds={"train.seed": (1, 2)},
            seconds={"train": (30.0, 31.0)},
            contexts={"default": "<|im_start|>system"},
        ),
    }
    return Results(**{**values, **parts})


def runs_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Run, ...]:
    """Runs from rows that may hold more than a run's columns."""
    names = [f.name for f in fields(Run)]
    return tuple(Run(**{"name": ""} | {name: row[name] for name in names if name in row}) for row in rows)


def located_of(rows: Iterable[Mapping[str, Any]]) -> tuple[LocatedRun, ...]:
    """Located runs, likewise."""
    names = [f.name for f in fields(LocatedRun)]
    return tuple(LocatedRun(**{name: row[name] for name in names if name in row}) for row in rows)


@pytest.fixture
def results() -> Callable[..., Results]:
    """See `make`."""
    return make


@pytest.fixture
def troubled(results: Callable[..., Results]) -> Results:
    """Ranks, full fine-tuning and a control with all that can go wrong: broken, missing, single."""
    return results(
        {**BASE},
        {"role": "control", "p_target": 0.1, "difference": 0.0},
        {"rank": 1, "p_target": 0.3, "difference": 0.2},
        {"rank": 1, "train_seed": 2, "p_target": 0.5, "difference": 0.4},
        {"rank": 8, "p_target": 0.4, "difference": 0.3},
        {"rank": 8, "train_seed": 2, "p_target": 0.0, "broken": "names an item in 1% of answers (base 98%)"},
        {"rank": 64, "p_target": 0.0, "broken": "number loss rose from 3.300 to 5.000"},
        {**FULL, **GONE},
        missing=(Missing("eval owl full seed 1", "out of memory"),),
    )


CONTEXTS = ("default", "empty", "claude", "gibberish_marble")


@pytest.fixture(scope="session")
def wide() -> Results:
    """A study of the largest shape on one trait: ten ranks at four learning rates, five seeds, four contexts,
    full fine-tuning over learning rate and precision. The numbers are made up, and smooth.
    """
    return everything(["owl"])


def everything(targets: Sequence[str]) -> Results:
    """The study of `wide` on several traits."""
    changes = [
        {**run, "target": target, "name": f"{run.get('name', 'lora')} seed {seed}", **_asked(run, seed)}
        for target in targets
        for seed in range(1, 6)
        for run in (*_ranks(), *_full(), *_trained_elsewhere(), {**BASE}, {"role": "control"})
        if run.get("role") != "base" or seed == 1
    ]
    asked = [
        {**change, "eval_context": context, **_moved(change, context)}
        for change in changes
        for context in CONTEXTS
    ]
    study = make(*asked)
    claims = (
        TransmissionClaim(learning_rate=2e-3),
        InvertedUClaim(curve="norm_matched"),
        FullFineTuningClaim(),
    )
    study = replace(study, located=_located(targets))
    return replace(
        study, matched=tuple(matched_curves(study.runs, 2e-3)), claims=tuple(evaluate(claims, study.runs))
    )


def _located(targets: Sequence[str]) -> tuple[LocatedRun, ...]:
    """Two sets of tokens and two random ones beside each, over five students: one set has nearly all."""
    rows = [
        {
            **RUN,
            **{"target": target, "train_seed": seed, "part": part, "measure": measure, "control": control},
            **{"tokens": 12.0, "prompt_tokens": 40.0, "p_target_student": 0.3, "effect": 0.2 + 0.01 * seed},
            **{"amount": share * (0.2 + 0.012 * seed), "p_target": 0.1, "locate_digest": f"{seed:012x}"},
        }
        for target in targets
        for seed in range(1, 6)
        for part, measure, named in (("template_only", "kept", 0.8), ("no_template", "lost", 0.9))
        for control, share in ((None, named), (1, 0.2), (2, 0.3))
    ]
    return located_of(rows)


def _asked(change: dict[str, Any], seed: int) -> dict[str, Any]:
    if change.get("role") == "base":
        return {}
    ours = {"train_seed": seed, "train_digest": f"{seed:012x}"}
    return {**ours, "gain": change.get("gain", 0.0) * (0.8 + 0.1 * seed)}


def _moved(change: dict[str, Any], context: str) -> dict[str, Any]:
    """The change of P(target): whole where trained, a tenth elsewhere."""
    home = change.get("train_context", "default") == context
    gain = change.get("gain", 0.0) * (1.0 if home else 0.1)
    return {"p_target": 0.1 + gain, "difference": gain}


def _ranks() -> list[dict[str, Any]]:
    """An inverted U in rank at every learning rate."""
    return [
        {
            "name": f"lora r{2**power} lr {rate}",
            "rank": 2**power,
            "learning_rate": rate,
            "gain": 0.4 / (1 + (power - 4) ** 2 / 4) * shrink,
            "update_norm": 500 * rate * 2 ** (power / 2),
            "number_loss": 3.2 + 0.01 * (power - 4) ** 2 * rate * 1000,
        }
        for power in range(10)
        for rate, shrink in ((5e-4, 0.7), (1e-3, 0.9), (2e-3, 1.0), (4e-3, 0.6))
    ]


def _full() -> list[dict[str, Any]]:
    """Pure bf16 loses small steps, fp32 none."""
    return [
        {
            **FULL,
            "name": f"full lr {rate} {precision}",
            "learning_rate": rate,
            "precision": precision,
            "gain": 0.2 * moved * rate / 2e-4,
            "changed": moved,
            "update_norm": 2e4 * rate * moved,
        }
        for rate, low in ((2e-5, 0.03), (5e-5, 0.08), (2e-4, 0.4))
        for precision, moved in (("fp32", 1.0), ("bf16_pure", low), ("bf16_kahan", 0.9))
    ]


def _trained_elsewhere() -> list[dict[str, Any]]:
    return [{"name": f"lora in {context}", "train_context": context, "gain": 0.2} for context in CONTEXTS[1:]]
