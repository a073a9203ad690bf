"""Students loaded from a directory of their own weights."""

import torch
from transformers import AutoModelForCausalLM

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
