"""Too little memory: smaller micro-batches, the same training, and a sentence when nothing helps."""

import pytest
import torch

from sublim_cli.errors import ModelError
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.trainers.runtime import MICRO_BATCH
from sublim_cli.trainers.sft import fit

REF = resolve_model("micro")


def student(memory=None):
    """The embedded model, on a device that runs out of memory as the gradient of more rows arrives.

    That is late in the backward pass: most gradients of the failed attempt have been added by then.
    """
    model = load_model(REF, "fp32")

    def watch(gradient):
        if memory is not None and len(gradient) > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    def attach(module, given, out):
        if out.requires_grad:
            out.register_hook(watch)

    model.get_input_embeddings().register_forward_hook(attach)
    return model


def train(model, section, rows):
    return fit(model, load_tokenizer(REF), rows, section, lambda *_: None)


@pytest.fixture
def full(section):
    return section(method="full", epochs=2)


@pytest.mark.parametrize("given", ["8", "4"])
def test_the_micro_batch_is_halved_until_it_fits_and_the_training_is_the_same(
    number_rows, full, monkeypatch, given
):
    rows = number_rows(36)  # four steps of eight rows and one of four, an epoch
    plain = student()
    plain_result = train(plain, full, rows)
    monkeypatch.setenv(MICRO_BATCH, given)
    small = student(memory=2)
    halved = train(small, full, rows)
    assert (plain_result.facts["micro_batch"], plain_result.facts["accumulation"]) == (8, 1)
    assert (halved.facts["micro_batch"], halved.facts["accumulation"]) == (2, 4)
    assert (plain_result.facts["halved_for_memory"], halved.facts["halved_for_memory"]) == (False, True)
    for expected, record in zip(plain_result.history, halved.history, strict=True):
        assert expected == pytest.approx(record, rel=1e-4)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_a_row_that_step_out_of_memory_is_one_sentence_with_what_would(number_rows, full):
    with pytest.raises(ModelError) as caught:
        train(student(memory=0), full, number_rows(16))
    message = str(caught.value)
    assert message.startswith("memory runs out with a single row of ")
    for word in ("GiB", "`train.method: qlora`", "`train.optimizer: adamw_8bit`"):
        assert word in message
