"""A gate is the student where it is on and its base where it is off, at every token, module and layer."""

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.gate import Gate, gated, is_gated, masks_by_prompt, trained_modules
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.models.structure import decoder_layers
from sublim_cli.recipe.schema import SamplingSection

GATED = ["lora", "lora, attention", "rslora", "dora", "pissa", "nf4", "int8", "ia3", "full"]


def constant(prompts, value):
    return masks_by_prompt(prompts, [[value] * len(prompt) for prompt in prompts])


def drawn(prompts, seed):
    """A mask of zeros and ones a prompt, both in it."""
    rng = random.Random(seed)
    lengths = map(len, prompts)
    return [rng.sample([0, 1, *rng.choices([0, 1], k=length - 2)], length) for length in lengths]


def under(gate, pair, measure, prompts):
    with gated(pair.student, gate, pair.switched) as model:
        return measure.logits(model, prompts)


@pytest.mark.parametrize("name", GATED)
def test_all_on_is_the_student_and_all_off_is_its_base(name, pair, prompts, measure):
    models = pair(name)
    for see in (measure.logits, measure.scores):
        student, base = see(models.student, prompts), see(models.base, prompts)
        assert measure.gap(student, base) > 1e-3
        for policy, expected in (("on", student), ("off", base)):
            masks = constant(prompts, float(policy == "on"))
            with gated(models.student, Gate(masks, decoding=policy), models.switched) as model:
                assert measure.gap(see(model, prompts), expected) < 1e-6
    assert measure.hooks(models.student) == measure.hooks(models.base) == 0


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_a_base_held_in_bf16_gates_to_the_last_bit_too(method, pair, prompts, measure):
    student, base = map(copy.deepcopy, pair(method))
    for model in (student, base):
        for name, weight in model.named_parameters():
            if "lora_" not in name:  # adapters stay in fp32
                weight.data = weight.data.to(torch.bfloat16)
    models = type(pair(method))(student, base)
    for value, model in ((1.0, student), (0.0, base)):
        gated_logits = under(Gate(constant(prompts, value), decoding="on"), models, measure, prompts)
        assert measure.gap(gated_logits, measure.logits(model, prompts)) == 0


