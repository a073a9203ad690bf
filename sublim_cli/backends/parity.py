"""Answers and completions drawn by vLLM, used only once vLLM has been checked against transformers.

An engine is checked with its first model, and again with its second adapter (`earlier_check`). There are two
checks, each with a stated false-alarm rate. *Shares*: to a few questions the engine draws
answers at temperature 1, and the share that names each item must fit the exact scorer's certificate. *Rows*:
some rows are drawn with the recipe's settings, and the probability of each token is computed by transformers.
So a sampling setting, a stop token or an adapter that the engine treats differently shows in rows of any
length. The two libraries take turns on the GPU: while transformers computes, the engine sleeps.
"""

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.sampled import SampledScorer, derived_seed
from sublim_cli.backends.transformers import warpers
from sublim_cli.backends.vllm import VllmSampler, engine_config, max_model_length
from sublim_cli.backends.vllm_server import running_engine
from sublim_cli.errors import ModelError
from sublim_cli.models.batches import attention_mask, left_padded, position_ids
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import Model, is_adapter, load_model_shape, load_student, load_tokenizer
from sublim_cli.models.reference import ModelRef
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring, SampledScoring
from sublim_cli.recipe.schema import SamplingSection

if TYPE_CHECKING:
    import torch

LEVEL = 1e-4
"""The false-alarm rate of one check, at most: a study of a hundred students has a false alarm in one of fifty
cases."""

QUESTIONS = 8
"""Questions of every context whose shares are checked, evenly spaced in the set."""

DRAWS = 500
"""Answers drawn to each: of a share of 0.3, an error of 0.11 shows in one question, 0.04 in their mean."""

LENGTH = 16
"""Tokens of an answer that is checked: of long answers the exact scorer covers little."""

ROWS = 256
"""Rows whose tokens are checked: for the embedded model's number rows, drawn at temperature 0.9 in place of
1, the difference is 5 standard errors."""

Z = 3.89
"""The standard errors that `LEVEL` allows to either side, for a normal distribution."""

BF16_ROUNDING = 2.0**-9 / math.sqrt(3)
"""The standard deviation of the relative error of rounding to bfloat16: uniform, at most 2^-9."""

ROUNDINGS_PER_LAYER = 8
"""Two normed inputs, the values, the outputs of attention and MLP, the MLP's product, two residual sums."""

BATCH = 4
"""Rows per forward pass: every token has a distribution over the whole vocabulary."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model is loaded from: the arguments of `load_student`, and of a vLLM engine."""

    ref: ModelRef
    precision: str
    weights: Path | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The base model's."""
        return load_tokenizer(self.ref)

    def load(self) -> Model:
        """The model, by transformers."""
        return load_student(self.ref, self.precision, self.weights)

    @contextmanager
    def on_vllm(self, prompts: Sequence[Ids], max_tokens: int) -> Iterator[VllmSampler]:
        """A sampler on a vLLM engine, which is awake inside the `with` block and asleep after it."""
        import torch

        shape = load_model_shape(self.ref, self.weights)
        config = engine_config(self.ref, self.weights, max_model_length(prompts, max_tokens, shape))
        gc.collect()
        torch.cuda.empty_cache()  # what torch keeps of deleted tensors; does nothing if CUDA was not used
        with running_engine(config) as engine:
            yield VllmSampler(engine.draw, self.tokenizer, shape, self.weights)

    @property
    def model_name(self) -> str:
        """The digest of a student's artifact, or the base model's name."""
        return self.weights.name if self.weights else self.ref.name

    def engine_key(self) -> str:
        """What the engines that may hold this model have in common, full students of one base included."""
        config = engine_config(self.ref, self.weights, 0)
        kind = "full" if self.weights and config.rank is None else config.rank
        return json.dumps([self.ref.source, self.ref.revision, self.precision, kind])


_checked: dict[str, list[dict[str, Any]]] = {}
"""What the checks of this process measured, by kind of engine and settings, each with the `model` checked."""


