"""The sampled scorer: shares of drawn answers. It checks the exact scorer, and scores long answers."""

import hashlib
import math
from collections.abc import Callable, Sequence
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
    """Shares of drawn answers; see `interface.ItemProbs`.

    Draw s for question q has the noise of row q·samples + s.
    """

    sampler: Sampler
    settings: SampledScoring = field(default_factory=SampledScoring)

    def score(
        self,
        prompts: Sequence[Ids],
        items: Sequence[Item],
        report: Callable[[int], None] = lambda questions: None,
    ) -> list[ItemProbs]:
        """Draw `settings.samples` answers to each prompt and count the items they name.

        `report` is called after each batch, with the number of questions finished since the last call.
        """
        samples = self.settings.samples
        token_bytes = bytes_per_token(self.sampler.tokenizer, self.sampler.vocabulary)
        named: list[int | None] = []
        for start in range(0, len(prompts) * samples, BATCH):
            rows = range(start, min(start + BATCH, len(prompts) * samples))
            drawn = self.sampler.draw([prompts[row // samples] for row in rows], rows, self.settings.sampling)
            named += [named_item(answer_text(ids, token_bytes), items) for ids in drawn]
            report(rows.stop // samples - rows.start // samples)
        by_prompt = [named[start : start + samples] for start in range(0, len(named), samples)]
        shares = [[answers.count(item) / samples for item in range(len(items))] for answers in by_prompt]
        return [
            ItemProbs(
                tuple(p),
                tuple(math.sqrt(share * (1 - share) / samples) for share in p),
                uncovered=0.0,
                log_form=(),
                samples=samples,
            )
            for p in shares
        ]


def derived_seed(seed: int, *purpose: str) -> int:
    """A seed for one of several uses of `seed`, so that runs with the same seed do not share their noise.

    Runs with shared noise would look more alike than they are.
    """
    return int.from_bytes(hashlib.sha256("\0".join([str(seed), *purpose]).encode()).digest()[:4], "big")
