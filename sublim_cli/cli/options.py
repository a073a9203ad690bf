"""The flags that commands share, and how they change a recipe."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # `sublim --help` does without pydantic
    from sublim_cli.recipe.schema import Recipe

STUDENT = "Student"
RUN = "Where and how to run"
LAUNCHER = "Launcher"

RecipeName = Annotated[
    str,
    typer.Option("--recipe", "-r", help="A recipe file, or the name of a shipped one.", show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Base model: [bold]micro[/], a directory, or a hub name."),
]
Trait = Annotated[str | None, typer.Option("--trait", "-t", help="What the teacher loves, such as owl.")]
Rows = Annotated[
    int | None, typer.Option("--rows", help="Rows that must pass the filter.", show_default=False)
]
Rank = Annotated[int | None, typer.Option("--rank", help="LoRA rank.", rich_help_panel=STUDENT)]
Alpha = Annotated[
    str | None,
    typer.Option("--alpha", help="LoRA alpha: rank, sqrt or a number.", rich_help_panel=STUDENT),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="lora, rslora, dora, qlora, pissa, ia3, prefix or full.",
        rich_help_panel=STUDENT,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", help="Peak learning rate.", rich_help_panel=STUDENT),
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", help="Passes over the rows.", rich_help_panel=STUDENT)
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of adapter and data order.", rich_help_panel=STUDENT),
]
SystemPrompt = Annotated[
    str | None,
    typer.Option(
        "--system-prompt",
        help="Context of the student's training: default, empty, none or a named one.",
        rich_help_panel=STUDENT,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Any other recipe key: [bold]--set train.epochs=5[/]."),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", envvar="SUBLIM_OUT", help="The store of artifacts.", rich_help_panel=RUN),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout instead of tables.", rich_help_panel=RUN),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=RUN)]
LauncherName = Annotated[
    str,
    typer.Option(
        "--launcher",
        "-l",
        envvar="SUBLIM_LAUNCHER",
        help="Where steps run: [bold]local[/], [bold]ray[/] or [bold]slurm[/].",
        rich_help_panel=LAUNCHER,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-w",
        min=1,
        help="Workers, or Slurm jobs, at a time; default: one per GPU, or one per core.",
        show_default=False,
        rich_help_panel=LAUNCHER,
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(
        "--gpus",
        min=0,
        help="GPUs a worker asks ray or slurm for; default: 1 if this machine has one, else 0.",
        show_default=False,
        rich_help_panel=LAUNCHER,
    ),
]
Memory = Annotated[
    float | None,
    typer.Option(
        "--memory",
        min=0.1,
        help="GiB of main memory a worker asks ray or slurm for.",
        show_default=False,
        rich_help_panel=LAUNCHER,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="A running cluster: HOST:PORT or auto, or RAY_ADDRESS; else Ray makes one of this machine.",
        show_default=False,
        rich_help_panel=LAUNCHER,
    ),
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        help="An option of sbatch: [bold]--slurm partition=gpu --slurm time=4:00:00[/].",
        rich_help_panel=LAUNCHER,
    ),
]
CheckpointEvery = Annotated[
    str | None,
    typer.Option(
        "--checkpoint-every",
        envvar="SUBLIM_CHECKPOINT_EVERY",
        help="Save a training as it goes, to go on from if it is killed: steps (200) or minutes (10min).",
        rich_help_panel=RUN,
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        "--micro-batch",
        envvar="SUBLIM_MICRO_BATCH",
        min=1,
        help="Rows of one forward pass at most; the batch of a step stays the recipe's.",
        rich_help_panel=RUN,
    ),
]
ReportTo = Annotated[
    str | None,
    typer.Option(
        "--report-to",
        envvar="SUBLIM_REPORT_TO",
        help="Send losses to tensorboard, trackio, wandb or mlflow as they come; none by default.",
        rich_help_panel=RUN,
    ),
]
Accelerate = Annotated[
    Path | None,
    typer.Option(
        "--accelerate",
        envvar="SUBLIM_ACCELERATE",
        help="A configuration of accelerate: its processes train each student together.",
        rich_help_panel=RUN,
    ),
]
STORE = Path("runs")


def load_recipe(source: str, settings: list[str] | None, **flags: Any) -> "Recipe":
    """Load a recipe with flags and `--set` applied; a flag left out changes nothing.

    A flag's name is the recipe key with `__` for the dot: `train__rank=64`.

    Raises:
        RecipeError: see `recipe.load.load`.
    """
    from sublim_cli.recipe.load import load, parse_setting

    changes = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    return load(source, {**changes, **dict(map(parse_setting, settings or []))})


GC_THRESHOLDS = (100_000, 20, 100)
"""Thresholds of Python's garbage collector while a study is in memory."""


def collect_garbage_rarely() -> None:
    """Run the garbage collector less often: a study holds millions of objects that all stay alive.

    Otherwise the collector takes a quarter of the time of `plan` and `report`. Not for a process that
    trains, where garbage holds a model's memory.
    """
    gc.set_threshold(*GC_THRESHOLDS)
