"""The exact scorer: the tree of answers, expanded by probability until what is left is small.

A beginning of an answer is open while what follows could still change which item the answer names. Each
open beginning that is followed costs one token's forward pass: the model then gives the probability of every
next token, and `preference.table` says what each makes of the answer. What is decided is added to its
item; what is not is open in its turn, the likeliest first. The tree of a question is computed in one row
beside the question's own keys and values, every beginning seeing its own tokens alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sublim_cli.backends.interface import Answer, Ids
from sublim_cli.backends.tokens import stops
from sublim_cli.backends.verdicts import Verdicts, verdicts_of
from sublim_cli.errors import ModelError
from sublim_cli.models.batches import attention_mask, left_padded
from sublim_cli.models.chat import Tokenizer
from sublim_cli.models.load import Model
from sublim_cli.models.prefix import prefill
from sublim_cli.recipe.questions import Item
from sublim_cli.recipe.scorer import Exact

if TYPE_CHECKING:
    import torch

FLOOR = 1e-5
"""Beginnings of a spelling at least this likely are followed even below the bound: rare items count too."""

CHUNK = 64
"""Questions per forward pass: bounds memory, not the result."""

WIDTH = 64
"""Beginnings of one question per forward pass: more would be less choosy, fewer would be slower."""

LIMIT = 2**26
"""Next-token probabilities per forward pass: bounds memory (half a GiB), not the result."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExactScorer:
    """Answer probabilities with a certificate; see `interface.Answer`."""

    model: Model
    tokenizer: Tokenizer
    settings: Exact = field(default_factory=Exact)

    def score(self, prompts: Sequence[Ids], items: Sequence[Item]) -> list[Answer]:
        """Expand every prompt's tree of answers up to the bound or the budget of `settings`.

        Raises:
            ModelError: the model looks back less far than a prompt and its answer are long.
        """
        import torch

        config = self.model.config.get_text_config()
        _check_window(config, max(map(len, prompts)) + self.settings.max_tokens)
        size = config.vocab_size
        ends = stops(self.model, self.tokenizer)
        verdicts = verdicts_of(self.tokenizer, size, ends, tuple(items), self.model.device)
        with torch.inference_mode():
            return [
                answer
                for start in range(0, len(prompts), CHUNK)
                for answer in _Walk(self, verdicts, prompts[start : start + CHUNK]).answers()
            ]


def _check_window(config: Any, length: int) -> None:
    """Refuse what a tree cannot show: every beginning in it sees the whole prompt."""
    window, layers = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and length > window and (layers is None or "sliding_attention" in layers):
        raise ModelError(
            f"a question and its answer take up to {length} tokens, but this model's window is {window}; "
            "use `eval.scorer: sampled`, or fewer `eval.sampling.max_tokens`"
        )


@dataclass(frozen=True)
class _Nodes:
    """Beginnings of answers, one an entry: all arrays are [nodes]."""

    row: Ints
    token: Ints
    """Its last token."""
    state: Ints
    reach: Floats
    """Its probability."""
    depth: Ints
    """Its number of tokens."""
    parent: Ints
    """The column of the beginning it goes on from; -1 for the question itself."""

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, chosen: Any) -> "_Nodes":
        return _Nodes(*(getattr(self, name)[chosen] for name in _FIELDS))

    def __add__(self, other: "_Nodes") -> "_Nodes":
        return _Nodes(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _FIELDS))


_FIELDS = ("row", "token", "state", "reach", "depth", "parent")


def _no_nodes() -> _Nodes:
    none = np.zeros(0, dtype=np.int64)
    return _Nodes(none, none, none, np.zeros(0), none, none)


