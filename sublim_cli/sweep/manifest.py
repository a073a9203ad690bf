"""The manifest of a study: what `auto` and the names of models stood for when it was planned.

A store keeps one for every study planned on it. So a report finds the artifacts from another machine, and an
extra that is installed between two sweeps renames nothing.

    planned, notice = plan_study(recipe, store)
    launcher.launch(planned.steps, store, recording(listener, recipe, planned, store))
"""

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sublim_cli import __version__
from sublim_cli.artifacts.step import Step, digest, in_order
from sublim_cli.artifacts.store import MANIFESTS, Store, explain_disk_errors, write_durably
from sublim_cli.backends.engine import resolve_engine
from sublim_cli.errors import ArtifactError, RecipeError, SublimError
from sublim_cli.events import Event, Listener, StepStarted, SweepPlanned
from sublim_cli.models.device import Capabilities
from sublim_cli.models.reference import ModelRef
from sublim_cli.pipeline import Cell, Resolution, Study, this_machine
from sublim_cli.recipe.keys import changed_keys, flat
from sublim_cli.recipe.resolve import SampledScoring
from sublim_cli.recipe.schema import Recipe
from sublim_cli.steps.eval import EvalSpec
from sublim_cli.steps.generate import GenerateSpec, GenerateStep
from sublim_cli.steps.train import TrainSpec
from sublim_cli.sweep.cells import study
from sublim_cli.trainers.backend import resolve_backend
from sublim_cli.wording import count, listed

PINNED = ("fingerprint", "name", "source", "revision", "stamp")
"""The fields of a `ModelRef` that say which model it is; any others come from the recipe."""

Planner = Callable[[Recipe, Resolution | None], Study]
"""`cells.study`, or `pipeline.single` for a study of one cell."""


@dataclass(frozen=True)
class Manifest:
    """What a store records of a study when it is planned."""

    identity: str
    """Of the recipe as it was written, see `recipe_identity`."""
    planned: str
    """Date and time in UTC."""
    resolution: Resolution
    digests: frozenset[str]
    """Of all steps."""


def plan_study(
    recipe: Recipe, store: Store, planner: Planner = study, *, reading: bool = False
) -> tuple[Study, str | None]:
    """A recipe's study with `auto` resolved so that as much of it as possible is in the store already.

    The choice is between what this machine would choose and what is recorded for studies of the recipe's
    name. The one with the most steps built, or being built, is taken; if several have the most, the one
    recorded for this very recipe, then this machine's; this machine's too if nothing is built.

    Args:
        reading: nothing will be built, so a model or an extra need not be here.

    Returns:
        The study, and a sentence where it differs from what this machine would choose.

    Raises:
        SublimError: this machine cannot plan the recipe, and no recorded study can stand in for it.
        ArtifactError: a manifest cannot be read.
    """
    recorded = list(_manifests(store, recipe.name))
    exact = [manifest for manifest in recorded if manifest.identity == recipe_identity(recipe)]
    others = [manifest for manifest in recorded if manifest not in exact]
    here, refusal = _attempt(planner, recipe, Resolution(this_machine()) if reading else None)
    candidates: list[tuple[Study, Manifest | None]] = []
    for manifest in [*exact, None, *others]:
        if manifest is None:
            candidates += [(here, None)] if here else []
        elif here is None or not _equal(manifest.resolution, here):
            resolution = manifest.resolution if reading else _without_directories(manifest.resolution)
            candidate, _ = _attempt(planner, recipe, resolution)
            candidates += [(candidate, manifest)] if candidate else []
    if not candidates:
        assert refusal is not None, "only a refusal leaves no candidate"
        raise refusal
    begun = [
        sum(map(store.begun, in_order(each.steps))) if len(candidates) > 1 else 1 for each, _ in candidates
    ]
    best = begun.index(max(begun))
    if not begun[best] and refusal:
        raise refusal
    chosen, manifest = candidates[best] if begun[best] else (here, None)
    assert chosen is not None, "this machine's study stands in where nothing is built"
    return chosen, _difference(chosen, here, manifest) if manifest else None


