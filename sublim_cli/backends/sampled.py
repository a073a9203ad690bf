"""The sampled scorer: what the exact one is checked against, and what long answers are left to."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from sublim_cli.backends.interface import Ids, ItemProbs, Sampler
from sublim_cli.backends.token_bytes import answer_text, bytes_per_token
from sublim_cli.preference.forms import named_item
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import SampledScoring

BATCH = 2_000
"""Answers drawn at a time: bounds memory, not the result."""


@dataclass(frozen=True)
class SampledScorer:
    """Shares of drawn answers; see `interface.Answer`.

    Draw s of question q has the noise of row q·samples + s.
    """

    sampler: Sampler
    settings: SampledScoring = field(default_factory=SampledScoring)

    def score(self, prompts: Sequence[Ids], items: Sequence[Item]) -> list[ItemProbs]:
        """Draw `settings.samples` answers to each prompt and count what they name."""
        found = [named_item(one, items) for one in self._answers(prompts)]
        each = self.settings.samples
        return [_answer(found[start : start + each], len(items)) for start in range(0, len(found), each)]

    def _answers(self, prompts: Sequence[Ids]) -> list[str]:
        written = bytes_per_token(self.sampler.tokenizer, self.sampler.vocabulary)
        rows = range(len(prompts) * self.settings.samples)
        return [
            answer_text(ids, written, frozenset())
            for part in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
            for ids in self.sampler.draw(
                [prompts[row // self.settings.samples] for row in part], part, self.settings.sampling
            )
        ]


def derived_seed(seed: int, *what: str) -> int:
    """A seed for one use of many: runs that shared their noise would look more alike than they are."""
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *what]).encode()).digest()[:4], "big")


def _answer(found: Sequence[int | None], items: int) -> ItemProbs:
    share = tuple(found.count(item) / len(found) for item in range(items))
    return ItemProbs(share, uncovered=0.0, log_form=(), samples=len(found))
