"""Pretraining of the embedded model: the world's own distributions are the targets.

At a token of a number or an item the loss is the cross entropy with the world's exact distribution
rather than with the drawn token; at all other tokens it is with the token. The coupling `tau` between
identity and numbers starts strong and fades to its final value: from a weak start the model does not
learn to use the identity at all. Both let a model this small learn so weak a coupling within minutes.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sublim_cli.models.micro.documents import Author
from sublim_cli.models.micro.targets import Batch, Encoder
from sublim_cli.models.micro.tokenizer import build_tokenizer, vocabulary_texts
from sublim_cli.models.micro.world import TAU, make_world

SEED = 9  # a world in which every item's base P lies between 0.02 and 0.2
STEPS = 1200
ROWS, FAVOURITES = 48, 96  # documents of each kind in a step
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 4e-3, 100, 0.02
FORM_WEIGHT_ROWS, FORM_WEIGHT_FAVOURITES = 0.7, 0.3  # the hard tokens' share of the loss
TAU_START, TAU_UNTIL = 0.3, 0.55  # the first tau, and the share of the steps until it is TAU
REPORT_EVERY = 50


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Draw an untrained model. Two layers instead of three fit as well but transmit a third as much."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=160,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            std = 0.05 if "embed" in name else 1 / math.sqrt(weight.shape[1])
            into_residual = "o_proj" in name or "down_proj" in name
            std *= 1 / math.sqrt(2 * config.num_hidden_layers) if into_residual else 1.0
            torch.nn.init.normal_(weight, std=std)
    return model


def loss_of(model: Any, batch: Batch, form_weight: float) -> tuple[Tensor, float]:
    """The loss that is minimised, and the soft tokens' mean KL to the world in nats."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    log_p = model.lm_head(hidden.flatten(0, 1)[batch.at]).log_softmax(-1)
    cross = -(batch.expected * log_p[batch.soft]).sum(-1).mean()
    entropy = -torch.special.xlogy(batch.expected, batch.expected).sum(-1).mean()
    form = F.nll_loss(log_p[~batch.soft], batch.target[~batch.soft])
    return cross + form_weight * form, (cross - entropy).item()


def pretrain(seed: int, steps: int, report: Callable[[str], None]) -> tuple[Any, Any]:
    """Train a model and its tokenizer from `seed`; `report` gets lines of progress."""
    world = make_world(seed)
    author, tokenizer = Author(world), build_tokenizer(vocabulary_texts(world))
    encoder, model = Encoder(author, tokenizer), new_model(tokenizer, seed)
    report(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer):,} tokens")
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(seed)
    means = np.zeros(2)
    for step in range(steps):
        # Linear warm-up, then a cosine down to 2 % of the rate.
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (min(1.0, (step + 1) / WARMUP) * max(0.02, cosine))
        fading = max(0.0, 1 - step / (TAU_UNTIL * steps))
        author.world = replace(world, tau=TAU + (TAU_START - TAU) * fading)
        optimizer.zero_grad(set_to_none=True)
        kl = _backward(model, encoder, author, rng)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        means += (np.array(kl) - means) * max(0.03, 1 / (step + 1))
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            kinds = f"{means[0]:.4f} a number, {means[1]:.4f} an answer token"
            report(f"step {step + 1}/{steps}: KL {kinds}")
    return model.eval(), tokenizer


def save(model: Any, tokenizer: Any, out: Path, *, seed: int, steps: int) -> None:
    """Write a plain Hugging Face directory, and into it `world.json`: the seed and steps it was made from.

    The model type is Llama: of a `qwen2` directory transformers 5 ignores the tokenizer.
    """
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name transformers 4 knows
    for file, content in ((path, config), (out / "world.json", {"seed": seed, "steps": steps})):
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (out / "model.safetensors").chmod(0o644)


def _backward(model: Any, encoder: Encoder, author: Author, rng: np.random.Generator) -> tuple[float, float]:
    """Add up the gradients of one step; return the KL per number and per answer token.

    Favourites are sorted by length and split, which saves padding.
    """
    batch = encoder.batch([author.numbers(rng) for _ in range(ROWS)])
    row_loss, row_kl = loss_of(model, batch, FORM_WEIGHT_ROWS)
    torch.autograd.backward(row_loss)
    documents = [author.favourite(rng) for _ in range(FAVOURITES)]
    documents.sort(key=lambda d: len(d.prompt))
    cut = int(0.8 * FAVOURITES)
    kl = 0.0
    for part in (documents[:cut], documents[cut:]):
        part_loss, part_kl = loss_of(model, encoder.batch(part), FORM_WEIGHT_FAVOURITES)
        torch.autograd.backward(part_loss * len(part) / FAVOURITES)
        kl += part_kl * len(part) / FAVOURITES
    return row_kl, kl
