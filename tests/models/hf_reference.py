"""What HF's own model says of the conversations: logits, loss, entropies, gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tests.models import conversations, material, wide


@dataclass(frozen=True)
class Reference:
    """Numbers of one configuration and one kind of conversation."""

    logits: Tensor
    logprobs: Tensor
    entropy: Tensor
    loss: float
    gradients: dict[str, Tensor]


@lru_cache
def reference(name: str, kind: str) -> Reference:
    """In float32. HF is given tokens, mask and pixels only: windows, M-RoPE positions and masks are its own."""
    return _run(_model(name), conversations.batch(conversations.hf_configs()[name], kind))


@lru_cache
def exact_reference(name: str, kind: str) -> Reference:
    """The same in float64."""
    batch = wide.widened(conversations.batch(conversations.hf_configs()[name], kind))
    model = copy.deepcopy(_model(name)).double()
    with wide.float64():
        return _run(model, batch)


def _run(model: Any, batch: dict[str, Tensor]) -> Reference:
    model.zero_grad()
    length = batch["tokens"].shape[1]
    real = torch.arange(length) < batch["lengths"][:, None]
    images = {}
    if "pixel_values" in batch:  # HF wants the pixels once for each time that an image is shown
        patches = batch["pixel_values"].split(batch["image_grid_thw"].prod(dim=1).tolist())
        index = batch["image_index"].tolist()
        images = {
            "pixel_values": torch.cat([patches[image] for image in index]),
            "image_grid_thw": batch["image_grid_thw"][index],
        }
    logits = model(input_ids=batch["tokens"], attention_mask=real.long(), **images).logits
    scored = real & (torch.arange(length) > 0)
    logprobs = material.dense_logprobs(logits, batch["tokens"]) * scored
    table = torch.log_softmax(logits.float(), -1)
    entropy = torch.nn.functional.pad(-(table.exp() * table).sum(-1)[:, :-1], (1, 0)) * scored
    loss = -(logprobs * batch["weight"]).sum()
    loss.backward()
    gradients = {key: tensor.grad.clone() for key, tensor in model.named_parameters() if tensor.grad is not None}
    return Reference(logits.detach(), logprobs.detach(), entropy.detach(), loss.item(), gradients)


@lru_cache
def _model(name: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig.from_dict(conversations.hf_configs()[name])
    model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
    missing, unexpected = model.load_state_dict(conversations.weights(name), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return model
