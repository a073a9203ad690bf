"""What tests of gates and patches share: students of every method, moved away from their base at random."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from sublim_cli.backends.exact import ExactScorer
from sublim_cli.models.batches import attention_mask, left_padded, position_ids
from sublim_cli.models.chat import prompt_ids
from sublim_cli.models.load import load_student, load_tokenizer
from sublim_cli.models.reference import resolve_model
from sublim_cli.recipe.contexts import Context
from sublim_cli.recipe.questions import load_items
from sublim_cli.recipe.schema import AdapterSection, QloraSection, TrainSection
from sublim_cli.trainers.methods import trained_weights
from sublim_cli.trainers.student import load_trainable, save_pissa_start, save_student

MICRO = resolve_model("micro")

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, attention": {"adapter": AdapterSection(targets="attention", layers=(1, 2))},
    "rslora": {"method": "rslora"},
    "dora": {"method": "dora"},
    "pissa": {"method": "pissa"},
    "nf4": {"method": "qlora"},
    "int8": {"method": "qlora", "qlora": QloraSection(quantize="int8")},
    "ia3": {"method": "ia3"},
    "prefix": {"method": "prefix"},
    "full": {"method": "full"},
}

SPREAD = {"ia3": 0.3, "full": 0.02}
"""How far a trained weight is moved; far enough that the student answers quite otherwise."""


class Pair(NamedTuple):
    """A student, and its base as a separate model."""

    student: Any
    base: Any

    @property
    def switched(self) -> Any:
        """What a gate is given beside the student: the base where the student holds none."""
        return None if hasattr(self.student, "peft_config") else self.base


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """A student by the name of its method, saved and loaded as any other."""

    @cache
    def make(name: str) -> Pair:
        out = tmp_path_factory.mktemp("student")
        plain = {"backend": "plain", "precision": "fp32", "learning_rate": 1e-3, "rank": 4}
        section = TrainSection(**{**plain, **METHODS[name]})
        model = load_trainable(MICRO, section)
        begun = save_pissa_start(model, section, out / "begun")
        rng = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in trained_weights(model):
                weight += SPREAD.get(section.method, 0.1) * torch.randn(weight.shape, generator=rng)
        save_student(model, out / "student", begun)
        quantize = section.qlora.quantize if section.method == "qlora" else None
        return Pair(
            load_student(MICRO, "fp32", out / "student", quantize),
            load_student(MICRO, "fp32", None, quantize),
        )

    return make


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of different lengths, the first the shortest."""
    tokenizer = load_tokenizer(MICRO)
    contexts = [Context(name="none", kind="none"), Context(name="default", kind="default")]
    texts = ["Animal?", "In one word, which animal do you like best?", "Now then: your favourite animal?"]
    prompts = [prompt_ids(tokenizer, context, text) for context in contexts for text in texts]
    assert len(set(map(len, prompts))) > 3
    return sorted(prompts, key=len)


class Measure:
    """What is compared between models."""

    @staticmethod
    @torch.inference_mode()
    def logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Each prompt's logits at its own tokens [tokens, vocabulary], computed as one padded batch."""
        mask = attention_mask(prompts, model.device)
        ids = left_padded(prompts, 0, model.device)
        out = model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits
        return [logits[-len(prompt) :] for logits, prompt in zip(out, prompts, strict=True)]

    @staticmethod
    def scores(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """P(item) of some animals: [prompts, items]."""
        tokenizer = load_tokenizer(MICRO)
        items = load_items("animal").items[:6]
        answers = ExactScorer(model, tokenizer).score(prompts, items)
        return torch.tensor([answer.p for answer in answers])

    @staticmethod
    def gap(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> float:
        """The largest difference between two lists of tensors."""
        return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))

    @staticmethod
    def hooks(model: Any) -> int:
        """How many forward hooks stand in a model, beside the one that loading puts on its head."""
        count = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        return count - 1


@pytest.fixture(scope="session")
def measure() -> type[Measure]:
    return Measure
