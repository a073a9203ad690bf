"""What a model's outline and its tokenizer can tell before anything is built: adapters and lengths."""

from collections.abc import Iterable
from functools import cache

from sublim_cli.artifacts.step import Step
from sublim_cli.backends.vllm import check_head_width
from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_model_shape, load_tokenizer, meta_model
from sublim_cli.models.passes import keeps_keys_and_values
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.resolve import Scoring
from sublim_cli.recipe.schema import PromptsSection
from sublim_cli.steps.eval import EvalStep
from sublim_cli.steps.generate import GenerateStep, stream_prompt
from sublim_cli.steps.teacher import TeacherStep
from sublim_cli.steps.train import TrainStep
from sublim_cli.trainers.methods import changed_modules

PROMPTS_MEASURED = 64
"""Number prompts whose length is measured; the others are made of as many numbers of as many digits."""


def check_architectures(missing: Iterable[Step]) -> None:
    """Refuse adapters that the model has no place for, and prompts and answers longer than it can read.

    Raises:
        RecipeError: see `methods.adapted_modules` and `vllm.check_head_width`; or `train.max_length` leaves
            no room for a completion.
        ModelError: a prompt and its answer are longer than the model's window.
    """
    checked: set[str] = set()
    for step in missing:
        if isinstance(step, TrainStep):
            key = step.spec.train.model_dump_json(include={"method", "adapter", "rank"}) + repr(
                step.spec.model
            )
            if key not in checked:
                checked.add(key)
                _check_method(step)
            _check_rows(step)
        elif isinstance(step, GenerateStep):
            spec = step.spec
            prompts = _first_prompts(spec.prompts)
            _check_length(spec.model, (spec.context,), prompts, spec.sampling.max_tokens, "generate")
            if spec.engine == "vllm":
                check_head_width(spec.model, "generate.engine")
        elif isinstance(step, EvalStep):
            _check_scored(step.spec.model, step.spec.contexts, step.spec.questions, step.spec.scorer)
        elif isinstance(step, TeacherStep):
            _check_scored(step.spec.model, (step.spec.context,), step.spec.questions, step.spec.scorer)


def _check_method(step: TrainStep) -> None:
    model = meta_model(step.spec.model)
    if step.spec.train.method == "prefix" and not keeps_keys_and_values(model):
        raise RecipeError(
            "train.method: prefix learns keys and values for every layer, and this model has layers without "
            "them; take `lora`"
        )
    changed_modules(model, step.spec.train)


def _check_rows(step: TrainStep) -> None:
    """Check that the student's prompts leave room for a completion; the rows themselves are not there yet."""
    spec = step.spec
    for source in step.inputs[0].inputs:
        if isinstance(source, GenerateStep):
            longest = _longest_prompt(spec.model, spec.context, _first_prompts(source.spec.prompts))
            if longest + 2 > spec.train.max_length:  # a token of the completion, and its end
                raise RecipeError(
                    f"train.max_length {spec.train.max_length} leaves no room for a completion "
                    f"after a prompt of {longest} tokens (context {spec.context.name}); raise it, or shorten "
                    "the prompt"
                )


def _first_prompts(section: PromptsSection) -> tuple[str, ...]:
    return tuple(stream_prompt(section, row) for row in range(PROMPTS_MEASURED))


@cache
def _longest_prompt(model: ModelRef, context: Context, texts: tuple[str, ...]) -> int:
    tokenizer = load_tokenizer(model)
    return max(len(prompt_ids(tokenizer, context, text)) for text in texts)


def _check_scored(
    model: ModelRef, contexts: tuple[Context, ...], questions: tuple[str, ...], scorer: Scoring
) -> None:
    if scorer.kind == "sampled" and scorer.engine == "vllm":
        check_head_width(model, "eval.engine")
    max_tokens = scorer.max_tokens if scorer.kind == "exact" else scorer.sampling.max_tokens
    _check_length(model, contexts, questions, max_tokens, "eval")


def _check_length(
    model: ModelRef, contexts: tuple[Context, ...], texts: tuple[str, ...], max_tokens: int, section: str
) -> None:
    window = load_model_shape(model).max_length
    if window is None:
        return
    for context in contexts:
        longest = _longest_prompt(model, context, texts)
        if longest + max_tokens > window:
            raise ModelError(
                f"{section}: a prompt of {longest} tokens (context {context.name}) and an answer of up to "
                f"{max_tokens} do not fit into the {window} tokens that model {model.name} can read; lower "
                f"`{section}.sampling.max_tokens`, shorten the prompt or take a model with a longer window"
            )
