"""Each optimizer by its name: what it moves, what it remembers, and that it goes on from a checkpoint."""

import copy
from typing import Any

import pytest
import torch

from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers.optimizers import KahanAdamW, make_optimizer
from sublim_cli.trainers.precision import state_dtypes
from sublim_cli.trainers.student import load_trainable

MICRO = resolve_model("micro")
CASES: dict[str, dict[str, Any]] = {
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "sgd": {"optimizer": "sgd", "momentum": 0.9},
    "muon": {"optimizer": "muon"},
    "kahan": {"precision": "bf16_kahan"},
}


def stepped(model: Any, optimizer: Any, times: int, first: int = 0) -> None:
    """Steps with gradients that depend on the step's number alone."""
    for step in range(first, first + times):
        generator = torch.Generator().manual_seed(step)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", CASES)
def test_a_reloaded_optimizer_goes_on_bit_by_bit(name, section) -> None:
    train = section(method="full", **CASES[name])
    model = load_trainable(MICRO, train)
    optimizer = make_optimizer(model, train)
    stepped(model, optimizer, 3)
    other = copy.deepcopy(model)
    saved = copy.deepcopy(optimizer.state_dict())
    successor = make_optimizer(other, train)
    successor.load_state_dict(saved)
    stepped(model, optimizer, 3, first=3)
    stepped(other, successor, 3, first=3)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("name", CASES)
def test_a_scheduler_sets_the_rate_of_every_part(name, section) -> None:
    train = section(method="full", **CASES[name])
    model = load_trainable(MICRO, train)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = make_optimizer(model, train)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    stepped(model, optimizer, 1)
    assert all(map(torch.equal, model.parameters(), before))


def test_plain_adamw_is_left_to_the_trainer(section) -> None:
    assert make_optimizer(None, section()) is None


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(section) -> None:
    model = load_trainable(MICRO, section(method="full"))
    optimizer = make_optimizer(model, section(method="full", optimizer="muon"))
    stepped(model, optimizer, 1)
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon = {names[id(weight)] for weight, state in optimizer.state.items() if "momentum_buffer" in state}
    others = {names[id(weight)] for weight, state in optimizer.state.items() if "exp_avg" in state}
    assert len(by_muon) == 21
    assert others == {name for name in names.values() if "norm" in name or "embed" in name}


def test_kahan_follows_fp32_where_bf16_stands_still() -> None:
    rate, steps = 1e-4, 200
    ends = {}
    for name, dtype, kind in [
        ("fp32", torch.float32, torch.optim.AdamW),
        ("pure", torch.bfloat16, torch.optim.AdamW),
        ("kahan", torch.bfloat16, KahanAdamW),
    ]:
        weight = torch.nn.Parameter(torch.ones(64, dtype=dtype))
        optimizer = kind([weight], lr=rate, weight_decay=0.0)
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ends[name] = weight.detach().float().mean().item()
    assert ends["fp32"] == pytest.approx(1 - rate * steps, abs=1e-5)
    assert ends["kahan"] == pytest.approx(ends["fp32"], abs=2**-9)  # half a unit of bf16 below one
    assert ends["pure"] == 1.0


def test_kahan_equals_adamw_in_fp32() -> None:
    by_kahan, by_adamw = (torch.nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2))
    kahan = KahanAdamW([by_kahan], lr=1e-2, weight_decay=0.1)
    adamw = torch.optim.AdamW([by_adamw], lr=1e-2, weight_decay=0.1)
    for step in range(20):
        gradient = torch.randn(50, generator=torch.Generator().manual_seed(step))
        by_kahan.grad, by_adamw.grad = gradient.clone(), gradient.clone()
        kahan.step()
        adamw.step()
    assert torch.allclose(by_kahan, by_adamw, atol=1e-6)
    assert state_dtypes(kahan) == {
        "compensation": ["float32"],
        "exp_avg": ["float32"],
        "exp_avg_sq": ["float32"],
    }


def test_weight_decay_spares_vectors(section) -> None:
    train: TrainSection = section(method="full", optimizer="sgd", weight_decay=0.1)
    groups = make_optimizer(load_trainable(MICRO, train), train).param_groups
    assert [(group["weight_decay"], {weight.ndim for weight in group["params"]}) for group in groups] == [
        (0.1, {2}),
        (0.0, {1}),
    ]