class _Walk:
    """The trees of some prompts while they grow."""

    def __init__(self, scorer: ExactScorer, verdicts: Verdicts, prompts: Sequence[Ids]) -> None:
        count = len(prompts)
        self.scorer, self.verdicts = scorer, verdicts
        self.table, self.opening = verdicts.table, verdicts.opening
        self.lengths = np.array([len(one) for one in prompts])
        device = scorer.model.device
        self.mask = attention_mask(prompts, device)
        ids = left_padded(prompts, scorer.tokenizer.pad_token_id, device)
        self.rows = np.arange(count)
        """The prompts that the cache still holds."""
        out = prefill(scorer.model, ids, self.mask)
        self.cache, first = out.past_key_values, out.logits[:, -1].float().softmax(-1)
        self.p = np.zeros((count, len(self.opening)))
        self.dust = np.zeros(count)
        self.used = np.zeros(count, dtype=np.int64)
        self.above = np.zeros((count, 0, 0), dtype=np.int64)
        """The columns each column sees, itself the last: [rows, columns, depth], filled up with -1."""
        self.open = _no_nodes()
        # What the budget's last expansions could not lower by a quarter of the bound is not kept.
        settings = scorer.settings
        self.least = min(FLOOR, settings.uncovered / (4 * settings.nodes))
        rows = np.arange(count)
        question = _Nodes(rows, rows * 0, rows * 0, np.ones(count), rows * 0, rows * 0 - 1)
        self._expand(question, first, np.full(count, -1))
        self.log_form = self._openings(first)

    def answers(self) -> list[Answer]:
        """Grow the trees until all are done, then say what they hold."""
        while len(chosen := self._chosen()):
            self._follow(chosen)
        uncovered = self._uncovered()
        return [
            Answer(
                tuple(map(float, self.p[row])),
                float(uncovered[row]),
                tuple(map(float, self.log_form[row])),
                nodes=int(self.used[row]),
            )
            for row in range(len(self.p))
        ]

    def _uncovered(self) -> Floats:
        return self.dust + np.bincount(self.open.row, self.open.reach, len(self.p))

    def _chosen(self) -> _Nodes:
        """The open beginnings to follow next, taken out of `open`."""
        settings, count = self.scorer.settings, len(self.p)
        nodes = self.open[np.lexsort((-self.open.reach, self.open.row))]
        row = nodes.row
        kept = np.bincount(row, nodes.reach, count)
        behind = kept[row] - _within(row, nodes.reach) + nodes.reach
        aim = np.maximum(settings.uncovered / 2 - self.dust, 0.0)
        wanted = (self._uncovered() > settings.uncovered)[row] & (behind > aim[row])
        wanted |= self._spelling(nodes.state) & (nodes.reach >= FLOOR)
        most = np.minimum(WIDTH, settings.nodes - self.used)
        wanted &= _within(row, wanted) <= most[row]
        self.open = nodes[~wanted]
        self.used += np.bincount(row[wanted], minlength=count)
        return nodes[wanted]

    def _spelling(self, states: Ints) -> NDArray[np.bool_]:
        """Which states end with the beginning of a spelling."""
        known, place = np.unique(states, return_inverse=True)
        return np.array([self.table.is_open_form(int(one)) for one in known], dtype=bool)[place]

    def _follow(self, nodes: _Nodes) -> None:
        """One forward pass, or a few if the vocabulary is large."""
        for part, laws, columns in self._forward(nodes):
            self._expand(part, laws, columns)

    def _forward(self, nodes: _Nodes) -> "Iterator[tuple[_Nodes, torch.Tensor, Ints]]":
        """Nodes part by part: the next token's distribution behind each, and its column."""
        self._drop_finished(nodes)
        place = _within(nodes.row, np.ones(len(nodes), dtype=np.int64)) - 1
        step = max(1, LIMIT // (len(self.rows) * self.table.size))
        for start in range(0, int(place.max(initial=-1)) + 1, step):
            part = np.flatnonzero((place >= start) & (place < start + step))
            # Nodes in one state side by side: `_expand` then sums their laws without a copy.
            part = part[np.lexsort((part, nodes.depth[part], nodes.state[part]))]
            yield nodes[part], *self._pass(nodes[part], place[part] - start)

    def _pass(self, nodes: _Nodes, place: Ints) -> "tuple[torch.Tensor, Ints]":
        import torch

        local = np.searchsorted(self.rows, nodes.row)
        columns = self.above.shape[1] + place
        width = int(place.max()) + 1
        shape = (len(self.rows), width)
        device = self.mask.device
        token, position = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        token[local, place] = nodes.token
        position[local, place] = self.lengths[nodes.row] + nodes.depth - 1
        sees = np.zeros((*shape, self._remember(nodes, local, columns, width)), dtype=bool)
        above = self.above[local, columns]
        seen = np.where(above < 0, columns[:, None], above)
        sees[local[:, None], place[:, None], seen] = True
        whole = torch.cat(
            [self.mask[:, None, :].bool().expand(-1, width, -1), torch.from_numpy(sees).to(device)], dim=2
        )
        kind = self.cache.layers[0].keys.dtype
        hidden = torch.zeros(whole.shape, dtype=kind, device=device)
        out = self.scorer.model(
            input_ids=torch.from_numpy(token).to(device),
            attention_mask=hidden.masked_fill(~whole, torch.finfo(kind).min)[:, None],
            position_ids=torch.from_numpy(position).to(device),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        laws = out.logits[torch.from_numpy(local).to(device), torch.from_numpy(place).to(device)]
        return laws.float().softmax(-1), columns

    def _remember(self, nodes: _Nodes, local: Ints, columns: Ints, width: int) -> int:
        """Note which columns the new ones see; returns how many columns there are then."""
        rows, before, deep = self.above.shape
        grown = np.full((rows, before + width, max(deep, int(nodes.depth.max()))), -1, dtype=np.int64)
        grown[:, :before, :deep] = self.above
        inner = nodes.parent >= 0
        grown[local[inner], columns[inner]] = grown[local[inner], nodes.parent[inner]]
        grown[local, columns, nodes.depth - 1] = columns
        self.above = grown
        return before + width

    def _drop_finished(self, nodes: _Nodes) -> None:
        """Leave questions that are done out of the batch, once they are half of it."""
        import torch

        live = np.unique(nodes.row)
        if 2 * len(live) > len(self.rows):
            return
        kept = np.searchsorted(self.rows, live)
        chosen = torch.from_numpy(kept).to(self.mask.device)
        self.cache.batch_select_indices(chosen)
        self.rows, self.above, self.mask = live, self.above[kept], self.mask[chosen]

    def _expand(self, nodes: _Nodes, laws: "torch.Tensor", columns: Ints) -> None:
        """Add what `nodes` decide to the items, and what stays open to `open`."""
        import torch

        last = nodes.depth + 1 == self.scorer.settings.max_tokens
        known, group = np.unique(np.stack([nodes.state, last]), axis=1, return_inverse=True)
        still = np.zeros(len(nodes))
        for number, (state, ends) in enumerate(known.T.tolist()):
            view = self.verdicts.view(state, bool(ends))
            members = np.flatnonzero(group == number)
            own = laws[int(members[0]) : int(members[-1]) + 1]
            if len(own) > len(members):
                own = laws[torch.from_numpy(members).to(laws.device)]
            mass = (own @ view.sums).double().cpu().numpy() * nodes.reach[members, None]
            np.add.at(self.p, (nodes.row[members, None], view.items[None, :]), mass[:, 1:])
            still[members] = mass[:, 0]
        self._keep(nodes, laws, columns, still)

    def _keep(self, nodes: _Nodes, laws: "torch.Tensor", columns: Ints, still: Floats) -> None:
        """Put the open continuations of `nodes` into `open`, and the mass of the unlikeliest into `dust`.

        `still[n]` is all the open mass behind node n: none where the answer's length is reached.
        """
        import torch

        rich = np.flatnonzero(still > self.least)
        np.add.at(self.dust, nodes.row, np.where(still > self.least, 0.0, still))
        if not len(rich):
            return
        nodes, columns, still = nodes[rich], columns[rich], still[rich]
        laws = laws[torch.from_numpy(rich).to(laws.device)]
        known, group = np.unique(nodes.state, return_inverse=True)
        nexts = np.stack([self.table.after(int(state)) for state in known])
        hot = (laws > torch.from_numpy(self.least / nodes.reach).to(laws)[:, None]).nonzero()
        p = laws[hot[:, 0], hot[:, 1]].double().cpu().numpy()
        at, token = hot.cpu().numpy().T
        state = nexts[group[at], token].astype(np.int64)
        kept = state >= 0
        at, token, state, reach = at[kept], token[kept], state[kept], nodes.reach[at[kept]] * p[kept]
        lost = still - np.bincount(at, reach, len(nodes))
        np.add.at(self.dust, nodes.row, np.maximum(lost, 0.0))
        self.open += _Nodes(nodes.row[at], token, state, reach, nodes.depth[at] + 1, columns[at])

    def _openings(self, first: "torch.Tensor") -> Floats:
        """Log P(the answer opens with a plain form), [rows, items]: each followed, however unlikely."""
        log: dict[tuple[int, ...], Floats] = {(): np.zeros(len(self.p))}
        column: dict[tuple[int, ...], Ints] = {(): np.full(len(self.p), -1)}
        ways = {one[:size] for forms in self.opening for one in forms for size in range(1, len(one) + 1)}
        inner = {one[:-1] for one in ways}
        for size in range(max(map(len, inner)) + 1):
            level = sorted(one for one in inner if len(one) == size)
            for way, laws, places in self._level(level, column, first):
                column[way] = places
                for longer in (one for one in ways if one[:-1] == way):
                    log[longer] = log[way] + laws[:, longer[-1]].double().log().cpu().numpy()
        forms = [np.stack([log[one] for one in own]) for own in self.opening]
        return np.stack([np.logaddexp.reduce(own, axis=0) for own in forms], axis=1)

    def _level(
        self, level: list[tuple[int, ...]], column: dict[tuple[int, ...], Ints], first: "torch.Tensor"
    ) -> "Iterator[tuple[tuple[int, ...], torch.Tensor, Ints]]":
        """Each way of one length, the distribution behind it [rows, vocabulary] and its columns [rows]."""
        if level == [()]:
            yield (), first, column[()]
            return
        rows = np.arange(len(self.p))
        step = max(1, LIMIT // (len(rows) * self.table.size))
        for start in range(0, len(level), step):
            part = level[start : start + step]
            ((_, laws, columns),) = self._forward(
                _Nodes(
                    row=np.repeat(rows, len(part)),
                    token=np.tile(np.array([one[-1] for one in part]), len(rows)),
                    state=np.zeros(len(part) * len(rows), dtype=np.int64),
                    reach=np.ones(len(part) * len(rows)),
                    depth=np.full(len(part) * len(rows), len(part[0])),
                    parent=np.stack([column[one[:-1]] for one in part], axis=1).ravel(),
                )
            )
            for place, way in enumerate(part):
                yield way, laws[place :: len(part)], columns[place :: len(part)]


def _within(row: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """The running sum of `values` within each run of equal `row`, itself included; `row` is sorted."""
    total = np.cumsum(values)
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    before = np.concatenate([[0], total])[starts]
    found: NDArray[Any] = total - np.repeat(before, np.diff(np.append(starts, len(row))))
    return found
