"""Token sequences of different lengths as one tensor, padded on the left: their ends align."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def left_padded(rows: Sequence[Sequence[int]], fill: int, device: "torch.device") -> "torch.Tensor":
    """The rows as [rows, longest], filled up on the left."""
    import torch

    width = max(map(len, rows))
    return torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows], device=device)


def attention_mask(rows: Sequence[Sequence[int]], device: "torch.device") -> "torch.Tensor":
    """1 where `left_padded` holds a token, 0 where it holds filling: [rows, longest]."""
    return left_padded([[1] * len(row) for row in rows], 0, device)


def position_ids(mask: "torch.Tensor") -> "torch.Tensor":
    """Position ids that count a row's own tokens from 0, whatever stands before them."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
