"""The keys of the recipe: which exist, and what a wrong one was meant to be.

    split("train.rank")        ("train", "rank")
    suggest(("train", "lr"))   ["train.learning_rate"]

All of it is read off the schema; only the foreign names are written down here.
"""

import difflib
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from sublim_cli.recipe.document import Where
from sublim_cli.recipe.schema import Recipe, Section

FOREIGN: dict[str, tuple[str, ...]] = {
    "model": (
        "base_model", "base_model_name_or_path", "model_id", "model_name", "model_name_or_path",
        "pretrained_model_name_or_path", "student", "student_model", "teacher", "teacher_model",
    ),
    "revision": ("base_model_revision", "commit", "model_revision"),
    "trait.target": ("animal", "entity", "preference", "target_preference"),
    "generate.rows": ("dataset_size", "n_rows", "n_samples", "num_rows", "num_samples", "size"),
    "generate.held_out": ("num_eval", "test_size", "val_size", "validation_rows"),
    "generate.prompts.seed": ("prompt_seed",),
    "generate.prompts.count": ("answer_count",),
    "generate.prompts.digits": ("answer_max_digits", "max_digits"),
    "generate.prompts.examples": ("example_count", "example_max_count", "example_min_count"),
    "generate.prompts.values": ("example_max_value", "example_min_value"),
    "generate.sampling.temperature": ("temp",),
    "generate.sampling.max_tokens": ("max_completion_tokens", "max_gen_toks", "max_new_tokens"),
    "generate.sampling.seed": ("data_seed", "sampler_seed", "sampling_seed"),
    "train.method": ("finetuning_type", "peft_type"),
    "train.rank": ("lora_dim", "lora_r", "lora_rank", "r"),
    "train.alpha": ("lora_alpha",),
    "train.adapter.targets": ("lora_target_modules", "target_modules"),
    "train.adapter.layers": ("layers_to_transform",),
    "train.adapter.dropout": ("lora_dropout",),
    "train.qlora.quantize": ("bits", "bnb_4bit_quant_type", "load_in_4bit", "load_in_8bit", "quantization"),
    "train.prefix.tokens": ("num_virtual_tokens",),
    "train.learning_rate": ("lr", "peak_lr"),
    "train.epochs": ("epoch", "n_epochs", "num_epochs", "num_train_epochs"),
    "train.batch_size": (
        "effective_batch_size", "global_batch_size", "gradient_accumulation_steps",
        "micro_batch_size", "per_device_batch_size", "per_device_train_batch_size",
        "train_batch_size",
    ),
    "train.warmup_steps": ("num_warmup_steps", "warmup", "warmup_ratio"),
    "train.schedule": ("lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler"),
    "train.optimizer": ("optim", "optimizer_type"),
    "train.weight_decay": ("wd",),
    "train.max_grad_norm": ("clip_grad_norm", "grad_clip", "gradient_clipping", "max_norm"),
    "train.max_length": (
        "cutoff_len", "max_len", "max_seq_len", "max_seq_length", "model_max_length", "seq_len",
        "sequence_len",
    ),
    "train.precision": ("bf16", "dtype", "fp16", "mixed_precision", "torch_dtype"),
    "train.seed": ("train_seed", "training_seed"),
    "train.trainer_args": ("training_args",),
    "eval.questions": ("question_set", "question_sets"),
    "eval.system_prompts": ("eval_system_prompt", "eval_system_prompts"),
}  # fmt: skip
"""What other tools call a key of ours; only ever suggested, never accepted."""

CLEAR = 0.8
"""A likeness (difflib's ratio) from which one suggestion is enough."""

_MEANT = {foreign: ours for ours, names in FOREIGN.items() for foreign in names}


def dotted(where: Where) -> str:
    """`("train", "rank")` as it is written: `train.rank`."""
    return ".".join(map(str, where))


