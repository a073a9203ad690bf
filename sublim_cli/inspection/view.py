"""What a model reads: a question, a row or any text, token by token, in every context of a recipe.

    inspection(recipe, question(recipe, 0))

Only a tokenizer is loaded. Nothing is trained and nothing is built.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sublim_cli.artifacts.rows import read_rows
from sublim_cli.artifacts.store import Store
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.chat import IGNORED, Tokenizer, example
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.positions import CONTEXT_ROLES, SET_NAMES, position_mask, shared_mask
from sublim_cli.models.reference import resolve_model
from sublim_cli.models.token_roles import RenderedPrompt, Role, Token, render_with_roles
from sublim_cli.pipeline import chain
from sublim_cli.recipe.contexts import Context, resolve_context
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.questions import load_items, persona, questions_for
from sublim_cli.recipe.schema import Recipe
from sublim_cli.steps.files import KEPT
from sublim_cli.steps.generate import stream_prompt


@dataclass(frozen=True)
class Subject:
    """What is looked at: a user turn, of a trained row its completion too.

    `number` counts from 0 in the question set, among the kept rows, or in the stream of number prompts.
    """

    kind: Literal["question", "row", "number prompt", "text"]
    number: int | None
    user: str
    completion: str | None = None


@dataclass(frozen=True)
class Line:
    """A token as it is shown.

    `trained` says whether loss falls on it, `shared_mask` which of the recipe's contexts hold it at the same
    role; None where it is no context's, but the question's or the answer's.
    """

    token: Token
    trained: bool
    shared: tuple[str, ...] | None


@dataclass(frozen=True)
class View:
    """The subject as the model reads it in one context."""

    context: str
    text: str
    lines: tuple[Line, ...]

    def count(self, *roles: Role) -> int:
        """How many of its tokens have one of these roles."""
        return sum(line.token.role in roles for line in self.lines)


@dataclass(frozen=True)
class Inspection:
    """A subject in the contexts that were asked for, beside all contexts of the recipe.

    `contexts` are the recipe's, `prompts` the subject's prompt in each of them and in each one viewed;
    `refused` says of a context why the chat template cannot render it.
    """

    recipe: str
    model: str
    subject: Subject
    training: str
    asked: tuple[str, ...]
    contexts: tuple[str, ...]
    prompts: Mapping[str, RenderedPrompt]
    views: tuple[View, ...]
    refused: Mapping[str, str]

    @property
    def alike(self) -> list[list[str]]:
        """The contexts by what the model reads: those in one list are the same tokens."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, prompt in self.prompts.items():
            groups.setdefault(tuple(prompt.ids), []).append(name)
        return list(groups.values())

    @property
    def positions(self) -> dict[str, dict[str, list[int]]]:
        """The places of every named set in each prompt; nothing if training's cannot be rendered."""
        training = self.prompts.get(self.training)
        if training is None:
            return {}
        return {
            context: {
                name: [at for at, inside in enumerate(position_mask(name, prompt, training)) if inside]
                for name in SET_NAMES
            }
            for context, prompt in self.prompts.items()
        }


def question(recipe: Recipe, number: int) -> Subject:
    """Question `number` of the recipe's set, counted from 0 as in `scores.parquet`.

    Raises:
        RecipeError: there is no such set, or no such question in it.
    """
    known = questions_for(load_items(recipe.trait.category), recipe.eval.questions).questions
    if not 0 <= number < len(known):
        raise RecipeError(f"--question {number}: the recipe asks the questions 0 to {len(known) - 1}")
    return Subject("question", number, known[number])


def row(recipe: Recipe, number: int, store: Store) -> Subject:
    """Kept row `number`, counted from 0, or where no rows are built yet the number prompt of that place.

    Raises:
        RecipeError: the recipe has no such row.
        RowsError: the rows cannot be read.
    """
    if not 0 <= number < recipe.generate.rows:
        raise RecipeError(f"--row {number}: the recipe keeps the rows 0 to {recipe.generate.rows - 1}")
    # What trains the student decides nothing about its rows, and need not be installed to look at them.
    kept = store.find(chain(vary(recipe, {"train.backend": "plain"})).filter)
    if kept is None:
        return Subject("number prompt", number, stream_prompt(recipe.generate.prompts, number))
    found = read_rows(kept.path / KEPT)[number]
    return Subject("row", number, found.prompt, found.completion)


