"""What `plan --card` predicts: shapes, peaks against live tensors, and what makes a step fit."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from sublim_cli import models
from sublim_cli.cli import main
from sublim_cli.errors import ModelError
from sublim_cli.models.load import load_model
from sublim_cli.models.memory import MemoryTracker, _shapes, outline, outline_ref
from sublim_cli.recipe.load import load
from sublim_cli.recipe.resolve import resolve_train
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.sweep.card import USABLE, completion_tokens
from sublim_cli.trainers.memory import training_memory
from sublim_cli.trainers.methods import add_method
from sublim_cli.trainers.sft_trainer import summed_loss

QWEN = outline_ref("anybody/Qwen2.5-7B-Instruct")


@pytest.mark.parametrize("name", list(_shapes()))
def test_the_shipped_shapes_have_the_published_number_of_weights(name):
    model = outline(outline_ref(f"somebody/{name}"))
    assert sum(weight.numel() for weight in model.parameters()) == _shapes()[name]["parameters"]


def test_a_model_whose_shapes_are_unknown_is_one_error_that_names_the_ways_out(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"shapes are not known here\. Give `--model DIR`.*Qwen2\.5-7B"):
        outline_ref("nobody/nothing-at-all")


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_prediction_is_the_peak_of_live_tensors(method, checkpointing):
    ref = outline_ref("micro")
    section = resolve_train(TrainSection(method=method, backend="plain", batch_size=8), "fp32")
    shape = {"rows": 8, "width": 64, "trained": 24}
    expected = training_memory(
        ref, section, **shape, accumulated=False, checkpointing=checkpointing, cuda=False
    )
    model = add_method(load_model(ref, "fp32"), section).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.arange(64).repeat(8, 1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batch["labels"][:, :40] = -100
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    tracker = MemoryTracker(model.config.vocab_size)
    tracker.ignore([*model.parameters(), *model.buffers()])
    with tracker:
        for _ in range(2):
            summed_loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert expected.total == pytest.approx(held + tracker.peak.total(), rel=0.15)


def test_a_deep_model_is_counted_from_a_few_layers():
    ref, few = outline_ref("micro"), {"rows": 4, "width": 48, "trained": 16}
    layers = outline(ref).config.num_hidden_layers
    section = resolve_train(TrainSection(backend="plain"), "bf16_mixed")
    whole = training_memory(ref, section, **few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sublim_cli.trainers.memory.LAYERS", (1, 2))
        assert layers > 2
        assert training_memory(ref, section, **few).total == pytest.approx(whole.total, rel=0.02)


def test_qwen_7b_takes_what_is_published_for_lora_and_qlora():
    """bf16 weights of 7.6 billion are 15.2 GB; in nf4 the matrices take 3.4 GB and the rest 2.2 GB."""
    sections = {
        method: resolve_train(TrainSection(method=method, backend="plain"), "bf16_mixed")
        for method in ("lora", "qlora")
    }
    peaks = {
        method: training_memory(QWEN, section, rows=1, width=200, trained=50)
        for method, section in sections.items()
    }
    assert peaks["lora"].weights == 2 * 7_615_616_512
    assert peaks["qlora"].weights == pytest.approx(5.5e9, rel=0.02)
    assert 15 < peaks["lora"].total / 2**30 < 17
    assert 5 < peaks["qlora"].total / 2**30 < 8


def test_a_completion_is_as_long_as_the_filter_lets_it_be():
    assert completion_tokens(load("cats")) == 10 * 5 + 4
    assert completion_tokens(load("cats", {"filter.rules": [{"kind": "format"}]})) == 200


@pytest.fixture
def plan(monkeypatch, capsys, tmp_path):
    """`sublim plan --card` on micro, in this process and in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> tuple[int, str, str]:
        arguments = ["sublim", "plan", "-r", "cats", "-m", "micro", *words]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


def test_the_command_says_for_each_card_what_fits_and_what_to_change(plan, tmp_path):
    _, shown, _ = plan("--card", "24", "--json")
    train = json.loads(shown)["cards"][0]["steps"][1]
    fewer_rows = train["peak"] - train["parts"]["activations"] / 4
    between = fewer_rows / 2**30 / USABLE
    code, shown, _ = plan("--card", f"{between},24", "--card", "24,0.4", "--json")
    assert code == 0
    small, large, tiny = json.loads(shown)["cards"]
    assert (large["fits"], large["remedies"], large["gib"]) == (True, [], 24)
    assert [step["step"] for step in large["steps"]] == ["generate", "train", "number loss", "eval"]
    for step in (*small["steps"], *large["steps"]):
        assert step["peak"] == sum(step["parts"].values())
        assert step["fits"]
    assert 1 < small["steps"][1]["rows"] < large["steps"][1]["rows"] == 66
    assert small["remedies"] == []  # a training takes as many rows at once as fit
    assert not tiny["fits"]
    assert [remedy.partition(":")[0] for remedy in tiny["remedies"]] == [s["step"] for s in tiny["steps"]]
    kept = large["steps"][1]["without_checkpointing"]
    assert kept["activations"] > large["steps"][1]["parts"]["activations"]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_on_a_machine_with_a_gpu_has_the_table_of_that_gpu(plan, monkeypatch):
    sizes = {"cuda:0": 24 * 2**30, "cuda:1": 2**29}
    monkeypatch.setattr(models.device, "on_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda name: SimpleNamespace(total_memory=sizes[name])
    )
    words = ("--no-probe", "-s", "sweep.grid={}", "-s", "sweep.also=[]", "-s", "train.backend=plain")
    for wanted, gib, fits in [("cuda:0", "24", True), ("cuda", "0.5", False)]:
        monkeypatch.setattr(models.device, "device", lambda wanted=wanted: torch.device(wanted))
        code, shown, _ = plan(*words)
        assert code == 0
        assert f"A card with {gib} GiB: {'fits' if fits else 'does not fit'}" in shown
        (card,) = json.loads(plan(*words, "--json")[1])["cards"]
        assert (card["gib"], card["fits"]) == (float(gib), fits)


def test_the_table_fits_80_columns(plan):
    code, shown, _ = plan("--card", "24")
    tables = [line for line in shown.splitlines() if "GiB" not in line and ":" not in line]
    assert code == 0
    assert "A card with 24 GiB: fits" in shown
    assert max(map(len, tables)) <= 80


def test_a_card_without_a_size_is_one_sentence(plan):
    code, _, said = plan("--card", "big")
    assert code == 2
    assert "--card big: must be GiB of a card's memory" in " ".join(said.split())
