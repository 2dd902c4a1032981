"""What each of two gloo ranks does; rank 0 writes what it found to DIRECTORY/results.json (see `launch`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_mtdrive.models import checkpoint, cpu, parallel
from nemo_mtdrive.models.aligner import from_parallel_logits_to_logprobs
from nemo_mtdrive.models.logprobs import scored_tokens, token_logprobs
from nemo_mtdrive.models.qwen25_vl import Microbatch, OptimizerOptions, Qwen25VLModel, build_model
from tests.models import material

Found = dict[str, Any]
OPTIONS = OptimizerOptions(1.0, 0.01, 0.9, 0.95, 1e-3, distributed=False)
LEARNING_RATE = 1e-3


def new_model() -> Qwen25VLModel:
    """A model with the test weights, made ready for training on a plain negative log-likelihood."""
    torch.manual_seed(0)
    model = build_model(
        material.hf_config(),
        optimizer=OPTIONS,
        sequence_parallel=False,
        dtype=torch.float32,
        max_length=256,
        recompute=False,
        engine=None,
    )
    model.load_hf_state(material.weights())
    model.loss_function = lambda logprobs, microbatch: (
        -(logprobs * microbatch["weight"]).sum(),
        {"tokens": microbatch["lengths"].sum()},
    )
    model.prepare_for_training()
    return model


def steps(model: Qwen25VLModel, microbatches: list[Microbatch], count: int) -> list[list[float]]:
    """[loss, gradient norm, metric] of each of some training steps."""
    model.set_lr(LEARNING_RATE)
    found = []
    for _ in range(count):
        model.prepare_for_training_step()
        loss, metrics = model.get_loss_and_metrics(microbatches, forward_only=False)
        found.append([loss, model.finish_training_step(), metrics["tokens"]])
    return found


def weights_of(model: Qwen25VLModel) -> dict[str, torch.Tensor]:
    """The whole weights under HF's names."""
    return dict(model.export_hf_state())


def gradients_of(model: Qwen25VLModel) -> dict[str, torch.Tensor]:
    """The gradients under HF's names, as the weights are exported."""
    kept = {name: tensor.detach().clone() for name, tensor in model.module.named_parameters()}
    model._copy_in({name: tensor.main_grad for name, tensor in model.module.named_parameters()})
    found = weights_of(model)
    model._copy_in(kept)
    return found


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference over all tensors; the names must be equal."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    return max((one[name] - other[name]).abs().max().item() for name in one)


def whole(logits: torch.Tensor) -> torch.Tensor:
    """Logits over the whole vocabulary."""
    from megatron.core import tensor_parallel

    return tensor_parallel.gather_from_tensor_model_parallel_region(logits)


def parity(model: Qwen25VLModel, _: Path) -> Found:
    """Against HF: logits, loss, every gradient, log-probs."""
    batch, hf = material.batch(), material.hf_model()
    mask = batch["attention_mask"].bool()
    reference = hf(
        input_ids=batch["tokens"],
        attention_mask=batch["attention_mask"],
        pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
        position_ids=batch["positions"],
    ).logits
    with torch.no_grad():
        logits = whole(model.module(batch["tokens"], batch["positions"], batch["pixel_values"], batch["image_grid_thw"]))
    expected = material.dense_logprobs(reference, batch["tokens"]) * scored_tokens(batch["lengths"], mask.shape[1])
    expected_loss = -(expected * batch["weight"]).sum()
    expected_loss.backward()
    model.prepare_for_training_step()
    loss, _metrics = model.get_loss_and_metrics([batch], forward_only=False)
    copies = parallel.ranks().data_size  # each data-parallel rank gave the same batch, and what is optimised is the sum
    loss = loss / copies
    gradients = {name: tensor.grad * copies for name, tensor in hf.named_parameters()}
    (logprobs,) = model.get_inference_log_probs([batch])
    return {
        "logits": (logits - reference)[mask].abs().max().item(),
        "logits_scale": reference.abs().max().item(),
        "loss": abs(loss - expected_loss.item()) / expected_loss.item(),
        "gradients": largest_difference(gradients_of(model), gradients) / copies,
        "gradients_scale": max(tensor.abs().max().item() for tensor in gradients.values()),
        "logprobs": (logprobs - expected).abs().max().item(),
        "forward_only_loss": abs(model.get_loss_and_metrics([batch], forward_only=True)[0] / copies - loss),
    }


def round_trip(model: Qwen25VLModel, _: Path) -> Found:
    """HF -> Megatron -> HF."""
    exported, given = weights_of(model), material.weights()
    return {
        "names": sorted(exported) == sorted(given),
        "bits": all(torch.equal(exported[name], given[name]) for name in given),
        "tensors": len(given),
    }


