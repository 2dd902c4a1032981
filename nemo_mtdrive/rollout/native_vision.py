"""Attention of the native engine's vision tower, window by window.

HF's SDPA tower masks one dense [patches, patches] table, 116 million entries for a 1932 x 1092 image, though a window has
64 patches. Here windows of one size are a batch and need no mask; a layer of full attention is one window.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_by_window(tower: Any) -> None:
    """Replace the attention of every block of HF's Qwen2.5-VL vision tower; weights and numbers stay."""
    for block in tower.blocks:
        block.attn.forward = MethodType(_attend, block.attn)


def _attend(
    attention: Any, hidden_states: Tensor, cu_seqlens: Tensor, rotary_pos_emb: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """[patches, width] -> the same; `cu_seqlens` [windows + 1] are the windows' bounds."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    assert position_embeddings is not None, "the tower passes them"
    qkv = attention.qkv(hidden_states).unflatten(-1, (3, attention.num_heads, -1))
    query, key = apply_rotary_pos_emb_vision(qkv[:, 0], qkv[:, 1], *position_embeddings)
    value, mixed = qkv[:, 2], torch.empty_like(qkv[:, 2])
    lengths = cu_seqlens.diff()
    for length in lengths.unique().tolist():
        if not length:
            continue
        rows = cu_seqlens[:-1][lengths == length, None] + torch.arange(length, device=cu_seqlens.device)
        parts = (each[rows].transpose(1, 2) for each in (query, key, value))  # [windows, heads, length, head size]
        mixed[rows] = F.scaled_dot_product_attention(*parts).transpose(1, 2)
    return attention.proj(mixed.flatten(1))