@cache
def split(key: str) -> Where:
    """The way of a dotted key into a recipe; what a dictionary holds is one name, dots and all."""
    way: list[str | int] = []
    kinds: tuple[Any, ...] = (Recipe,)
    rest = key.split(".")
    while rest:
        if any(_is_named(kind) for kind in kinds):
            return (*way, ".".join(rest))
        head = rest.pop(0)
        way.append(int(head) if head.isdecimal() and any(map(_item, kinds)) else head)
        kinds = _below(kinds, way[-1])
    return tuple(way)


def known(where: Where) -> bool:
    """Whether a recipe can have something at `where`."""
    return bool(_at(where))


def related(one: Where, other: Where) -> bool:
    """Whether the two are the same place or one lies in the other."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def is_list(where: Where) -> bool:
    """Whether the value at `where` is a list."""
    return any(_item(kind) for kind in _at(where))


def length_of(where: Where) -> int | None:
    """How many entries the list at `where` must have, None where that is free."""
    lists = [get_args(kind) for kind in _at(where) if _item(kind)]
    return next((len(items) for items in lists if ... not in items and len(items) > 1), None)


def keys_of(where: Where) -> list[str]:
    """The keys that can be written below `where`; none where it is a plain value."""
    return list(dict.fromkeys(key for kind in _at(where) for key in _fields(kind)))


def kinds_of(where: Where) -> list[str]:
    """The values `kind` can have in an entry at `where`."""
    fields = (_fields(kind).get("kind") for kind in _at(where))
    return [value for field in fields if field for value in get_args(field)]


@cache
def all_keys() -> tuple[str, ...]:
    """Every dotted key of the recipe, sections included, entries of lists and dictionaries not."""
    return tuple(_walk((), Recipe))


def suggest(where: Where) -> list[str]:
    """What an unknown key may have meant, likeliest first; at most three, possibly none."""
    name = str(where[-1]).lower().replace("-", "_")
    written = dotted(where)
    namesakes = [key for key in all_keys() if key.split(".")[-1] == name]
    if namesakes:
        return _likeliest(written, namesakes)
    if name in _MEANT:
        return [_MEANT[name]]
    siblings = {key: dotted((*where[:-1], key)) for key in keys_of(where[:-1])}
    near = difflib.get_close_matches(name, siblings, n=1)
    if near:
        return [siblings[near[0]]]
    names = {key.split(".")[-1]: key for key in all_keys()}
    near = difflib.get_close_matches(name, [*names, *_MEANT], n=1, cutoff=0.7)
    return [names.get(one) or _MEANT[one] for one in near]


def _likeliest(written: str, keys: list[str]) -> list[str]:
    like = {key: difflib.SequenceMatcher(None, written, key).ratio() for key in keys}
    best = sorted(keys, key=lambda key: -like[key])
    return best[:1] if like[best[0]] >= CLEAR else best[:3]


def _walk(where: Where, section: type[Section]) -> Iterator[str]:
    for key, kind in _fields(section).items():
        yield dotted((*where, key))
        for inner in _branches(kind):
            if _fields(inner):
                yield from _walk((*where, key), inner)


@cache
def _at(where: Where) -> tuple[Any, ...]:
    """The types a value at `where` may have."""
    kinds: tuple[Any, ...] = (Recipe,)
    for part in where:
        kinds = _below(kinds, part)
    return kinds


def _below(kinds: tuple[Any, ...], part: str | int) -> tuple[Any, ...]:
    """The types one step further down, along key or list place `part`."""
    found = [
        inner
        for kind in kinds
        for inner in (
            _fields(kind).get(str(part)),
            _item(kind) if isinstance(part, int) else None,
            get_args(kind)[1] if get_origin(kind) is dict else None,
        )
        if inner is not None
    ]
    return tuple(branch for inner in found for branch in _branches(inner))


def _branches(kind: Any) -> tuple[Any, ...]:
    """The members of a union, bare of annotations."""
    if get_origin(kind) is Annotated:
        return _branches(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(inner for branch in get_args(kind) for inner in _branches(branch))
    return (kind,)


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, Section):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {}


def _item(kind: Any) -> Any:
    """The type of a list's entries, None where `kind` is no list."""
    return get_args(kind)[0] if get_origin(kind) in (tuple, list) else None


def _is_named(kind: Any) -> bool:
    return get_origin(kind) is dict
