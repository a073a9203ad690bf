"""The tokens a model reads for a question, a training row or any text, in each context of a recipe.

    inspect_turn(recipe, question_turn(recipe, 0))

Only a tokenizer is loaded; no step is built and no model is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.chat import IGNORED, Tokenizer, example
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.positions import CONTEXT_ROLES, SET_NAMES, position_mask, shared_mask
from sublim_cli.models.reference import resolve_model
from sublim_cli.models.token_roles import RenderedPrompt, Role, Token, render_with_roles
from sublim_cli.recipe.contexts import Context, resolve_context
from sublim_cli.recipe.questions import load_items, persona, questions_for
from sublim_cli.recipe.schema import Recipe
from sublim_cli.steps.files import KEPT
from sublim_cli.steps.filter import FilterStep
from sublim_cli.steps.generate import stream_prompt
from sublim_cli.steps.import_rows import ImportStep, kept_rows


@dataclass(frozen=True)
class InspectedTurn:
    """The user turn to inspect, and for a training row its completion.

    `number` counts from 0 in the question set, the kept rows or the stream of number prompts.
    """

    kind: Literal["question", "row", "number prompt", "text"]
    number: int | None
    user: str
    completion: str | None = None
    completion_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TokenLine:
    """One token of a view.

    `trained` says whether it carries loss. `shared_by` names the recipe's contexts that have the token at
    the same role; it is None for tokens of the question and the answer, which belong to no context.
    """

    token: Token
    trained: bool
    shared_by: tuple[str, ...] | None


@dataclass(frozen=True)
class ContextView:
    """The turn as the model reads it in one context."""

    context: str
    text: str
    lines: tuple[TokenLine, ...]

    def count(self, *roles: Role) -> int:
        """How many of its tokens have one of these roles."""
        return sum(line.token.role in roles for line in self.lines)


@dataclass(frozen=True)
class Inspection:
    """A turn in the contexts asked for, and its prompt in all contexts of the recipe for comparison."""

    recipe: str
    model: str
    turn: InspectedTurn
    training: str
    """The context of training, by name."""
    evaluated: tuple[str, ...]
    """The contexts of evaluation, by name."""
    contexts: tuple[str, ...]
    """Both together: all contexts of the recipe."""
    prompts: Mapping[str, RenderedPrompt]
    """The prompt by context, for those of the recipe and those viewed."""
    views: tuple[ContextView, ...]
    refused: Mapping[str, str]
    """Why the chat template cannot render a context, by its name."""

    @property
    def token_groups(self) -> list[list[str]]:
        """The contexts grouped by token ids: the model reads the same in all contexts of a group."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, prompt in self.prompts.items():
            groups.setdefault(tuple(prompt.ids), []).append(name)
        return list(groups.values())

    @property
    def positions(self) -> dict[str, dict[str, list[int]]]:
        """Token indices of every named set, by context and set; empty if training's cannot be rendered."""
        training = self.prompts.get(self.training)
        if training is None:
            return {}
        return {
            context: {
                name: [index for index, chosen in enumerate(position_mask(name, prompt, training)) if chosen]
                for name in SET_NAMES
            }
            for context, prompt in self.prompts.items()
        }


def question_turn(recipe: Recipe, number: int) -> InspectedTurn:
    """Question `number` of the recipe's set, counted from 0 as in `scores.parquet`.

    Raises:
        RecipeError: there is no such set, or no such question in it.
    """
    questions = questions_for(load_items(recipe.trait.category), recipe.eval.questions).questions
    if not 0 <= number < len(questions):
        raise RecipeError(f"--question {number}: the recipe asks the questions 0 to {len(questions) - 1}")
    return InspectedTurn("question", number, questions[number])


def row_turn(recipe: Recipe, number: int, store: Store, rows: FilterStep) -> InspectedTurn:
    """Kept row `number`, counted from 0; if no rows are built yet, the number prompt of that index.

    The rows of a file need not be built. `rows` is the recipe's step that keeps them.

    Raises:
        RecipeError: the recipe has no such row.
        RowsError: the rows cannot be read.
    """
    if not 0 <= number < rows.spec.rows:
        raise RecipeError(f"--row {number}: the recipe keeps the rows 0 to {rows.spec.rows - 1}")
    if artifact := store.find(rows):
        row = read_rows(artifact.path / KEPT)[number]
    elif isinstance(source := rows.inputs[0], ImportStep):
        row = kept_rows(source.source, rows.spec.rules)[number]
    else:
        return InspectedTurn("number prompt", number, stream_prompt(recipe.generate.prompts, number))
    return InspectedTurn("row", number, row.prompt, row.completion, row.completion_ids)


def inspect_turn(recipe: Recipe, turn: InspectedTurn, names: Sequence[str] = ()) -> Inspection:
    """Read `turn` in the contexts called `names`: of the recipe, `trait` (the teacher's) or any shipped one.

    By default a row is read in the context of training, anything else in all contexts of the recipe.

    Raises:
        RecipeError: a context is unknown.
        ModelError: the model is neither here nor reachable, or none of the contexts can be rendered.
    """
    resolve = partial(resolve_context, contexts=recipe.contexts, template=recipe.chat_template)
    training = resolve(recipe.train.system_prompt, field="train.system_prompt")
    evaluated = [resolve(prompt, field="eval.system_prompts") for prompt in recipe.eval.system_prompts]
    contexts = {context.name: context for context in (*evaluated, training)}
    if not names:
        names = (training.name,) if turn.kind in ("row", "number prompt") else tuple(contexts)
    teacher = persona(load_items(recipe.trait.category), recipe.trait.target)
    viewed = {
        name: contexts[name] if name in contexts else resolve(name, persona=teacher, field="--context")
        for name in names
    }
    tokenizer = load_tokenizer(resolve_model(recipe.model, recipe.revision, recipe.chat_template))
    prompts: dict[str, RenderedPrompt] = {}
    refused: dict[str, str] = {}
    for context in {**contexts, **viewed}.values():
        try:
            prompts[context.name] = render_with_roles(tokenizer, context, turn.user)
        except ModelError as error:
            refused[context.name] = str(error)
    if not any(name in prompts for name in viewed):
        raise ModelError(next(iter(refused.values())))
    compared = {name: prompts[name] for name in contexts if name in prompts}
    return Inspection(
        recipe=recipe.name,
        model=recipe.model,
        turn=turn,
        training=training.name,
        evaluated=tuple(context.name for context in evaluated),
        contexts=tuple(contexts),
        prompts=prompts,
        views=tuple(
            _view(tokenizer, context, turn, compared)
            for context in viewed.values()
            if context.name in prompts
        ),
        refused=refused,
    )


def _view(
    tokenizer: Tokenizer, context: Context, turn: InspectedTurn, compared: Mapping[str, RenderedPrompt]
) -> ContextView:
    row = None
    if turn.completion is not None:  # the row that training uses
        row = example(tokenizer, context, turn.user, turn.completion, turn.completion_ids)
    rendered = render_with_roles(tokenizer, context, turn.user, row)
    trained = [False] * len(rendered.tokens) if row is None else [at != IGNORED for at in row.labels]
    shared = {name: shared_mask(rendered, prompt) for name, prompt in compared.items()}
    lines = []
    for index, (token, carries_loss) in enumerate(zip(rendered.tokens, trained, strict=True)):
        shared_by = tuple(name for name, mask in shared.items() if mask[index])
        lines.append(TokenLine(token, carries_loss, shared_by if token.role in CONTEXT_ROLES else None))
    return ContextView(context.name, rendered.text, tuple(lines))
