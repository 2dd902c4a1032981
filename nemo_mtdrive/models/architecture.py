"""NeMo's configuration of a Qwen2.5-VL, read from the HF configuration: sizes, M-RoPE sections, token ids, windows.

NeMo 2.6.0 hard-codes some of these (mrope_section [16, 24, 24], window size, image token -200) and its importer ignores
the vision depth; here every number comes from the HF file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.collections.llm.gpt.model.qwen2 import Qwen2Config
from nemo.collections.vlm.qwen2vl.model.base import Qwen2VLConfig, Qwen25VLVisionConfig
from nemo.collections.vlm.vision import MultimodalProjectorConfig
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models import cpu, layers
from nemo_mtdrive.models.network import Qwen25VLNetwork
from nemo_mtdrive.models.vision import VisionTower

RECOMPUTE = ("none", "selective", "full")
_MODEL_TYPE = "qwen2_5_vl"


@dataclass
class VisionTowerConfig(Qwen25VLVisionConfig):
    """NeMo's vision configuration with the window size that the HF file names."""

    attention_window: int = 112
    """Side of an attention window [pixels]."""

    def configure_model(self) -> VisionTower:
        """Build the vision tower."""
        return VisionTower(
            self,
            layers.vision_layer_spec(self),
            patch_dim=self.patch_dim,
            temporal_patch_size=self.temporal_patch_size,
            spatial_merge_size=self.spatial_merge_size,
            spatial_patch_size=self.spatial_patch_size,
            img_h=self.patch_dim,  # NeMo uses the image size for an assertion only: images have any size here
            img_w=self.patch_dim,
            window_size=self.attention_window,
        )


@dataclass
class Qwen25VLConfig(Qwen2VLConfig):
    """The configuration of the whole model; `hf` is the HF configuration that it was read from."""

    hf: dict[str, Any] = field(default_factory=dict)
    image_token_id: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language_transformer_config is not None:
            self.language_transformer_config.mrope_section = list(self.hf["rope_scaling"]["mrope_section"])

    def configure_model(self, tokenizer: Any, vp_stage: int | None = None) -> Qwen25VLNetwork:
        """Build this pipeline stage's part of the network."""
        first = parallel_state.is_pipeline_first_stage()
        return Qwen25VLNetwork(
            config=self,
            tokenizer=tokenizer,
            pre_process=first,
            post_process=parallel_state.is_pipeline_last_stage(),
            add_encoder=first,
            add_decoder=True,
            vp_stage=vp_stage or 0,
        )


def hf_config_of(config: Mapping[str, Any] | Qwen2_5_VLConfig) -> Qwen2_5_VLConfig:
    """The HF configuration object of a plain dict (config.json), with HF's defaults filled in."""
    return config if isinstance(config, Qwen2_5_VLConfig) else Qwen2_5_VLConfig.from_dict(dict(config))


def megatron_config(
    hf_config: Mapping[str, Any] | Qwen2_5_VLConfig,
    *,
    tensor_size: int,
    pipeline_size: int,
    sequence_parallel: bool,
    dtype: torch.dtype,
    max_length: int,
    recompute: str = "none",
    freeze_vision: bool = False,
    freeze_projector: bool = False,
) -> Qwen25VLConfig:
    """Translate an HF configuration.

    Args:
        sequence_parallel: split norms and residuals along the sequence too; without effect at `tensor_size` 1.
        dtype: of parameters and activations, float32 or bfloat16.
        max_length: longest sequence [tokens].
        recompute: what the backward pass computes again instead of keeping it, one of `RECOMPUTE`: nothing, the MLPs'
            insides ("selective", megatron's word), or whole layers ("full": least memory, a third more time). The
            vision tower recomputes whole layers in both cases.
        freeze_vision: the vision tower is not trained. freeze_projector: nor is the patch merger behind it.

    Raises:
        ValueError: the file describes another architecture, or a size cannot be divided over the ranks.
    """
    hf = hf_config_of(hf_config)
    _check_family(hf, max_length)
    _check_sizes(hf, tensor_size, pipeline_size)
    common: dict[str, Any] = _precision(dtype) | {
        "tensor_model_parallel_size": tensor_size,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": layers.HAVE_TRANSFORMER_ENGINE,
        "bias_dropout_fusion": layers.HAVE_TRANSFORMER_ENGINE,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,  # the fused kernel knows no M-RoPE in batches
        "use_cpu_initialization": cpu.needed(),
    }
    language = _recompute(recompute)
    # Megatron's selective recomputation of an MLP with biases never ends (its backward pass runs into itself), and the
    # vision tower's MLPs have them: there, whole layers are recomputed.
    vision = language and _recompute("full")
    parallel = {
        "pipeline_model_parallel_size": pipeline_size,
        "sequence_parallel": sequence_parallel and tensor_size > 1,
        "pipeline_dtype": dtype,
    }
    return Qwen25VLConfig(
        language_transformer_config=_language(hf, max_length, common | language | parallel),
        vision_transformer_config=_vision(hf, common | vision),
        vision_projection_config=_projector(hf, common),
        seq_length=max_length,
        hf=hf.to_dict(),
        image_token_id=hf.image_token_id,
        freeze_vision_model=freeze_vision,
        freeze_vision_projection=freeze_projector,
        variable_seq_lengths=pipeline_size > 1,  # micro-batches are padded to their own longest sequence
        **(common | parallel),
    )


