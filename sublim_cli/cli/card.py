"""The plan of `plan --card`: tables for the terminal and one document for `--json`."""

from collections.abc import Sequence
from typing import Any

from sublim_cli.console import show_line, show_table
from sublim_cli.errors import RecipeError
from sublim_cli.recipe.schema import Recipe
from sublim_cli.sweep.card import GIB, CardPlan


def card_sizes(texts: Sequence[str]) -> list[float]:
    """The sizes in GiB of `--card 24 --card 8,12`, each once.

    Raises:
        RecipeError: one is not a number above 0.
    """
    sizes: list[float] = []
    for text in (part for each in texts for part in each.split(",")):
        try:
            size = float(text)
        except ValueError:
            size = 0.0
        if not 0 < size < float("inf"):
            raise RecipeError(
                f"--card {text}: must be GiB of a card's memory, such as 24, or several: 8,24,80"
            )
        sizes += [size] if size not in sizes else []
    return sizes


def show_cards(recipe: Recipe, plans: Sequence[CardPlan]) -> None:
    """A table for each card, in GiB, and what makes a step fit that does not; nothing without cards."""
    if not plans:
        return
    show_line(f"{recipe.name} on {recipe.model}: peak memory of each step by part, in GiB")
    columns = ("", "rows", "weights", "trained", "activ.", "logits", "k, v", "slack", "peak", "")
    for plan in plans:
        rows = []
        for step in plan.steps:
            memory = step.memory
            trained = memory.adapters + memory.gradients + memory.optimizer
            parts = (memory.weights, trained, memory.activations, memory.logits, memory.cache, memory.slack)
            figures = [f"{part / GIB:.1f}" if part else "" for part in (*parts, memory.total)]
            rows.append((step.step, str(step.rows), *figures, "fits" if step.fits else "no"))
        show_line("")
        verdict = "fits" if plan.fits else "does not fit"
        show_table(f"A card with {plan.gib:.3g} GiB: {verdict}", columns, rows, numbers=columns[1:-1])
        for remedy in plan.remedies:
            show_line(f"{remedy}")
    kept = {step.step: step.kept for plan in plans for step in plan.steps if step.kept}
    show_line("")
    for name, memory in kept.items():
        show_line(
            f"{name} without checkpointing: {memory.activations / GIB:.1f} GiB of activations, "
            f"{memory.total / GIB:.1f} in all"
        )
    show_line(
        "trained: adapters, gradients and optimizer state; slack: the CUDA context and the allocator's "
        "fragments, an assumption"
    )


def card_document(recipe: Recipe, plans: Sequence[CardPlan]) -> dict[str, Any]:
    """The plans as plain data, sizes in bytes."""
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "cards": [
            {
                "gib": plan.gib,
                "fits": plan.fits,
                "remedies": list(plan.remedies),
                "steps": [
                    {
                        "step": step.step,
                        "rows": step.rows,
                        "fits": step.fits,
                        "peak": step.memory.total,
                        "parts": vars(step.memory),
                        "without_checkpointing": step.kept and {"peak": step.kept.total, **vars(step.kept)},
                    }
                    for step in plan.steps
                ],
            }
            for plan in plans
        ],
    }
