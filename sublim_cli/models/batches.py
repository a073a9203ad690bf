"""Token sequences of different lengths as a tensor padded on the left, so that their ends align."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def left_padded(rows: Sequence[Sequence[int]], fill: int, device: "torch.device") -> "torch.Tensor":
    """The rows as a tensor [rows, longest], filled with `fill` on the left."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows], device=device)


def attention_mask(rows: Sequence[Sequence[int]], device: "torch.device") -> "torch.Tensor":
    """1 for a token of `left_padded` and 0 for padding: [rows, longest]."""
    return left_padded([[1] * len(row) for row in rows], 0, device)


def position_ids(mask: "torch.Tensor") -> "torch.Tensor":
    """Position ids that count a row's tokens from 0 after the padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
