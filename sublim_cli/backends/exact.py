"""The exact scorer: best-first search in the tree of answers, and draws from what it leaves open.

A node is the beginning of an answer. It is open while the tokens that follow could still change which item
the answer names. Expanding an open node costs one token's forward pass: the model gives the probability of
every next token, and `preference.token_table` the state of the answer after each token. Decided answers add
to their item's probability; undecided ones become open nodes, and the most likely are expanded first. The
probability of the nodes that were never expanded is the certificate, `ItemProbs.uncovered`.
`backends.answer_tree` computes the trees of all questions together.

Of a model that answers in sentences a tree covers little. As soon as a question's open nodes are so many that
its budget cannot bring it below the bound, its tree stops. A node is then expanded only if a draw or more
would pass through it, which costs at least as much, and `backends.drawn_answers` estimates the rest.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sublim_cli.backends.answer_paths import AnswerPaths
from sublim_cli.backends.answer_tree import (
    AnswerTrees,
    ExpandedNodes,
    Floats,
    Ints,
    TreeNodes,
    distributions_at_once,
    running_sum,
)
from sublim_cli.backends.drawn_answers import DrawnAnswers, OpenBeginnings
from sublim_cli.backends.interface import Ids, ItemProbs
from sublim_cli.backends.sampled import derived_seed
from sublim_cli.backends.token_bytes import stop_tokens
from sublim_cli.backends.token_masks import TokenMasks, token_masks
from sublim_cli.models.batches import (
    batch_memory,
    fitting_rows,
    in_batches,
    loss_copies,
    rows_that_fit,
    token_bytes,
)
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.gate import is_gated
from sublim_cli.models.load import Model
from sublim_cli.models.passes import scored_model
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.resolve import ExactScoring

MIN_FORM_PROB = 1e-5
"""Nodes that end within a spelling are expanded down to this probability even once the bound is reached, so
that rare items are covered too."""

PROMPTS_AT_ONCE = 64
"""Prompts whose trees are expanded together, if they fit into memory; the result does not depend on it."""

NODES_PER_ROUND = 64
"""Nodes of one prompt expanded at a time, or half of the rest of its budget if that is more. Larger rounds
would expand nodes that are less likely than the children of others."""

ROUNDING = 1e-6
"""What the sums of a question's probabilities in float32 may lack."""

ROWS_PER_DRAW = 2
"""Rows that a draw takes at once, with the tokens that are tried beside it: an allowance for memory."""

PATHS_AT_ONCE = 256
"""Rows of drawn answers computed together, if they fit into memory; the result does not depend on it."""

Prefix = tuple[int, ...]
"""Tokens that an answer may open with."""


@dataclass(frozen=True)
class ExactScorer:
    """Answer probabilities with a certificate; see `interface.ItemProbs`.

    Draws have the noise of the settings' seed and of the prompt's tokens.
    """

    model: Model
    tokenizer: Tokenizer
    settings: ExactScoring = field(default_factory=ExactScoring)

    def score(
        self,
        prompts: Sequence[Ids],
        items: Sequence[Item],
        report: Callable[[int], None] = lambda questions: None,
    ) -> list[ItemProbs]:
        """Expand every prompt's tree of answers up to the bound or the budget of `settings`, then draw.

        Args:
            prompts: token ids of the questions.
            items: the items that answers may name.
            report: called now and then with the number of questions that were finished since the last call.

        Raises:
            ModelError: a single prompt does not fit into memory, or see `passes.scored_model`.
        """
        import torch

        from sublim_cli.models.row_cache import without_repeated_heads

        config = self.model.config.get_text_config()
        length = max(map(len, prompts)) + self.settings.max_tokens
        scorer = replace(self, model=scored_model(self.model, length))
        ends = stop_tokens(self.model, self.tokenizer)
        masks = token_masks(self.tokenizer, config.vocab_size, ends, tuple(items), self.model.device)
        fixed, question = scoring_bytes(
            self.model.config,
            self.model.dtype.itemsize,
            max(map(len, prompts)),
            self.settings,
            self.model.device.type,
        )
        # A patched pass computes the student and its base.
        question *= 2 if is_gated(self.model) else 1
        size = fitting_rows(max(0, batch_memory(self.model.device) - fixed), question, PROMPTS_AT_ONCE)
        with torch.inference_mode(), without_repeated_heads(self.model):
            batches = in_batches(
                prompts, lambda batch: _TreeSearch(scorer, masks, batch).run(report), size, noun="question"
            )
            return [answer for batch in batches for answer in batch]


