"""Weights and tokenizers, loaded the ordinary way and stripped of a checkpoint's own sampling."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import ArtifactError, MissingExtra, ModelError
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.device import device
from sublim_cli.models.prefix import accept_cache
from sublim_cli.models.reference import ModelRef, check_unchanged

if TYPE_CHECKING:
    import torch

Model = Any
"""A transformers causal language model, or a PEFT model around one."""


@lru_cache(maxsize=4)
def load_tokenizer(ref: ModelRef) -> Tokenizer:
    """The model's tokenizer, padding on the left.

    Raises:
        ModelError: it cannot be loaded or has no chat template.
    """
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(ref.source, revision=ref.revision or "main")
    except (OSError, ValueError) as error:
        raise _unloadable(ref, "tokenizer", error) from error
    check_unchanged(ref)
    if not tokenizer.chat_template:
        raise ModelError(f"model {ref.name} has no chat template; use an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(ref: ModelRef, precision: str, quantize: str | None = None) -> Model:
    """The base model in `precision` (fp32 or bf16) on this machine's device, in eval mode.

    With `quantize` (nf4 or int8) the matrices of its layers are held by bitsandbytes, and `precision`
    is what the rest is held and everything is computed in.

    Raises:
        ModelError: its weights cannot be loaded.
        MissingExtra: `quantize` without bitsandbytes.
    """
    if quantize is None:
        return _plain(_from_pretrained(ref, precision)).to(device()).eval()
    # bitsandbytes quantises on the way in; a quantised model cannot be moved afterwards.
    held = {"quantization_config": _quantization(ref, quantize, precision), "device_map": {"": device()}}
    return _without_packing(_plain(_from_pretrained(ref, precision, **held))).eval()


@dataclass(frozen=True)
class ModelShape:
    """What can be known of a model without its weights."""

    vocabulary: int
    max_length: int | None
    """The longest sequence it was made for; None where it does not say."""
    eos: int | list[int] | None


def load_model_shape(ref: ModelRef, weights: Path | None = None) -> ModelShape:
    """The shape of the base model, or of the full model a train artifact holds.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoConfig, GenerationConfig

    own = _at(ref, weights) if weights and not is_adapter(weights) else ref
    revision = own.revision or "main"
    _quiet()
    try:
        config = AutoConfig.from_pretrained(own.source, revision=revision)
    except (OSError, ValueError) as error:
        raise _unloadable(ref, "configuration", error) from error
    try:
        generation = GenerationConfig.from_pretrained(own.source, revision=revision)
    except OSError:  # as transformers does for a model that has none
        generation = GenerationConfig.from_model_config(config)
    text = config.get_text_config()
    return ModelShape(
        text.vocab_size, getattr(text, "max_position_embeddings", None), generation.eos_token_id
    )


def is_adapter(weights: Path) -> bool:
    """Whether a train artifact holds an adapter and no whole model."""
    return (weights / "adapter_config.json").is_file()


def load_student(ref: ModelRef, precision: str, weights: Path | None, quantize: str | None = None) -> Model:
    """The model a train artifact holds: base plus adapter, a full model, or (None) the base.

    Raises:
        ModelError, MissingExtra: see `load_model`.
        ArtifactError: the adapter is gone or damaged.
    """
    if weights is None:
        return load_model(ref, precision, quantize)
    if is_adapter(weights):
        # The adapter stays in fp32 and apart from the base: merging would round it.
        student = _adapted(load_model(ref, precision, quantize), weights)
        return accept_cache(student) if student.active_peft_config.is_prompt_learning else student
    return load_model(_at(ref, weights), precision)


def _adapted(base: Model, weights: Path) -> Model:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(base, str(weights)).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"the student in {weights} cannot be read ({error}); delete it and run again to rebuild it"
        ) from error


def load_weights(ref: ModelRef, precision: str) -> "dict[str, torch.Tensor]":
    """The base model's parameters by name, in `precision`, in main memory.

    Raises:
        ModelError: they cannot be loaded.
    """
    return {name: one.detach() for name, one in _from_pretrained(ref, precision).named_parameters()}


def _at(ref: ModelRef, weights: Path) -> ModelRef:
    return ref.model_copy(update={"source": str(weights), "revision": None, "stamp": None})


def _from_pretrained(ref: ModelRef, precision: str, **held: Any) -> Model:
    """The model in main memory, or where `held` says."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _quiet()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            ref.source, revision=ref.revision or "main", dtype=dtype(precision), **held
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unloadable(ref, "weights", error) from error
    check_unchanged(ref)  # once they are read: a change before or in between is found
    return model


def _quantization(ref: ModelRef, quantize: str, precision: str) -> Any:
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise MissingExtra("`qlora` needs bitsandbytes; `pip install bitsandbytes` adds it")
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # as in the QLoRA paper (arXiv 2305.14314)
        bnb_4bit_compute_dtype=dtype(precision),
        llm_int8_skip_modules=["lm_head", *_torn(ref)],  # of 4 bits too, whatever its name says
    )


BLOCK = 64
"""Neighbouring weights that share a scale in nf4."""


def _torn(ref: ModelRef) -> list[str]:
    """Matrices whose rows are no whole number of nf4 blocks; they are left unquantised.

    bitsandbytes 0.50 decodes those wrongly on a CPU (it begins a block with every row): an error of 26 %
    instead of 9 %. Models for use have widths that divide evenly; the embedded one does not.
    """
    import torch

    linear = (
        (name, one) for name, one in meta_model(ref).named_modules() if isinstance(one, torch.nn.Linear)
    )
    return [name for name, one in linear if one.in_features % BLOCK]


@lru_cache(maxsize=4)
def meta_model(ref: ModelRef) -> Model:
    """The base model without its weights: what modules it has, and their shapes.

    Raises:
        ModelError: its configuration cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(ref.source, revision=ref.revision or "main")
    except (OSError, ValueError) as error:
        raise _unloadable(ref, "configuration", error) from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def dtype(precision: str) -> "torch.dtype":
    """The torch dtype that weights are held in."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _without_packing(model: Model) -> Model:
    """Keep bitsandbytes from repacking 4-bit weights for a CPU's bf16 instructions at the first evaluation.

    Repacked, the block scales are rounded to bf16, so a student would score differently on another CPU
    and after a reload; and a matrix whose width is no multiple of 64 cannot be repacked at all.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _plain(model: Model) -> Model:
    """Drop the checkpoint's sampling settings, which `generate` would otherwise mix in."""
    from transformers import GenerationConfig

    kept = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=kept.eos_token_id,
        pad_token_id=kept.pad_token_id,
        bos_token_id=kept.bos_token_id,
    )
    return model


def _unloadable(ref: ModelRef, what: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0]
    return ModelError(
        f"the {what} of model {ref.name} cannot be loaded: {first} "
        "Check the name, the network or the free disk space, or use `--model micro`"
    )


def _quiet() -> None:
    """No loading bars or advice of the libraries: sublim reports its own progress."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    for name in ("peft", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
