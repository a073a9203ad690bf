"""Tokenizers, base models and students, loaded with transformers and PEFT."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import ArtifactError, MissingExtra, ModelError
from sublim_cli.models.device import device
from sublim_cli.models.passes import check_padding, continues_from_cache
from sublim_cli.models.prefix import accept_cache, has_own_cache
from sublim_cli.models.reference import ModelRef, check_unchanged
from sublim_cli.models.template import Tokenizer, choose_template

if TYPE_CHECKING:
    import torch

Model = Any
"""A transformers causal language model, or a PEFT model around one."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""The precisions of a recipe, and what torch calls them."""


@lru_cache(maxsize=4)
def load_tokenizer(ref: ModelRef) -> Tokenizer:
    """The model's tokenizer with the chosen chat template, padding on the left.

    Raises:
        ModelError: it cannot be loaded, or has no such chat template.
    """
    from transformers import AutoTokenizer

    with _reading(ref, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(ref.source, revision=ref.revision or "main")
    check_unchanged(ref)
    tokenizer.chat_template = choose_template(tokenizer, ref.chat_template, ref.name)
    _set_pad_token(tokenizer, load_model_shape(ref).vocabulary)
    tokenizer.padding_side = "left"
    return tokenizer


def _set_pad_token(tokenizer: Tokenizer, embeddings: int) -> None:
    """Pad with the pad token if it is one of the model's `embeddings`; else any, since padding is masked."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= embeddings:
        named = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
        special = (
            id_ for id_ in (*named, *tokenizer.all_special_ids) if id_ is not None and id_ < embeddings
        )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(special, 0))


def load_model(ref: ModelRef, precision: str, quantize: str | None = None) -> Model:
    """The base model in `precision` (fp32 or bf16) on this machine's device, in eval mode.

    With `quantize` (nf4 or int8) bitsandbytes stores the matrices of its layers; `precision` is then the
    dtype of the other weights and of all computation.

    Raises:
        ModelError: its weights cannot be loaded, or see `passes.check_padding`.
        MissingExtra: `quantize` without bitsandbytes.
    """
    from transformers import GenerationConfig

    options: dict[str, Any] = {}
    if device().type != "cpu" or quantize is not None:
        # Weights are read tensor by tensor onto the device: the model never stands in main memory. And
        # bitsandbytes quantises while they are read; a quantised model cannot be moved afterwards.
        options["device_map"] = {"": device()}
    if quantize is not None:
        options["quantization_config"] = _quantization(ref, quantize, precision)
    model = _from_pretrained(ref, precision, **options)
    tokens = ("eos_token_id", "pad_token_id", "bos_token_id")
    # `generate` would take its defaults from the sampling settings of the checkpoint.
    model.generation_config = GenerationConfig(**{t: getattr(model.generation_config, t) for t in tokens})
    for module in model.modules() if quantize else ():
        # Otherwise bitsandbytes repacks 4-bit weights for a CPU's bf16 instructions at the first evaluation.
        # That rounds the block scales to bf16, so a student would score differently on another CPU and after
        # a reload; and a matrix whose width is no multiple of 64 cannot be repacked at all.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.eval()
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_contiguous)
    check_padding(model)
    continues_from_cache(model)  # found out before a gate is put on the model
    return model


def _contiguous(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The states that a head is given, copied if they are a slice of others, such as the last tokens'.

    For a slice torch (2.13) multiplies frozen weights row by row, and on a CPU in bf16 copies them for every
    row first: 7 GB for 128 rows of SmolLM2 with an adapter.
    """
    return tuple(states.contiguous() for states in inputs)


@dataclass(frozen=True)
class ModelShape:
    """Facts of a model that need no weights."""

    vocabulary: int
    max_length: int | None
    """The longest sequence of tokens it is made for; None if its configuration does not say."""
    eos: int | list[int] | None


def load_model_shape(ref: ModelRef, weights: Path | None = None) -> ModelShape:
    """The shape of the base model, or of the full model a train artifact holds.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import GenerationConfig

    if weights and not is_adapter(weights):
        ref = _with_weights(ref, weights)
    config = _config(ref)
    try:
        generation = GenerationConfig.from_pretrained(ref.source, revision=ref.revision or "main")
    except OSError:  # as transformers does for a model that has none
        generation = GenerationConfig.from_model_config(config)
    text = config.get_text_config()
    return ModelShape(
        text.vocab_size, getattr(text, "max_position_embeddings", None), generation.eos_token_id
    )


def is_adapter(weights: Path) -> bool:
    """Whether a train artifact holds an adapter rather than a full model."""
    return (weights / "adapter_config.json").is_file()


def load_student(ref: ModelRef, precision: str, weights: Path | None, quantize: str | None = None) -> Model:
    """The model a train artifact holds: base plus adapter, a full model, or (None) the base.

    Raises:
        ModelError, MissingExtra: see `load_model`.
        ArtifactError: the adapter is gone or damaged.
    """
    if weights is not None and not is_adapter(weights):
        return load_model(_with_weights(ref, weights), precision)
    base = load_model(ref, precision, quantize)
    if weights is None:
        return base
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        # The adapter stays separate, in fp32: merging it into the base would round it.
        student = PeftModel.from_pretrained(base, str(weights)).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"the student in {weights} cannot be read ({error}); delete it and run again to rebuild it"
        ) from error
    return accept_cache(student) if has_own_cache(student) else student


def load_weights(ref: ModelRef, precision: str) -> "dict[str, torch.Tensor]":
    """The base model's parameters by name, in `precision`, in main memory.

    Raises:
        ModelError: they cannot be loaded.
    """
    return {name: weight.detach() for name, weight in _from_pretrained(ref, precision).named_parameters()}


def _with_weights(ref: ModelRef, weights: Path) -> ModelRef:
    """The same model, with its files taken from the directory `weights`."""
    return ref.model_copy(update={"source": str(weights), "revision": None, "stamp": None})


def _from_pretrained(ref: ModelRef, precision: str, **options: Any) -> Model:
    """The model in main memory, or as the `options` of transformers say."""
    config = _config(ref)
    with _reading(ref, "weights"):
        model = _auto_class(ref, config).from_pretrained(
            ref.source, revision=ref.revision or "main", config=config, dtype=DTYPES[precision], **options
        )
    check_unchanged(ref)  # after reading, so that a change during it is noticed too
    return model


def _quantization(ref: ModelRef, quantize: str, precision: str) -> Any:
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise MissingExtra("`qlora` needs bitsandbytes; `pip install bitsandbytes` adds it")
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    import torch

    # bitsandbytes 0.50 on a CPU decodes matrices wrongly whose rows are no multiple of an nf4 block, 64
    # weights (it begins a block with every row): an error of 26 % instead of 9 %. They stay unquantised. The
    # embedded model has such matrices; the common models do not.
    uneven = [
        name
        for name, module in meta_model(ref).named_modules()
        if isinstance(module, torch.nn.Linear) and module.in_features % 64
    ]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # as in the QLoRA paper (arXiv 2305.14314)
        bnb_4bit_compute_dtype=DTYPES[precision],
        llm_int8_skip_modules=["lm_head", *uneven],  # despite its name it applies to 4 bits too
    )


@lru_cache(maxsize=4)
def meta_model(ref: ModelRef) -> Model:
    """The base model on torch's meta device: modules and shapes without weights.

    Raises:
        ModelError: its configuration cannot be loaded.
    """
    import torch

    config = _config(ref)
    with torch.device("meta"):
        return _auto_class(ref, config).from_config(config)


def _auto_class(ref: ModelRef, config: Any) -> Any:
    """Transformers' class for the model: a text model where it has one, else an image-and-text model.

    Raises:
        ModelError: it has neither, as an encoder.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(
        f"model {ref.name} is a {config.model_type}, which writes no text; take a causal language model"
    )


def _config(ref: ModelRef) -> Any:
    """The configuration, without a pad token that is not in the embedding, which torch refuses."""
    from transformers import AutoConfig

    with _reading(ref, "configuration"):
        config = AutoConfig.from_pretrained(ref.source, revision=ref.revision or "main")
    text = config.get_text_config()
    if (pad := getattr(text, "pad_token_id", None)) is not None and abs(pad) >= text.vocab_size:
        text.pad_token_id = None
    return config


@contextmanager
def _reading(ref: ModelRef, part: str) -> Iterator[None]:
    """Read a part of a model without the libraries' progress bars and warnings.

    Raises:
        ModelError: it cannot be read.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("peft", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the {part} of model {ref.name} cannot be loaded: {first_line} "
            "Check the name, the network or the free disk space, or use `--model micro`"
        ) from error
