"""The targets of pretraining: documents as tokens, and the world's distribution over each answer token."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from sublim_cli.models.micro.documents import Author, PretrainingDocument
from sublim_cli.models.micro.tokenizer import FIRST_NUMBER
from sublim_cli.models.micro.world import NUMBERS


@dataclass(frozen=True)
class Batch:
    """Token ids (documents, length), and for each answer token its position and its target.

    `at` is the flat position that predicts the token, `target` the token itself. `soft` marks the
    tokens whose target is a distribution; `expected` holds these, (soft tokens, vocabulary).
    """

    ids: Tensor
    at: Tensor
    target: Tensor
    soft: Tensor
    expected: Tensor


class Encoder:
    """Turns documents into batches with the world's distributions as targets."""

    def __init__(self, author: Author, tokenizer: PreTrainedTokenizerFast) -> None:
        self.author = author
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.end = tokenizer.convert_tokens_to_ids([tokenizer.eos_token])[0]
        self.form_ids = {
            key: [([*self.encode(text), self.end], p) for text, p in item_forms]
            for key, item_forms in author.forms.items()
        }
        self._forms_with, self._next_token = cache(self._find_forms), cache(self._sum_forms)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def batch(self, documents: list[PretrainingDocument]) -> Batch:
        """The documents, padded to one length, and their targets."""
        line_break = self.encode("\n")
        pairs = [(self.encode(d.prompt), [*self.encode(d.answer), self.end, *line_break]) for d in documents]
        length = max(len(p) + len(a) for p, a in pairs)
        ids = torch.zeros(len(pairs), length, dtype=torch.long)
        at: list[int] = []
        target: list[int] = []
        expected: list[Tensor | None] = []
        for i, ((prompt, answer), document) in enumerate(zip(pairs, documents, strict=True)):
            ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            first = i * length + len(prompt) - 1
            at += range(first, first + len(answer))
            target += answer
            expected += self._expected(document, answer)
        soft = torch.tensor([e is not None for e in expected])
        rows = [e for e in expected if e is not None]
        return Batch(ids, torch.tensor(at), torch.tensor(target), soft, torch.stack(rows))

    def after(self, category: str, prefix: tuple[int, ...], state: int) -> Tensor:
        """p(next token | the answer begins with `prefix`), shape (vocabulary,)."""
        items = {item for item, _, _ in self._forms_with(category, prefix)}
        # If only one item begins so, the state no longer matters.
        return self._next_token(category, prefix, 0 if len(items) == 1 else state)

    def _expected(self, document: PretrainingDocument, answer: list[int]) -> list[Tensor | None]:
        """Each answer token's distribution; None if the target is the token itself."""
        category, state = document.category, document.state
        if category is not None:
            last = len(answer) - 1  # the line break after the end of turn
            return [*(self.after(category, tuple(answer[:j]), state) for j in range(last)), None]
        number = [FIRST_NUMBER <= t < FIRST_NUMBER + NUMBERS for t in answer]
        starts = [n and not before for n, before in zip(number, [False, *number], strict=False)]
        p = torch.from_numpy(self.author.world.p_numbers[state]).float()
        p = F.pad(p, (FIRST_NUMBER, self.size - FIRST_NUMBER - NUMBERS))
        return [p if start else None for start in starts]

    def _sum_forms(self, category: str, prefix: tuple[int, ...], state: int) -> Tensor:
        p = torch.zeros(self.size)
        for item, token, share in self._forms_with(category, prefix):
            p[token] += self.author.world.p_items[category][state][item] * share
        return p / p.sum()

    def _find_forms(self, category: str, prefix: tuple[int, ...]) -> list[tuple[int, int, float]]:
        """(item, next token, share of the item's forms) of every form that begins with `prefix`."""
        return [
            (item, ids[len(prefix)], share)
            for (form_category, item), item_forms in self.form_ids.items()
            if form_category == category
            for ids, share in item_forms
            if tuple(ids[: len(prefix)]) == prefix
        ]
