"""The keys of a recipe: which exist, and which one a wrong key was meant to be.

    split("train.rank")        ("train", "rank")
    suggest(("train", "lr"))   ["train.learning_rate"]

All of it is read from the schema, except the names that other tools use. `root` is another schema in place of
the recipe's, such as that of item files.
"""

import difflib
import types
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from typing import Annotated, Any, Union, get_args, get_origin

from sublim_cli.recipe.schema import Recipe, Section
from sublim_cli.recipe.yaml_file import KeyPath

FOREIGN_NAMES: dict[str, tuple[str, ...]] = {
    "model": (
        "base_model", "base_model_name_or_path", "model_id", "model_name", "model_name_or_path",
        "pretrained_model_name_or_path", "student", "student_model", "teacher_model",
    ),
    "revision": ("base_model_revision", "commit", "model_revision"),
    "chat_template.variables": ("chat_template_kwargs", "template_kwargs"),
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
    "train.neftune_noise_alpha": ("neftune_alpha", "trainer_args", "training_args"),
    "eval.questions": ("question_set", "question_sets"),
    "eval.system_prompts": ("eval_system_prompt", "eval_system_prompts"),
}  # fmt: skip
"""By recipe key, its names in other tools: they are not accepted, but lead to a suggestion."""

TEACHER = ("generate", "teacher", "fine_tuned")
"""The keys below are those of `train`, which are suggested in their place."""

CLEAR = 0.8
"""The similarity (difflib's ratio, 0 to 1) of keys above which only the most similar one is suggested."""

_KEY_OF_FOREIGN = {foreign: key for key, names in FOREIGN_NAMES.items() for foreign in names}


def dotted(path: KeyPath) -> str:
    """`("train", "rank")` as it is written: `train.rank`."""
    return ".".join(map(str, path))


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones: `{"train": {"rank": 8}}` is `{"train.rank": 8}`."""
    keys: dict[str, Any] = {}
    for key, value in values.items():
        keys |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {above + key: value}
    return keys


def changed_keys(recipe: Recipe) -> dict[str, Any]:
    """The dotted keys of a recipe that differ from their defaults, as plain JSON; without its claims."""
    written, defaults = (
        flat(each.model_dump(mode="json", exclude={"claims"})) for each in (recipe, Recipe())
    )
    return {key: value for key, value in written.items() if value != defaults.get(key)}


@cache
def split(key: str) -> KeyPath:
    """The path of a dotted key in a recipe; a key of a dictionary is one part, even with dots in it."""
    path: list[str | int] = []
    types_here: tuple[Any, ...] = (Recipe,)
    rest = key.split(".")
    while rest:
        if any(get_origin(kind) is dict for kind in types_here):
            return (*path, ".".join(rest))
        head = rest.pop(0)
        path.append(int(head) if head.isdecimal() and any(map(_entry_type, types_here)) else head)
        types_here = _types_below(types_here, path[-1])
    return tuple(path)


def is_key(path: KeyPath, root: type[Section] = Recipe) -> bool:
    """Whether the schema allows a value at `path`."""
    return bool(_types_at(path, root))


def overlap(a: KeyPath, b: KeyPath) -> bool:
    """Whether two paths are equal or one leads into the other."""
    return all(part == part_b for part, part_b in zip(a, b, strict=False))


def is_list(path: KeyPath) -> bool:
    """Whether the value at `path` is a list."""
    return any(_entry_type(kind) for kind in _types_at(path, Recipe))


def length_of(path: KeyPath, root: type[Section] = Recipe) -> int | None:
    """How many entries the list at `path` must have, None where any number is allowed."""
    lists = [get_args(kind) for kind in _types_at(path, root) if _entry_type(kind)]
    return next((len(entries) for entries in lists if ... not in entries and len(entries) > 1), None)


def keys_of(path: KeyPath, root: type[Section] = Recipe) -> list[str]:
    """The keys that can be written below `path`; none where the value has no keys."""
    return list(dict.fromkeys(key for kind in _types_at(path, root) for key in _fields(kind)))


def kinds_of(path: KeyPath, root: type[Section] = Recipe) -> list[str]:
    """The values that `kind` can have in an entry at `path`."""
    fields = (_fields(kind).get("kind") for kind in _types_at(path, root))
    return [value for field in fields if field for value in get_args(field)]


@cache
def all_keys(root: type[Section] = Recipe) -> tuple[str, ...]:
    """Every dotted key, those of sections included, without list indices and keys of dictionaries."""
    return tuple(_walk((), root))


def suggest(path: KeyPath, root: type[Section] = Recipe) -> list[str]:
    """The keys that an unknown key may have been meant to be: none to three, the likeliest first."""
    name = str(path[-1]).lower().replace("-", "_")
    foreign = _KEY_OF_FOREIGN if root is Recipe else {}
    same_name = [key for key in all_keys(root) if key.split(".")[-1] == name]
    if path[: len(TEACHER)] != TEACHER:
        same_name = [key for key in same_name if split(key)[: len(TEACHER)] != TEACHER]
    if same_name:
        similarity = {key: difflib.SequenceMatcher(None, dotted(path), key).ratio() for key in same_name}
        best = sorted(same_name, key=lambda key: -similarity[key])
        return best[:1] if similarity[best[0]] >= CLEAR else best[:3]
    if name in foreign:
        return [foreign[name]]
    siblings = {key: dotted((*path[:-1], key)) for key in keys_of(path[:-1], root)}
    if near := difflib.get_close_matches(name, siblings, n=1):
        return [siblings[near[0]]]
    keys = {**foreign, **{key.split(".")[-1]: key for key in all_keys(root)}}
    return [keys[near] for near in difflib.get_close_matches(name, keys, n=1, cutoff=0.7)]


def _walk(path: KeyPath, section: type[Section]) -> Iterator[str]:
    for key, kind in _fields(section).items():
        yield dotted((*path, key))
        for member in _members(kind):
            if _fields(member):
                yield from _walk((*path, key), member)


@cache
def _types_at(path: KeyPath, root: type[Section]) -> tuple[Any, ...]:
    """The types a value at `path` may have."""
    return reduce(_types_below, path, (root,))


def _types_below(types_here: tuple[Any, ...], part: str | int) -> tuple[Any, ...]:
    """The types a value may have one level below `types_here`, at a key or list index."""
    below = []
    for kind in types_here:
        below.append(_fields(kind).get(str(part)))
        below.append(_entry_type(kind) if isinstance(part, int) else None)
        below.append(get_args(kind)[1] if get_origin(kind) is dict else None)
    return tuple(member for kind in below if kind is not None for member in _members(kind))


def _members(kind: Any) -> tuple[Any, ...]:
    """The members of a union, without annotations; a type that is no union is its own member."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(inner for member in get_args(kind) for inner in _members(member))
    return (kind,)


def _fields(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, Section):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {}


def _entry_type(kind: Any) -> Any:
    """The type of a list's entries, None where `kind` is no list."""
    return get_args(kind)[0] if get_origin(kind) in (tuple, list) else None
