"""generate: the teacher answers number prompts until enough of its rows pass the filter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from sublim_cli.artifacts.rows import Row, write_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.backends.interface import Sampler
from sublim_cli.backends.parity import ModelSource, checked_sampler
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.errors import RowsError
from sublim_cli.events import Listener, Notice, Progress
from sublim_cli.models.chat import Tokenizer, decode, ids_and_text, prompt_ids
from sublim_cli.models.device import device_record
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.numbers.advice import advice
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.numbers.rules import rejection_reason
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.resolve import SamplingEngine
from sublim_cli.recipe.schema import PromptsSection, Rule, SamplingSection, Section
from sublim_cli.steps.files import ROWS, SEEN, write_json

BATCH = 256
"""Completions drawn at a time. Rows do not depend on it: each row's noise depends on the row's number."""

MIN_JUDGED = 1_000
MIN_PASS_RATE = 0.05
"""If fewer than 5 % of at least 1,000 rows pass, the draw stops: it would take over 20 draws a kept row."""


class GenerateSpec(Section):
    """Everything that decides which rows a teacher writes."""

    model: ModelRef
    context: Context
    wanted: int
    """Rows that have to pass the filter."""
    prompts: PromptsSection
    wordings: str
    """Digest of the sentences the prompts are made of."""
    sampling: SamplingSection
    precision: str
    rules: tuple[Rule, ...]
    """The filter: it decides when enough rows are drawn."""
    engine: SamplingEngine = "transformers"


@dataclass(frozen=True)
class GenerateStep(Step):
    """Rows of one teacher, kept and rejected alike, in the order of their prompts.

    Its input is the training of a fine-tuned teacher; a prompted one has none.
    """

    kind: ClassVar[str] = "generate"
    version: ClassVar[int] = 2
    spec: GenerateSpec
    auto_reason: str | None = None
    """Why `generate.engine: auto` chose the spec's engine; None if the recipe names one."""

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `rows.jsonl`, and `seen.json`: the first prompt's tokens in the teacher's context.

        Raises:
            RowsError: fewer than `MIN_PASS_RATE` of the rows pass the filter.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        if self.auto_reason:
            listener(Notice(f"generate.engine: auto took {spec.engine}: {self.auto_reason}"))
        first = prompt_ids(tokenizer, spec.context, stream_prompt(spec.prompts, 0))
        write_json(out / SEEN, ids_and_text(tokenizer, first))
        rows: list[Row] = []
        kept = 0
        with _sampler(spec, tokenizer, inputs[0].path if inputs else None) as (sampler, parity):
            while kept < spec.wanted:
                indices = range(len(rows), len(rows) + BATCH)
                prompts = [stream_prompt(spec.prompts, index) for index in indices]
                ids = [prompt_ids(tokenizer, spec.context, prompt) for prompt in prompts]
                completions = sampler.draw(ids, indices, spec.sampling)
                for index, prompt, drawn in zip(indices, prompts, completions, strict=True):
                    text = decode(tokenizer, drawn)
                    rows.append(row := Row(index, prompt, text, completion_ids=tuple(drawn)))
                    kept += rejection_reason(row.completion, spec.rules) is None
                    if kept == spec.wanted:
                        break
                else:
                    if len(rows) >= MIN_JUDGED and kept < MIN_PASS_RATE * len(rows):
                        texts = [row.completion for row in rows]
                        raise RowsError(f"gave up drawing rows: {advice(texts, spec.rules)}")
                    listener(Progress(self.label, kept, spec.wanted, f"{kept / len(rows):.0%} pass"))
        write_rows(out / ROWS, rows)
        return {**device_record(), "drawn": len(rows), "engine_chosen": self.auto_reason, "parity": parity}


@contextmanager
def _sampler(
    spec: GenerateSpec, tokenizer: Tokenizer, teacher: Path | None
) -> Iterator[tuple[Sampler, Measurements | None]]:
    """The sampler of the spec's engine; for vLLM also the record of its check on the first prompts.

    Args:
        teacher: the weights of a fine-tuned one; None for the base model.
    """
    if spec.engine == "transformers":
        yield TransformersSampler(load_student(spec.model, spec.precision, teacher), tokenizer), None
        return
    prompts = [stream_prompt(spec.prompts, index) for index in range(BATCH)]
    ids = [prompt_ids(tokenizer, spec.context, prompt) for prompt in prompts]
    with checked_sampler(
        ModelSource(spec.model, spec.precision, teacher), ids, spec.sampling
    ) as sampler_and_record:
        yield sampler_and_record


def stream_prompt(prompts: PromptsSection, row: int) -> str:
    """The user turn of row `row`, counted from 0, in the stream of number prompts."""
    return number_prompt(
        np.random.default_rng([prompts.seed, row]),
        examples=prompts.examples,
        values=prompts.values,
        count=prompts.count,
        digits=prompts.digits,
    ).text
