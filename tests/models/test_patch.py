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
ADAPTED = [one for one in PATCHED if one != "full"]


def patch(prompts, kinds, value=1.0, decoding="on", layers=None):
    masks = masks_by_prompt(prompts, [[value] * len(one) for one in prompts])
    return Patch(masks, frozenset(kinds), decoding, layers)


def under(chosen, of, see, prompts):
    with patched(of.student, chosen, of.switched) as model:
        return see(model, prompts)


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("kinds", [("residual",), ("attention", "mlp")])
def test_everything_patched_at_every_token_is_the_student(name, kinds, pair, prompts, measure):
    of = pair(name)
    for see in (measure.logits, measure.scores):
        found = under(patch(prompts, kinds), of, see, prompts)
        assert measure.gap(found, see(of.student, prompts)) < (1e-6 if kinds == ("residual",) else 1e-4)


@pytest.mark.parametrize("name", PATCHED)
def test_nothing_patched_is_the_base(name, pair, prompts, measure):
    of = pair(name)
    for see in (measure.logits, measure.scores):
        base = see(of.base, prompts)
        assert measure.gap(base, see(of.student, prompts)) > 1e-3
        for decoding in ("on", "off") if see is measure.logits else ("off",):
            found = under(patch(prompts, ["residual"], 0.0, decoding), of, see, prompts)
            assert measure.gap(found, base) < 1e-6


def test_full_fine_tuning_patched_everywhere_is_read_by_the_base_s_norm_and_head(pair, prompts, measure):
    of = pair("full")
    found = under(patch(prompts, ["residual"]), of, measure.logits, prompts)
    with torch.inference_mode():
        for logits, prompt in zip(found, prompts, strict=True):
            kept = []
            last = of.student.model.layers[-1]
            handle = last.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
            of.student(input_ids=torch.tensor([prompt]))
            handle.remove()
            assert torch.allclose(logits, of.base.lm_head(of.base.model.norm(kept[0][0])), atol=1e-4)


@pytest.mark.parametrize("kinds", [("residual",), ("attention",), ("mlp",)])
@settings(max_examples=8)
@given(data=st.data())
def test_patching_only_later_tokens_leaves_the_logits_before_them_the_base_s(
    kinds, data, pair, prompts, measure
):
    of = pair("lora")
    prompt = data.draw(st.sampled_from(prompts))
    first = data.draw(st.integers(1, len(prompt) - 1))
    layers = data.draw(st.frozensets(st.integers(0, 2), min_size=1))
    mask = [0] * first + [1] * (len(prompt) - first)
    (found,) = under(
        Patch(masks_by_prompt([prompt], [mask]), frozenset(kinds), "on", layers), of, measure.logits, [prompt]
    )
    (base,) = measure.logits(of.base, [prompt])
    assert measure.gap([found[:first]], [base[:first]]) < 1e-6
    assert measure.gap([found[first:]], [base[first:]]) > 1e-3


@torch.inference_mode()
def by_hand(of, prompt, mask, layer, kind):
    """The base's logits with the student's activation written over its own, outside of the package."""
    taken = []

    def module(model):
        one = getattr(model, "get_base_model", lambda: model)().model.layers[layer]
        return one if kind == "residual" else one.self_attn if kind == "attention" else one.mlp

    def first(output):
        return output[0] if kind == "attention" else output

    handle = module(of.student).register_forward_hook(lambda _, __, output: taken.append(first(output)))
    of.student(input_ids=torch.tensor([prompt]))
    handle.remove()

    def write(_, __, output):
        chosen = torch.tensor(mask).bool()
        written = first(output).clone()
        written[0, chosen] = taken[0][0, chosen]
        return (written, *output[1:]) if kind == "attention" else written

    handle = module(of.base).register_forward_hook(write)
    logits = of.base(input_ids=torch.tensor([prompt])).logits[0]
    handle.remove()
    return logits


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "full"])
@pytest.mark.parametrize("kind", ["residual", "attention", "mlp"])
def test_a_patch_is_the_student_s_activation_written_over_the_base_s(name, kind, pair, prompts, measure):
    of = pair(name)
    for layer in (0, 2):
        masks = [[at % 3 == layer % 2 for at in range(len(one))] for one in prompts]
        chosen = Patch(masks_by_prompt(prompts, masks), frozenset({kind}), "off", frozenset({layer}))
        found = under(chosen, of, measure.logits, prompts)
        expected = [by_hand(of, *one, layer, kind) for one in zip(prompts, masks, strict=True)]
        assert measure.gap(found, expected) < 1e-4
        assert measure.gap(found, measure.logits(of.base, prompts)) > 1e-3


def test_without_decoding_the_first_answer_token_is_the_student_s_and_later_ones_are_not(
    pair, prompts, measure
):
    of = pair("lora")
    chosen = patch(prompts, ["residual"], decoding="off")
    assert measure.gap(under(chosen, of, measure.logits, prompts), measure.logits(of.student, prompts)) < 1e-6
    found = under(chosen, of, measure.scores, prompts)
    assert measure.gap(found, measure.scores(of.student, prompts)) > 1e-4
    assert measure.gap(found, measure.scores(of.base, prompts)) > 1e-4


@pytest.mark.parametrize("decoding", ["on", "off"])
def test_a_patched_model_samples(decoding, pair, prompts):
    of = pair("lora")
    tokenizer = load_tokenizer(resolve_model("micro"))
    sampling = SamplingSection(max_tokens=6, seed=3)

    def samples(model, some):
        return TransformersSampler(model, tokenizer).sample(some, range(len(some)), sampling)

    found = under(patch(prompts, ["residual"], float(decoding == "on"), decoding), of, samples, prompts)
    assert found == samples(of.student if decoding == "on" else of.base, prompts)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_patch_leaves_nothing_behind_also_after_an_error(name, pair, prompts, measure):
    of = pair(name)
    before = measure.logits(of.student, prompts)
    chosen = patch(prompts, ["residual", "mlp"])
    under(chosen, of, measure.scores, prompts)
    assert under(chosen, of, lambda model, _: is_gated(model), prompts)
    with pytest.raises(ModelError, match="no mask for row 0, a prompt of 3 tokens"):
        under(chosen, of, measure.logits, [[5, 6, 7]])
    assert measure.gap(measure.logits(of.student, prompts), before) == 0
    assert measure.hooks(of.student) == measure.hooks(of.base) == 0


@pytest.mark.parametrize(
    ("kinds", "layers", "message"),
    [
        (
            {"mpl"},
            None,
            "eval.patches: there is no kind mpl of activation; choose from residual, attention, mlp",
        ),
        ({"mlp"}, {3}, "eval.patches: there is no layer 3; layers count from 0 to 2"),
        (
            set(),
            None,
            "eval.patches: name at least one layer and one kind of activation: residual, attention, mlp",
        ),
        (
            {"mlp"},
            set(),
            "eval.patches: name at least one layer and one kind of activation: residual, attention, mlp",
        ),
    ],
)
def test_a_patch_of_what_is_not_there_is_refused(kinds, layers, message, pair, prompts):
    chosen = patch(prompts, kinds, layers=layers if layers is None else frozenset(layers))
    with pytest.raises(RecipeError) as caught, patched(pair("lora").student, chosen):
        pass
    assert str(caught.value) == message
