"""`sublim train`: one student."""

from sublim_cli.cli.student import student_command

train = student_command(
    "train",
    """Train a student on a teacher's numbers; rows that are missing are drawn first.

    [bold]sublim train --rank 64 --recipe cats --model micro[/]
    """,
)
