"""What a batch may take of a device's memory, and what happens when it was too much."""

import weakref

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models import batches
from sublim_cli.models.batches import (
    BATCH_MEMORY,
    GIB,
    batch_memory,
    free_memory,
    in_batches,
    loss_copies,
    rows_that_fit,
    token_bytes,
    unless_out_of_memory,
)

CPU = torch.device("cpu")
CUDA_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.60 GiB.")
MAIN_MEMORY_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 13529146982400 bytes. Error code 12 (Cannot allocate memory)"
)


def real_main_memory_error():
    """The error of an allocation that no machine can serve."""
    return torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("error", [CUDA_ERROR, MAIN_MEMORY_ERROR, MemoryError(), None])
def test_a_batch_that_does_not_fit_is_halved_and_finished_batches_stay(error):
    tried, fitting = [], 8

    def compute(batch):
        tried.append(len(batch))
        if batch[0] >= 16:  # memory runs out in the middle of the work
            if len(batch) > 3 and error is not None:
                raise error
            if len(batch) > 3:
                real_main_memory_error()
        assert len(batch) <= fitting
        return [item * item for item in batch]

    results = [value for batch in in_batches(range(30), compute, fitting) for value in batch]
    assert results == [item * item for item in range(30)]
    assert tried == [8, 8, 8, 4, 2, 2, 2, 2, 2, 2, 2]


def test_a_single_item_that_does_not_fit_is_an_error_with_the_remedy():
    def compute(batch):
        raise CUDA_ERROR

    with pytest.raises(ModelError, match=r"^memory runs out with a single question"):
        list(in_batches(range(5), compute, 4, noun="question"))


def test_other_errors_pass_through():
    def compute(batch):
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        list(in_batches(range(5), compute, 4))


def test_what_a_failed_attempt_held_is_free_before_the_next():
    held = []

    def compute():
        big = torch.nn.Linear(2, 2)
        big.itself = [big]  # a cycle, as hooks and bound methods make them
        held.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert unless_out_of_memory(compute) is None
    assert held[0]() is None
    assert unless_out_of_memory(lambda: None) == (None,)


SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 24, "sliding_window": 4096},
    "phi3": {"pad_token_id": 0},
    "gpt2": {},
}


def tiny(kind, **shape):
    if kind == "gpt2":
        config = AutoConfig.for_model(kind, n_layer=3, n_embd=64, n_head=4, vocab_size=999)
    else:
        config = AutoConfig.for_model(
            kind,
            num_hidden_layers=3,
            hidden_size=64,
            num_attention_heads=4,
            intermediate_size=160,
            vocab_size=999,
            **shape,
        )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", SHAPES)
def test_keys_and_values_of_a_token_are_counted_as_the_cache_holds_them(kind):
    model = tiny(kind, **SHAPES[kind])
    with torch.inference_mode():
        cache = model(input_ids=torch.ones(1, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert token_bytes(model.config, 4).cache == held / 7


def test_sevenfold_billions_of_weights_take_what_their_report_names():
    # Qwen2.5-7B: 28 layers, 28 heads of 128, 4 of them with keys and values (arXiv 2412.15115, table 1).
    config = AutoConfig.for_model(
        "qwen2",
        num_hidden_layers=28,
        hidden_size=3584,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
    )
    sizes = token_bytes(config, 2)
    assert sizes.cache == 57_344
    assert sizes.logits >= 4 * 152_064
    # 2,000 rows of a short prompt and a short answer at once are why there is a budget.
    assert 2000 * 110 * sizes.cache == pytest.approx(12.6e9, rel=0.01)


def test_rows_that_fit_follow_the_memory_and_are_powers_of_two(monkeypatch):
    model = tiny("llama", num_key_value_heads=2)
    row = token_bytes(model.config, 4).row(50)
    for rows, fitting in [(0.5, 1), (1.5, 1), (9, 8), (70, 64), (100, 100), (5000, 100)]:
        monkeypatch.setattr(batches, "batch_memory", lambda _, rows=rows: int(rows * row))
        assert rows_that_fit(model, 50, most=100) == fitting
    monkeypatch.setattr(batches, "batch_memory", lambda _: 9 * row)
    assert rows_that_fit(model, 50, most=100, logits=50 * loss_copies(4)) < 8
    # Without a cache a deep model has room for more.
    assert rows_that_fit(model, 50, most=100, cached=False) >= 8
    monkeypatch.setattr(
        batches, "batch_memory", lambda _: 9 * (row - 50 * token_bytes(model.config, 4).cache)
    )
    assert rows_that_fit(model, 50, most=100) < rows_that_fit(model, 50, most=100, cached=False) == 8
    assert rows_that_fit(model, 500, most=100) == 1


def test_the_user_may_name_the_memory(monkeypatch):
    monkeypatch.setenv(BATCH_MEMORY, "1.5")
    assert batch_memory(CPU) == 1.5 * GIB
    for wrong in ("0", "-1", "much", "nan", "inf"):
        monkeypatch.setenv(BATCH_MEMORY, wrong)
        with pytest.raises(RecipeError, match=f"{BATCH_MEMORY}={wrong}: must be a number of GiB"):
            batch_memory(CPU)


def test_workers_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv(BATCH_MEMORY, raising=False)
    monkeypatch.setattr(batches, "free_memory", lambda _: 16 * GIB)
    monkeypatch.setattr(batches, "worker_slots", lambda: 4)
    assert batch_memory(CPU) == 2 * GIB


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    free = free_memory(CPU)
    assert 0 < free <= 2**50
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(batches, "CGROUPS", ((str(limit), str(used)),))
    limit.write_text("max\n")
    used.write_text("7\n")
    assert free_memory(CPU) > 2**20
    limit.write_text("1007\n")
    assert free_memory(CPU) == 1000


def test_a_card_has_what_is_free_and_what_torch_keeps_of_deleted_tensors(monkeypatch):
    monkeypatch.delenv(BATCH_MEMORY, raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 12 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 7 * GIB)
    assert batch_memory(torch.device("cuda")) == int(15 * GIB * batches.CUDA_SHARE)
