"""A patched run is the base's with the student's activations where they were asked for, and only there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.gate import is_gated, masks_by_prompt
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.patch import Patch, patched
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.schema import SamplingSection

PATCHED = ["lora", "lora, attention", "dora", "nf4", "int8", "ia3", "full"]
ADAPTED = [method for method in PATCHED if method != "full"]


def patch(prompts, kinds, value=1.0, decoding="on", layers=None):
    masks = masks_by_prompt(prompts, [[value] * len(prompt) for prompt in prompts])
    return Patch(masks, frozenset(kinds), decoding, layers)


def under(chosen, models, see, prompts):
    with patched(models.student, chosen, models.switched) as model:
        return see(model, prompts)


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("kinds", [("residual",), ("attention", "mlp")])
def test_everything_patched_at_every_token_is_the_student(name, kinds, pair, prompts, measure):
    models = pair(name)
    for see in (measure.logits, measure.scores):
        patched_result = under(patch(prompts, kinds), models, see, prompts)
        assert measure.gap(patched_result, see(models.student, prompts)) < (
            1e-6 if kinds == ("residual",) else 1e-4
        )


@pytest.mark.parametrize("name", PATCHED)
def test_nothing_patched_is_the_base(name, pair, prompts, measure):
    models = pair(name)
    for see in (measure.logits, measure.scores):
        base = see(models.base, prompts)
        assert measure.gap(base, see(models.student, prompts)) > 1e-3
        for decoding in ("on", "off") if see is measure.logits else ("off",):
            patched_result = under(patch(prompts, ["residual"], 0.0, decoding), models, see, prompts)
            assert measure.gap(patched_result, base) < 1e-6


def test_full_fine_tuning_patched_everywhere_is_read_by_the_base_s_norm_and_head(pair, prompts, measure):
    models = pair("full")
    patched_result = under(patch(prompts, ["residual"]), models, measure.logits, prompts)
    with torch.inference_mode():
        for logits, prompt in zip(patched_result, prompts, strict=True):
            outputs = []
            last = models.student.model.layers[-1]
            handle = last.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
            models.student(input_ids=torch.tensor([prompt]))
            handle.remove()
            assert torch.allclose(
                logits, models.base.lm_head(models.base.model.norm(outputs[0][0])), atol=1e-4
            )


@pytest.mark.parametrize("kinds", [("residual",), ("attention",), ("mlp",)])
@settings(max_examples=8)
@given(data=st.data())
def test_patching_only_later_tokens_leaves_the_logits_before_them_the_base_s(
    kinds, data, pair, prompts, measure
):
    models = pair("lora")
    prompt = data.draw(st.sampled_from(prompts))
    first = data.draw(st.integers(1, len(prompt) - 1))
    layers = data.draw(st.frozensets(st.integers(0, 2), min_size=1))
    mask = [0] * first + [1] * (len(prompt) - first)
    (patched_result,) = under(
        Patch(masks_by_prompt([prompt], [mask]), frozenset(kinds), "on", layers),
        models,
        measure.logits,
        [prompt],
    )
    (base,) = measure.logits(models.base, [prompt])
    assert measure.gap([patched_result[:first]], [base[:first]]) < 1e-6
    assert measure.gap([patched_result[first:]], [base[first:]]) > 1e-3


@torch.inference_mode()
def by_hand(models, prompt, mask, layer, kind):
    """The base's logits with the student's activation written over the base's, without the package."""
    taken = []

    def module(model):
        block = getattr(model, "get_base_model", lambda: model)().model.layers[layer]
        return {"residual": block, "attention": block.self_attn, "mlp": block.mlp}[kind]

    def first(output):
        return output[0] if kind == "attention" else output

    handle = module(models.student).register_forward_hook(lambda _, __, output: taken.append(first(output)))
    models.student(input_ids=torch.tensor([prompt]))
    handle.remove()

    def write(_, __, output):
        chosen = torch.tensor(mask).bool()
        written = first(output).clone()
        written[0, chosen] = taken[0][0, chosen]
        return (written, *output[1:]) if kind == "attention" else written

    handle = module(models.base).register_forward_hook(write)
    logits = models.base(input_ids=torch.tensor([prompt])).logits[0]
    handle.remove()
    return logits


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "full"])
@pytest.mark.parametrize("kind", ["residual", "attention", "mlp"])
def test_a_patch_is_the_student_s_activation_written_over_the_base_s(name, kind, pair, prompts, measure):
    models = pair(name)
    for layer in (0, 2):
        masks = [[at % 3 == layer % 2 for at in range(len(prompt))] for prompt in prompts]
        chosen = Patch(masks_by_prompt(prompts, masks), frozenset({kind}), "off", frozenset({layer}))
        patched_result = under(chosen, models, measure.logits, prompts)
        expected = [
            by_hand(models, prompt, mask, layer, kind) for prompt, mask in zip(prompts, masks, strict=True)
        ]
        assert measure.gap(patched_result, expected) < 1e-4
        assert measure.gap(patched_result, measure.logits(models.base, prompts)) > 1e-3


def test_without_decoding_the_first_answer_token_is_the_student_s_and_later_ones_are_not(
    pair, prompts, measure
):
    models = pair("lora")
    chosen = patch(prompts, ["residual"], decoding="off")
    assert (
        measure.gap(under(chosen, models, measure.logits, prompts), measure.logits(models.student, prompts))
        < 1e-6
    )
    patched_result = under(chosen, models, measure.scores, prompts)
    assert measure.gap(patched_result, measure.scores(models.student, prompts)) > 1e-4
    assert measure.gap(patched_result, measure.scores(models.base, prompts)) > 1e-4


@pytest.mark.parametrize("decoding", ["on", "off"])
def test_a_patched_model_samples(decoding, pair, prompts):
    models = pair("lora")
    tokenizer = load_tokenizer(resolve_model("micro"))
    sampling = SamplingSection(max_tokens=6, seed=3)

    def samples(model, some):
        return TransformersSampler(model, tokenizer).draw(some, range(len(some)), sampling)

    patched_result = under(
        patch(prompts, ["residual"], float(decoding == "on"), decoding), models, samples, prompts
    )
    assert patched_result == samples(models.student if decoding == "on" else models.base, prompts)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_patch_leaves_nothing_behind_also_after_an_error(name, pair, prompts, measure):
    models = pair(name)
    before = measure.logits(models.student, prompts)
    chosen = patch(prompts, ["residual", "mlp"])
    under(chosen, models, measure.scores, prompts)
    assert under(chosen, models, lambda model, _: is_gated(model), prompts)
    with pytest.raises(ModelError, match="no mask for row 0, a prompt of 3 tokens"):
        under(chosen, models, measure.logits, [[5, 6, 7]])
    assert measure.gap(measure.logits(models.student, prompts), before) == 0
    assert measure.hooks(models.student) == measure.hooks(models.base) == 0


def test_a_patch_of_a_layer_that_is_not_there_is_refused(pair, prompts):
    chosen = patch(prompts, {"mlp"}, layers=frozenset({3}))
    with pytest.raises(RecipeError) as caught, patched(pair("lora").student, chosen):
        pass
    assert str(caught.value) == "eval.patches: there is no layer 3; layers count from 0 to 2"