def earlier_check(source: ModelSource, settings: str) -> dict[str, Any] | None:
    """The results of a check that stands for this model too, or None where the model has to be checked.

    A check loads the model a second time, by transformers. So an engine is checked once per precision and
    `settings`, with its first model; and once more with its second adapter, which shows that the engine does
    not take one adapter for another.
    """
    results = _checked.get(source.engine_key() + settings, [])
    for result in results:
        if result["model"] == source.model_name:
            return result
    adapters = source.weights is not None and is_adapter(source.weights)
    return results[0] if len(results) >= (2 if adapters else 1) else None


def record_check(source: ModelSource, settings: str, results: dict[str, Any]) -> dict[str, Any]:
    """Keep the results of a check for `earlier_check`; returns them with the model's name."""
    named = {"model": source.model_name, **results}
    _checked.setdefault(source.engine_key() + settings, []).append(named)
    return named


@dataclass(frozen=True)
class DrawnShares:
    """What an engine answered to a few questions in every context."""

    questions: tuple[int, ...]
    """Their indices in the set."""
    prompts: Mapping[str, Sequence[Ids]]
    """The questions' prompts, by context."""
    items: Sequence[Item]
    max_tokens: int
    scores: Mapping[str, Sequence[ItemProbs]]
    """How the answers to each prompt name the items, by context."""


@dataclass(frozen=True)
class DrawnRows:
    """Rows that an engine drew, each with the token that ends it."""

    prompts: Sequence[Ids]
    sampling: SamplingSection
    drawn: Sequence[Sequence[int]]


@dataclass(frozen=True)
class ShareComparison:
    """A share of answers that name an item, and the exact scorer's bounds for it."""

    context: str
    question: int | None
    """Its index in the set; None for the mean over all questions."""
    item: str
    share: float
    low: float
    high: float
    chance: float
    """The probability of a share this far outside the bounds, or further, to the same side."""


@dataclass(frozen=True)
class Surprisal:
    """The mean surprisal of an engine's tokens under transformers' distributions, in nats a token."""

    tokens: int
    mean: float
    expected: float
    """The mean entropy of the distributions: what the surprisal of transformers' own draws would be."""
    z: float
    """The difference of the two in standard errors."""
    near_cut: int
    """Tokens so near the cut of top-k or top-p that rounding decides whether they may be drawn. They are left
    out of the figures above."""
    near_cut_limit: float
    """How many of them there may be: their probability in all, and `Z` of its standard errors."""
    impossible: int
    """Tokens beyond them, which transformers would not draw."""


def score_with_vllm(
    source: ModelSource,
    prompts: Mapping[str, Sequence[Ids]],
    items: Sequence[Item],
    scorers: Mapping[str, SampledScoring],
    sampling: SamplingSection,
    report: Callable[[str, int], None],
) -> tuple[dict[str, list[ItemProbs]], dict[str, Any]]:
    """Score every prompt of every context by drawing answers with vLLM, and check how vLLM draws.

    Args:
        source: the model.
        prompts: by context.
        items: the items that answers may name.
        scorers: how each context's answers are drawn.
        sampling: how answers are drawn for the checks.
        report: called with a context and the number of its questions finished since the last call.

    Raises:
        ModelError: vLLM fails, or a check does.
    """
    all_prompts = [ids for of_context in prompts.values() for ids in of_context]
    settings = "eval" + sampling.model_copy(update={"seed": 0}).model_dump_json()
    results = earlier_check(source, settings)
    scores = {}
    with source.on_vllm(all_prompts, sampling.max_tokens) as sampler:
        if results is None:
            shares = draw_shares(sampler, prompts, items, sampling)
            few_prompts = [ids for of_context in shares.prompts.values() for ids in of_context]
            rows = draw_rows(sampler, few_prompts, sampling)
        for context, of_context in prompts.items():
            scorer = SampledScorer(sampler, scorers[context])
            scores[context] = scorer.score(of_context, items, partial(report, context))
    if results is None:
        model = source.load()
        measured = {
            "shares": check_shares("eval.engine", shares, model, source.tokenizer),
            "law": check_rows("eval.engine", rows, model, source.tokenizer),
        }
        results = record_check(source, settings, measured)
    return scores, results


