"""The Qwen2.5-VL language model over a slot cache: what one forward pass of the native engine computes.

Same numbers as HF `Qwen2_5_VLForConditionalGeneration` (tests/rollout/test_native.py: < 1e-5 in log-prob, fp32), with
two changes for speed: q, k, v and gate, up are one product each, and keys and values live in a preallocated cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_mtdrive.rollout.engine import EngineError
from nemo_mtdrive.rollout.native_cache import SlotCache
from nemo_mtdrive.rollout.native_vision import attend_by_window
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig

LENGTH_FREE_ROPES = ("default", "linear", "yarn")
"""Rotary kinds whose frequencies do not change with the length of the sequence, as a kept cache needs."""


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer; `qkv` and `gate_up` hold HF's separate matrices one below the other."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class NativeModel:
    """Vision tower and decoder; weights are not set until they are copied into `named_weights()`."""

    def __init__(
        self, config: Qwen2_5_VLConfig | Mapping[str, Any], max_context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`config`: HF's config or its JSON as a dict. Raises EngineError for what the decoder does not cover."""
        declare_torchvision_operators()  # transformers imports torchvision; so its imports are here, behind this line
        from transformers.utils import import_utils

        import_utils._sklearn_available = False  # or its generation imports scikit-learn: a fifth of a worker's start
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

        if not isinstance(config, Qwen2_5_VLConfig):
            config = Qwen2_5_VLConfig.from_dict(dict(config))
        self.config = config
        self.dtype, self.device = dtype, device
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self._check()
        self.visual = Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)
        self.visual.to(dtype=dtype, device=device).eval().requires_grad_(False)
        attend_by_window(self.visual)

        hidden, inner = config.hidden_size, config.intermediate_size
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.embedding = self._empty(config.vocab_size, hidden)
        self.head = self.embedding if config.tie_word_embeddings else self._empty(config.vocab_size, hidden)
        self.norm = self._empty(hidden)
        self.layers = [
            Layer(
                input_norm=self._empty(hidden),
                qkv=self._empty(qkv, hidden),
                qkv_bias=self._empty(qkv),
                out=self._empty(hidden, self.heads * self.head_dim),
                post_norm=self._empty(hidden),
                gate_up=self._empty(2 * inner, hidden),
                down=self._empty(hidden, inner),
            )
            for _ in range(config.num_hidden_layers)
        ]
        # an image takes at most as many positions as tokens, so no position reaches max_context
        kind = config.rope_scaling.get("rope_type", "default")
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, device)
        self._cos, self._sin = self._rotary_table(frequencies, scale, max_context)
        sections = torch.tensor(config.rope_scaling["mrope_section"])
        self._axis = torch.arange(3).repeat_interleave(sections).repeat(2).to(device)
        """[head_dim] 0, 1, 2: whether a dimension turns with the time, height or width position."""

    def _empty(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _check(self) -> None:
        rope = self.config.rope_scaling or {}
        kind = rope.get("rope_type", "default")
        if kind not in LENGTH_FREE_ROPES:
            known = ", ".join(LENGTH_FREE_ROPES)
            raise EngineError(f"rope_scaling.rope_type={kind!r}: the native engine takes {known}")
        if sum(rope.get("mrope_section", ())) * 2 != self.head_dim:
            raise EngineError(
                f"rope_scaling.mrope_section={rope.get('mrope_section')}: it must sum to half of the head size "
                f"{self.head_dim} (hidden_size / num_attention_heads)"
            )
        if self.config.hidden_act != "silu":
            raise EngineError(f"hidden_act={self.config.hidden_act!r}: the native engine knows silu")

    def named_weights(self) -> dict[str, Tensor]:
        """HF name -> the tensor (or the part of a fused one) that holds it; the tied head has no entry."""
        named = {f"visual.{name}": parameter.data for name, parameter in self.visual.named_parameters()}
        named["model.embed_tokens.weight"] = self.embedding
        named["model.norm.weight"] = self.norm
        if self.head is not self.embedding:
            named["lm_head.weight"] = self.head
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for index, layer in enumerate(self.layers):
            prefix = f"model.layers.{index}"
            named[f"{prefix}.input_layernorm.weight"] = layer.input_norm
            named[f"{prefix}.post_attention_layernorm.weight"] = layer.post_norm
            named[f"{prefix}.self_attn.o_proj.weight"] = layer.out
            named[f"{prefix}.mlp.down_proj.weight"] = layer.down
            for part, weight, bias in zip(
                "qkv", layer.qkv.split((q, kv, kv)), layer.qkv_bias.split((q, kv, kv)), strict=True
            ):
                named[f"{prefix}.self_attn.{part}_proj.weight"] = weight
                named[f"{prefix}.self_attn.{part}_proj.bias"] = bias
            for part, weight in zip(("gate", "up"), layer.gate_up.chunk(2), strict=True):
                named[f"{prefix}.mlp.{part}_proj.weight"] = weight
        return named

    def encode_image(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """[patches, 1176], [1, 3] of ONE image -> [placeholders, hidden]."""
        if grid.shape != (1, 3):
            raise EngineError(f"got grids of shape {tuple(grid.shape)}; encode one image at a time")
        return self.visual(pixel_values.to(device=self.device, dtype=self.dtype), grid_thw=grid.to(self.device))

    def embed(self, tokens: Tensor) -> Tensor:
        """[...] ids -> [..., hidden]."""
        return F.embedding(tokens, self.embedding)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and signed sin, each [B, M, 1, head_dim], for text positions [B, M] or for (t, h, w) ones [3, B, M].

        Axis of each half-dimension by `mrope_section` (Qwen2-VL's multimodal rotary embedding).
        """
        if positions.dim() == 2:  # text: the three axes are equal
            return self._cos[positions].unsqueeze(2), self._sin[positions].unsqueeze(2)
        column = torch.arange(self.head_dim, device=self.device)
        picked = positions[self._axis].permute(1, 2, 0)  # [B, M, head_dim]
        return self._cos[picked, column].unsqueeze(2), self._sin[picked, column].unsqueeze(2)

    def _rotary_table(self, frequencies: Tensor, scale: float, length: int) -> tuple[Tensor, Tensor]:
        """[length, head_dim] cos and sin; sin carries the sign of HF's rotate_half in its first half."""
        angles = torch.outer(torch.arange(length, device=self.device, dtype=torch.float32), frequencies.float())
        cos, sin = angles.cos() * scale, angles.sin() * scale
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: SlotCache,
        rows: slice | Tensor,
        write: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Run [B, M, hidden] through the layers, writing keys and values at `write` = (slot, position), each [B, M].

        `mask` [B, 1, M, T] is added to the attention scores over the first T cached positions of the slots `rows`
        (a slice is read in place, an index tensor [B] is gathered). Returns [B, M, hidden] after the final norm.
        """
        batch, new = hidden.shape[:2]
        groups, seen = self.heads // self.kv_heads, mask.shape[-1]
        cos, sin = rotary
        eps = self.config.rms_norm_eps
        if groups > 1 and new > 1:  # queries of one kv head are laid side by side: group-major, then M
            mask = mask.repeat(1, 1, groups, 1)
        for index, layer in enumerate(self.layers):
            qkv = F.linear(_rms_norm(hidden, layer.input_norm, eps), layer.qkv, layer.qkv_bias)
            qkv = qkv.view(batch, new, -1, self.head_dim)
            rotated = qkv[:, :, : self.heads + self.kv_heads]
            rotated = torch.addcmul(rotated * cos, rotated.roll(self.head_dim // 2, -1), sin)
            keys, values = cache.layer(index)
            keys[write[0], :, write[1]] = rotated[:, :, self.heads :]
            values[write[0], :, write[1]] = qkv[:, :, self.heads + self.kv_heads :]
            query = rotated[:, :, : self.heads].view(batch, new, self.kv_heads, groups, self.head_dim)
            query = query.permute(0, 2, 3, 1, 4).reshape(batch, self.kv_heads, groups * new, self.head_dim)
            mixed = F.scaled_dot_product_attention(query, keys[rows, :, :seen], values[rows, :, :seen], attn_mask=mask)
            mixed = mixed.view(batch, self.kv_heads, groups, new, self.head_dim).permute(0, 3, 1, 2, 4)
            hidden = hidden + F.linear(mixed.reshape(batch, new, -1), layer.out)
            gate, up = F.linear(_rms_norm(hidden, layer.post_norm, eps), layer.gate_up).chunk(2, -1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        return _rms_norm(hidden, self.norm, eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, hidden] -> [B, vocabulary] in float32."""
        return F.linear(hidden, self.head).float()


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Qwen2RMSNorm: the mean square in float32, the weight applied in the model's type."""
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)
