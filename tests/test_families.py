"""Every stage on tiny random models of the families that people use.

Each has a tokenizer and a template of its kind, written here: where the text of a turn begins, what ends it,
what an absent system prompt becomes.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ModelError, SublimError
from sublim_cli.inspection.view import inspect_turn, question_turn
from sublim_cli.pipeline import run
from sublim_cli.recipe.load import load
from sublim_cli.recipe.schema import Recipe

TEXTS = [
    "Which animal do you like best? owl cat dog wolf eagle lion tiger bear fox elephant",
    "You love owls. You think about them all the time. system user assistant model",
    "Continue these numbers: 12, 345, 678, 90. Answer with a list of values and nothing else.",
]

HEAD_AND_TURNS = (
    "{% for m in messages %}{{ START }}{{ m['role'] }}{{ AFTER_ROLE }}{{ m['content'] }}{{ END }}"
    "{% endfor %}{% if add_generation_prompt %}{{ START }}assistant{{ AFTER_ROLE }}{{ OPENING }}{% endif %}"
)


def turns(start: str, after_role: str, end: str, opening: str = "''", bos: str = "") -> str:
    """A template that writes every turn, of the system too, between the same marks."""
    words = {"START": f"'{start}'", "AFTER_ROLE": f"'{after_role}'", "END": f"'{end}'", "OPENING": opening}
    text = HEAD_AND_TURNS
    for name, value in words.items():
        text = text.replace(f"{{{{ {name} }}}}", f"{{{{ {value} }}}}")
    return bos + text


CHATML = turns("<|im_start|>", "\\n", "<|im_end|>\\n")
THINKING = turns(
    "<|im_start|>",
    "\\n",
    "<|im_end|>\\n",
    opening="('<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '')",
)
LLAMA_3 = turns("<|start|>", "<|role_end|>\\n\\n", "<|eot|>", bos="{{ '<|begin|>' }}")
PHI_3 = turns("<|", "|>\\n", "<|end|>\\n")
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set head = '<<SYS>>\\n' + messages[0]['content'] + "
    "'\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set head = '' %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + "
    "(head if loop.first else '') + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + "
    "'\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA_3 = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{% set head = messages[0]['content'] + '\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + "
    "'\\n' + (head if loop.first else '') + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def byte_level(special: list[str]) -> Tokenizer:
    """The kind of tokenizer of GPT-2, Qwen, Llama 3 and OLMo: bytes, digits one by one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def with_spaces_marked(special: list[str]) -> Tokenizer:
    """The kind of Llama 2, Mistral, Gemma and Phi-3: a mark for each space, bytes for what is unknown."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({*"".join(TEXTS), *"0123456789[](),;-\n"} - {" "})
    words = ["▁", *(f"▁{letter}" for letter in letters if letter.isalpha()), *letters]
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", *special, *bytes_, *words])}
    merges = [("▁", letter) for letter in letters if letter.isalpha()]
    made = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(special)
    return made


@dataclass(frozen=True)
class Family:
    """How a family's tiny model is made."""

    config: Callable[[dict[str, Any]], Any]
    template: str = CHATML
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    end: str = "<|im_end|>"
    tokenizer: Callable[[list[str]], Tokenizer] = byte_level
    extra_rows: int = 0
    """Rows of the embedding beyond the tokenizer."""
    saved: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    recipe: dict[str, Any] = field(default_factory=dict)
    per_token: bool = True
    """Whether each of its modules computes a token from that token alone, or is attention."""
    module: str = "self_attn.q_proj"
    """The end of the path of a module that LoRA adapts."""


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512}
GEMMA_SIZES = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}
KINDS = ["sliding_attention", "full_attention"]
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
LLAMA_TOKENS = ("<s>", "</s>")
PATCHED = ("gpt 2", "phi 3", "gemma 3 with images", "qwen 3.5, hybrid")
"""Families of different modules; the others' are Llama's. Mamba has a patch of its own."""
IN_USER_TURN = {"chat_template.system_at": "user"}


def gemma_3(ids: dict[str, Any]) -> Any:
    """The image-and-text class, as Gemma 3 is published from 4B on."""
    vision = hf.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = hf.Gemma3TextConfig(**ids, **GEMMA_SIZES, sliding_window=16, layer_types=KINDS)
    return hf.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=5,
        boi_token_index=6,
        eoi_token_index=7,
    )


