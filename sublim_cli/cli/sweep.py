"""`sublim sweep`: a family of recipes, its controls, and the report."""

from sublim_cli.cli import options as o


def sweep(
    recipe: o.RecipeName,
    model: o.Model = None,
    trait: o.Trait = None,
    rows: o.Rows = None,
    settings: o.Settings = None,
    launcher: o.LauncherName = "local",
    workers: o.Workers = None,
    gpus: o.Gpus = None,
    memory: o.Memory = None,
    ray_address: o.RayAddress = None,
    slurm: o.Slurm = None,
    checkpoint_every: o.CheckpointEvery = None,
    micro_batch: o.MicroBatch = None,
    report_to: o.ReportTo = None,
    accelerate: o.Accelerate = None,
    out: o.Out = o.STORE,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Run every cell of a recipe's sweep with its controls, and write the report.

    Steps that cells share run once. A cell that fails is reported and the
    rest goes on; a second run builds only what is missing.

    [bold]sublim sweep --recipe demo[/]
    """
    from sublim_cli.cli.launcher import caution, open_launcher
    from sublim_cli.cli.study_command import sweep_and_show
    from sublim_cli.trainers.runtime import set_runtime

    set_runtime(checkpoint_every, micro_batch, report_to, accelerate)
    o.collect_garbage_rarely()
    loaded = o.load_recipe(recipe, settings, model=model, trait__target=trait, generate__rows=rows)
    opened = open_launcher(
        launcher, workers=workers, gpus=gpus, memory=memory, ray_address=ray_address, slurm=slurm or []
    )
    sweep_and_show(loaded, out, opened, caution=caution(gpus), json=json, quiet=quiet)
