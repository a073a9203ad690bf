"""`sublim eval`: what a student, and the untouched base, answer in every context."""

from sublim_cli.cli.train import student_command

evaluate = student_command(
    "eval",
    """Score one student in every context of the recipe, beside the untouched base.

    The probability that an answer names the target is computed, not
    sampled, unless `eval.scorer` is `sampled`. Missing rows are drawn and
    a missing student is trained first.

    [bold]sublim eval --rank 64 --recipe cats --model micro[/]
    """,
)