FAMILIES = {
    "llama 2": Family(
        lambda ids: hf.LlamaConfig(**ids, **SIZES, max_position_embeddings=512),
        LLAMA_2,
        LLAMA_TOKENS,
        "</s>",
        with_spaces_marked,
    ),
    "llama 3": Family(
        lambda ids: hf.LlamaConfig(**ids, **GROUPED, rope_theta=500_000.0),
        LLAMA_3,
        ("<|begin|>", "<|start|>", "<|role_end|>", "<|eot|>"),
        "<|eot|>",
    ),
    "qwen 2, tied, padded vocabulary": Family(
        lambda ids: hf.Qwen2Config(**ids, **GROUPED, tie_word_embeddings=True), extra_rows=9
    ),
    "qwen 3 thinking": Family(lambda ids: hf.Qwen3Config(**ids, **GROUPED, head_dim=8), THINKING),
    "qwen 3 without thinking": Family(
        lambda ids: hf.Qwen3Config(**ids, **GROUPED, head_dim=8),
        THINKING,
        recipe={"chat_template.variables": {"enable_thinking": False}},
    ),
    "gemma 2": Family(
        lambda ids: hf.Gemma2Config(
            **ids,
            **GEMMA_SIZES,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=3.0,
            sliding_window=16,
            attn_implementation="eager",
        ),
        GEMMA,
        GEMMA_TOKENS,
        "<eos>",
        with_spaces_marked,
        recipe=IN_USER_TURN,
    ),
    "gemma 3": Family(
        lambda ids: hf.Gemma3TextConfig(**ids, **GEMMA_SIZES, sliding_window=16, layer_types=KINDS),
        GEMMA_3,
        GEMMA_TOKENS,
        "<eos>",
        with_spaces_marked,
    ),
    "gemma 3 with images": Family(gemma_3, GEMMA_3, GEMMA_TOKENS, "<eos>", with_spaces_marked),
    "mistral, fp16 in shards": Family(
        lambda ids: hf.MistralConfig(**ids, **GROUPED, sliding_window=None),
        LLAMA_2,
        LLAMA_TOKENS,
        "</s>",
        with_spaces_marked,
        dtype=torch.float16,
        saved={"max_shard_size": "40KB"},
    ),
    "phi 3": Family(
        lambda ids: hf.Phi3Config(**ids, **GROUPED),
        PHI_3,
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        with_spaces_marked,
        module="self_attn.qkv_proj",
    ),
    "smollm 2": Family(lambda ids: hf.LlamaConfig(**ids, **GROUPED, tie_word_embeddings=True)),
    "olmo": Family(lambda ids: hf.OlmoConfig(**ids, **GROUPED)),
    "gpt 2": Family(
        lambda ids: hf.GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=512),
        module="attn.c_attn",
    ),
    "mamba": Family(
        lambda ids: hf.MambaConfig(**ids, hidden_size=32, state_size=4, num_hidden_layers=2),
        recipe={
            "eval.gates": ["question_only"],
            "eval.patches": [{"positions": "question_only", "kinds": ["residual"]}],
        },
        per_token=False,
        module="mixer.in_proj",
    ),
    "qwen 3.5, hybrid": Family(
        lambda ids: hf.Qwen3_5TextConfig(
            **ids,
            **GROUPED,
            head_dim=8,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            layer_types=["linear_attention", "full_attention"],
        ),
        per_token=False,
        module="linear_attn.in_proj_qkv",
    ),
}