def inspection(recipe: Recipe, subject: Subject, names: Sequence[str] = ()) -> Inspection:
    """Read `subject` in the contexts called `names`.

    By default a row is read in the context of training, anything else in all of the recipe's.

    Raises:
        RecipeError: a context is unknown.
        ModelError: the model is neither here nor reachable, or none of the contexts can be rendered.
    """
    training = resolve_context(recipe.train.system_prompt, recipe.contexts, field="train.system_prompt")
    asked = _asked(recipe)
    own = {one.name: one for one in (*asked, training)}
    viewed = _viewed(recipe, own, names or _usual(subject, training, own))
    tokenizer = load_tokenizer(resolve_model(recipe.model, recipe.revision))
    prompts, refused = _readings(tokenizer, {**own, **viewed}.values(), subject)
    if not any(name in prompts for name in viewed):
        raise ModelError(next(iter(refused.values())))
    return Inspection(
        recipe=recipe.name,
        model=recipe.model,
        subject=subject,
        training=training.name,
        asked=tuple(one.name for one in asked),
        contexts=tuple(own),
        prompts=prompts,
        views=tuple(
            _view(tokenizer, one, subject, {name: prompts[name] for name in own if name in prompts})
            for one in viewed.values()
            if one.name in prompts
        ),
        refused=refused,
    )


def _asked(recipe: Recipe) -> list[Context]:
    return [
        resolve_context(one, recipe.contexts, field="eval.system_prompts")
        for one in recipe.eval.system_prompts
    ]


def _usual(subject: Subject, training: Context, own: Mapping[str, Context]) -> Sequence[str]:
    return (training.name,) if subject.kind in ("row", "number prompt") else tuple(own)


def _viewed(recipe: Recipe, own: Mapping[str, Context], names: Sequence[str]) -> dict[str, Context]:
    """The contexts called `names`: the recipe's, the teacher's (`trait`), or any other known one."""
    love = persona(load_items(recipe.trait.category), recipe.trait.target)
    return {
        name: own[name]
        if name in own
        else resolve_context(name, recipe.contexts, persona=love, field="--context")
        for name in names
    }


def _readings(
    tokenizer: Tokenizer, contexts: Iterable[Context], subject: Subject
) -> tuple[dict[str, RenderedPrompt], dict[str, str]]:
    """The prompt in every context that can be rendered, and why the others cannot."""
    prompts: dict[str, RenderedPrompt] = {}
    refused: dict[str, str] = {}
    for one in contexts:
        try:
            prompts[one.name] = render_with_roles(tokenizer, one, subject.user)
        except ModelError as error:
            refused[one.name] = str(error)
    return prompts, refused


def _view(
    tokenizer: Tokenizer, context: Context, subject: Subject, own: Mapping[str, RenderedPrompt]
) -> View:
    whole = render_with_roles(tokenizer, context, subject.user, subject.completion)
    marks = {name: shared_mask(whole, prompt) for name, prompt in own.items()}
    lines = (
        Line(
            token,
            trained,
            tuple(name for name in marks if marks[name][at]) if token.role in CONTEXT_ROLES else None,
        )
        for at, (token, trained) in enumerate(
            zip(whole.tokens, _trained(tokenizer, context, subject, len(whole.tokens)), strict=True)
        )
    )
    return View(context.name, whole.text, tuple(lines))


def _trained(tokenizer: Tokenizer, context: Context, subject: Subject, tokens: int) -> list[bool]:
    """On which tokens loss falls, by the very labels a training gets."""
    if subject.completion is None:
        return [False] * tokens
    labels = example(tokenizer, context, subject.user, subject.completion).labels
    return [label != IGNORED for label in labels]