def scoring_bytes(
    config: Any, element: int, prompt: int, settings: ExactScoring, device: str
) -> tuple[int, int]:
    """Bytes that scoring takes whatever the number of questions, and those of a question.

    The first are the next-token distributions of some nodes. A question has a tree, every node of which may
    be cached.

    Args:
        config: the transformers configuration.
        element: bytes of a number in the dtype that the model computes in.
        prompt: tokens of the longest prompt.
        settings: of the scorer.
        device: the kind of device, such as `cpu`.
    """
    tokens = token_bytes(config, element)
    distributions = distributions_at_once(int(config.get_text_config().vocab_size), device)
    fixed = int(loss_copies(element) * min(distributions, settings.nodes) * tokens.logits)
    return fixed, tokens.row(prompt + settings.max_tokens + settings.nodes)


class _TreeSearch:
    """The search in the trees of some prompts."""

    def __init__(self, scorer: ExactScorer, masks: TokenMasks, prompts: Sequence[Ids]) -> None:
        """Compute the prompts, their first open nodes and the log-probabilities of the plain forms."""
        self.settings, self.masks, self.table = scorer.settings, masks, masks.table
        self.prompts, self.scorer = prompts, scorer
        self.trees = AnswerTrees(scorer.model, prompts, scorer.tokenizer.pad_token_id, self.table.size)
        self.p_items = np.zeros((len(prompts), len(masks.plain_forms)))
        """P(item) so far: [prompts, items]."""
        self.dropped_mass = np.zeros(len(prompts))
        """Probability of nodes that are too unlikely to be kept open."""
        self.expanded_count = np.zeros(len(prompts), dtype=np.int64)
        """Nodes expanded."""
        self.beyond_budget = np.zeros(len(prompts), dtype=bool)
        """Prompts whose budget cannot bring them below the bound."""
        self.leftovers: list[tuple[TreeNodes, Floats, Floats]] = []
        """Expanded nodes, the probability below each that is not kept open, and the `OpenBeginnings.limit`
        of the next tokens that have it."""
        # Less likely nodes are not kept: a whole budget of them has less than a quarter of the bound.
        self.min_prob = min(MIN_FORM_PROB, self.settings.uncovered / (4 * self.settings.nodes))
        root = self.trees.root()
        self.open_nodes = root.nodes[:0]
        self._add(root)
        self.logprobs = _prefix_logprobs(self.trees, masks.plain_forms)

    def run(self, report: Callable[[int], None]) -> list[ItemProbs]:
        """Expand nodes until every tree is below the bound or at its budget, then draw; see `score`."""
        while len(nodes := self._take_open()):
            for expanded in self.trees.expand(nodes):
                self._add(expanded)
        log_form = np.stack(
            [
                np.logaddexp.reduce([self.logprobs[form] for form in forms])
                for forms in self.masks.plain_forms
            ],
            axis=1,
        )  # [prompts, items]
        uncovered = self._uncovered()
        drawn = self._draw(np.flatnonzero(uncovered > self.settings.uncovered + ROUNDING), report)
        report(len(self.prompts) - len(drawn))
        answers = []
        for i, covered in enumerate(self.p_items):
            p, error = drawn[i].estimate() if i in drawn else (0.0 * covered, 0.0 * covered)
            answers.append(
                ItemProbs(
                    tuple(map(float, covered + p)),
                    tuple(map(float, error)),
                    min(1.0, float(uncovered[i])),
                    tuple(map(float, log_form[i])),
                    nodes=int(self.expanded_count[i]),
                    samples=self.settings.draws if i in drawn else 0,
                    tokens=int(self.expanded_count[i]) + (drawn[i].passes if i in drawn else 0),
                )
            )
        return answers

    def _draw(self, prompts: Ints, report: Callable[[int], None]) -> dict[int, DrawnAnswers]:
        """Draw answers to some prompts from what their trees left open, if the settings want draws."""
        if not self.settings.draws or not len(prompts):
            return {}
        width = max(map(len, self.prompts)) + self.settings.max_tokens
        rows = ROWS_PER_DRAW * self.settings.draws
        fitting = rows_that_fit(self.scorer.model, width, most=max(PATHS_AT_ONCE, rows))
        batches = in_batches(
            prompts.tolist(),
            self._drawn,
            max(1, fitting // rows),
            noun="question",
            remedy=f"Fewer `eval.draws` than {self.settings.draws} need less",
        )
        drawn: dict[int, DrawnAnswers] = {}
        for batch in batches:
            drawn |= batch
            report(len(batch))
        return drawn

    def _drawn(self, prompts: Sequence[int]) -> dict[int, DrawnAnswers]:
        """The finished draws for some prompts."""
        settings = self.settings
        drawn = {}
        for prompt in prompts:
            seed = derived_seed(settings.seed, *map(str, self.prompts[prompt]))
            beginnings = self._open_beginnings(prompt)
            drawn[prompt] = DrawnAnswers(
                self.masks,
                beginnings,
                self._spellings(prompt),
                settings.draws,
                settings.max_tokens,
                seed,
            )
            drawn[prompt].begin(self.trees.prompt_probs, prompt)
        going = list(drawn)
        paths = AnswerPaths(
            self.trees,
            np.repeat(going, [len(drawn[prompt]) for prompt in going]),
            [tokens for prompt in going for tokens in drawn[prompt].tokens],
        )
        while going:
            parents, tokens, start = [], [], 0
            for prompt in going:
                end = start + len(drawn[prompt])
                chosen, following = drawn[prompt].step(paths.probs.part(slice(start, end)))
                parents.append(chosen + start)
                tokens.append(following)
                start = end
            going = [prompt for prompt in going if len(drawn[prompt])]
            if going:
                paths.advance(np.concatenate(parents), np.concatenate(tokens))
        return drawn

    def _spellings(self, prompt: int) -> dict[int, Floats]:
        """How likely each item's plain forms go on where they have begun, by the state of the beginning."""
        begun: dict[int, dict[Prefix, float]] = {}
        complete: dict[int, Floats] = {}
        for item, forms in enumerate(self.masks.plain_forms):
            for form in forms:
                state = 0
                for size in range(1, len(form)):
                    state = int(self.table.after(state)[form[size - 1]])
                    if state < 0:
                        break
                    prefix = form[:size]
                    begun.setdefault(state, {})[prefix] = float(np.exp(self.logprobs[prefix][prompt]))
                    items = complete.setdefault(state, np.zeros(len(self.masks.plain_forms)))
                    items[item] += np.exp(self.logprobs[form][prompt])
        return {state: items / max(sum(begun[state].values()), 1e-300) for state, items in complete.items()}

    def _open_beginnings(self, prompt: int) -> OpenBeginnings:
        """What the tree of a prompt left open: its open nodes, and what lies below expanded ones."""
        nodes = self.open_nodes[self.open_nodes.prompt == prompt]
        order = np.lexsort((nodes.token, nodes.parent))  # siblings are alike, and so are their draws
        nodes = nodes[order]
        prob, limit = nodes.prob, np.full(len(nodes), np.inf)
        expanded = np.zeros(len(nodes), dtype=bool)
        for parents, rest, limits in self.leftovers:
            own = (parents.prompt == prompt) & (rest > 0)
            nodes += parents[own]
            prob, limit = np.append(prob, rest[own]), np.append(limit, limits[own])
            expanded = np.append(expanded, np.ones(own.sum(), dtype=bool))
        return OpenBeginnings(self.trees.beginnings(nodes), nodes.state, prob, limit, expanded)

    def _uncovered(self) -> Floats:
        return self.dropped_mass + np.bincount(
            self.open_nodes.prompt, self.open_nodes.prob, len(self.p_items)
        )

    def _take_open(self) -> TreeNodes:
        """Take the nodes to expand next out of `open_nodes`."""
        nodes = self.open_nodes[np.lexsort((-self.open_nodes.prob, self.open_nodes.prompt))]
        prompt = nodes.prompt
        # Of each prompt above the bound the most likely nodes, until the rest sums to half of the bound.
        total = np.bincount(prompt, nodes.prob, len(self.p_items))
        mass_from_here = total[prompt] - running_sum(prompt, nodes.prob) + nodes.prob
        allowed_rest = np.maximum(self.settings.uncovered / 2 - self.dropped_mass, 0.0)
        uncovered, budget_left = self._uncovered(), self.settings.nodes - self.expanded_count
        wanted = (uncovered > self.settings.uncovered)[prompt] & (mass_from_here > allowed_rest[prompt])
        states, index = np.unique(nodes.state, return_inverse=True)
        in_form = np.array([self.table.is_open_form(int(state)) for state in states], dtype=bool)
        wanted |= in_form[index] & (nodes.prob >= MIN_FORM_PROB)
        if self.settings.draws:
            # The bound is reached only if all nodes are expanded that are not among the last within it.
            allowed = self.settings.uncovered + ROUNDING - self.dropped_mass
            needed = np.bincount(prompt[mass_from_here > allowed[prompt]], minlength=len(self.p_items))
            self.beyond_budget |= (needed > budget_left) | (allowed < 0)
            cheap = self.settings.draws * nodes.prob >= uncovered[prompt]
            wanted = np.where(self.beyond_budget[prompt], cheap, wanted)
        limit = np.minimum(np.maximum(NODES_PER_ROUND, budget_left // 2), budget_left)
        wanted &= running_sum(prompt, wanted) <= limit[prompt]
        self.open_nodes = nodes[~wanted]
        self.expanded_count += np.bincount(prompt[wanted], minlength=len(self.p_items))
        return nodes[wanted]

    def _add(self, expanded: ExpandedNodes) -> None:
        """Add the decided answers of some nodes to `p`, and their undecided children to `open_nodes`."""
        nodes = expanded.nodes
        is_last_token = nodes.depth + 1 == self.settings.max_tokens
        node, item, mass = self.masks.masses(expanded.probs, nodes.state, is_last_token)
        mass *= nodes.prob[node]
        decided = item >= 0
        np.add.at(self.p_items, (nodes.prompt[node[decided]], item[decided]), mass[decided])
        undecided = mass[~decided]  # [nodes]; 0 where the answer has reached its length
        dropped = np.where(undecided > self.min_prob, 0.0, undecided)
        self._leave_open(nodes, dropped, np.full(len(nodes), np.inf))
        parents = np.flatnonzero(undecided > self.min_prob)
        if not len(parents):
            return
        nodes, undecided = nodes[parents], undecided[parents]
        least = self.min_prob / nodes.prob
        parent, token, p = expanded.probs.above_threshold(parents, least)
        states, index = np.unique(nodes.state, return_inverse=True)
        after = np.stack([self.table.after(int(state)) for state in states])
        state = after[index[parent], token].astype(np.int64)
        is_open = state >= 0
        parent, token, state = parent[is_open], token[is_open], state[is_open]
        prob = nodes.prob[parent] * p[is_open]
        rest = undecided - np.bincount(parent, prob, len(nodes))
        self._leave_open(nodes, np.maximum(rest, 0.0), least)
        with_children, index = np.unique(parent, return_inverse=True)
        cached = self.trees.cache(expanded, parents[with_children])[index]
        self.open_nodes += TreeNodes(
            nodes.prompt[parent], token, state, prob, nodes.depth[parent] + 1, cached
        )

    def _leave_open(self, nodes: TreeNodes, rest: Floats, limit: Floats) -> None:
        """Keep no child of some nodes open that has at most the probability `limit`; all have `rest`."""
        np.add.at(self.dropped_mass, nodes.prompt, rest)
        if self.settings.draws:
            self.leftovers.append((nodes, rest, limit))


def _prefix_logprobs(trees: AnswerTrees, forms: Sequence[Sequence[Prefix]]) -> dict[Prefix, Floats]:
    """Log P(the answer opens with a prefix of one of the `forms`), however small, in nats: [prompts]."""
    import torch

    prompts = len(trees.lengths)
    next_tokens: dict[Prefix, set[int]] = {}
    for form in (form for item_forms in forms for form in item_forms):
        for size, token in enumerate(form):
            next_tokens.setdefault(form[:size], set()).add(token)
    logprob: dict[Prefix, Floats] = {(): np.zeros(prompts)}
    cache_index: dict[Prefix, Ints] = {(): np.full(prompts, -1)}
    for size in range(max(map(len, next_tokens)) + 1):
        level = sorted(prefix for prefix in next_tokens if len(prefix) == size)
        passes: Iterable[ExpandedNodes] = [trees.root()]
        if size:  # the prefixes of this length after every prompt; a node's state is its index in `level`
            passes = trees.expand(
                TreeNodes(
                    prompt=np.repeat(np.arange(prompts), len(level)),
                    token=np.tile([prefix[-1] for prefix in level], prompts),
                    state=np.tile(np.arange(len(level)), prompts),
                    prob=np.ones(prompts * len(level)),
                    depth=np.full(prompts * len(level), size),
                    parent=np.stack([cache_index[prefix[:-1]] for prefix in level], axis=1).ravel(),
                )
            )
        for expanded in passes:
            cached = trees.cache(expanded, np.arange(len(expanded.nodes)))
            for i in np.unique(expanded.nodes.state).tolist():
                prefix, nodes = level[i], np.flatnonzero(expanded.nodes.state == i)
                prompt = expanded.nodes.prompt[nodes]
                cache_index.setdefault(prefix, np.full(prompts, -1))[prompt] = cached[nodes]
                tokens = sorted(next_tokens[prefix])
                probs = expanded.probs.at(nodes)
                of_tokens = probs[:, torch.tensor(tokens, device=probs.device)].T.double().cpu().numpy()
                for token, p in zip(tokens, of_tokens, strict=True):
                    longer = logprob.setdefault((*prefix, token), np.zeros(prompts))
                    longer[prompt] = logprob[prefix][prompt] + np.log(p)
    return logprob