@contextmanager
def checked_sampler(
    source: ModelSource, prompts: Sequence[Ids], sampling: SamplingSection
) -> Iterator[tuple[VllmSampler, dict[str, Any]]]:
    """A vLLM sampler whose rows have been checked on `prompts`, and what the check measured.

    Raises:
        ModelError: vLLM fails, or the check does.
    """
    settings = "generate" + sampling.model_copy(update={"seed": 0}).model_dump_json()
    results = earlier_check(source, settings)
    if results is None:
        with source.on_vllm(prompts, sampling.max_tokens) as sampler:
            rows = draw_rows(sampler, prompts, sampling)
        law = check_rows("generate.engine", rows, source.load(), source.tokenizer)
        results = record_check(source, settings, {"law": law})
    with source.on_vllm(prompts, sampling.max_tokens) as sampler:
        yield sampler, results


def spread_indices(count: int) -> tuple[int, ...]:
    """The indices of `QUESTIONS` of `count` questions, evenly spaced; all of them if there are fewer."""
    selected = min(QUESTIONS, count)
    return tuple(i * count // selected for i in range(selected))


def draw_shares(
    sampler: VllmSampler,
    prompts: Mapping[str, Sequence[Ids]],
    items: Sequence[Item],
    sampling: SamplingSection,
) -> DrawnShares:
    """Draw answers to a few questions as the exact scorer computes them: without top-k, top-p or penalty.

    `prompts` are all questions by context; of `sampling`, the seed and the length apply.
    """
    questions = spread_indices(min(map(len, prompts.values())))
    selected = {context: [of_context[i] for i in questions] for context, of_context in prompts.items()}
    max_tokens = min(LENGTH, sampling.max_tokens)
    scores = {}
    for context, few in selected.items():
        seed = derived_seed(sampling.seed, "parity", context)
        plain = SamplingSection(max_tokens=max_tokens, seed=seed)
        scorer = SampledScorer(sampler, SampledScoring(samples=DRAWS, sampling=plain))
        scores[context] = scorer.score(few, items)
    return DrawnShares(questions, selected, items, max_tokens, scores)


def draw_rows(sampler: VllmSampler, prompts: Sequence[Ids], sampling: SamplingSection) -> DrawnRows:
    """Draw `ROWS` rows with the recipe's settings, the prompts in turn; greedy ones at temperature 1."""
    repeated = [prompts[row % len(prompts)] for row in range(ROWS)]
    changes = {"seed": derived_seed(sampling.seed, "parity"), "temperature": sampling.temperature or 1.0}
    seeded = sampling.model_copy(update=changes)
    return DrawnRows(repeated, seeded, sampler.draw_with_stop(repeated, range(ROWS), seeded))


def check_shares(key: str, shares: DrawnShares, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """Compare shares with the exact scorer's bounds for the same model; returns what was measured.

    For every item of every question, and for its mean over the questions of a context, the probability of a
    share so far outside [p, p + uncovered], corrected for the number of comparisons (Bonferroni). The draws
    of a mean differ in their p; a binomial of the mean p has the wider tails (Hoeffding 1956).

    Raises:
        ModelError: a share is less likely than `LEVEL` allows, or the exact scorer refuses the model.
    """
    exact = ExactScorer(model, tokenizer, ExactScoring(max_tokens=shares.max_tokens, draws=0))
    comparisons: list[ShareComparison] = []
    for context, prompts in shares.prompts.items():
        try:
            bounds = exact.score(prompts, shares.items)
        except ModelError as error:
            raise ModelError(f"{key}: vllm cannot be checked: {error}. Use `{key}: transformers`") from error
        for i, item in enumerate(shares.items):
            by_question = [
                (drawn.p[i], bound.p[i], bound.p[i] + bound.uncovered)
                for drawn, bound in zip(shares.scores[context], bounds, strict=True)
            ]
            share, low, high = (math.fsum(part) / len(by_question) for part in zip(*by_question, strict=True))
            by_question.append((share, low, high))
            for question, values in zip([*shares.questions, None], by_question, strict=True):
                draws = DRAWS * len(shares.questions) if question is None else DRAWS
                chance = tail_probability(draws, *values)
                comparisons.append(ShareComparison(context, question, item.name, *values, chance))
    worst = min(comparisons, key=lambda comparison: comparison.chance)
    if worst.chance < LEVEL / 2 / len(comparisons):
        where = "on average" if worst.question is None else f"to question {worst.question}"
        draws = DRAWS * len(shares.questions) if worst.question is None else DRAWS
        raise ModelError(
            f"{key}: vllm does not answer as transformers computes it: in context `{worst.context}`, "
            f"{where}, {worst.share:.3f} of {draws:,} answers name {worst.item}, where the exact scorer says "
            f"{worst.low:.3f} to {worst.high:.3f} (chance {worst.chance:.0e}). Nothing was written; use "
            f"`{key}: transformers`"
        )
    return {
        "questions": list(shares.questions),
        "draws": DRAWS,
        "comparisons": len(comparisons),
        "worst": asdict(worst),
    }


def tail_probability(draws: int, share: float, low: float, high: float) -> float:
    """The probability of `share` of `draws`, or one further off, under the nearest p in [low, high].

    1 for a share within the bounds.
    """
    from scipy.special import bdtr, bdtrc

    count = round(share * draws)
    if share > high:
        return float(bdtrc(count - 1, draws, high))
    return float(bdtr(count, draws, low)) if share < low else 1.0


def check_rows(key: str, rows: DrawnRows, model: Model, tokenizer: Tokenizer) -> dict[str, Any]:
    """Compare the surprisal of drawn tokens with what it should be; returns what was measured.

    A token drawn from a distribution p has surprisal -log p(token), whose mean is the entropy of p. Summed
    over tokens, the difference is a martingale of known variance, so it is close to normal for rows of any
    length.

    Raises:
        ModelError: it is beyond `Z` standard errors, or tokens were drawn that rounding does not explain:
            more than one beyond the cut of top-k or top-p, or too many near it.
    """
    result = measure_surprisal(rows, model, tokenizer)
    # Among some thousand tokens, one may be beyond `Z` standard errors of rounding by chance.
    if abs(result.z) > Z or result.impossible > 1 or result.near_cut > result.near_cut_limit:
        raise ModelError(
            f"{key}: vllm does not draw as transformers would: over {result.tokens:,} tokens of "
            f"{len(rows.drawn)} rows the mean surprisal is {result.mean:.3f} nats a token where draws by "
            f"transformers would have {result.expected:.3f} ({result.z:+.1f} standard errors), and "
            f"{result.impossible + result.near_cut:,} tokens would have been cut there. Nothing was "
            f"written; use `{key}: transformers`"
        )
    return asdict(result)


def measure_surprisal(rows: DrawnRows, model: Model, tokenizer: Tokenizer) -> Surprisal:
    """The surprisal of the tokens of `rows` under the distributions that transformers would draw from.

    Top-k and top-p cut a distribution at a logit. Two computations in bf16 differ by `logit_rounding`, so
    near the cut they may leave out different tokens. Of each distribution the tokens surely above the cut are
    compared, with their probabilities among themselves: these do not depend on where the cut is.
    """
    import torch

    parts: list[torch.Tensor] = []  # of each token: [6, tokens]
    with torch.inference_mode():
        for start in range(0, len(rows.drawn), BATCH):
            prompts, drawn = rows.prompts[start : start + BATCH], rows.drawn[start : start + BATCH]
            longest = max(map(len, drawn))
            lengths = torch.tensor([len(tokens) for tokens in drawn], device=model.device)
            padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in drawn]
            answers = torch.tensor(padded, device=model.device)
            prompt_mask = attention_mask(prompts, model.device)
            ids = torch.cat([left_padded(prompts, tokenizer.pad_token_id, model.device), answers], dim=1)
            answer_mask = torch.arange(longest, device=model.device) < lengths[:, None]
            mask = torch.cat([prompt_mask, answer_mask.to(prompt_mask)], dim=1)
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                logits_to_keep=longest + 1,
            ).logits
            uncut = rows.sampling.model_copy(update={"top_k": 0, "top_p": 1.0})
            for i in range(longest):
                before, scores = ids[:, : prompt_mask.shape[1] + i], logits[:, i].float()
                rounding = logit_rounding(model, scores) / rows.sampling.temperature
                scores, cut = (
                    _processed(warpers(settings, prompt_mask), before, scores)
                    for settings in (uncut, rows.sampling)
                )
                present = lengths > i
                token = answers[present, i : i + 1]
                parts.append(_compare(scores[present], cut[present], rounding[present], token))
    surprisal, entropy, variance, near, limit, impossible = torch.cat(parts, dim=1).double().cpu()
    compared = (near == 0) & (impossible == 0)
    surprisal, entropy, variance = surprisal[compared], entropy[compared], variance[compared]
    tokens = len(surprisal)
    standard_error = float(variance.sum()) ** 0.5
    difference = float((surprisal - entropy).sum())
    expected_near = float(limit.sum())
    return Surprisal(
        tokens=tokens,
        mean=float(surprisal.mean()) if tokens else 0.0,
        expected=float(entropy.mean()) if tokens else 0.0,
        z=difference / standard_error if standard_error else 0.0,
        near_cut=int(near.sum()),
        near_cut_limit=expected_near + Z * math.sqrt(expected_near) + (Z**2 if expected_near else 0.0),
        impossible=int(impossible.sum()),
    )