def record_study(recipe: Recipe, planned: Study, store: Store, *, replace: bool = True) -> None:
    """Write the manifest of a study that is about to be built, at once or not at all.

    Args:
        replace: False keeps a manifest that the store has for this recipe.

    Raises:
        ArtifactError: the store cannot be written.
    """
    path = store.root / MANIFESTS / f"{recipe.name}-{recipe_identity(recipe)}.json"
    if not replace and path.is_file():
        return
    machine = planned.resolution.machine if planned.resolution else this_machine()
    document = {
        "name": recipe.name,
        "identity": recipe_identity(recipe),
        "planned": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "sublim": __version__,
        "machine": asdict(machine),
        "models": [
            {"key": list(key), **{field: getattr(ref, field) for field in PINNED}}
            for key, ref in _models(planned).items()
        ],
        "auto": _auto_table(planned),
        "recipe": recipe.model_dump(mode="json"),
        "cells": [_cell_document(recipe, cell) for cell in planned.cells],
        "leaks": [digest(step) for step in planned.leaks],
        "digests": sorted(digest(step) for step in in_order(planned.steps)),
    }
    with explain_disk_errors(store.root, makes_directory=True):
        write_durably(path, json.dumps(document, indent=1, allow_nan=False))


def recording(
    listener: Listener, recipe: Recipe, planned: Study, store: Store, *, replace: bool = True
) -> Listener:
    """`listener`, which also writes the manifest when the first step begins, or if there is none to build."""
    written = False

    def listen(event: Event, /) -> None:
        nonlocal written
        begins = isinstance(event, StepStarted) or (isinstance(event, SweepPlanned) and not event.missing)
        if begins and not written:
            record_study(recipe, planned, store, replace=replace)
            written = True
        listener(event)

    return listen


def check_buildable(planned: Study, missing: Sequence[Step]) -> None:
    """Check that this machine can build the steps that are `missing` from a study planned on another one.

    Raises:
        RecipeError, MissingExtra: it lacks an extra or a CUDA device that a step needs.
    """
    if planned.resolution is None:
        return
    try:
        for step in missing:
            match step.spec:
                case TrainSpec(train=section):
                    resolve_backend(section)
                case GenerateSpec(engine=engine, sampling=sampling, precision=precision):
                    resolve_engine("generate.engine", engine, sampling, precision)
                case EvalSpec(scorer=SampledScoring(engine=engine, sampling=sampling), precision=precision):
                    resolve_engine("eval.engine", engine, sampling, precision)
    except RecipeError as error:
        raise type(error)(
            f"{error}, for students beside those that are in the store; the study was planned where it is "
            "possible, and goes on there"
        ) from error


def outdated(recipe: Recipe, planned: Study, store: Store) -> str | None:
    """A sentence if artifacts that the recipe's manifest names are not those it would have today."""
    now = {digest(step) for step in in_order(planned.steps)}
    for manifest in _manifests(store, recipe.name):
        if manifest.identity == recipe_identity(recipe) and (old := manifest.digests - now):
            return (
                f"{count(len(old), 'step')} of this study had other digests when it was planned on "
                f"{manifest.planned[:10]}: the model's files, a question file or sublim's code have changed "
                "since. `sublim sweep` builds them again"
            )
    return None


