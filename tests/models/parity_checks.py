"""Checks of the model against HF, for every configuration, padded and packed; `ranks.py` runs them on every grid."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import tensor_parallel

from nemo_mtdrive.models import parallel
from nemo_mtdrive.models.logprobs import Scoring
from nemo_mtdrive.models.packing import pack, unpack
from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, Qwen25VLModel, build_model, scored_mask
from tests.models import conversations, wide
from tests.models.hf_reference import Reference, exact_reference, reference

Found = dict[str, Any]
EXACT_KINDS = ("mixed", "six_turns")
OPTIONS = OptimizerOptions(1.0, 0.01, 0.9, 0.95, 1e-3, distributed=False)


def build(name: str, sequence_parallel: bool = False, trained: bool = True, **options: Any) -> Qwen25VLModel:
    """A model of a configuration with its weights, ready to be trained on a weighted negative log-likelihood."""
    torch.manual_seed(0)
    model = build_model(
        conversations.hf_configs()[name],
        optimizer=OPTIONS,
        sequence_parallel=sequence_parallel,
        dtype=torch.float32,
        max_length=256,
        **options,
    )
    model.load_hf_state(conversations.weights(name))
    model.loss_function = lambda logprobs, microbatch: (
        -(logprobs * microbatch["weight"]).sum(),
        {"entropy": (microbatch["entropy"] * microbatch["weight"]).sum()},
    )
    if trained:
        model.prepare_for_training()
    return model


def exported(model: Qwen25VLModel, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Values of this rank's parameters, whole under HF's names, as the weights are exported."""
    kept = {name: tensor.detach().clone() for name, tensor in model.module.named_parameters()}
    model._copy_in(values)
    found = dict(model.export_hf_state())
    model._copy_in(kept)
    return found


def gradients_of(model: Qwen25VLModel) -> dict[str, torch.Tensor]:
    """The gradients under HF's names; frozen parameters have 0."""
    return exported(
        model,
        {
            name: tensor.main_grad if hasattr(tensor, "main_grad") else torch.zeros_like(tensor)
            for name, tensor in model.module.named_parameters()
        },
    )


def worst(gradients: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[Any]:
    """[the largest |g - g'| / |g'| over the parameters, whose it is]."""
    differences = {
        name: ((gradients[name] - tensor).norm() / tensor.norm()).item() for name, tensor in expected.items() if tensor.any()
    }
    name = max(differences, key=lambda key: differences[key])
    return [differences[name], name]


def compare(model: Qwen25VLModel, name: str, kind: str, packed: bool) -> Found:
    """Logits (where there is one stage), log-probs, loss, entropy and gradients against HF's."""
    expected: Reference = reference(name, kind)
    batch = conversations.batch(conversations.hf_configs()[name], kind)
    real = torch.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]
    seen = pack(batch) if packed else batch
    copies = parallel.ranks().data_size  # data-parallel ranks all get the batch, and what is optimised is the sum
    model.want_entropy = True
    model.prepare_for_training_step()
    summed_loss, metrics = model.get_loss_and_metrics([seen], forward_only=False)
    loss, entropy = summed_loss / copies, metrics["entropy"] / copies
    gradients = {key: tensor / copies for key, tensor in gradients_of(model).items()}
    (logprobs,) = model.get_inference_log_probs([seen])
    logprobs = unpack(logprobs, batch["lengths"]) if packed else logprobs
    expected_entropy = (expected.entropy * batch["weight"]).sum().item()
    found = {
        "loss": abs(loss - expected.loss),
        "logprobs": (logprobs - expected.logprobs).abs().max().item(),
        "entropy": abs(entropy - expected_entropy) / expected_entropy,
        "gradients": worst(gradients, expected.gradients),
        "names": sorted(gradients) == sorted(conversations.weights(name).keys() - _tied(name)),
    }
    if kind in EXACT_KINDS:
        truth = exact_reference(name, kind).gradients
        found |= {"rounding": worst(gradients, truth)[0], "hf_rounding": worst(expected.gradients, truth)[0]}
    if parallel.ranks().pipeline_size == 1:
        arguments = [seen.get(key) for key in ("pixel_values", "image_grid_thw", "image_index", "segments")]
        with torch.no_grad():
            local = model.module(seen["tokens"], seen["positions"], *arguments)
            logits = tensor_parallel.gather_from_tensor_model_parallel_region(local)
        flat = logits[0] if packed else logits[real]
        found["logits"] = (flat - expected.logits[real]).abs().max().item()
    return found


def exact() -> Found:
    """In float64, where rounding hides nothing: {configuration/kind/padded or packed: {number: difference}}."""
    found: Found = {}
    for name, config in conversations.hf_configs().items():
        model = build(name, trained=False)
        model.module.double()
        rotary = model.module.language_model.rotary_pos_emb
        rotary.inv_freq = rotary.inv_freq.double()
        for kind in EXACT_KINDS:
            batch = wide.widened(conversations.batch(config, kind))
            expected = exact_reference(name, kind)
            for layout, seen in (("padded", batch), ("packed", pack(batch))):
                with wide.float64():
                    found[f"{name}/{kind}/{layout}"] = _exact(model, seen, expected)
    return found


def _exact(model: Qwen25VLModel, seen: dict[str, torch.Tensor], expected: Reference) -> Found:
    scored = scored_mask(seen)
    arguments = [seen.get(key) for key in ("pixel_values", "image_grid_thw", "image_index", "segments")]
    model.module.zero_grad()
    scores = model.module(seen["tokens"], seen["positions"], *arguments, Scoring(scored, want_entropy=True))
    weight = seen["weight"][scored]
    loss = -(scores.logprobs * weight).sum()
    loss.backward()
    reals = seen["lengths"]
    wanted = scored_mask({"tokens": expected.entropy, "lengths": reals})
    gradients = {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for name, tensor in model.module.named_parameters()
    }
    return {
        "loss": abs(loss.item() - expected.loss),
        "entropy": (scores.entropy - expected.entropy[wanted]).abs().max().item(),
        "gradients": worst(exported(model, gradients), expected.gradients),
    }


def _tied(name: str) -> set[str]:
    return {"lm_head.weight"} if conversations.hf_configs()[name]["tie_word_embeddings"] else set()


def against_hf(sequence_parallel: bool) -> Found:
    """{configuration/kind/padded or packed: {number: difference}}."""
    found: Found = {}
    for name in conversations.hf_configs():
        model = build(name, sequence_parallel)
        for kind in conversations.CONVERSATIONS:
            for packed in (False, True):
                layout = "packed" if packed else "padded"
                found[f"{name}/{kind}/{layout}"] = compare(model, name, kind, packed)
    return found
