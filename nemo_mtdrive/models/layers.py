"""Layer specs: transformer-engine's where it is installed, otherwise ours in plain torch with the same parameter names.

The names are equal (`linear_qkv.layer_norm_weight` and so on), so weights and checkpoints fit both, and NeMo's own maps
fit ours.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from nemo_mtdrive.models import kernels

HAVE_TRANSFORMER_ENGINE = torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


class LayerNormColumnParallelLinear(ColumnParallelLinear):
    """A norm and the column-parallel linear behind it: `TELayerNormColumnParallelLinear` in plain torch."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.norm_is_rms = config.normalization == "RMSNorm"
        self.norm_epsilon = config.layernorm_epsilon
        self.layer_norm_weight = self._norm_parameter(1.0)
        if not self.norm_is_rms:
            self.layer_norm_bias = self._norm_parameter(0.0)

    def _norm_parameter(self, value: float) -> torch.nn.Parameter:
        data = torch.full((self.input_size,), value, dtype=self.weight.dtype, device=self.weight.device)
        parameter = torch.nn.Parameter(data)
        parameter.sequence_parallel = self.config.sequence_parallel  # type: ignore[attr-defined]  # mcore sums its gradient
        return parameter

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """[..., input] -> ([..., output / tp], bias or None)."""
        if self.norm_is_rms:
            input_ = kernels.rms_norm(input_, self.layer_norm_weight, self.norm_epsilon)
        else:
            shape = (self.input_size,)
            input_ = F.layer_norm(input_, shape, self.layer_norm_weight, self.layer_norm_bias, self.norm_epsilon)
        return super().forward(input_, *args, **kwargs)


class ScaledDotProductAttention(MegatronModule):
    """Core attention by `torch.nn.functional.scaled_dot_product_attention`, with grouped keys and values.

    Takes [s, b, heads, d] (a batch, causal or full), or packed [t, heads, d] with `cu_seqlens`: each segment attends
    to itself only, and no mask over all of them is ever built.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Return [s, b, heads * d], or packed [t, heads * d]."""
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("got an attention mask or bias: pad on the right, causal attention needs neither")
        causal = (attn_mask_type or self.attn_mask_type) in (AttnMaskType.causal, AttnMaskType.padding_causal)
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params.cu_seqlens_q, causal)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = self._attend(query, key, value, causal)
        return output.permute(2, 0, 1, 3).flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """[b, heads, s, d] -> [b, heads, s, d]."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=key.size(1) != query.size(1),
        )

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, causal: bool) -> Tensor:
        lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist())]
        if len(set(lengths)) == 1:  # windows of one size, or images of one size: one call for all
            shape = (len(lengths), lengths[0])
            query, key, value = (part.unflatten(0, shape).transpose(1, 2) for part in (query, key, value))
            return self._attend(query, key, value, causal).transpose(1, 2).flatten(0, 1).flatten(1)
        outputs = []
        for segment in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
            one_query, one_key, one_value = (part.transpose(0, 1).unsqueeze(0) for part in segment)
            outputs.append(self._attend(one_query, one_key, one_value, causal)[0].transpose(0, 1))
        return torch.cat(outputs).flatten(1)


class RotarySelfAttention(SelfAttention):
    """Self-attention for training, with sines and cosines computed once for all layers (`rotary_table`)."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[s, b, hidden], [2, s, b or 1, 1, d / 2] -> [s, b, hidden] (and the bias that is still to be added)."""
        if rotary_pos_emb is None:
            raise ValueError("no rotary table: this attention is for Qwen2.5-VL")
        mixed, _bias = self.linear_qkv(hidden_states)
        groups, head = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        cosine, sine = rotary_pos_emb.unbind(0)
        query, key, value = kernels.split_and_rotate(mixed.unflatten(2, (groups, -1, head)), cosine, sine)
        if packed_seq_params is not None:
            query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        output = self.core_attention(query, key, value, attention_mask, packed_seq_params=packed_seq_params)
        return self.linear_proj(output.view(*mixed.shape[:2], -1))


class GatedMLP(MLP):
    """SwiGLU with a gradient that touches memory once; the norm before it is in `linear_fc1`."""

    def __init__(self, config: TransformerConfig, **kwargs: Any) -> None:
        linears = MLPSubmodules(linear_fc1=LayerNormColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(config, linears, **kwargs)

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """[s, b, hidden] -> ([s, b, hidden], the bias that is still to be added, or None)."""
        gates, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(kernels.swiglu(gates if bias is None else gates + bias))


def rotary_table(angles: Tensor) -> Tensor:
    """What a layer takes as `rotary_pos_emb` for [s, b, 1, d] angles [rad], whose halves along d are equal.

    transformer-engine's layers take the angles; ours take [2, s, b, 1, d / 2] cosines and sines.
    """
    if HAVE_TRANSFORMER_ENGINE:
        return angles
    half = angles[..., : angles.shape[-1] // 2]
    return torch.stack((half.cos(), half.sin()))


class RMSNorm(torch.nn.Module):
    """The norm behind the last layer."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.epsilon = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return kernels.rms_norm(hidden, self.weight, self.epsilon)


def transformer_block(config: TransformerConfig, mask: AttnMaskType) -> TransformerBlockSubmodules:
    """This pipeline stage's layers in plain torch and the norm behind them."""
    layers = [transformer_layer(mask)] * get_num_layers_to_build(config)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)


def transformer_layer(mask: AttnMaskType) -> ModuleSpec:
    """A pre-norm layer in plain torch, with the norms inside the linears behind them as transformer-engine has them."""
    attention = SelfAttentionSubmodules(
        linear_qkv=LayerNormColumnParallelLinear,
        core_attention=ScaledDotProductAttention,
        linear_proj=RowParallelLinear,
        q_layernorm=IdentityOp,
        k_layernorm=IdentityOp,
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            self_attention=ModuleSpec(module=RotarySelfAttention, params={"attn_mask_type": mask}, submodules=attention),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp,
            mlp=GatedMLP,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def language_layer_spec(config: TransformerConfig, vp_stage: int | None = None) -> ModuleSpec | TransformerBlockSubmodules:
    """The spec of the language model's layers."""
    if HAVE_TRANSFORMER_ENGINE:
        from nemo.collections.llm.gpt.model.base import transformer_engine_layer_spec

        return transformer_engine_layer_spec(config)
    return transformer_block(config, AttnMaskType.causal)


def vision_layer_spec(config: TransformerConfig) -> ModuleSpec | TransformerBlockSubmodules:
    """The spec of the vision tower's layers: full attention inside a window or an image."""
    if HAVE_TRANSFORMER_ENGINE:
        from nemo.collections.vlm.layer_specs import get_layer_spec_te

        return get_layer_spec_te(is_vit=True)
    return transformer_block(config, AttnMaskType.no_mask)


def projector_spec() -> MLPSubmodules:
    """The linears of the patch merger (`visual.merger.mlp` in HF)."""
    if HAVE_TRANSFORMER_ENGINE:
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        return MLPSubmodules(linear_fc1=TEColumnParallelLinear, linear_fc2=TERowParallelLinear)
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