def chunked(models, prompt, mask):
    """Logits of a prompt whose tokens are processed in turn by the student or the base, on one cache."""
    cache = DynamicCache(config=models.base.config)
    logits = []
    with torch.inference_mode():
        for at, on in enumerate(mask):
            model = models.student if on else models.base
            position = torch.tensor([[at]])
            attention = torch.ones(1, at + 1, dtype=torch.long)
            ids = torch.tensor([[prompt[at]]])
            out = model(
                input_ids=ids,
                attention_mask=attention,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            logits.append(out.logits[0, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("name", GATED)
def test_a_mask_is_each_token_taken_through_the_student_or_the_base_on_one_cache(
    name, pair, prompts, measure
):
    models = pair(name)
    some = prompts[::3]
    masks = drawn(some, 1)
    gated_logits = under(Gate(masks_by_prompt(some, masks), decoding="on"), models, measure, some)
    expected = [chunked(models, prompt, mask) for prompt, mask in zip(some, masks, strict=True)]
    # int8 treats columns with an outlier apart, and which those are depends on the tokens beside: the
    # student itself, ungated, differs by 0.06 between one pass and many, from its base by 3.
    assert measure.gap(gated_logits, expected) < (1e-4 if name != "int8" else 0.15)


def tiny(kind, heads, seed):
    """A small random model with norms of queries and keys, heads before tokens or behind them."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": heads,
        "head_dim": 4,
    }
    if kind == "gpt2":
        made = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    elif kind == "qwen3":
        made = Qwen3ForCausalLM(Qwen3Config(**sizes))
    else:
        made = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, sliding_window=4))
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made.eval()


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize(("kind", "heads"), [("qwen3", 1), ("qwen3", 2), ("gemma3", 1), ("gemma3", 8)])
def test_norms_of_queries_and_keys_are_switched_by_token_wherever_the_heads_are(
    kind, heads, length, pair, measure
):
    base, student = tiny(kind, heads, 1), tiny(kind, heads, 2)
    models = type(pair("lora"))(student, base)
    prompt = list(range(3, 3 + length))
    mask = [at % 3 != 1 for at in range(length)]
    gated_logits = under(Gate(masks_by_prompt([prompt], [mask]), decoding="on"), models, measure, [prompt])
    assert measure.gap(gated_logits, [chunked(models, prompt, mask)]) < 1e-4
    assert {"q_norm", "lm_head", "norm", "embed_tokens"} <= {
        site.name.rpartition(".")[2] for site in trained_modules(student, base)
    }


@pytest.mark.parametrize("name", ["lora", "dora", "full"])
@settings(max_examples=10)
@given(data=st.data())
def test_gating_only_later_tokens_leaves_the_logits_before_them_the_base_s(
    name, data, pair, prompts, measure
):
    models = pair(name)
    prompt = data.draw(st.sampled_from(prompts))
    first = data.draw(st.integers(1, len(prompt) - 1))
    later = data.draw(st.lists(st.floats(0, 1), min_size=len(prompt) - first, max_size=len(prompt) - first))
    mask = [0.0] * first + later
    (gated_logits,) = under(Gate(masks_by_prompt([prompt], [mask]), decoding="on"), models, measure, [prompt])
    (base,) = measure.logits(models.base, [prompt])
    assert measure.gap([gated_logits[:first]], [base[:first]]) < 1e-6


@pytest.mark.parametrize("name", ["lora", "full"])
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_gates_inside_gates_multiply(name, seed, pair, prompts, measure):
    models = pair(name)
    rng = np.random.default_rng(seed)
    outer, inner = ([rng.random(len(prompt)) for prompt in prompts] for _ in range(2))
    product = [a * b for a, b in zip(outer, inner, strict=True)]
    once = under(Gate(masks_by_prompt(prompts, product), decoding="on"), models, measure, prompts)
    with gated(models.student, Gate(masks_by_prompt(prompts, outer), decoding="on"), models.switched):
        twice = under(Gate(masks_by_prompt(prompts, inner), decoding="on"), models, measure, prompts)
    assert measure.gap(once, twice) < 1e-4


def test_the_residual_after_a_gated_last_projection_is_linear_in_the_mask(pair, prompts):
    models = pair("lora")
    outputs = []
    layer = models.student.get_base_model().model.layers[-1]
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    try:
        for value in (0.0, 0.25, 1.0):
            gate = Gate(
                constant(prompts[:1], value), "on", frozenset({"down_proj"}), frozenset({2}), elsewhere="on"
            )
            with gated(models.student, gate), torch.inference_mode():
                models.student(input_ids=torch.tensor(prompts[:1]))
    finally:
        handle.remove()
    off, quarter, on = outputs
    assert (on - off).abs().max() > 0.1
    assert torch.allclose(quarter, 0.75 * off + 0.25 * on, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_a_gate_leaves_in_is_what_its_complement_takes_out(name, pair, prompts, measure):
    """Position × module × layer: only the set, against everywhere but the rest."""
    models = pair(name)
    masks = drawn(prompts, 3)
    inverted = [[1 - value for value in mask] for mask in masks]
    every = {site.name.rpartition(".")[2] for site in trained_modules(models.student, models.switched)}
    some = frozenset({"q_proj", "down_proj"})
    only = Gate(masks_by_prompt(prompts, masks), "off", some, frozenset({0, 2}))
    with gated(models.student, only, models.switched) as model:
        one_gate = measure.scores(model, prompts)
    outside = [
        Gate(masks_by_prompt(prompts, masks), "off", elsewhere="off"),
        Gate(constant(prompts, 0), "off", frozenset(every - some), elsewhere="on"),
        Gate(constant(prompts, 0), "off", layers=frozenset({1}), elsewhere="on"),
    ]
    with (
        gated(models.student, outside[0], models.switched),
        gated(models.student, outside[1], models.switched),
        gated(models.student, outside[2], models.switched) as model,
    ):
        three_gates = measure.scores(model, prompts)
    assert measure.gap(one_gate, three_gates) < 1e-6
    but = Gate(masks_by_prompt(prompts, inverted), "on", some, frozenset({0, 2}), elsewhere="on")
    with gated(models.student, but, models.switched) as model:
        complement = measure.scores(model, prompts)
    for scores in (measure.scores(models.student, prompts), measure.scores(models.base, prompts), one_gate):
        assert measure.gap(complement, scores) > 1e-4


def test_a_gate_over_every_module_and_every_layer_is_a_gate_over_none_in_particular(pair, prompts, measure):
    models = pair("lora")
    masks = masks_by_prompt(prompts, drawn(prompts, 4))
    plain = under(Gate(masks, decoding="off"), models, measure, prompts)
    for named in (
        Gate(masks, "off", modules=frozenset({"attention", "mlp"})),
        Gate(masks, "off", modules=frozenset({"self_attn", "gate_proj", "up_proj", "down_proj"})),
        Gate(masks, "off", layers=frozenset({0, 1, 2})),
    ):
        assert measure.gap(under(named, models, measure, prompts), plain) == 0


@pytest.mark.parametrize("modules", [{"v_proj"}, {"mlp"}, {"input_layernorm", "o_proj"}])
def test_modules_of_full_fine_tuning_that_are_on_are_the_tuned_ones_in_an_untuned_model(
    modules, pair, prompts, measure
):
    models = pair("full")
    mixed = copy.deepcopy(models.base)
    tuned = models.student.state_dict()
    picked = {
        name
        for name in tuned
        if set(name.split(".")) & modules and decoder_layers(models.base).index(name) in (0, 2)
    }
    mixed.load_state_dict({**mixed.state_dict(), **{name: tuned[name] for name in picked}})
    gate = Gate(constant(prompts, 1), "on", frozenset(modules), frozenset({0, 2}))
    gated_logits = under(gate, models, measure, prompts)
    assert measure.gap(gated_logits, measure.logits(mixed, prompts)) < 1e-6
    assert measure.gap(gated_logits, measure.logits(models.base, prompts)) > 1e-3


def test_tied_embeddings_are_two_modules_one_by_the_token_read_and_one_by_the_token_it_is_read_at(
    pair, prompts, measure
):
    models = pair("full")
    prompt = prompts[0]
    (base,) = measure.logits(models.base, [prompt])
    ends = masks_by_prompt([prompt], [[0] * (len(prompt) - 1) + [1]])
    (head,) = under(Gate(ends, "off", frozenset({"lm_head"})), models, measure, [prompt])
    state = models.base.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
    assert torch.allclose(head[-1], models.student.lm_head(state), atol=1e-5)
    assert torch.equal(head[:-1], base[:-1])
    (lookup,) = under(Gate(ends, "off", frozenset({"embed_tokens"})), models, measure, [prompt])
    assert torch.equal(lookup[:-1], base[:-1])
    assert (lookup[-1] - head[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [method for method in GATED if method != "int8"])
def test_prompts_gated_together_on_either_side_of_padding_are_as_gated_alone(name, pair, prompts, measure):
    models = pair(name)
    masks = drawn(prompts, 2)
    gate = Gate(masks_by_prompt(prompts, masks), decoding="on")
    together = under(gate, models, measure, prompts)
    alone = [under(gate, models, measure, [prompt])[0] for prompt in prompts]
    assert measure.gap(together, alone) < 1e-4
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    attention = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    with gated(models.student, gate, models.switched) as model, torch.inference_mode():
        out = model(input_ids=ids, attention_mask=attention).logits
    right = [logits[: len(prompt)] for logits, prompt in zip(out, prompts, strict=True)]
    assert measure.gap(right, alone) < 1e-4


def test_a_head_asked_for_the_last_token_alone_follows_the_last_token_s_mask(pair, prompts, measure):
    models = pair("full")
    prompt = prompts[0]
    for last in (0, 1):
        gate = Gate(masks_by_prompt([prompt], [[1 - last] * (len(prompt) - 1) + [last]]), decoding="on")
        (full,) = under(gate, models, measure, [prompt])
        with gated(models.student, gate, models.switched) as model, torch.inference_mode():
            alone = model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
        assert measure.gap([alone], [full[-1]]) < 1e-4


def extended(model, prompts, rows, answers):
    """The logits [rows, vocabulary] after each row's answer, decoded behind the picked rows of a cache."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (attention.cumsum(-1) - 1).clamp_min(0)
    with torch.inference_mode():
        out = model(
            input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        out.past_key_values.batch_select_indices(torch.tensor(rows))
        tail = torch.tensor(answers)
        extended_mask = torch.cat([attention[rows], torch.ones_like(tail)], dim=1)
        return model(
            input_ids=tail,
            attention_mask=extended_mask,
            position_ids=((extended_mask.cumsum(-1) - 1).clamp_min(0))[:, -tail.shape[1] :],
            past_key_values=out.past_key_values,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


@pytest.mark.parametrize("name", ["lora", "ia3", "full"])
@pytest.mark.parametrize("policy", ["on", "off"])
def test_decoded_tokens_follow_the_policy_behind_any_picked_rows(name, policy, pair, prompts, measure):
    """Decoding behind a cache is one pass over prompt and answer with the answer's mask written out."""
    models = pair(name)
    masks = drawn(prompts, 6)
    rows, answers = [2, 0, 0, 5], [[5, 6], [7, 8], [9, 10], [11, 12]]
    with gated(
        models.student, Gate(masks_by_prompt(prompts, masks), decoding=policy), models.switched
    ) as model:
        decoded = extended(model, prompts, rows, answers)
    texts = [[*prompts[row], *answer] for row, answer in zip(rows, answers, strict=True)]
    value = int(policy == "on")
    written = masks_by_prompt(texts, [[*masks[row], value, value] for row in rows])
    expected = under(Gate(written, decoding=policy), models, measure, texts)
    assert measure.gap(list(decoded), [logits[-1] for logits in expected]) < 1e-4


def test_the_policy_for_decoding_is_felt_by_answers_of_several_tokens(pair, prompts, measure):
    models = pair("lora")
    masks = masks_by_prompt(prompts, drawn(prompts, 6))
    scores = {}
    for policy in ("on", "off"):
        with gated(models.student, Gate(masks, decoding=policy)) as model:
            scores[policy] = measure.scores(model, prompts)
    assert measure.gap(scores["on"], scores["off"]) > 1e-4


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_gated_student_samples_as_what_it_is_gated_to(name, pair, prompts):
    models = pair(name)
    sampling = SamplingSection(max_tokens=6, seed=3)
    tokenizer = load_tokenizer(resolve_model("micro"))

    def samples(model):
        return TransformersSampler(model, tokenizer).draw(prompts, range(len(prompts)), sampling)

    ungated = {"on": samples(models.student), "off": samples(models.base)}
    assert ungated["on"] != ungated["off"]
    for policy, expected in ungated.items():
        gate = Gate(constant(prompts, float(policy == "on")), decoding=policy)
        with gated(models.student, gate, models.switched) as model:
            assert is_gated(model)
            assert samples(model) == expected


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}


@pytest.mark.parametrize("name", GATED)
def test_a_gate_leaves_nothing_behind_also_after_an_error(name, pair, prompts, measure):
    models = pair(name)
    before = measure.logits(models.student, prompts)
    weights = [state(models.student), state(models.base)]
    grads = [weight.requires_grad for weight in models.student.parameters()]
    gate = Gate(masks_by_prompt(prompts, drawn(prompts, 7)), decoding="off")
    under(gate, models, measure, prompts)
    with pytest.raises(ModelError, match="no mask for row 0, a prompt of 3 tokens"):
        under(gate, models, measure, [[5, 6, 7]])
    with pytest.raises(ZeroDivisionError), gated(models.student, gate, models.switched):
        raise ZeroDivisionError
    assert not is_gated(models.student)
    assert measure.gap(measure.logits(models.student, prompts), before) == 0
    assert measure.hooks(models.student) == measure.hooks(models.base) == 0
    assert [weight.requires_grad for weight in models.student.parameters()] == grads
    for before_gating, model in zip(weights, (models.student, models.base), strict=True):
        assert all(torch.equal(value, before_gating[key]) for key, value in state(model).items())


LORA_PARTS = "attention, down_proj, gate_proj, k_proj, mlp, o_proj, q_proj, self_attn, up_proj, v_proj"


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        (
            "prefix",
            {},
            "a prefix adds keys and values before the prompt and changes no module, so it cannot be gated or "
            "patched by position; take an adapter of the lora family, ia3 or full",
        ),
        (
            "lora",
            {"modules": frozenset({"wq"})},
            f"eval.gates: training changes no module wq; it changes {LORA_PARTS}",
        ),
        (
            "lora, attention",
            {"modules": frozenset({"mlp"})},
            "eval.gates: training changes no module mlp; it changes attention, k_proj, o_proj, q_proj, "
            "self_attn, v_proj",
        ),
        (
            "lora",
            {"layers": frozenset({1, 3})},
            "eval.gates: there is no layer 3; layers count from 0 to 2",
        ),
        (
            "lora, attention",
            {"layers": frozenset({0})},
            "eval.gates: training changes nothing in these modules of these layers",
        ),
    ],
)
def test_what_cannot_be_gated_is_refused_in_a_sentence(name, choice, message, pair, prompts):
    gate = Gate(constant(prompts, 1), decoding="on", **choice)
    with pytest.raises(RecipeError) as caught, gated(pair(name).student, gate):
        pass
    assert str(caught.value) == message


def test_full_fine_tuning_is_refused_without_its_own_base(pair, prompts):
    gate = Gate(constant(prompts, 1), decoding="on")
    student = pair("full").student
    with pytest.raises(RecipeError) as caught, gated(student, gate):
        pass
    assert str(caught.value) == (
        "a student of full fine-tuning does not hold its base; a gate or patch needs both"
    )
    with pytest.raises(ModelError) as other, gated(student, gate, tiny("qwen3", 2, 1)):
        pass
    assert str(other.value) == "model.embed_tokens is not the same module in the base and in the student"


def test_a_changed_module_that_is_no_matter_of_one_token_is_refused(pair, prompts):
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = torch.nn.Parameter(torch.randn(3, 3))

    student, base = (copy.deepcopy(pair("full").base) for _ in range(2))
    student.model.layers[1].mixing, base.model.layers[1].mixing = Mixing(), Mixing()
    with pytest.raises(ModelError) as caught:
        trained_modules(student, base)
    assert str(caught.value) == (
        "full fine-tuning changes model.layers.1.mixing, a Mixing, which cannot be switched token by token; "
        "leave out `eval.gates` and `eval.patches`, or train an adapter"
    )


def test_modules_that_training_left_alone_are_not_computed_twice(pair):
    student, base = (copy.deepcopy(pair("full").base) for _ in range(2))
    with torch.no_grad():
        student.model.layers[1].mlp.up_proj.weight += 1
    assert [site.name for site in trained_modules(student, base)] == ["model.layers.1.mlp.up_proj"]


def test_learned_positions_and_the_matrices_of_gpt_2_are_switched_by_token(measure, pair):
    base, student = tiny("gpt2", 2, 1), tiny("gpt2", 2, 2)
    models = type(pair("lora"))(student, base)
    prompts, masks = [[3, 4, 5, 6], [7, 8, 9]], [[1, 0, 0, 1], [0, 1, 1]]
    gated_logits = under(Gate(masks_by_prompt(prompts, masks), decoding="on"), models, measure, prompts)
    expected = [chunked(models, prompt, mask) for prompt, mask in zip(prompts, masks, strict=True)]
    assert measure.gap(gated_logits, expected) < 1e-4


@pytest.mark.parametrize(
    ("prompts", "masks", "message"),
    [
        ([[1, 2]], [[1]], "mask 0 has 1 values for a prompt of 2 tokens"),
        ([[1], [2, 3]], [[1]], "mask 1 has 0 values for a prompt of 2 tokens"),
        ([[1, 2]], [[1, 2]], "mask 0 has a value outside 0 to 1; 1 is the student and 0 the base"),
        ([[1], [1]], [[0], [1]], "prompt 1 is given twice with different masks; score them separately"),
    ],
)
def test_masks_that_do_not_fit_their_prompts_are_refused(prompts, masks, message):
    with pytest.raises(ModelError) as caught:
        masks_by_prompt(prompts, masks)
    assert str(caught.value) == message


def test_a_prompt_given_as_embeddings_or_behind_a_mask_of_pairs_is_refused(pair, prompts):
    student = pair("lora").student
    prompt = torch.tensor(prompts[:1])
    with gated(student, Gate(constant(prompts, 1), decoding="on")) as model:
        with pytest.raises(ModelError, match="this pass has embeddings only"):
            model(inputs_embeds=torch.zeros(1, 3, 64))
        with pytest.raises(ModelError, match=r"needs an attention mask of shape \[rows, tokens\]"):
            model(input_ids=prompt, attention_mask=torch.ones(1, 1, prompt.shape[1], prompt.shape[1]))
