"""A model's name resolved to its content, so that digests depend on the content and not on the name."""

import hashlib
from functools import cache
from pathlib import Path

from pydantic import Field

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models import micro
from sublim_cli.models.packaged import PACKAGED, packaged_directory
from sublim_cli.recipe.schema import Section, TemplateSection

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before the local cache is used."""

SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".spm", ".tiktoken", ".jinja", ".txt")
"""Files of a directory that are part of the model and of its fingerprint."""

WEIGHTS = (".safetensors", ".bin")

NAMED_TEMPLATES = "additional_chat_templates"
"""Where transformers keeps a model's chat templates other than the default."""


class ModelRef(Section):
    """A model pinned to its content.

    Only `fingerprint` and a choice of chat template enter digests: the same files at another path are the
    same model.
    """

    fingerprint: str
    chat_template: TemplateSection = Field(
        default=TemplateSection(), exclude_if=lambda choice: choice == TemplateSection()
    )
    name: str = Field(exclude=True)
    source: str = Field(exclude=True)
    """A directory, or a repository of the hub."""
    revision: str | None = Field(default=None, exclude=True)
    stamp: str | None = Field(default=None, exclude=True)
    """Hash of the sizes and times of a directory's files; while it is equal they are not hashed again."""


def resolve_model(
    name: str,
    revision: str | None = None,
    template: TemplateSection | None = None,
    recorded: ModelRef | None = None,
) -> ModelRef:
    """Pin `name`: `micro`, a packaged model, a directory, or a repository of the hub at `revision`.

    Args:
        template: the recipe's choice of a chat template.
        recorded: what the name stood for when a study was planned, perhaps elsewhere. A model of the hub
            stays at that commit; a directory is read again if it is here.

    Raises:
        ModelError: it is neither on this machine nor reachable, nor recorded; the message says what can be
            done.
        RecipeError: a revision is given for a directory, which has none.
    """
    try:
        ref = recorded if recorded and recorded.revision is not None else _pin(name, revision)
    except ModelError:
        if recorded is None:
            raise
        ref = recorded
    if template is None:
        return ref
    choice = TemplateSection(name=template.name, variables=template.variables)
    return ref.model_copy(update={"chat_template": choice})


@cache
def _pin(name: str, revision: str | None) -> ModelRef:
    local = _directory(name)
    if local.is_dir():
        if revision is not None:
            raise RecipeError(f"revision: {name} is a directory, it has no revisions; remove the key")
        if not (local / "config.json").is_file():
            raise ModelError(f"model: {local} holds no config.json; give a model saved by transformers")
        return ModelRef(
            fingerprint=_fingerprint(local), name=name, source=str(local.resolve()), stamp=_stamp(local)
        )
    if name in PACKAGED:
        raise ModelError(f"model {name} is not on this machine; `sublim models get {name}` gets it")
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model: there is no directory {name}; give one that exists, or a hub name")
    commit = _commit(name, revision)
    return ModelRef(fingerprint=f"{name}@{commit}", name=name, source=name, revision=commit)


def _directory(name: str) -> Path:
    """The directory that `name` stands for, if it stands for one."""
    if name == "micro":
        return micro.WEIGHTS
    return packaged_directory(name) if name in PACKAGED else Path(name).expanduser()


def check_unchanged(ref: ModelRef) -> None:
    """Check a directory that was pinned earlier, perhaps by another process.

    Raises:
        ModelError: its files have changed since.
    """
    path = Path(ref.source)
    if ref.stamp is not None and _stamp(path) != ref.stamp and _fingerprint(path) != ref.fingerprint:
        raise ModelError(
            f"model {ref.name}: the files in {path} have changed since this run was planned, and an "
            "artifact built on them would get a wrong digest. Run the same command again"
        )


def weights_bytes(ref: ModelRef) -> int | None:
    """The size of the model's weight files; None if they are not on this machine."""
    path = Path(ref.source)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(ref.source, revision=ref.revision, local_files_only=True))
        except OSError:
            return None
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in WEIGHTS) or None


def _fingerprint(path: Path) -> str:
    total = hashlib.sha256()
    for part in _files(path):
        with part.open("rb") as file:
            name, content = part.relative_to(path).as_posix(), hashlib.file_digest(file, "sha256")
            total.update(f"{name}:{content.hexdigest()};".encode())
    return f"files:{total.hexdigest()}"


def _stamp(path: Path) -> str:
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(path)]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    """The files of a model: weights, configuration, tokenizer, templates."""
    files = [*sorted(path.iterdir()), *sorted((path / NAMED_TEMPLATES).glob("*"))]
    return [file for file in files if file.is_file() and file.suffix in SUFFIXES]


def _commit(name: str, revision: str | None) -> str:
    """The commit `revision` points to, according to the hub or, if it gives no answer, the local cache."""
    import httpx
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    reason = "the hub cannot be reached"
    try:
        sha = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT).sha
        if sha:
            return sha
    except HfHubHTTPError as error:
        reason = f"the hub answers {error.response.status_code} for it"
    except HFValidationError:
        raise ModelError(
            f"model: {name!r} is neither a directory here nor a valid hub name (OWNER/NAME)"
        ) from None
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set"
    except (httpx.HTTPError, OSError):
        pass
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
    except OSError:
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"model {name}{at} is not on this machine (looked in {constants.HF_HUB_CACHE}) and {reason}. "
            f"Ways out: `--model micro` runs this recipe on the embedded model; `hf download {name}` where "
            "there is a network, then copy the cache and set HF_HOME; or `--model DIR` for a copy you have"
        ) from None