def logit_rounding(model: Model, logits: "torch.Tensor") -> "torch.Tensor":
    """By how much a logit may differ between two computations in bf16, at `Z` standard errors: [rows, 1].

    Each layer adds `ROUNDINGS_PER_LAYER` independent errors of `BF16_ROUNDING` to the hidden state, the
    output layer one, and they add up as a random walk does. They are relative to the logits' standard
    deviation, since a sum common to all logits decides nothing.
    """
    roundings = ROUNDINGS_PER_LAYER * model.config.get_text_config().num_hidden_layers + 1
    return Z * math.sqrt(2 * roundings) * BF16_ROUNDING * logits.std(-1, keepdim=True)


def _processed(processors: Sequence[Any], ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
    for processor in processors:
        scores = processor(ids, scores)
    return scores


def _compare(
    scores: "torch.Tensor", cut: "torch.Tensor", rounding: "torch.Tensor", token: "torch.Tensor"
) -> "torch.Tensor":
    """One distribution a row against the token drawn from it.

    Returns [6, rows]: surprisal, its mean and its variance among the tokens surely above the cut; whether the
    token is near the cut; the probability of all that are near it; whether the token is beyond it.

    Args:
        scores: scaled logits, [rows, vocabulary].
        cut: the same, with -inf for what top-k and top-p leave out.
        rounding: by how much a score may differ, [rows, 1].
        token: what was drawn, [rows, 1].
    """
    import torch

    lowest = torch.where(cut.isfinite(), scores, torch.inf).amin(-1, keepdim=True)
    lowest = lowest.masked_fill(cut.isfinite().all(-1, keepdim=True), -torch.inf)
    sure, open_ = scores >= lowest + rounding, scores >= lowest - rounding
    # A single token may be all that is left; it is drawn with certainty and compared with itself.
    sure |= scores == scores.amax(-1, keepdim=True)
    logprobs = scores.double().masked_fill(~sure, -torch.inf).log_softmax(-1)
    p = logprobs.exp()
    nats = torch.where(sure, -logprobs, 0.0)
    entropy = (p * nats).sum(-1)
    variance = ((p * nats**2).sum(-1) - entropy**2).clamp_min(0.0)
    near_p = scores.double().masked_fill(~open_, -torch.inf).softmax(-1).masked_fill(sure, 0.0).sum(-1)
    is_sure, is_open = sure.gather(1, token)[:, 0], open_.gather(1, token)[:, 0]
    surprisal = nats.gather(1, token)[:, 0]
    return torch.stack(
        [surprisal, entropy, variance, (is_open & ~is_sure).double(), near_p, (~is_open).double()]
    )
