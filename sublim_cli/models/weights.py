"""The weights of a base model, read from its files one at a time."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sublim_cli.models.load import DTYPES, load_weights
from sublim_cli.models.reference import ModelRef, check_unchanged

if TYPE_CHECKING:
    import torch

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
"""The files of a checkpoint in safetensors format: shards with an index of their tensors, or all in one."""

PLAIN = ("F64", "F32", "F16", "BF16")
"""Dtypes in safetensors files that are weights as they are; others need scales that transformers applies."""


class BaseWeights:
    """The parameters of a base model by the names that they have in the model, in `precision`.

    A parameter is read from the file when it is asked for, so a second model is never in memory. Where a
    checkpoint names or stores its weights in another way than the model does, or is not in safetensors
    format, the whole model is loaded into main memory at the first such parameter. The files are open
    within the `with` block, at whose end a ModelError is raised if they have changed.
    """

    def __init__(self, ref: ModelRef, precision: str) -> None:
        self.ref, self.precision = ref, precision
        self._files = ExitStack()
        self._file_of: dict[str, Any] = {}
        """The open file of each tensor."""
        self._loaded: dict[str, torch.Tensor] | None = None

    def __enter__(self) -> "BaseWeights":
        from safetensors import safe_open

        directory = _directory(self.ref)
        if (directory / INDEX).is_file():
            weight_map = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        else:
            names = [SINGLE] if (directory / SINGLE).is_file() else []
        for name in names:
            file = self._files.enter_context(safe_open(directory / name, framework="pt"))
            self._file_of.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()
        self._file_of.clear()
        if error is None:
            check_unchanged(self.ref)  # after reading, so that a change during it is noticed too

    def read(self, name: str, like: "torch.Tensor") -> "torch.Tensor":
        """The parameter called `name`, of the shape and on the device of `like`.

        Raises:
            ModelError: see `load_weights`.
        """
        import torch

        file = self._file_of.get(name)
        if file is not None and self._loaded is None:
            stored = file.get_slice(name)
            if stored.get_dtype() in PLAIN and tuple(stored.get_shape()) == tuple(like.shape):
                weight: torch.Tensor = file.get_tensor(name)
                return weight.to(like.device, getattr(torch, DTYPES[self.precision]))
        if self._loaded is None:
            self._loaded = load_weights(self.ref, self.precision)
        return self._loaded[name].to(like.device)


def _directory(ref: ModelRef) -> Path:
    """The directory of the model's files: its own, or of the hub's cache."""
    if Path(ref.source).is_dir():
        return Path(ref.source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(ref.source, revision=ref.revision, local_files_only=True))