def scoring(model: Qwen25VLModel, _: Path) -> Found:
    """The log-prob function against NeMo-Aligner's and dense torch, values and gradients; what it is aligned to."""
    batch = material.batch()
    tokens, lengths = batch["tokens"], batch["lengths"]
    ranks = parallel.ranks()
    vocabulary = 96
    targets = tokens % vocabulary
    torch.manual_seed(3)
    dense = (torch.randn(*tokens.shape, vocabulary) * 4).requires_grad_()
    part = vocabulary // ranks.tensor_size
    local = dense.detach()[..., ranks.tensor_rank * part : (ranks.tensor_rank + 1) * part].clone().requires_grad_()
    scored = scored_tokens(lengths, tokens.shape[1])
    row, column = scored.nonzero(as_tuple=True)
    logprobs, entropy = token_logprobs(local[row, column - 1], targets, scored, want_entropy=True)
    expected = material.dense_logprobs(dense, targets) * scored
    table = torch.log_softmax(dense, -1)
    expected_entropy = torch.nn.functional.pad(-(table.exp() * table).sum(-1)[:, :-1], (1, 0)) * scored
    aligner = from_parallel_logits_to_logprobs(local.detach(), targets, higher_stability=True)
    weight = torch.rand(tokens.shape)
    (logprobs * weight - entropy * weight.square()).sum().backward()
    (expected * weight - expected_entropy * weight.square()).sum().backward()
    expected_gradient = dense.grad[..., ranks.tensor_rank * part : (ranks.tensor_rank + 1) * part]
    only = model.get_inference_log_probs([batch | {"mask": batch["weight"] > 0.01}])[0]
    everything = model.get_inference_log_probs([batch])[0]
    return {
        "logprobs": (logprobs - expected).abs().max().item(),
        "entropy": (entropy - expected_entropy).abs().max().item(),
        "gradient": (local.grad - expected_gradient).abs().max().item(),
        "aligner": ((logprobs[:, 1:] - aligner) * scored[:, 1:]).abs().max().item(),
        "first_entry": logprobs[:, 0].abs().max().item(),
        "padding": logprobs[~scored].abs().max().item(),
        "mask": (only - everything * (batch["weight"] > 0.01)).abs().max().item(),
        "mask_zeros": only[batch["weight"] <= 0.01].abs().max().item(),
    }


def alignment(model: Qwen25VLModel, _: Path) -> Found:
    """An entry depends on its own token and those before it, and not on padding or on rows beside it."""
    batch = material.batch()
    first = model.get_inference_log_probs([batch])[0]
    at = batch["lengths"][:, None] - 3
    column = torch.arange(batch["tokens"].shape[1])
    changed = torch.where(column == at, (batch["tokens"] + 1) % material.TEXT_TOKENS, batch["tokens"])
    second = model.get_inference_log_probs([batch | {"tokens": changed}])[0]
    padded = batch["tokens"].masked_fill(batch["attention_mask"] == 0, 7)
    third = model.get_inference_log_probs([batch | {"tokens": padded}])[0]
    alone = model.get_inference_log_probs([material.row(batch, 1)])[0]
    return {
        "before": (first - second)[column < at].abs().max().item(),
        "at": (first - second)[column == at].abs().min().item(),
        "padding": (first - third).abs().max().item(),
        "alone": (first[1, : alone.shape[1]] - alone[0]).abs().max().item(),
    }


def sharing(model: Qwen25VLModel, _: Path) -> Found:
    """One image under several sequences: the same as a copy of it for each."""
    shared, copied = material.shared_images()
    found: Found = {}
    gradients = []
    for batch in (shared, copied):
        model.prepare_for_training_step()
        loss, _metrics = model.get_loss_and_metrics([batch], forward_only=False)
        gradients.append((loss, gradients_of(model)))
    found["loss"] = abs(gradients[0][0] - gradients[1][0]) / gradients[1][0]
    found["gradients"] = largest_difference(gradients[0][1], gradients[1][1])
    vision = [name for name in gradients[1][1] if name.startswith("visual.")]
    found["vision_scale"] = max(gradients[1][1][name].abs().max().item() for name in vision)
    for name, change in (
        ("missing", {"image_index": shared["image_index"][:-1]}),
        ("beyond", {"image_index": shared["image_index"] + 7}),
    ):
        try:
            model.get_inference_log_probs([shared | change])
        except ValueError as error:
            found[name] = str(error)
    return found


def reference(model: Qwen25VLModel, _: Path) -> Found:
    """pi_ref is the policy as it was, and looking at it leaves the policy alone."""
    batches = material.microbatches()
    before = model.get_inference_log_probs(batches)
    model.set_reference()
    steps(model, batches, 1)
    current = weights_of(model)
    after = model.get_inference_log_probs(batches)
    under_reference = model.get_init_policy_logprobs(batches)
    now = weights_of(model)
    try:
        model.infer([])
    except RuntimeError as error:
        no_engine = str(error)
    return {
        "reference": all(torch.equal(one, other) for one, other in zip(before, under_reference, strict=True)),
        "moved": max((one - other).abs().max().item() for one, other in zip(before, after, strict=True)),
        "untouched": all(torch.equal(current[name], now[name]) for name in current),
        "no_engine": no_engine,
    }


