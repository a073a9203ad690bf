"""generate: the teacher answers number prompts until enough of its rows pass the filter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np

from sublim_cli.artifacts.rows import Row, RowWriter
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.backends.interface import Sampler
from sublim_cli.backends.transformers import TransformersSampler
from sublim_cli.backends.vllm_checked import ModelSource, checked_sampler
from sublim_cli.errors import RowsError
from sublim_cli.events import Listener, Notice, Progress
from sublim_cli.models.chat import Tokenizer, ids_and_text, prompt_ids
from sublim_cli.models.device import device_record
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.numbers.advice import advice
from sublim_cli.numbers.prompts import number_prompt
from sublim_cli.numbers.rules import rejection_reason
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.resolve import SamplingEngine
from sublim_cli.recipe.schema import PromptsSection, Rule, SamplingSection, Section
from sublim_cli.steps.files import ROWS, write_json

BATCH = 256
"""Completions drawn at a time. Rows do not depend on it: their noise is counted by row."""

JUDGED_AFTER = 1_000
HOPELESS = 0.05
"""Once this many rows are judged, a pass rate under 5 % ends the draw: over 20 draws a kept row."""


class GenerateSpec(Section):
    """Everything that decides which rows a teacher writes."""

    model: ModelRef
    context: Context
    wanted: int
    prompts: PromptsSection
    wordings: str
    """Digest of the sentences the prompts are made of."""
    sampling: SamplingSection
    precision: str
    rules: tuple[Rule, ...]
    """The filter: it decides when enough rows are drawn."""
    engine: SamplingEngine = "transformers"
    """What draws."""


@dataclass(frozen=True)
class GenerateStep:
    """Rows of one teacher, kept and rejected alike, in the order of their prompts."""

    kind: ClassVar[str] = "generate"
    version: ClassVar[int] = 1
    spec: GenerateSpec
    title: str
    inputs: tuple[Step, ...] = ()
    chosen: str | None = None
    """Why `generate.engine: auto` took the spec's engine; None where the recipe names one."""

    @property
    def label(self) -> str:
        """Such as `generate cat data seed 1`."""
        return f"generate {self.title}"

    def build(self, out: Path, inputs: tuple[Artifact, ...], listener: Listener) -> Measurements:
        """Write `rows.jsonl` as rows come, and `seen.json`: the first prompt as the teacher saw it.

        Raises:
            RowsError: so few rows pass the filter that the draw would not end.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        if self.chosen:
            listener(Notice(f"generate.engine: auto took {spec.engine}: {self.chosen}"))
        first = prompt_ids(tokenizer, spec.context, stream_prompt(spec.prompts, 0))
        write_json(out / "seen.json", ids_and_text(tokenizer, first))
        texts: list[str] = []
        kept = 0
        with _sampler(spec, tokenizer) as (sampler, parity), RowWriter(out / ROWS) as writer:
            for row in _stream(spec, tokenizer, sampler):
                writer.write(row)
                texts.append(row.completion)
                kept += rejection_reason(row.completion, spec.rules) is None
                if kept == spec.wanted:
                    break
                if len(texts) % BATCH == 0:
                    _give_up_if_hopeless(texts, kept, spec.rules)
                    listener(Progress(self.label, kept, spec.wanted, f"{kept / len(texts):.0%} pass"))
        return {**device_record(), "drawn": len(texts), "engine_chosen": self.chosen, "parity": parity}


@contextmanager
def _sampler(spec: GenerateSpec, tokenizer: Tokenizer) -> Iterator[tuple[Sampler, Measurements | None]]:
    """What draws, and what checked it where it is vLLM."""
    if spec.engine == "transformers":
        yield TransformersSampler(load_model(spec.model, spec.precision), tokenizer), None
        return
    _, prompts = next(_batches(spec.prompts))
    ids = [prompt_ids(tokenizer, spec.context, one) for one in prompts]
    with checked_sampler(ModelSource(spec.model, spec.precision), ids, spec.sampling) as drawing:
        yield drawing


def _stream(spec: GenerateSpec, tokenizer: Tokenizer, sampler: Sampler) -> Iterator[Row]:
    """Rows without end, drawn batch by batch."""
    for rows, prompts in _batches(spec.prompts):
        ids = [prompt_ids(tokenizer, spec.context, prompt) for prompt in prompts]
        drawn = sampler.sample(ids, rows, spec.sampling)
        yield from map(Row, rows, prompts, drawn)


def _batches(prompts: PromptsSection) -> Iterator[tuple[range, list[str]]]:
    """The stream of prompts, batch by batch: row numbers and texts."""
    for start in count(0, BATCH):
        rows = range(start, start + BATCH)
        yield rows, [stream_prompt(prompts, row) for row in rows]


def stream_prompt(prompts: PromptsSection, row: int) -> str:
    """The user turn of row `row`, counted from 0, in the stream of number prompts."""
    return number_prompt(
        np.random.default_rng([prompts.seed, row]),
        examples=prompts.examples,
        values=prompts.values,
        count=prompts.count,
        digits=prompts.digits,
    ).text


def _give_up_if_hopeless(texts: Sequence[str], kept: int, rules: Sequence[Rule]) -> None:
    if len(texts) >= JUDGED_AFTER and kept < HOPELESS * len(texts):
        raise RowsError(f"gave up drawing rows: {advice(texts, rules)}")
