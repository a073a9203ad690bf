"""generate: the teacher answers number prompts until enough of its rows pass the filter."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np

from sublim_cli.artifacts.row_log import RowLog, TokenIds
from sublim_cli.artifacts.rows import Row, write_rows
from sublim_cli.artifacts.step import Artifact, Measurements, Step
from sublim_cli.artifacts.store import checkpoint_dir
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
from sublim_cli.steps.files import DRAWN, ROWS, SEEN, write_json
from sublim_cli.wording import duration

CHECKED = 256
"""Prompts that vLLM is checked on before it draws rows."""

PROGRESS_SECONDS = 2.0
"""Seconds between two reports of progress."""

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

        Rows that a killed build of this step drew are not drawn again.

        Raises:
            RowsError: fewer than `MIN_PASS_RATE` of the rows pass the filter.
        """
        spec = self.spec
        tokenizer = load_tokenizer(spec.model)
        if self.auto_reason:
            listener(Notice(f"generate.engine: auto took {spec.engine}: {self.auto_reason}"))
        first = prompt_ids(tokenizer, spec.context, stream_prompt(spec.prompts, 0))
        write_json(out / SEEN, ids_and_text(tokenizer, first))
        checkpoints = checkpoint_dir(out)
        log = RowLog(checkpoints / DRAWN)
        drawn = log.read()
        rows = RowsInOrder(spec, tokenizer)
        for index, ids in sorted(drawn.items()):
            rows.add(index, ids)
        parity = None
        try:
            if not rows.enough():
                with _sampler(spec, tokenizer, inputs[0].path if inputs else None) as (sampler, parity):
                    numbered = (
                        (index, prompt_ids(tokenizer, spec.context, stream_prompt(spec.prompts, index)))
                        for index in count()
                        if index not in drawn
                    )
                    pace = Pace(self.label, rows, listener)
                    for index, completion in sampler.stream(numbered, spec.sampling, pace.after_step):
                        log.append(index, tuple(completion))
                        rows.add(index, tuple(completion))
                        if rows.enough():
                            break
        except RowsError:
            shutil.rmtree(checkpoints, ignore_errors=True)
            raise
        write_rows(out / ROWS, rows.rows)
        return {
            **device_record(),
            "drawn": len(rows.rows),
            "resumed": len(drawn),
            "engine_chosen": self.auto_reason,
            "parity": parity,
        }


class RowsInOrder:
    """Rows in the order of their prompts, up to the one that completes the wanted number."""

    def __init__(self, spec: GenerateSpec, tokenizer: Tokenizer) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.rows: list[Row] = []
        self.kept = 0
        self._later: dict[int, TokenIds] = {}

    def enough(self) -> bool:
        """Whether as many rows as wanted pass the filter."""
        return self.kept == self.spec.wanted

    def add(self, index: int, ids: TokenIds) -> None:
        """Add a completion, and judge all rows up to the first that has not ended.

        Raises:
            RowsError: fewer than `MIN_PASS_RATE` of the rows pass the filter.
        """
        self._later[index] = ids
        while not self.enough() and (completion := self._later.pop(len(self.rows), None)) is not None:
            number = len(self.rows)
            text = decode(self.tokenizer, completion)
            prompt = stream_prompt(self.spec.prompts, number)
            self.rows.append(Row(number, prompt, text, completion_ids=completion))
            self.kept += rejection_reason(text, self.spec.rules) is None
            if len(self.rows) >= MIN_JUDGED and self.kept < MIN_PASS_RATE * len(self.rows):
                texts = [row.completion for row in self.rows]
                raise RowsError(f"gave up drawing rows: {advice(texts, self.spec.rules)}")


class Pace:
    """Reports how far a generation is, and how long the rest takes at the present pace."""

    def __init__(self, label: str, rows: RowsInOrder, listener: Listener) -> None:
        self.label = label
        self.rows = rows
        self.listener = listener
        self._tokens = 0
        self._before = (len(rows.rows), rows.kept)
        self._started = self._reported = time.monotonic()

    def after_step(self, tokens: int) -> None:
        """Count the tokens of a step, and report if `PROGRESS_SECONDS` have passed since the last report."""
        self._tokens += tokens
        now = time.monotonic()
        if now - self._reported < PROGRESS_SECONDS:
            return
        self._reported = now
        rows, seconds = self.rows, now - self._started
        drawn, kept = len(rows.rows) - self._before[0], rows.kept - self._before[1]
        notes = [f"{self._tokens / seconds:,.0f} tokens/s"]
        if rows.rows:
            notes.insert(0, f"{rows.kept / len(rows.rows):.0%} pass")
        if kept:
            left = duration(seconds * (rows.spec.wanted - rows.kept) / kept)
            notes += [f"{drawn / seconds:.2g} rows/s", f"about {left} left"]
        self.listener(Progress(self.label, rows.kept, rows.spec.wanted, ", ".join(notes)))


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
    prompts = [stream_prompt(spec.prompts, index) for index in range(CHECKED)]
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
