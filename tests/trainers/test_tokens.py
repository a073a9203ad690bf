"""What the model is given, batch by batch: sublim's own tokens, as they are, in the seed's order."""

import pytest
import torch

from sublim_cli.models.chat import IGNORED
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.trainers.sft import fit

REF = resolve_model("micro")


def given_to_the_model(section, rows):
    """The forward arguments of every batch, and the hidden states whose logits were asked for."""
    model, seen, heads = load_model(REF, "fp32"), [], []
    model.register_forward_pre_hook(lambda _, __, named: seen.append(named), with_kwargs=True)
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: heads.append(len(given[0])))
    fit(model, load_tokenizer(REF), rows, section, lambda *_: None)
    return seen, heads


@pytest.mark.parametrize("batch", [8, 5])
def test_every_batch_holds_the_examples_of_the_recipe_and_nothing_else(section, number_rows, batch):
    rows = number_rows(24)
    asked = section(method="full", epochs=2, batch_size=batch)
    seen, heads = given_to_the_model(asked, rows)
    pad = load_tokenizer(REF).pad_token_id
    batches = [chunk for epoch in range(2) for chunk in shuffled(rows, batch, asked.seed + epoch)]
    assert len(seen) == len(batches)
    for named, chunk, head in zip(seen, batches, heads, strict=True):
        width = max(len(row.input_ids) for row in chunk)
        assert sorted(named) == ["attention_mask", "input_ids", "use_cache"]
        assert named["input_ids"].tolist() == [
            row.input_ids + [pad] * (width - len(row.input_ids)) for row in chunk
        ]
        assert named["attention_mask"].tolist() == [
            [1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in chunk
        ]
        assert head == sum(label != IGNORED for row in chunk for label in row.labels)


def shuffled(rows, batch, seed):
    """An epoch's batches: a permutation from the recipe's seed, plus one for each epoch."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[rows[index] for index in order[at : at + batch]] for at in range(0, len(order), batch)]


def test_the_loss_is_the_mean_over_completion_tokens_whatever_the_micro_batch(
    section, number_rows, monkeypatch
):
    rows = number_rows(8)
    model = load_model(REF, "fp32")
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        for index, label in enumerate(row.labels):
            if label != IGNORED:
                total, count = total - log_p[index - 1, label].item(), count + 1
    asked = section(method="full")
    for micro in ("", "4", "1"):
        monkeypatch.setenv("SUBLIM_MICRO_BATCH", micro)
        fitted = fit(load_model(REF, "fp32"), load_tokenizer(REF), rows, asked, lambda *_: None)
        assert fitted.history[0]["loss"] == pytest.approx(total / count, rel=1e-5)
