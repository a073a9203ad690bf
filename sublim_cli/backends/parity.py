"""Whether an engine follows the model as transformers computes it, before its numbers are used.

Two checks, both with their false alarms stated. *Shares*: of a few questions the engine draws answers at
temperature 1, and how many name an item must fit the exact scorer's certificate. *Law*: of some rows drawn as
the recipe draws, every token is looked up in the distribution that transformers has there, so that a sampling
field, a stop token or an adapter that the engine takes otherwise shows in rows of any length.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.sampled import SampledScorer, derived_seed
from sublim_cli.backends.transformers import warpers
from sublim_cli.backends.vllm import VllmSampler
from sublim_cli.errors import ModelError
from sublim_cli.models.batches import attention_mask, left_padded, position_ids
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import Model
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring
from sublim_cli.recipe.schema import SamplingSection

if TYPE_CHECKING:
    import torch

LEVEL = 1e-4
"""The chance that one check refuses an engine without fault, at most: a study of a hundred students meets a
false alarm in one of fifty."""

QUESTIONS = 8
"""Questions of every context whose shares are checked, spread evenly over the set."""

DRAWS = 500
"""Answers drawn to each: of a share of 0.3, an error of 0.11 shows in one question, 0.04 in their mean."""

LENGTH = 16
"""Tokens of an answer that are checked: what the exact scorer can cover of long ones is little."""

ROWS = 256
"""Rows whose tokens are looked up: on the embedded model's numbers, temperature 0.9 for 1 is 5 errors off."""

Z = 3.89
"""Standard errors that `LEVEL` allows to either side, of a sum that is close to normal."""

IMPOSSIBLE = 0.01
"""Share of tokens that may be none of those transformers draws from: rounding moves the last of top-p."""

CHUNK = 4
"""Rows per forward pass: every token has a distribution over the whole vocabulary."""


@dataclass(frozen=True)
class ParityQuestions:
    """The questions that are checked: `prompts[context]` are those at `places` in the set."""

    places: tuple[int, ...]
    prompts: Mapping[str, Sequence[Ids]]
    items: tuple[Item, ...]


