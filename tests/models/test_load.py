"""A base model that a process keeps between cells: read once, handed out untouched, with the same bits."""

import pytest
import torch

from sublim_cli.models import load
from sublim_cli.models.load import KEEP_BASE, load_model, load_student
from sublim_cli.pipeline import chain


@pytest.fixture
def reads(monkeypatch):
    """Keep bases, and note every reading of one."""
    monkeypatch.setenv(KEEP_BASE, "1")
    load._kept.cache_clear()
    found, read = [], load._read
    monkeypatch.setattr(load, "_read", lambda *what, **held: found.append(what) or read(*what, **held))
    yield found
    load._kept.cache_clear()


def logits(model) -> torch.Tensor:
    ids = torch.arange(5, 125).reshape(3, 40)
    with torch.inference_mode():
        return model(input_ids=ids).logits


def lines(model) -> set[int]:
    """Where in a cache line the weights begin; a CPU's products depend on it."""
    return {one.data_ptr() % load.CACHE_LINE for one in model.parameters()}


def test_a_kept_base_is_read_once_and_what_a_cell_does_to_its_copy_stays_there(micro, reads):
    ref, _, plain = micro
    first = load_model(ref, "fp32")
    for weight in first.parameters():
        weight.data.zero_()
    second = load_model(ref, "fp32")
    assert len(reads) == 1
    assert lines(second) == lines(plain)
    assert torch.equal(logits(second), logits(plain))
    assert second.lm_head.weight is second.get_input_embeddings().weight


def test_a_student_s_own_weights_are_not_kept(small, micro, reads, tmp_path):
    _, _, plain = micro
    plain.save_pretrained(tmp_path)
    for _ in range(2):
        student = load_student(chain(small()).generate.spec.model, "fp32", tmp_path)
        assert torch.equal(logits(student), logits(plain))
    assert len(reads) == 2
    assert load._kept.cache_info().currsize == 0
