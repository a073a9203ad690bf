"""Students loaded from a directory of their own weights."""

import torch

from sublim_cli.models.load import load_student
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
