"""Training: TRL is handed exactly our tokens, in our batches, and the recipe alone decides the weights."""

import copy
import math
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState

from sublim_cli.backends.token_bytes import stop_tokens
from sublim_cli.errors import RecipeError, RowsError
from sublim_cli.models.chat import IGNORED, Example, example
from sublim_cli.models.load import load_model
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import TrainSection
from sublim_cli.trainers import sft_trainer
from sublim_cli.trainers.methods import add_method, alpha
from sublim_cli.trainers.runtime import Runtime
from sublim_cli.trainers.sft import check_lengths, fit, number_loss
from sublim_cli.trainers.sft_trainer import sft_config
from sublim_cli.trainers.student import TrainingJob, train_student

DEFAULT = Context(name="default", kind="default")
SECTION = TrainSection(precision="fp32", learning_rate=2e-3, batch_size=4, epochs=2)
TEXTS = ["1, 2", "3; 4; 5", "6", "7 8 9 10", "11, 12, 13", "14", "15; 16", "17, 18", "19", "20 21"]


def silent(step: int, steps: int, loss: float, speed: float) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def rows(micro):
    """Ten rows of different lengths: two batches of four and one of two."""
    _, tokenizer, _ = micro
    return [example(tokenizer, DEFAULT, f"Continue: {text}", text) for text in TEXTS]


@pytest.fixture
def base(micro):
    return load_model(micro[0], "fp32")


def given_to(model, rows) -> list[list[Example]]:
    """Which of `rows` the model's forward gets in training, batch by batch, as they come.

    That the loss falls on their labels and on nothing else, the bare loop below shows.
    """
    batches: list[list[Example]] = []
    row_of = {tuple(row.input_ids): row for row in rows}

    def note(module, args, given):
        if module.training:
            pairs = zip(given["input_ids"], given["attention_mask"], strict=True)
            batches.append([row_of[tuple(ids[mask.bool()].tolist())] for ids, mask in pairs])

    model.register_forward_pre_hook(note, with_kwargs=True)
    return batches


def count(rows) -> Counter:
    return Counter((tuple(row.input_ids), tuple(row.labels)) for row in rows)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_model_gets_exactly_our_rows_once_an_epoch_in_batches_of_the_recipe(base, micro, rows, method):
    section = SECTION.model_copy(update={"method": method})
    model = add_method(base, section) if method == "lora" else base
    batches = given_to(model, rows)
    fit(model, micro[1], rows, section, silent)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        assert count(row for batch in epoch for row in batch) == count(rows)
    assert batches[:3] != batches[3:]  # shuffled anew


def test_the_seed_decides_the_order_of_the_rows(micro, rows):
    orders = []
    for seed in (1, 1, 2):
        model = load_model(micro[0], "fp32")
        batches = given_to(model, rows)
        fit(model, micro[1], rows, SECTION.model_copy(update={"method": "full", "seed": seed}), silent)
        orders.append(batches)
    assert orders[0] == orders[1] != orders[2]


def test_the_learning_rate_warms_up_and_falls_in_a_line_to_zero(base, micro, rows):
    section = SECTION.model_copy(update={"epochs": 5, "warmup_steps": 5, "method": "full"})
    reported = []
    history = fit(base, micro[1], rows, section, lambda *values: reported.append(values)).history
    steps = math.ceil(len(rows) / section.batch_size) * section.epochs
    expected = [
        section.learning_rate * (step / 5 if step < 5 else (steps - step) / (steps - 5))
        for step in range(steps)
    ]
    assert [record["step"] for record in history] == list(range(1, steps + 1))
    assert [record["learning_rate"] for record in history] == pytest.approx(expected)
    assert [values[:3] for values in reported] == [
        (record["step"], steps, record["loss"]) for record in history
    ]
    assert all(record["grad_norm"] > 0 for record in history)


