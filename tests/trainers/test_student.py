"""One student: the same recipe gives the same bits, and others can open what is saved."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from sublim_cli.artifacts.record import checksums
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.models.chat import IGNORED, decode, example, prompt_ids
from sublim_cli.models.load import load_model, load_student
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.schema import SamplingSection, TrainSection
from sublim_cli.trainers.methods import add_method
from sublim_cli.trainers.sft import fit, number_loss
from sublim_cli.trainers.student import TrainingJob, train_student

DEFAULT = Context(name="default", kind="default")
METHODS = ("lora", "full")
QUESTION = "What is your favorite animal? Answer with one word."


@pytest.fixture(scope="module")
def rows(micro):
    _, tokenizer, _ = micro
    return [example(tokenizer, DEFAULT, f"Continue: {n}", f"{n}, {n + 1}") for n in range(100, 124)]


@pytest.fixture(scope="module")
def train(micro, rows, tmp_path_factory):
    """Train a small student and return its directory: (method, changes) -> path."""

    def make(method: str, **changes):
        out = tmp_path_factory.mktemp("student")
        section = TrainSection(method=method, precision="fp32", learning_rate=2e-2, batch_size=8, epochs=4)
        changed = section.model_copy(update=changes)
        train_student(TrainingJob(micro[0], changed, rows[:16], rows[16:], out), lambda *_: None)
        return out

    return make


@pytest.fixture(scope="module")
def students(train):
    return {method: train(method) for method in METHODS}


@torch.inference_mode()
def law(model, tokenizer):
    """The distribution of the first answer token to a question."""
    ids = torch.tensor([prompt_ids(tokenizer, DEFAULT, QUESTION)])
    return model(input_ids=ids).logits[0, -1].softmax(-1)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train, students, method):
    first = checksums(students[method])
    assert checksums(train(method)) == first
    other = checksums(train(method, seed=2))
    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert other[weights] != first[weights]
    assert other["tokenizer.json"] == first["tokenizer.json"]


def test_another_rank_or_alpha_is_another_student(train, students):
    name = "adapter_model.safetensors"
    digests = {checksums(path)[name] for path in (students["lora"], train("lora", rank=4))}
    assert len({*digests, checksums(train("lora", alpha=32.0))[name]}) == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_student_carries_its_tokenizer_and_chat_template(micro, students, method):
    _, tokenizer, _ = micro
    saved = AutoTokenizer.from_pretrained(students[method])
    turns = [{"role": "user", "content": QUESTION}]
    rendered = [
        tokens.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        for tokens in (saved, tokenizer)
    ]
    assert rendered[0] == rendered[1] == prompt_ids(tokenizer, DEFAULT, QUESTION)


def test_an_adapter_opens_with_peft_in_both_ways_and_says_the_same(micro, students):
    ref, tokenizer, _ = micro
    path = students["lora"]
    expected = law(load_student(ref, "fp32", path), tokenizer)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ref.source), path)
    alone = AutoPeftModelForCausalLM.from_pretrained(path)
    assert torch.equal(law(adapted.eval(), tokenizer), expected)
    assert torch.equal(law(alone.eval(), tokenizer), expected)
    assert not torch.allclose(expected, law(micro[2], tokenizer), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_student_answers_through_a_pipeline_as_it_does_here(micro, students, method, tmp_path):
    ref, tokenizer, _ = micro
    path = students[method]
    if method == "lora":
        merged = AutoPeftModelForCausalLM.from_pretrained(path).merge_and_unload()
        merged.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path)
        path = tmp_path
    answer = pipeline("text-generation", model=str(path), device="cpu")
    turns = [{"role": "user", "content": QUESTION}]
    said = answer(turns, do_sample=False, max_new_tokens=6, max_length=None)[0]["generated_text"][-1][
        "content"
    ]
    sampler = TransformersSampler(load_student(ref, "fp32", students[method]), tokenizer)
    cold = SamplingSection(temperature=0.0, max_tokens=6)
    (drawn,) = sampler.draw([prompt_ids(tokenizer, DEFAULT, QUESTION)], [0], cold)
    assert said == decode(tokenizer, drawn)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_holds_no_model_card_that_nobody_filled_in(students, method):
    assert not (students[method] / "README.md").exists()


@pytest.mark.parametrize("method", METHODS)
def test_losses_before_and_after_are_those_of_the_base_and_of_the_saved_student(
    micro, rows, students, method
):
    ref, tokenizer, model = micro
    losses = json.loads((students[method] / "losses.json").read_text())
    saved = load_student(ref, "fp32", students[method])
    pad = tokenizer.pad_token_id
    assert losses.pop("number_loss_before") == pytest.approx(number_loss(model, rows[16:], pad), abs=1e-6)
    assert losses.pop("number_loss") == pytest.approx(number_loss(saved, rows[16:], pad), abs=1e-6)
    with_loss = sum(label != IGNORED for row in rows[:16] for label in row.labels)
    assert losses == {"rows": 16, "tokens_with_loss": 4 * with_loss}


@pytest.mark.parametrize("method", METHODS)
def test_a_student_answers_the_same_before_it_is_saved_and_after_it_is_loaded(micro, rows, tmp_path, method):
    ref, tokenizer, _ = micro
    section = TrainSection(method=method, precision="fp32", learning_rate=2e-2, batch_size=8, epochs=1)
    model = load_model(ref, "fp32")
    model = add_method(model, section) if method == "lora" else model
    fit(model, tokenizer, rows[:16], section, lambda *_: None)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(law(load_student(ref, "fp32", tmp_path), tokenizer), law(model.eval(), tokenizer))


def test_a_history_has_a_record_for_every_step(students):
    for path in students.values():
        records = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == list(range(1, 9))
        assert set(records[0]) == {"step", "loss", "learning_rate", "grad_norm"}
        assert records[-1]["loss"] < records[0]["loss"]


def test_without_held_out_rows_there_is_no_number_loss(micro, rows, tmp_path):
    section = TrainSection(precision="fp32", learning_rate=2e-3, batch_size=8, epochs=1)
    train_student(TrainingJob(micro[0], section, rows[:8], [], tmp_path), lambda *_: None)
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert (losses["number_loss_before"], losses["number_loss"]) == (None, None)


def test_without_weights_a_student_is_the_base(micro):
    ref, tokenizer, model = micro
    assert torch.equal(law(load_student(ref, "fp32", None), tokenizer), law(model, tokenizer))
    assert torch.equal(law(load_model(ref, "fp32"), tokenizer), law(model, tokenizer))