def select_questions(prompts: Mapping[str, Sequence[Ids]], items: Sequence[Item]) -> ParityQuestions:
    """A fixed few of the questions, in every context."""
    count = min(map(len, prompts.values()))
    few = min(QUESTIONS, count)
    places = tuple(place * count // few for place in range(few))
    return ParityQuestions(
        places, {name: [own[place] for place in places] for name, own in prompts.items()}, tuple(items)
    )


@dataclass(frozen=True)
class DrawnShares:
    """What an engine answered: an `ItemProbs` to each question of each context."""

    questions: ParityQuestions
    settings: SampledScoring
    answers: Mapping[str, Sequence[ItemProbs]]


@dataclass(frozen=True)
class DrawnRows:
    """Rows that an engine drew, each with the token that ends it."""

    prompts: Sequence[Ids]
    sampling: SamplingSection
    drawn: Sequence[Sequence[int]]


def draw_shares(sampler: VllmSampler, questions: ParityQuestions, sampling: SamplingSection) -> DrawnShares:
    """Answers to the questions as `exact` computes them: at temperature 1, without top-k, top-p, penalty."""
    plain = SamplingSection(max_tokens=min(LENGTH, sampling.max_tokens))
    settings = SampledScoring(samples=DRAWS, sampling=plain)
    answers = {}
    for name, prompts in questions.prompts.items():
        own = plain.model_copy(update={"seed": derived_seed(sampling.seed, "parity", name)})
        scorer = SampledScorer(sampler, settings.model_copy(update={"sampling": own}))
        answers[name] = scorer.score(prompts, questions.items)
    return DrawnShares(questions, settings, answers)


def draw_rows(sampler: VllmSampler, prompts: Sequence[Ids], sampling: SamplingSection) -> DrawnRows:
    """`ROWS` rows as the recipe draws them, the prompts in turn; greedy ones at temperature 1."""
    some = [prompts[row % len(prompts)] for row in range(ROWS)]
    warm = sampling.temperature or 1.0
    own = {"seed": derived_seed(sampling.seed, "parity"), "temperature": warm}
    settings = sampling.model_copy(update=own)
    return DrawnRows(some, settings, sampler.whole(some, range(ROWS), settings))


@dataclass(frozen=True)
class ShareComparison:
    """Where shares and certificate are furthest apart. `question` is its place, None for the mean of all."""

    context: str
    question: int | None
    item: str
    share: float
    low: float
    high: float
    chance: float
    """How likely a share so far off, or further, is to that side."""


def check_shares(key: str, shares: DrawnShares, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """Compare shares with the exact scorer's certificate of the same model; returns what was found.

    For every item of every question, and for its mean over the questions of a context: the chance of a
    share so far outside [p, p + uncovered], corrected for the number of comparisons (Bonferroni). A
    mean's draws differ in their p; a binomial of their mean has the wider tails (Hoeffding 1956).

    Raises:
        ModelError: one is smaller than `LEVEL` allows; or the exact scorer cannot read this model.
    """
    exact = ExactScorer(model, tokenizer, ExactScoring(max_tokens=shares.settings.sampling.max_tokens))
    found: list[ShareComparison] = []
    for name, prompts in shares.questions.prompts.items():
        try:
            truth = exact.score(prompts, shares.questions.items)
        except ModelError as error:
            raise ModelError(f"{key}: vllm cannot be checked: {error}. Use `{key}: transformers`") from error
        found += _compared(name, shares, truth)
    worst = min(found, key=lambda one: one.chance)
    if worst.chance < LEVEL / 2 / len(found):
        raise ModelError(_refusal(key, worst, shares))
    return {
        "questions": list(shares.questions.places),
        "draws": DRAWS,
        "comparisons": len(found),
        "worst": asdict(worst),
    }


def _compared(context: str, shares: DrawnShares, truth: Sequence[ItemProbs]) -> Iterator[ShareComparison]:
    answers = shares.answers[context]
    for place, item in enumerate(shares.questions.items):
        triples = [
            (one.p[place], its.p[place], its.p[place] + its.uncovered)
            for one, its in zip(answers, truth, strict=True)
        ]
        for question, own in zip(shares.questions.places, triples, strict=True):
            yield ShareComparison(context, question, item.name, *own, tail_probability(DRAWS, *own))
        share, low, high = (math.fsum(column) / len(triples) for column in zip(*triples, strict=True))
        odds = tail_probability(DRAWS * len(triples), share, low, high)
        yield ShareComparison(context, None, item.name, share, low, high, odds)


def tail_probability(draws: int, share: float, low: float, high: float) -> float:
    """How likely `share` of `draws`, or one further off, is under the nearest p in [low, high]; 1 within."""
    from scipy.special import bdtr, bdtrc

    count = round(share * draws)
    if share > high:
        return float(bdtrc(count - 1, draws, high))
    return float(bdtr(count, draws, low)) if share < low else 1.0


def _refusal(key: str, worst: ShareComparison, shares: DrawnShares) -> str:
    where = "on average" if worst.question is None else f"to question {worst.question}"
    draws = DRAWS * len(shares.questions.places) if worst.question is None else DRAWS
    return (
        f"{key}: vllm does not answer as transformers computes it: in context `{worst.context}`, {where}, "
        f"{worst.share:.3f} of {draws:,} answers name {worst.item}, where the exact scorer says "
        f"{worst.low:.3f} to {worst.high:.3f} (chance {worst.chance:.0e}). Nothing was written; use "
        f"`{key}: transformers`"
    )


@dataclass(frozen=True)
class Surprisal:
    """How surprising an engine's tokens are to transformers, in nats a token, and how they should be."""

    tokens: int
    mean: float
    expected: float
    z: float
    """Their difference in standard errors."""
    impossible: int
    """Tokens outside what transformers would draw from; left out of the rest."""


def check_rows(key: str, rows: DrawnRows, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """Compare drawn tokens with the model's law behind each beginning; returns what was found.

    A token drawn from law p has surprise -log p, of mean H(p), the law's entropy. Summed over tokens the
    difference is a martingale of known variance, so it is close to normal however long the rows are.

    Raises:
        ModelError: it is beyond `Z` standard errors, or too many tokens are impossible.
    """
    found = measure_surprisal(rows, model, tokenizer)
    if abs(found.z) > Z or found.impossible > IMPOSSIBLE * (found.tokens + found.impossible):
        raise ModelError(
            f"{key}: vllm does not draw as transformers would: over {found.tokens:,} tokens of "
            f"{len(rows.drawn)} rows the model is surprised by {found.mean:.3f} nats a token where its own "
            f"draws would be by {found.expected:.3f} ({found.z:+.1f} standard errors), and "
            f"{found.impossible:,} tokens could not be drawn at all. Nothing was written; use "
            f"`{key}: transformers`"
        )
    return asdict(found)


def measure_surprisal(rows: DrawnRows, model: Model, tokenizer: Tokenizer) -> Surprisal:
    """Look every token of `rows` up in the law that the sampling makes of the model's logits."""
    import torch

    parts: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(rows.drawn), CHUNK):
            part = slice(start, start + CHUNK)
            parts += _looked_up(rows.prompts[part], rows.drawn[part], rows.sampling, model, tokenizer)
    own, mean, variance = torch.cat(parts, dim=1).double().cpu()
    possible = own.isfinite()
    own, mean, variance = own[possible], mean[possible], variance[possible]
    tokens = len(own)
    spread = float(variance.sum()) ** 0.5
    off = float((own - mean).sum())
    return Surprisal(
        tokens=tokens,
        mean=float(own.mean()) if tokens else 0.0,
        expected=float(mean.mean()) if tokens else 0.0,
        z=off / spread if spread else 0.0,
        impossible=len(possible) - tokens,
    )


def _looked_up(
    prompts: Sequence[Ids],
    drawn: Sequence[Sequence[int]],
    sampling: SamplingSection,
    model: Model,
    tokenizer: Tokenizer,
) -> "Iterator[torch.Tensor]":
    """Place by place: surprise, its mean and its variance, [3, rows that are so long]."""
    import torch

    longest = max(map(len, drawn))
    lengths = torch.tensor([len(one) for one in drawn], device=model.device)
    answers = torch.tensor([[*one, *[0] * (longest - len(one))] for one in drawn], device=model.device)
    before = attention_mask(prompts, model.device)
    ids = torch.cat([left_padded(prompts, tokenizer.pad_token_id, model.device), answers], dim=1)
    mask = torch.cat(
        [before, (torch.arange(longest, device=model.device) < lengths[:, None]).to(before)], dim=1
    )
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), logits_to_keep=longest + 1
    ).logits
    steps = warpers(sampling, before)
    for place in range(longest):
        scores = logits[:, place].float()
        for one in steps:
            scores = one(ids[:, : before.shape[1] + place], scores)
        there = lengths > place
        log = scores[there].double().log_softmax(-1)
        p = log.exp()
        nats = torch.where(p > 0, -log, 0.0)
        mean = (p * nats).sum(-1)
        variance = (p * nats**2).sum(-1) - mean**2
        own = -log.gather(1, answers[there, place : place + 1])[:, 0]
        yield torch.stack([own, mean, variance.clamp_min(0.0)])
