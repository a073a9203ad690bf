"""Students loaded from a directory of their own weights."""

import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sublim_cli.models import load
from sublim_cli.models.load import load_model, load_student
from sublim_cli.pipeline import chain


def logits(model) -> torch.Tensor:
    ids = torch.arange(5, 125).reshape(3, 40)
    with torch.inference_mode():
        return model(input_ids=ids).logits


def test_a_fully_fine_tuned_student_is_loaded_with_the_bits_it_was_saved_with(small, micro, tmp_path):
    _, _, model = micro
    model.save_pretrained(tmp_path)
    student = load_student(chain(small()).generate.spec.model, "fp32", tmp_path)
    assert torch.equal(logits(student), logits(model))
    assert student.lm_head.weight is student.get_input_embeddings().weight


def test_weights_are_read_onto_the_device_and_never_stand_in_main_memory(small, monkeypatch):
    asked = []

    def from_pretrained(*args, read=AutoModelForCausalLM.from_pretrained, **options):
        asked.append(options.get("device_map"))
        return read(*args, **options)

    ref = chain(small()).generate.spec.model
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    on_cpu = load_model(ref, "fp32")
    monkeypatch.setattr(load, "device", lambda: torch.device("meta"))
    monkeypatch.setattr(load, "check_padding", lambda model: None)  # it computes, which needs values
    elsewhere = load_model(ref, "fp32")
    assert asked == [None, {"": torch.device("meta")}]
    assert {weight.device.type for weight in on_cpu.parameters()} == {"cpu"}
    assert {tensor.device.type for tensor in (*elsewhere.parameters(), *elsewhere.buffers())} == {"meta"}
    assert not elsewhere.training


def test_a_frozen_head_is_not_copied_for_every_row(tmp_path):
    """In a process of its own, whose peak of memory is then that of the pass."""
    config = LlamaConfig(
        vocab_size=60_000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    script = """
import resource, sys
import torch
from sublim_cli.models.load import load_model
from sublim_cli.models.reference import resolve_model

model = load_model(resolve_model(sys.argv[1]), "bf16").requires_grad_(False)
ids = torch.zeros(128, 3, dtype=torch.long)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.inference_mode():
    assert model(ids, logits_to_keep=1).logits.shape == (128, 1, 60_000)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
copies = 128 * model.lm_head.weight.numel() * 2
assert grown < copies / 4, f"{grown:,} bytes, where copies for every row take {copies:,}"
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