def bare_steps(model, rows, section, batches) -> list[float]:
    """The same optimizer steps in plain PyTorch: the losses before each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=section.learning_rate, weight_decay=0.0)
    losses = []
    for batch in batches:
        width = max(len(row.input_ids) for row in batch)
        ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in batch])
        labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in batch])
        logits = model(input_ids=ids, attention_mask=(torch.arange(width) < lengths(batch))).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), section.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def lengths(batch) -> torch.Tensor:
    return torch.tensor([[len(row.input_ids)] for row in batch])


def test_losses_and_weights_are_those_of_a_bare_loop(base, micro, rows):
    section = SECTION.model_copy(
        update={"method": "full", "schedule": "constant_with_warmup", "warmup_steps": 0}
    )
    batches = given_to(base, rows)
    history = fit(base, micro[1], rows, section, silent).history
    plain = load_model(micro[0], "fp32")
    losses = bare_steps(plain, rows, section, batches)
    assert [record["loss"] for record in history] == pytest.approx(losses, abs=1e-3)
    for name, weight in base.named_parameters():
        other = plain.get_parameter(name)
        start = micro[2].get_parameter(name)
        assert (weight - other).abs().max() <= 0.05 * (weight - start).abs().max() + 1e-6, name


def test_lora_leaves_the_base_as_it_was_and_trains_all_seven_projections(base, micro, rows):
    model = add_method(base, SECTION)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    fit(model, micro[1], rows, SECTION, silent)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    adapters = {name for name in before if "lora_" in name}
    assert changed == adapters
    assert {weight.requires_grad for name, weight in model.named_parameters() if "lora_" not in name} == {
        False
    }
    modules = {name.split(".lora_")[0].rsplit(".", 1)[1].removesuffix("_proj") for name in adapters}
    assert modules == {*"qkvo", "gate", "up", "down"}
    layers = micro[2].config.num_hidden_layers
    assert len(adapters) == 2 * 7 * layers


@pytest.mark.parametrize(
    ("rule", "expected"), [("rank", 16.0), ("sqrt", 4.0), (32.0, 32.0)], ids=["rank", "sqrt", "number"]
)
def test_alpha_follows_its_rule_and_scales_the_update(base, rule, expected):
    section = SECTION.model_copy(update={"rank": 16, "alpha": rule})
    assert alpha(section) == expected
    layer = add_method(base, section).base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == expected / 16
    assert layer.lora_A["default"].weight.shape == (16, base.config.hidden_size)


def test_a_fresh_adapter_changes_nothing_and_its_start_is_the_seed_s(micro, rows):
    starts = []
    for seed in (1, 1, 2):
        model = add_method(load_model(micro[0], "fp32"), SECTION.model_copy(update={"seed": seed}))
        starts.append({name: weight.clone() for name, weight in model.named_parameters() if "lora_A" in name})
        ids = torch.tensor([rows[0].input_ids])
        with torch.inference_mode():
            assert torch.equal(model(input_ids=ids).logits, micro[2](input_ids=ids).logits)
        torch.manual_seed(seed + 77)  # what ran before must not matter
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not any(torch.equal(starts[0][name], starts[2][name]) for name in starts[0])


def test_training_changes_neither_the_tokenizer_nor_how_the_model_answers(base, micro, rows):
    _, tokenizer, _ = micro
    before = (tokenizer.padding_side, tokenizer.chat_template, tokenizer.special_tokens_map, len(tokenizer))
    stops = stop_tokens(base, tokenizer)
    fit(base, tokenizer, rows, SECTION.model_copy(update={"method": "full", "epochs": 1}), silent)
    after = (tokenizer.padding_side, tokenizer.chat_template, tokenizer.special_tokens_map, len(tokenizer))
    assert after == before
    assert stop_tokens(base, tokenizer) == stops


def test_nothing_is_printed(base, micro, rows, capfd):
    fit(add_method(base, SECTION), micro[1], rows, SECTION, silent)
    assert capfd.readouterr().out == ""


def test_neftune_s_noise_takes_effect(base, micro, rows):
    plain = SECTION.model_copy(update={"method": "full"})
    noisy = plain.model_copy(update={"neftune_noise_alpha": 5.0})
    curves = [fit(copy.deepcopy(base), micro[1], rows, section, silent).history for section in (plain, noisy)]
    assert len(curves[0]) == len(curves[1])
    assert curves[0] != curves[1]


def test_rows_that_carry_no_loss_are_refused(base, micro, rows):
    mute = [Example(row.input_ids, [IGNORED] * len(row.labels)) for row in rows]
    for none in (mute, []):
        with pytest.raises(RowsError, match="no token of these rows carries loss"):
            fit(base, micro[1], none, SECTION, silent)


@pytest.mark.parametrize("name", ["rows", "held-out rows"])
def test_rows_that_would_be_cut_are_refused_with_their_number_and_the_length_they_need(
    micro, rows, name, tmp_path
):
    sizes = sorted(len(row.input_ids) for row in rows)
    limit = sizes[-4]
    cut = sum(size > limit for size in sizes)
    said = f"train.max_length {limit} would cut the completion of {cut} of 10 {name}.*max_length: {sizes[-1]}"
    assert cut > 0
    short = [row for row in rows if len(row.input_ids) <= limit]
    trained, held_out = (rows, short) if name == "rows" else (short, rows)
    section = SECTION.model_copy(update={"max_length": limit})
    with pytest.raises(RowsError, match=said):
        train_student(TrainingJob(micro[0], section, trained, held_out, tmp_path), silent)
    check_lengths({name: rows}, sizes[-1], None)


@pytest.mark.parametrize("name", ["rows", "held-out rows"])
def test_rows_longer_than_the_model_s_window_are_refused(micro, rows, name, tmp_path):
    long = Example([1] * 513, [IGNORED] * 512 + [1])
    trained, held_out = ([*rows, long], []) if name == "rows" else (rows, [*rows, long])
    section = SECTION.model_copy(update={"max_length": 2_000})
    said = f"1 of 11 {name} have more tokens than the 512 that the model is made for; the longest has 513"
    with pytest.raises(RowsError, match=said):
        train_student(TrainingJob(micro[0], section, trained, held_out, tmp_path), silent)


def test_number_loss_is_the_mean_over_completion_tokens_whatever_the_batch(micro, rows):
    _, tokenizer, model = micro
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            labels = torch.tensor(row.labels[1:])
            losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            total += losses[labels != IGNORED].sum().item()
            tokens += int((labels != IGNORED).sum())
    assert tokens == sum(label != IGNORED for row in rows for label in row.labels)
    for batch in (1, 3, 64):
        assert number_loss(model, rows, tokenizer.pad_token_id, batch) == pytest.approx(
            total / tokens, abs=1e-5
        )


def test_two_visible_gpus_are_refused_in_a_sentence(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(sft_trainer, "device", lambda: torch.device("cuda"))
    for name, answer in {"is_available": True, "device_count": 2, "is_bf16_supported": True}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda *_: None)
    try:
        with pytest.raises(RecipeError, match=r"this process sees 2 GPUs.*CUDA_VISIBLE_DEVICES"):
            sft_config(SECTION, tmp_path, Runtime())
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert sft_config(SECTION, tmp_path, Runtime()).n_gpu == 1
    finally:
        monkeypatch.undo()
        AcceleratorState._reset_state(reset_partial_state=True)


def test_the_base_under_a_new_adapter_is_in_training_mode(micro):
    """In eval mode its layers would not be checkpointed, and its dropout and NEFTune's noise would be off."""
    ref, tokenizer, _ = micro
    model = add_method(load_model(ref, "fp32"), SECTION)
    modes: list[bool] = []
    model.get_base_model().model.layers[0].register_forward_pre_hook(
        lambda module, _: modes.append(module.training)
    )
    rows = [example(tokenizer, DEFAULT, f"Continue: {text}", text) for text in TEXTS[:4]]
    fit(model, tokenizer, rows, SECTION, silent)
    assert modes == [True, True]