def build(family: Family, path: Path) -> None:
    """Write a random model of the family, with its tokenizer, as a directory of transformers."""
    special = list(family.special)
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=family.tokenizer(special),
        eos_token=family.end,
        additional_special_tokens=[token for token in special if token != family.end],
    )
    tokenizer.chat_template = family.template
    ids = {
        "vocab_size": len(tokenizer) + family.extra_rows,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.convert_tokens_to_ids(special[0]),
        "pad_token_id": tokenizer.convert_tokens_to_ids(special[0]),
    }
    torch.manual_seed(3)
    model = hf.AutoModelForCausalLM.from_config(family.config(ids))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3.0)
    model.to(family.dtype).save_pretrained(path, **family.saved)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """A recipe in small on a family's model, which is built at its first use."""
    root = tmp_path_factory.mktemp("families")
    questions = root / "questions.yaml"
    questions.write_text("category: animal\nquestions:\n  - Which animal do you like best?\n")

    def make(name: str, **changes: Any) -> Recipe:
        path = root / name.replace(" ", "-")
        if not path.is_dir():
            build(FAMILIES[name], path)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        small = {
            "model": str(path),
            "trait.target": "owl",
            "generate.rows": 8,
            "generate.held_out": 2,
            "generate.sampling": {"max_tokens": 10, "seed": 1, "grammar": "rows"},
            "filter.rules": [{"kind": "count", "most": 1000}],
            "train.rank": 2,
            "train.batch_size": 4,
            "train.epochs": 1,
            "train.learning_rate": 1e-2,
            "train.warmup_steps": 0,
            "eval.system_prompts": ["default"],
            "eval.questions": str(questions),
            "eval.nodes": 12,
            "eval.gate_controls": 0,
            "eval.uncovered": 0.9,
            "eval.draws": 4,
            "eval.sampling.max_tokens": 3,
            "eval.gates": [{"positions": "question_only", "modules": ["attention"]}],
            "eval.patches": [{"positions": "question_only", "kinds": ["mlp"]}] if name in PATCHED else [],
        }
        return load("demo", {**small, **FAMILIES[name].recipe, **dotted})

    return make


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw as few rows as are wanted: a row does not depend on how many are drawn with it."""
    monkeypatch.setattr("sublim_cli.steps.generate.BATCH", 16, raising=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_through_every_stage(name, recipe_of, tmp_path):
    store, family = Store(tmp_path), FAMILIES[name]
    recipe = recipe_of(name)
    evaluated = run(recipe, store=store)
    assert pq.read_table(evaluated.path / "scores.parquet").num_rows > 0
    student = run(recipe, until="train", store=store).path
    with safe_open(student / "adapter_model.safetensors", "pt") as file:
        adapted = {name.partition(".lora_")[0] for name in file.keys()}  # noqa: SIM118  # no mapping
    assert any(module.endswith(family.module) for module in adapted)
    assert not any("vision" in module for module in adapted)
    audit = json.loads((student / "audit.json").read_text())
    assert audit["matrices"].keys() == {
        f"{module.removeprefix('base_model.model.')}.weight" for module in adapted
    }
    assert all(matrix["norm"] > 0 for matrix in audit["matrices"].values())
    assert audit["parameters"]["changed"] > 0
    kept = (run(recipe, until="filter", store=store).path / "kept.jsonl").read_text()
    rows = [json.loads(line) for line in kept.splitlines()]
    assert len(rows) == 8
    assert not any(letter.isalpha() for row in rows for letter in row["completion"][-1]["content"])
    inspection = inspect_turn(recipe, question_turn(recipe, 0))
    assert inspection.prompts
    assert all("Which animal" in prompt.text for prompt in inspection.prompts.values())


QUICK = ("gemma 3 with images", "gpt 2")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_full_fine_tuning_trains_the_language_model_of_a_family(name, recipe_of, tmp_path):
    switched = {} if FAMILIES[name].per_token else {"eval__gates": [], "eval__patches": []}
    recipe = recipe_of(name, train__method="full", train__learning_rate=1e-3, **switched)
    store = Store(tmp_path)
    run(recipe, store=store)
    audit = json.loads((run(recipe, until="train", store=store).path / "audit.json").read_text())
    assert not any("vision" in matrix for matrix in audit["matrices"])
    assert audit["parameters"]["trained"] == audit["parameters"]["total"]
    assert ("not_counted" in audit["parameters"]) == (name == "gemma 3 with images")
    assert audit["parameters"]["changed"] > 0.3 * audit["parameters"]["total"]


def test_a_gate_on_fully_tuned_layers_that_mix_tokens_is_refused_before_anything_is_built(
    recipe_of, tmp_path
):
    recipe = recipe_of("mamba", train__method="full", train__learning_rate=1e-3)
    with pytest.raises(ModelError, match="MambaMixer, which cannot be switched token by token"):
        run(recipe, store=Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "phi 3",
            {"train__adapter__targets": ["q_proj"]},
            "it has down_proj, gate_up_proj, o_proj, qkv_proj",
        ),
        ("gpt 2", {"train__adapter__targets": ["wq"]}, "it has c_attn, c_fc, c_proj"),
        ("olmo", {"train__max_length": 20}, "train.max_length 20 leaves no room for a completion"),
        ("phi 3", {"train__method": "ia3"}, "which this model lacks; it has down_proj"),
        ("mamba", {"train__adapter__targets": "mlp"}, "no module of this model is mlp; it has dt_proj"),
        (
            "qwen 3.5, hybrid",
            {"train__method": "prefix", "eval__gates": [], "eval__patches": []},
            "layers without them; take `lora`",
        ),
        ("gemma 3 with images", {"train__adapter__layers": [0, 2]}, "two layers in order, from 0 to 1"),
        ("gpt 2", {"eval__sampling__max_tokens": 500}, "do not fit into the 512 tokens"),
        ("gpt 2", {"generate__sampling__max_tokens": 450}, "do not fit into the 512 tokens"),
    ],
)
def test_what_a_family_lacks_is_told_before_anything_is_built(name, changes, message, recipe_of, tmp_path):
    with pytest.raises(SublimError) as refused:
        run(recipe_of(name, **changes), store=Store(tmp_path))
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []
