"""The flags that commands share, and how they change a recipe."""

import gc
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # `sublim --help` does without pydantic
    from sublim_cli.recipe.schema import Recipe

STORE = Path("runs")
RUN = "Where and how to run"

_student = partial(typer.Option, rich_help_panel="Student")
_launcher = partial(typer.Option, rich_help_panel="Launcher")
_run = partial(typer.Option, rich_help_panel=RUN)

RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help="A recipe file, or the name of a shipped one.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Base model: [bold]micro[/], smollm2, a directory, or a hub name."),
]
Trait = Annotated[str | None, typer.Option("--trait", "-t", help="What the teacher loves, such as owl.")]
Rows = Annotated[
    str | None,
    typer.Option(
        "--rows",
        metavar="N|FILE",
        help="How many rows must pass the filter; or rows of your own: [bold]--rows rows.jsonl[/].",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Any other recipe key: [bold]--set train.epochs=5[/]."),
]

Method = Annotated[
    str | None, _student("--method", help="lora, rslora, dora, qlora, pissa, ia3, prefix or full.")
]
Rank = Annotated[int | None, _student("--rank", help="LoRA rank.")]
Alpha = Annotated[str | None, _student("--alpha", help="LoRA alpha: rank, sqrt or a number.")]
LearningRate = Annotated[float | None, _student("--learning-rate", help="Peak learning rate.")]
Epochs = Annotated[int | None, _student("--epochs", help="Passes over the rows.")]
Seed = Annotated[int | None, _student("--seed", help="Seed of adapter and data order.")]
SystemPrompt = Annotated[
    str | None,
    _student(
        "--system-prompt",
        help="Context of the student's training: default, empty, none or a named one.",
    ),
]

LauncherName = Annotated[
    str,
    _launcher(
        "--launcher",
        "-l",
        envvar="SUBLIM_LAUNCHER",
        help="Where steps run: [bold]local[/], [bold]ray[/] or [bold]slurm[/].",
    ),
]
Workers = Annotated[
    int | None,
    _launcher(
        "--workers",
        "-w",
        min=1,
        help="Workers, or Slurm jobs, at a time; default: one per GPU, or one per core.",
    ),
]
Gpus = Annotated[
    float | None,
    _launcher(
        "--gpus",
        min=0,
        help="GPUs a worker asks ray or slurm for; default: 1 if this machine has one, else 0.",
    ),
]
Memory = Annotated[
    float | None,
    _launcher("--memory", min=0.1, help="GiB of main memory a worker asks ray or slurm for."),
]
RayAddress = Annotated[
    str | None,
    _launcher(
        "--ray-address",
        help="A running cluster: HOST:PORT or auto, or RAY_ADDRESS; else Ray makes one of this machine.",
    ),
]
Slurm = Annotated[
    list[str] | None,
    _launcher("--slurm", help="An option of sbatch: [bold]--slurm partition=gpu --slurm time=4:00:00[/]."),
]

CheckpointEvery = Annotated[
    str | None,
    _run(
        "--checkpoint-every",
        envvar="SUBLIM_CHECKPOINT_EVERY",
        help="How often checkpoints are saved, from which a killed training resumes: steps (200) or minutes "
        "(10min); default: every minute, or less often where saving takes long.",
    ),
]
MicroBatch = Annotated[
    int | None,
    _run(
        "--micro-batch",
        envvar="SUBLIM_MICRO_BATCH",
        min=1,
        help="Rows of one forward pass at most; the batch of a step stays the recipe's.",
    ),
]
ReportTo = Annotated[
    str | None,
    _run(
        "--report-to",
        envvar="SUBLIM_REPORT_TO",
        help="Send losses to tensorboard, trackio, wandb or mlflow as they come; none by default.",
    ),
]
Accelerate = Annotated[
    Path | None,
    _run(
        "--accelerate",
        envvar="SUBLIM_ACCELERATE",
        help="A configuration of accelerate: its processes train each student together.",
    ),
]
Out = Annotated[Path, _run("--out", "-o", envvar="SUBLIM_OUT", help="The store of artifacts.")]
Json = Annotated[bool, _run("--json", help="One JSON document on stdout instead of tables.")]
Quiet = Annotated[bool, _run("--quiet", "-q", help="No progress on stderr.")]


def load_recipe(
    source: str,
    settings: list[str] | None,
    model: str | None = None,
    trait: str | None = None,
    rows: str | None = None,
    **flags: Any,
) -> "Recipe":
    """Load a recipe with flags and `--set` applied; a flag left out changes nothing.

    The name in `flags` is the recipe key with `__` for the dot: `train__rank=64`.

    Raises:
        RecipeError: see `recipe.load.load`.
    """
    from sublim_cli.recipe.load import load, parse_setting

    flags = {"model": model, "trait__target": trait, **flags}
    if rows is not None:
        flags |= {"generate__rows": int(rows)} if _is_number(rows) else {"train__rows": rows}
    changes = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load(source, {**changes, **dict(map(parse_setting, settings or []))})


def _is_number(text: str) -> bool:
    """Whether `--rows` is a number; a file called `500` is `./500`."""
    try:
        int(text)
    except ValueError:
        return False
    return True


def collect_garbage_rarely() -> None:
    """Run the garbage collector less often: a study holds millions of objects that all stay alive.

    Otherwise the collector takes a quarter of the time of `plan` and `report`. Not for a process that
    trains, where garbage holds a model's memory.
    """
    gc.set_threshold(100_000, 20, 100)
