"""The memory of a model without its weights: outlines from configurations, and live tensors counted by part.

A step is run on fake tensors, which have shapes and no content, while `MemoryTracker` counts their bytes. So
the count follows the code that runs, whatever the architecture. The same tracker measures real tensors.
"""

import copy
import weakref
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_cli.errors import ModelError
from sublim_cli.models.load import Model, meta_model
from sublim_cli.models.reference import ModelRef, resolve_model
from sublim_cli.models.structure import linear_modules
from sublim_cli.recipe.yaml_file import read_package_data

if TYPE_CHECKING:
    import torch

SHIPPED = "shipped"
"""The revision of a `ModelRef` whose shapes are those of `configs/shapes.yaml`."""


def outline_ref(name: str, revision: str | None = None) -> ModelRef:
    """A reference that is enough for `outline`: nothing is fetched, and no weights need be here.

    Args:
        name: `micro`, a packaged model, a directory with a `config.json`, or a hub name of which the shapes
            are shipped or the configuration is in the hub's cache.

    Raises:
        ModelError: its shapes are not known here.
    """
    if name.rpartition("/")[2].lower() in _shapes() and not Path(name).expanduser().is_dir():
        return ModelRef(fingerprint=f"{name}@{SHIPPED}", name=name, source=name, revision=SHIPPED)
    try:
        return resolve_model(name, revision)
    except ModelError as error:
        known = ", ".join(sorted(shape["source"].rpartition("/")[2] for shape in _shapes().values()))
        raise ModelError(
            f"model {name}: its shapes are not known here. Give `--model DIR` with a directory that holds "
            f"its config.json (no weights are needed), or one of {known}"
        ) from error


def outline(ref: ModelRef, layers: int | None = None) -> Model:
    """A new model on torch's meta device, with its first `layers` alone if a number is given.

    Raises:
        ModelError: its configuration cannot be loaded.
    """
    import torch

    whole = _outline(ref)
    if layers is None:
        return copy.deepcopy(whole)
    config = copy.deepcopy(whole.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        return type(whole)(config)


def outline_config(ref: ModelRef) -> Any:
    """The model's configuration, of transformers."""
    return _outline(ref).config


@lru_cache(maxsize=8)
def weight_counts(ref: ModelRef) -> tuple[int, int]:
    """How many weights a model has, and how many of them are matrices that `qlora` quantises."""
    model = _outline(ref)
    linear: list[Any] = list(linear_modules(model).values())
    return sum(weight.numel() for weight in model.parameters()), sum(each.weight.numel() for each in linear)


@lru_cache(maxsize=4)
def _outline(ref: ModelRef) -> Model:
    if ref.revision != SHIPPED:
        return meta_model(ref)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(_shapes()[ref.name.rpartition("/")[2].lower()]["config"])
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


@lru_cache(maxsize=1)
def _shapes() -> dict[str, Any]:
    shapes = read_package_data("sublim_cli.models.configs", "shapes.yaml")
    return {name.lower(): shape for name, shape in shapes.items()}


def fill_with_fakes(model: Model) -> None:
    """Replace the meta tensors of `model` by fake ones on the CPU; call it in a `FakeTensorMode`.

    Fakes on the CPU, unlike meta tensors, follow autocast. Shared weights stay shared.
    """
    import torch

    fakes: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(weight) not in fakes:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                fakes[id(weight)] = torch.nn.Parameter(fake, requires_grad=weight.requires_grad)
            module._parameters[name] = fakes[id(weight)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


class MemoryTracker:
    """Bytes of the tensors that operations make while it is entered, and their peak by part.

    Parts: `logits` (tensors whose last dimension is the vocabulary), `gradients` (of the weights of
    `watch`), and `activations`, which is all else. Tensors that were there before are not counted.

        with MemoryTracker(vocabulary) as tracker:
            …
        tracker.peak.total()
    """

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._live: dict[int, tuple[str, int]] = {}
        self._known: set[int] = set()

    def watch(self, weights: Iterable[Any]) -> None:
        """Count the gradients of these parameters as such."""
        for weight in weights:
            weight.register_post_accumulate_grad_hook(self._is_gradient)

    def ignore(self, tensors: "Iterable[torch.Tensor]") -> None:
        """Leave tensors that operations return although they were there before out of the count."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def __enter__(self) -> "MemoryTracker":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        tracker = self

        class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if torch.is_inference_mode_enabled():  # then functions arrive here whole, with what they hold
                    with self:
                        parts = func.decompose(*args, **(kwargs or {}))
                    if parts is not NotImplemented:
                        return parts
                result = func(*args, **(kwargs or {}))
                for leaf in tree_leaves(result):
                    tracker._add(leaf)
                return result

        mode: Any = Counting()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._mode = mode
        mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)

    def _add(self, leaf: Any) -> None:
        import torch

        if not isinstance(leaf, torch.Tensor):
            return
        storage = leaf.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._known:
            return
        part = "logits" if leaf.shape[-1:] == (self.vocabulary,) else "activations"
        self._live[key] = part, storage.nbytes()
        self.now[part] += storage.nbytes()
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        part, size = self._live.pop(key)
        self.now[part] -= size

    def _is_gradient(self, weight: "torch.nn.Parameter") -> None:
        key = weight.grad.untyped_storage()._cdata if weight.grad is not None else None
        if key in self._live:
            part, size = self._live[key]
            self._live[key] = "gradients", size
            self.now[part] -= size
            self.now["gradients"] += size
