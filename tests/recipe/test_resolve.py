"""The resolved train section: one learning rate, and defaults for what has no effect on the student."""

import pytest

from sublim_cli.errors import RecipeError
from sublim_cli.recipe.check import check
from sublim_cli.recipe.load import load
from sublim_cli.recipe.resolve import resolve_train
from sublim_cli.recipe.schema import AdapterSection, PerRank, PrefixSection, QloraSection, TrainSection

ALL = {
    "rank": 3, "alpha": 7.0, "adapter": AdapterSection(dropout=0.5), "qlora": QloraSection(quantize="int8"),
    "prefix": PrefixSection(tokens=9), "momentum": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "used"),
    [
        *((method, {"rank", "alpha", "adapter"}) for method in ("lora", "rslora", "dora", "pissa")),
        ("qlora", {"rank", "alpha", "adapter", "qlora"}),
        ("prefix", {"prefix"}),
        ("ia3", set()),
        ("full", set()),
    ],
)
def test_what_a_method_does_not_use_stands_at_its_default(method, used) -> None:
    plain, made = TrainSection(), resolve_train(TrainSection(method=method, **ALL), "fp32")
    assert {name for name in ALL if getattr(made, name) != getattr(plain, name)} == used


@pytest.mark.parametrize(
    ("optimizer", "given", "momentum"),
    [
        ("adamw", 0.5, None),
        ("adamw_8bit", None, None),
        ("sgd", None, 0.0),
        ("sgd", 0.5, 0.5),
        ("muon", None, 0.95),
    ],
)
def test_momentum_belongs_to_sgd_and_muon(optimizer, given, momentum) -> None:
    assert resolve_train(TrainSection(optimizer=optimizer, momentum=given), "fp32").momentum == momentum


@pytest.mark.parametrize(
    ("method", "rate"), [("lora", 2e-4), ("ia3", 2e-4), ("prefix", 2e-4), ("full", 2e-5)]
)
def test_the_learning_rate_defaults_to_the_papers(method, rate) -> None:
    assert resolve_train(TrainSection(method=method), "fp32").learning_rate == rate


def test_a_learning_rate_per_rank_becomes_the_one_of_the_rank() -> None:
    rates = {"train.learning_rate": {"per_rank": {1: 2e-3, 64: 5e-4}}}
    for rank, rate in [(1, 2e-3), (64, 5e-4)]:
        train = load("demo", {**rates, "train.rank": rank}).train
        assert resolve_train(train, "fp32") == resolve_train(
            TrainSection(**{**dict(train), "learning_rate": rate}), "fp32"
        )


@pytest.mark.parametrize(
    ("changes", "precision", "message"),
    [
        (
            {"learning_rate": PerRank(per_rank={1: 1e-3, 64: 1e-4})},
            "fp32",
            "train.learning_rate.per_rank: no learning rate for rank 8, only for 1, 64",
        ),
        (
            {"learning_rate": PerRank(per_rank={8: 1e-3}), "method": "full"},
            "fp32",
            "train.learning_rate.per_rank: `full` has no rank; write one number",
        ),
        (
            {"method": "qlora"},
            "bf16_pure",
            "train.precision: bf16_pure keeps trained weights in bf16, but `qlora` keeps its adapters "
            "in fp32; use fp32 or bf16_mixed",
        ),
        (
            {"method": "pissa"},
            "bf16_kahan",
            "train.precision: bf16_kahan would round the base weights that `pissa` decomposes; "
            "use fp32 or bf16_mixed",
        ),
        (
            {"optimizer": "sgd"},
            "bf16_kahan",
            "train.precision: bf16_kahan is AdamW with compensated sums, which `optimizer: sgd` has not; "
            "use adamw, or another precision",
        ),
        *(
            (
                {"adapter": AdapterSection(layers=layers)},
                "fp32",
                f"train.adapter.layers: {list(layers)} must be two layers in order, counted from 0",
            )
            for layers in [(3, 1), (-1, 1)]
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, precision, message) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_train(TrainSection(**changes), precision)
    assert str(caught.value) == message


def test_per_rank_wants_ranks_and_rates() -> None:
    assert [str(problem) for problem in check({"train": {"learning_rate": {"per_rank": {"1": -1.0}}}})] == [
        "train.learning_rate.per_rank.1: -1.0: must be above 0"
    ]
    for value in (1e-4, "fast", None):
        assert [
            str(problem) for problem in check({"train": {"learning_rate": {"per_rank": {"low": value}}}})
        ] == ["train.learning_rate.per_rank.low: the key must be a whole number"]
    assert [str(problem) for problem in check({"train": {"learning_rate": {"per_rank": {"0": 1e-4}}}})] == [
        "train.learning_rate.per_rank.0: the key must be at least 1"
    ]
