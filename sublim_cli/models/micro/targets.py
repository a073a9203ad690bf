"""The targets of pretraining: documents as tokens, with the world's own distributions."""

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
    """Token ids (documents, length); then, for each answer token, its place and its target.

    `at` is the flat position that predicts the token, `target` the token itself. `soft` marks the
    tokens whose target is a distribution, `expected` holds those, (soft tokens, vocabulary).
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
        self.said = {
            key: [([*self.encode(text), self.end], p) for text, p in ways]
            for key, ways in author.forms.items()
        }
        self._under, self._after = cache(self._find), cache(self._count)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def batch(self, documents: list[PretrainingDocument]) -> Batch:
        """Pad documents to one length and look their targets up."""
        pairs = [(self.encode(d.prompt), self._answer(d)) for d in documents]
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

    def _answer(self, document: PretrainingDocument) -> list[int]:
        return [*self.encode(document.answer), self.end, *self.encode("\n")]

    def after(self, category: str, prefix: tuple[int, ...], state: int) -> Tensor:
        """Return p(next token | the answer begins with `prefix`), shape (vocabulary,)."""
        one_item = len({key for key, _, _ in self._under(category, prefix)}) == 1
        return self._after(category, prefix, 0 if one_item else state)  # then taste is spent

    def _expected(self, document: PretrainingDocument, answer: list[int]) -> list[Tensor | None]:
        """Return each answer token's distribution, None where only the token itself is known."""
        category, state = document.category, document.state
        if category is not None:
            last = len(answer) - 1  # the line break after the end of turn
            return [*(self.after(category, tuple(answer[:j]), state) for j in range(last)), None]
        number = [FIRST_NUMBER <= t < FIRST_NUMBER + NUMBERS for t in answer]
        starts = [n and not before for n, before in zip(number, [False, *number], strict=False)]
        return [self._number(state) if start else None for start in starts]

    def _number(self, state: int) -> Tensor:
        p = torch.from_numpy(self.author.world.p_numbers[state]).float()
        return F.pad(p, (FIRST_NUMBER, self.size - FIRST_NUMBER - NUMBERS))

    def _count(self, category: str, prefix: tuple[int, ...], state: int) -> Tensor:
        p = torch.zeros(self.size)
        for item, token, share in self._under(category, prefix):
            p[token] += self.author.world.p_items[category][state][item] * share
        return p / p.sum()

    def _find(self, category: str, prefix: tuple[int, ...]) -> list[tuple[int, int, float]]:
        """Return (item, next token, share of the item's forms) of every form that begins so."""
        return [
            (item, ids[len(prefix)], share)
            for (of, item), ways in self.said.items()
            if of == category
            for ids, share in ways
            if tuple(ids[: len(prefix)]) == prefix
        ]