def _recompute(recompute: str) -> dict[str, Any]:
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute={recompute}: set it to one of {', '.join(RECOMPUTE)}")
    if recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    # The MLP's inside is most of what a layer keeps; attention keeps little, whichever fused kernel runs it.
    return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]} if recompute == "selective" else {}


def _precision(dtype: torch.dtype) -> dict[str, Any]:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype={dtype}: set it to float32 or bfloat16")
    return {"params_dtype": dtype, "bf16": dtype == torch.bfloat16, "fp16": False}


def _language(hf: Qwen2_5_VLConfig, max_length: int, options: dict[str, Any]) -> Qwen2Config:
    return Qwen2Config(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        init_method_std=hf.initializer_range,
        layernorm_epsilon=hf.rms_norm_eps,
        rotary_base=hf.rope_theta,
        vocab_size=hf.vocab_size,
        share_embeddings_and_output_weights=hf.tie_word_embeddings,
        seq_length=max_length,
        scatter_embedding_sequence_parallel=False,  # images are put in before the sequence is scattered
        transformer_layer_spec=layers.language_layer_spec,
        **options,
    )


def _vision(hf: Qwen2_5_VLConfig, options: dict[str, Any]) -> VisionTowerConfig:
    vision = hf.vision_config
    return VisionTowerConfig(
        num_layers=vision.depth,
        hidden_size=vision.hidden_size,
        embed_dim=vision.hidden_size,
        ffn_hidden_size=vision.intermediate_size,
        num_attention_heads=vision.num_heads,
        num_query_groups=vision.num_heads,
        kv_channels=vision.hidden_size // vision.num_heads,
        patch_dim=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        spatial_merge_size=vision.spatial_merge_size,
        spatial_patch_size=vision.patch_size,
        fullatt_block_indexes=list(vision.fullatt_block_indexes),
        attention_window=vision.window_size,
        **options,
    )


def _projector(hf: Qwen2_5_VLConfig, options: dict[str, Any]) -> MultimodalProjectorConfig:
    vision = hf.vision_config
    merged = vision.hidden_size * vision.spatial_merge_size**2
    return _ProjectorConfig(
        projector_type="mlp", input_size=merged, hidden_size=vision.out_hidden_size, ffn_hidden_size=merged, **options
    )


@dataclass
class _ProjectorConfig(MultimodalProjectorConfig):
    """NeMo's projector configuration, whose own layer spec names transformer-engine even where there is none."""

    def configure_model(self) -> Any:
        from megatron.core.models.vision.multimodal_projector import MultimodalProjector

        return MultimodalProjector(self, layers.projector_spec(), self.projector_type, self.input_size)


def _check_family(hf: Qwen2_5_VLConfig, max_length: int) -> None:
    """Refuse what a config.json may say and this model does not compute."""
    vision, rope = hf.vision_config, hf.rope_scaling or {}
    if hf.model_type != _MODEL_TYPE:
        raise ValueError(f"model_type={hf.model_type}: this is the model for {_MODEL_TYPE}, give its config.json")
    wanted: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "hidden_act": (hf.hidden_act, ("silu",)),
        "vision_config.hidden_act": (vision.hidden_act, ("silu",)),
        "vision_config.in_channels": (vision.in_channels, (3,)),
        "vision_config.out_hidden_size": (vision.out_hidden_size, (hf.hidden_size,)),
        "rope_scaling.type": (rope.get("type", rope.get("rope_type")), ("mrope", "default")),
        "sum of rope_scaling.mrope_section": (
            sum(rope.get("mrope_section", ())),
            (hf.hidden_size // hf.num_attention_heads // 2,),
        ),
    }
    for name, (value, known) in wanted.items():
        if value not in known:
            raise ValueError(f"{name}={value}: this model computes {' or '.join(map(str, known))} only")
    if hf.use_sliding_window and hf.sliding_window < max_length:
        raise ValueError(f"sliding_window={hf.sliding_window} is in use: set max_length={max_length} no higher than that")


def _check_sizes(hf: Qwen2_5_VLConfig, tensor_size: int, pipeline_size: int) -> None:
    divided = {
        "num_attention_heads": hf.num_attention_heads,
        "num_key_value_heads": hf.num_key_value_heads,
        "intermediate_size": hf.intermediate_size,
        "vocab_size": hf.vocab_size,
        "vision_config.num_heads": hf.vision_config.num_heads,
        "vision_config.intermediate_size": hf.vision_config.intermediate_size,
    }
    for name, value in divided.items():
        if value % tensor_size:
            raise ValueError(f"{name}={value} is not a multiple of tensor_parallel={tensor_size}: lower tensor_parallel")
    if hf.num_hidden_layers % pipeline_size:
        raise ValueError(
            f"num_hidden_layers={hf.num_hidden_layers} is not a multiple of pipeline_parallel={pipeline_size}: lower it"
        )
