"""Check before anything is built that the models of a study can read its contexts."""

from collections.abc import Iterable

from sublim_cli.artifacts.step import Step
from sublim_cli.errors import ModelError
from sublim_cli.events import Listener, Notice
from sublim_cli.models.chat import check_context, end_of_turn
from sublim_cli.models.load import load_model_shape, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.contexts import Context
from sublim_cli.steps.eval import EvalStep
from sublim_cli.steps.generate import GenerateStep
from sublim_cli.steps.locate import LocateStep
from sublim_cli.steps.teacher import TeacherStep
from sublim_cli.steps.train import TrainStep
from sublim_cli.wording import listed


def check_contexts(missing: Iterable[Step], listener: Listener) -> None:
    """Refuse contexts that do not reach the tokens of the steps that are `missing`.

    Says once for each model which of the contexts that it is asked in are the same tokens.

    Raises:
        ModelError: the model is not there, a context cannot be rendered, its text is not in the tokens, a
            token is not in the model's embedding, or see `chat.end_of_turn`.
    """
    read: dict[ModelRef, dict[Context, bool]] = {}
    contexts: tuple[Context, ...]
    for step in missing:
        match step:
            case GenerateStep() | TrainStep() | TeacherStep():
                ref, contexts = step.spec.model, (step.spec.context,)
            case EvalStep() | LocateStep():
                ref, contexts = step.spec.model, step.spec.contexts
            case _:
                continue
        asked = isinstance(step, EvalStep)
        for context in contexts:
            of_model = read.setdefault(ref, {})
            of_model[context] = asked or of_model.get(context, False)
    for ref, contexts_read in read.items():
        end_of_turn(load_tokenizer(ref))
        ids = {context: _checked_ids(ref, context) for context in contexts_read}
        groups: dict[tuple[int, ...], list[str]] = {}
        for context, asked in contexts_read.items():
            if asked:
                groups.setdefault(tuple(ids[context]), []).append(context.name)
        for names in groups.values():
            if len(names) > 1:
                listener(
                    Notice(
                        f"{listed(names)} are the same tokens with this model: no result can tell them apart"
                    )
                )


def _checked_ids(ref: ModelRef, context: Context) -> list[int]:
    """The tokens of a trial turn in `context`, all of them in the model's embedding."""
    tokenizer, embeddings = load_tokenizer(ref), load_model_shape(ref).vocabulary
    ids = check_context(tokenizer, context)
    if (highest := max(ids, default=0)) >= embeddings:
        raise ModelError(
            f"model {ref.name}: its prompts have the token {highest} ({tokenizer.decode([highest])!r}), but "
            f"its embedding has only {embeddings}; use the tokenizer that the model was trained with"
        )
    return ids