def training(model: Qwen25VLModel, directory: Path) -> Found:
    """Three steps on the whole batch, cut into micro-batches and over data-parallel ranks as the grid says."""
    ranks = parallel.ranks()
    batches = material.microbatches()
    mine = batches[ranks.data_rank :: ranks.data_size]
    losses = steps(model, mine, 3)
    weights = weights_of(model)
    path = directory / "trained.pt"
    if not path.exists():
        dist.barrier()
        if ranks.rank == 0:
            torch.save(weights, path)
        dist.barrier()
    return {"steps": losses, "weights": largest_difference(weights, torch.load(path, weights_only=True))}


def resuming(model: Qwen25VLModel, directory: Path) -> Found:
    """Saved and loaded, training goes on bit by bit; the checkpoint fits other grids."""
    ranks = parallel.ranks()
    mine = material.microbatches()[ranks.data_rank :: ranks.data_size]
    saved = directory / "checkpoints" / "step_000002"
    found: Found = {}
    if saved.exists():  # written under another grid
        checkpoint.load(model, saved)
        expected = torch.load(directory / "saved.pt", weights_only=True)
        found["other_grid"] = all(torch.equal(tensor, expected[name]) for name, tensor in model.export_hf_state())
        found["other_grid_steps"] = steps(model, mine, 2)
        return found
    model.set_reference()
    steps(model, mine, 2)
    checkpoint.save(model, saved)
    weights = weights_of(model)
    if ranks.rank == 0:
        torch.save(weights, directory / "saved.pt")
    dist.barrier()
    drawn = torch.rand(4)
    went_on = steps(model, mine, 2)
    resumed = new_model()
    checkpoint.load(resumed, saved)
    found["random"] = torch.equal(torch.rand(4), drawn)
    found["steps"] = went_on
    found["same_steps"] = steps(resumed, mine, 2) == went_on
    one, other = weights_of(model), weights_of(resumed)
    found["same_weights"] = all(torch.equal(one[name], other[name]) for name in one)
    found["same_reference"] = all(torch.equal(model.reference[name], resumed.reference[name]) for name in model.reference)
    return found


def vision_geometry(model: Qwen25VLModel, _: Path) -> Found:
    """Window order and rotary angles against HF's tower, for odd and even grids and several frames."""
    from nemo_mtdrive.models.layers import rotary_table

    hf = material.hf_model().visual
    grids = ((1, 8, 16), (1, 12, 8), (2, 10, 14), (1, 2, 2))
    tensor = torch.tensor(grids)
    order, bounds = hf.get_window_index(tensor)
    angles = hf.rot_pos_emb(tensor).view(-1, 4, 32)[order].view(-1, 1, 1, 32)
    geometry = model.module.vision_model.geometry(grids, torch.device("cpu"))
    return {
        "order": torch.equal(geometry.order, order),
        "windows": geometry.windows.cu_seqlens_q.tolist() == torch.tensor(bounds).unique_consecutive().tolist(),
        "images": geometry.images.cu_seqlens_q.tolist(),
        "rotary": (geometry.rotary - rotary_table(torch.cat((angles, angles), -1))).abs().max().item(),
    }


def scatter(_: Any, __: Path) -> Found:
    """Strided inputs of torch.distributed.scatter arrive as they are."""
    rank = dist.get_rank()
    matrix = torch.arange(24.0).view(4, 6)
    received = torch.empty(4, 3)
    dist.scatter(received, list(matrix.chunk(2, dim=1)) if rank == 0 else None, src=0)
    same = torch.tensor([float(torch.equal(received, matrix.chunk(2, dim=1)[rank]))])
    dist.all_reduce(same, op=dist.ReduceOp.MIN)
    return {"strided": bool(same), "installed": cpu.install() == cpu.needed()}


Check = Callable[[Any, Path], Found]
GRIDS: dict[str, tuple[int, int, list[Check]]] = {
    "tensor": (2, 1, [parity, round_trip, scoring, alignment, sharing, reference, training, resuming]),
    "data": (1, 1, [parity, round_trip, scoring, sharing, vision_geometry, training, resuming]),
    "pipeline": (1, 2, [round_trip, reference, training, resuming]),
}


def main(directory: Path) -> None:
    """Run every check on every grid."""
    found: dict[str, Found] = {}
    for grid, (tensor_size, pipeline_size, checks) in GRIDS.items():
        parallel.initialise(tensor_size, pipeline_size, seed=1, timeout_s=120)
        found[grid] = {"scatter": scatter(None, directory)}
        for check in checks:
            found[grid][check.__name__] = check(new_model(), directory)
            if dist.get_rank() == 0:
                print(grid, json.dumps({check.__name__: found[grid][check.__name__]}, indent=1), flush=True)
        dist.barrier()
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        (directory / "results.json").write_text(json.dumps(found, indent=1))
    parallel.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
