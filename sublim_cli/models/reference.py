"""Which model is meant: a name resolved to content, before anything is hashed."""

import hashlib
from functools import cache
from pathlib import Path

from pydantic import Field

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models import micro
from sublim_cli.recipe.schema import Section

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before the local cache decides."""

SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")
"""Files of a directory that make the model what it is."""


WEIGHTS = (".safetensors", ".bin")


class ModelRef(Section):
    """A model pinned to its content.

    Only `fingerprint` is identity: the same files under another path are the same model.
    """

    fingerprint: str
    name: str = Field(exclude=True)
    source: str = Field(exclude=True)
    """A directory, or a repository of the hub."""
    revision: str | None = Field(default=None, exclude=True)
    stamp: str | None = Field(default=None, exclude=True)
    """Sizes and times of a directory's files when they were hashed: equal, they need not be hashed again."""


@cache
def resolve_model(name: str, revision: str | None = None) -> ModelRef:
    """Pin `name`: `micro`, a directory, or a repository of the hub at `revision`.

    Raises:
        ModelError: it is neither here nor reachable; the message names the ways out.
        RecipeError: a revision is asked of a model that has none.
    """
    local = micro.WEIGHTS if name == "micro" else Path(name).expanduser()
    if name == "micro" or local.is_dir():
        if revision is not None:
            raise RecipeError(f"revision: {name} is a directory, it has no revisions; remove the key")
        return _local(name, local)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model: there is no directory {name}; give one that exists, or a hub name")
    commit = _commit(name, revision)
    return ModelRef(fingerprint=f"{name}@{commit}", name=name, source=name, revision=commit)


def _local(name: str, path: Path) -> ModelRef:
    if not (path / "config.json").is_file():
        raise ModelError(f"model: {path} holds no config.json; give a model saved by transformers")
    return ModelRef(fingerprint=_fingerprint(path), name=name, source=str(path.resolve()), stamp=_stamp(path))


def check_unchanged(ref: ModelRef) -> None:
    """Look again at a directory that was pinned earlier, perhaps by another process.

    Raises:
        ModelError: its files are no longer those that `ref` names.
    """
    path = Path(ref.source)
    if ref.stamp is not None and _stamp(path) != ref.stamp and _fingerprint(path) != ref.fingerprint:
        raise ModelError(
            f"model {ref.name}: the files in {path} have changed since this run was planned, so what is "
            "built on them would bear a wrong name. Run the same command again"
        )


def weights_bytes(ref: ModelRef) -> int | None:
    """The size of the model's weight files; None where they are not on this machine."""
    path = Path(ref.source)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(ref.source, revision=ref.revision, local_files_only=True))
        except OSError:
            return None
    return sum(one.stat().st_size for one in path.iterdir() if one.suffix in WEIGHTS) or None


def _fingerprint(path: Path) -> str:
    whole = hashlib.sha256()
    for one in _files(path):
        with one.open("rb") as file:
            whole.update(f"{one.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return f"files:{whole.hexdigest()}"


def _stamp(path: Path) -> str:
    known = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in _files(path)]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def _files(path: Path) -> list[Path]:
    """The files of a model: weights, configuration, tokenizer, template."""
    return [one for one in sorted(path.iterdir()) if one.is_file() and one.suffix in SUFFIXES]


def _commit(name: str, revision: str | None) -> str:
    """The commit `revision` points to: the hub's word, or the local cache's where it is silent."""
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
        raise ModelError(_missing(name, revision, reason, constants.HF_HUB_CACHE)) from None


def _missing(name: str, revision: str | None, reason: str, cache_dir: str) -> str:
    at = f" at revision {revision}" if revision else ""
    return (
        f"model {name}{at} is not on this machine (looked in {cache_dir}) and {reason}. Ways out: "
        f"`--model micro` runs this recipe on the embedded model; `hf download {name}` where there is "
        "a network, then copy the cache and set HF_HOME; or `--model DIR` for a copy you have"
    )