def recipe_identity(recipe: Recipe) -> str:
    """Twelve hex digits for the recipe as it is written, without its claims, which change no step."""
    text = json.dumps(changed_keys(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _attempt(
    planner: Planner, recipe: Recipe, resolution: Resolution | None
) -> tuple[Study | None, SublimError | None]:
    try:
        return planner(recipe, resolution), None
    except SublimError as error:
        return None, error


def _manifests(store: Store, name: str) -> Iterator[Manifest]:
    """The manifests of all studies called `name`, the newest first."""
    documents = []
    for file in (store.root / MANIFESTS).glob(f"{name}-*.json"):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["name"] == name:
                documents.append(document)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{file} cannot be read ({error}); delete it, and `auto` is resolved for this machine"
            ) from error
    for document in sorted(documents, key=lambda document: str(document["planned"]), reverse=True):
        models = {
            tuple(model["key"]): ModelRef(**{field: model[field] for field in PINNED})
            for model in document["models"]
        }
        yield Manifest(
            identity=document["identity"],
            planned=document["planned"],
            resolution=Resolution(Capabilities(**document["machine"]), models),
            digests=frozenset(document["digests"]),
        )


def _models(planned: Study) -> dict[tuple[str, str | None], ModelRef]:
    return {(cell.recipe.model, cell.recipe.revision): cell.chain.eval.spec.model for cell in planned.cells}


def _equal(resolution: Resolution, planned: Study) -> bool:
    """Whether a recorded resolution gives the same study as `planned`, which this machine resolved."""
    models = _models(planned)
    return resolution.machine == this_machine() and all(
        ref.fingerprint == models[key].fingerprint for key, ref in resolution.models.items() if key in models
    )


def _without_directories(resolution: Resolution) -> Resolution:
    """For building: a directory is needed itself, so that its recorded content cannot stand in for it."""
    models = {key: ref for key, ref in resolution.models.items() if ref.revision is not None}
    return Resolution(resolution.machine, models)


def _auto(cell: Cell) -> dict[str, tuple[str, str | None]]:
    """The keys of a cell whose value is `auto`, with what it stands for and why."""
    recipe, chain = cell.recipe, cell.chain
    values: dict[str, tuple[str, str, str | None]] = {}
    if isinstance(drawn := chain.generate, GenerateStep):
        values["generate.precision"] = (recipe.generate.precision, drawn.spec.precision, None)
        values["generate.engine"] = (recipe.generate.engine, drawn.spec.engine, drawn.auto_reason)
    values |= {
        "train.precision": (recipe.train.precision, chain.train.spec.train.precision, None),
        "train.backend": (recipe.train.backend, chain.train.spec.train.backend, chain.train.auto_reason),
        "eval.precision": (recipe.eval.precision, chain.eval.spec.precision, None),
    }
    scorer = chain.eval.spec.scorer
    if isinstance(scorer, SampledScoring):
        values["eval.engine"] = (recipe.eval.engine, scorer.engine, chain.eval.auto_reason)
    return {key: (value, reason) for key, (written, value, reason) in values.items() if written == "auto"}


def _auto_table(planned: Study) -> list[dict[str, Any]]:
    """Every value that `auto` was resolved to, its reason, and the number of cells that have it."""
    device = "with a CUDA device" if _machine(planned).cuda else "without a CUDA device"
    choices = Counter(
        (key, value, reason or device)
        for cell in planned.cells
        for key, (value, reason) in _auto(cell).items()
    )
    return [
        {"key": key, "value": value, "reason": reason, "cells": number}
        for (key, value, reason), number in choices.items()
    ]


def _machine(planned: Study) -> Capabilities:
    return planned.resolution.machine if planned.resolution else this_machine()


def _difference(chosen: Study, here: Study | None, manifest: Manifest) -> str | None:
    """What the recorded resolution `chosen` does otherwise than this machine would; None if nothing."""
    recorded, local = _values(chosen), _values(here) if here else {}
    changed = [key for key in recorded if recorded[key] != local.get(key)]
    if not changed:
        return None
    words = [f"{key} {'/'.join(recorded[key])}" for key in changed]
    if here is None:
        return f"as planned on {manifest.planned[:10]}: {listed(words)}"
    example = f"--set {changed[0]}={local[changed[0]][0]}" if changed[0] in local else "--set revision=COMMIT"
    return (
        f"the study goes on as planned on {manifest.planned[:10]}: {listed(words)}, where this machine "
        f"would take {listed(['/'.join(local.get(key, ('another',))) for key in changed])}; `{example}` "
        "asks for that, and builds anew what it changes"
    )


def _values(planned: Study) -> dict[str, tuple[str, ...]]:
    """What each `auto` key stands for over all cells, and the commit of each model of the hub."""
    values: dict[str, set[str]] = {}
    for cell in planned.cells:
        for key, (value, _) in _auto(cell).items():
            values.setdefault(key, set()).add(value)
    for (name, _), ref in _models(planned).items():
        if ref.revision is not None:
            values.setdefault(name, set()).add(ref.revision[:12])
    return {key: tuple(sorted(distinct)) for key, distinct in values.items()}


def _cell_document(recipe: Recipe, cell: Cell) -> dict[str, Any]:
    """A cell's role, name, the keys by which it differs from the recipe, and the digests of its steps."""
    written, changed = flat(recipe.model_dump(mode="json")), flat(cell.recipe.model_dump(mode="json"))
    settings = {key: value for key, value in changed.items() if value != written.get(key)}
    settings |= {key: value for key, (value, _) in _auto(cell).items()}
    chain = cell.chain
    steps: dict[str, Any] = {
        name: digest(step)
        for name in ("generate", "filter", "train", "eval", "base", "teacher")
        if (step := getattr(chain, name)) is not None
    }
    if chain.locate:
        steps["locate"] = [digest(step) for step in chain.locate]
    settings["train.learning_rate"] = chain.train.spec.train.learning_rate
    skipped = ("sweep", "claims")
    return {
        "role": cell.role,
        "name": chain.train.title,
        "settings": {key: value for key, value in settings.items() if not key.startswith(skipped)},
        "steps": steps,
    }
