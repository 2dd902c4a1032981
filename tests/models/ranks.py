"""What each of two gloo ranks does; rank 0 writes what it found to DIRECTORY/results.json (see `launch`)."""

from __future__ import annotations

import json
import resource
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_mtdrive.models import checkpoint, cpu, parallel
from nemo_mtdrive.models import logprobs as scores_module
from nemo_mtdrive.models.aligner import from_parallel_logits_to_logprobs
from nemo_mtdrive.models.logprobs import project_and_score, scored_tokens
from nemo_mtdrive.models.packing import pack
from nemo_mtdrive.models.qwen25_vl import Microbatch, Qwen25VLModel, build_model
from tests.models import material
from tests.models.parity_checks import OPTIONS, Found, against_hf, exact, gradients_of

LEARNING_RATE = 1e-3
MEMORY_BYTES = 6 << 30


def new_model(**options: Any) -> Qwen25VLModel:
    """A model with the test weights, made ready for training on a plain negative log-likelihood."""
    torch.manual_seed(0)
    model = build_model(
        material.hf_config(),
        optimizer=OPTIONS,
        dtype=torch.float32,
        max_length=256,
        **({"sequence_parallel": False} | options),
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


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference over all tensors; the names must be equal."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    return max((one[name] - other[name]).abs().max().item() for name in one)


def round_trip(model: Qwen25VLModel, _: Path) -> Found:
    """HF -> Megatron -> HF."""
    exported, given = weights_of(model), material.weights()
    return {
        "names": sorted(exported) == sorted(given),
        "bits": all(torch.equal(exported[name], given[name]) for name in given),
        "tensors": len(given),
    }


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that is made, in forward and backward: the largest one, and how many matrix products."""

    elements = 0
    products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def scoring(model: Qwen25VLModel, _: Path) -> Found:
    """Fused projection and scores against dense torch and NeMo-Aligner: values and gradients, one block and many."""
    ranks = parallel.ranks()
    tokens, size, vocabulary, temperature = 70, 8, 96, 0.7
    torch.manual_seed(3)
    hidden, weight = torch.randn(tokens, size), torch.randn(vocabulary, size)
    targets, upstream = torch.randint(vocabulary, (tokens,)), torch.rand(2, tokens)
    dense = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logits = dense[0] @ dense[1].t() / temperature
    table = torch.log_softmax(logits, -1)
    logprobs, entropy = table.gather(1, targets[:, None]).squeeze(1), -(table.exp() * table).sum(1)
    (logprobs * upstream[0] + entropy * upstream[1]).sum().backward()
    share = vocabulary // ranks.tensor_size
    part = slice(ranks.tensor_rank * share, (ranks.tensor_rank + 1) * share)
    local = logits.detach()[None, :, part].contiguous()
    aligner = from_parallel_logits_to_logprobs(local, targets[None], higher_stability=True, ignore_last=False)[0]
    found: Found = {"aligner": (aligner - logprobs).abs().max().item()}
    usual = scores_module.BLOCK_ELEMENTS
    for name, block in (("one_block", usual), ("blocks", 5 * share)):
        scores_module.BLOCK_ELEMENTS = block
        mine = [hidden.clone().requires_grad_(), weight[part].clone().requires_grad_()]
        with LargestTensor() as largest:
            scores = project_and_score(mine[0], mine[1], targets, temperature, want_entropy=True)
            (scores.logprobs * upstream[0] + scores.entropy * upstream[1]).sum().backward()
        dist.all_reduce(mine[0].grad, group=parallel_state.get_tensor_model_parallel_group())
        found[name] = {
            "largest": largest.elements / max(mine[0].numel(), mine[1].numel()),
            "products": largest.products,
            "logprobs": (scores.logprobs - logprobs).abs().max().item(),
            "entropy": (scores.entropy - entropy).abs().max().item(),
            "hidden": ((mine[0].grad - dense[0].grad).norm() / dense[0].grad.norm()).item(),
            "weight": ((mine[1].grad - dense[1].grad[part]).norm() / dense[1].grad[part].norm()).item(),
        }
    scores_module.BLOCK_ELEMENTS = usual
    return found


def masking(model: Qwen25VLModel, _: Path) -> Found:
    """Only the tokens of `mask` are scored, and the same as without it; the first entry and padding are 0."""
    batch = material.batch()
    only = model.get_inference_log_probs([batch | {"mask": batch["weight"] > 0.01}])[0]
    everything = model.get_inference_log_probs([batch])[0]
    scored = scored_tokens(batch["lengths"], batch["tokens"].shape[1])
    return {
        "first_entry": everything[:, 0].abs().max().item(),
        "padding": everything[~scored].abs().max().item(),
        "mask": (only - everything * (batch["weight"] > 0.01)).abs().max().item(),
        "mask_zeros": only[batch["weight"] <= 0.01].abs().max().item(),
        "none": model.get_inference_log_probs([batch | {"mask": torch.zeros_like(scored)}])[0].abs().max().item(),
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


def sharing(model: Qwen25VLModel, _: Path, packed: bool = False) -> Found:
    """One image under several sequences: the same as a copy of it for each."""
    shared, copied = material.shared_images()
    found: Found = {}
    gradients = []
    for batch in (pack(shared) if packed else shared, copied):
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


def packed_sharing(model: Qwen25VLModel, directory: Path) -> Found:
    """The same with the four sequences in one row."""
    return sharing(model, directory, packed=True)


def options(model: Qwen25VLModel, _: Path) -> Found:
    """Recomputation changes no bit of a gradient; what is frozen keeps its weights and the rest learns as before."""
    batches = material.microbatches()[:2]

    def gradients(model: Qwen25VLModel) -> dict[str, torch.Tensor]:
        model.prepare_for_training_step()
        model.get_loss_and_metrics(batches, forward_only=False)
        return gradients_of(model)

    expected = gradients(model)
    found: Found = {}
    for recompute in ("selective", "full"):
        recomputed = gradients(new_model(sequence_parallel=model.config.sequence_parallel, recompute=recompute))
        found[recompute] = all(torch.equal(tensor, expected[name]) for name, tensor in recomputed.items())
    tower = ("visual.patch", "visual.blocks", "visual.merger.ln_q")
    for part, prefixes in (("vision", tower), ("projector", ("visual.merger.mlp",))):
        frozen = new_model(sequence_parallel=model.config.sequence_parallel, **{f"freeze_{part}": True})
        learned = gradients(frozen)
        kept = [name for name in learned if name.startswith(prefixes)]
        steps(frozen, batches, 1)
        after, before = weights_of(frozen), material.weights()
        found[part] = {
            "tensors": len(kept),
            "gradients": max(learned[name].abs().max().item() for name in kept),
            "others": all(torch.equal(learned[name], expected[name]) for name in learned if name not in kept),
            "kept": all(torch.equal(after[name], before[name]) for name in kept),
            "moved": not any(torch.equal(after[name], before[name]) for name in learned if name not in kept),
        }
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


def frozen_resuming(_: Qwen25VLModel, directory: Path) -> Found:
    """A checkpoint of a model whose tower is frozen (no optimizer state for it) goes on bit by bit too."""
    saved, batches = directory / "frozen" / "step_000001", material.microbatches()[:1]
    model, resumed = new_model(freeze_vision=True), new_model(freeze_vision=True)
    steps(model, batches, 1)
    checkpoint.save(model, saved)
    checkpoint.load(resumed, saved)
    same_steps = steps(model, batches, 1) == steps(resumed, batches, 1)
    one, other = weights_of(model), weights_of(resumed)
    return {"steps": same_steps, "weights": all(torch.equal(one[name], other[name]) for name in one)}


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
    """Strided inputs of torch.distributed.scatter arrive as they are; by torch's own function they would not."""
    rank = dist.get_rank()
    matrix = torch.arange(24.0).view(4, 6)
    parts = list(matrix.chunk(2, dim=1))
    found: Found = {"installed": cpu.install() == cpu.needed()}
    for name, function, wanted in (("strided", dist.scatter, True), ("wrong_without", cpu._original_scatter, False)):
        received = torch.empty(4, 3)
        function(received, parts if rank == 0 else None, src=0)
        same = torch.tensor([float(torch.equal(received, parts[rank]))])
        dist.all_reduce(same, op=dist.ReduceOp.MIN)
        found[name] = bool(same) == wanted
    return found


def siblings() -> list[Microbatch]:
    """Four sequences, three of which show one image, as four micro-batches that name their image."""
    _, copied = material.shared_images()
    return [material.row(copied, index) | {"image_ids": torch.tensor([name]), "weight": copied["weight"][index : index + 1]}
            for index, name in enumerate((71, 70, 71, 71))]


def tower_runs(model: Qwen25VLModel, _: Path) -> Found:
    """How often the vision tower runs: once an image in phases without gradients, also across micro-batches."""
    batches = siblings()
    together = material.shared_images()[0] | {"image_ids": torch.tensor([70, 71])}
    model.set_reference()
    model.vision_metrics()
    shared = model.get_inference_log_probs(batches)
    reference = model.get_init_policy_logprobs(batches)
    model.prepare_for_training_step()
    model.get_loss_and_metrics([together], forward_only=False)
    runs = model.vision_metrics()
    model.feature_memory_bytes = 0
    alone = model.get_inference_log_probs(batches)
    return {
        "runs": runs,
        "without_memory": model.vision_metrics()["vision/encoded_log_prob"],
        "difference": max((one - other).abs().max().item() for one, other in zip(shared, alone, strict=True)),
        "reference": all(torch.equal(one, other) for one, other in zip(shared, reference, strict=True)),
        "refused": model.why_no_embeddings(),
    }


def embeddings(model: Qwen25VLModel, _: Path) -> Found:
    """Visual embeddings of a frozen tower in place of pixels: the same log-probs, loss and gradients, no tower run."""
    frozen = new_model(sequence_parallel=model.config.sequence_parallel, freeze_vision=True, freeze_projector=True)
    frozen.set_reference()
    batch = material.shared_images()[0]
    whole = frozen.encode_images(batch["pixel_values"], batch["image_grid_thw"])
    sizes = batch["image_grid_thw"].prod(dim=1).tolist()
    parts = [frozen.encode_images(pixels, grid[None])
             for pixels, grid in zip(batch["pixel_values"].split(sizes), batch["image_grid_thw"], strict=True)]
    inputs = {name: value for name, value in batch.items() if name != "pixel_values"}
    found: Found = {"ahead": frozen.vision_metrics()}
    results = []
    for each in (batch, inputs | {"image_features": whole}, inputs | {"image_features": torch.cat(parts)}):
        frozen.prepare_for_training_step()
        loss, _metrics = frozen.get_loss_and_metrics([each], forward_only=False)
        logprobs = frozen.get_init_policy_logprobs([each])[0]
        results.append((logprobs, torch.tensor(loss), gradients_of(frozen)))
        found["runs"] = frozen.vision_metrics()
    pixels, same, single = results
    found["bits"] = all(torch.equal(one, other) for one, other in zip(pixels[:2], same[:2], strict=True)) and all(
        torch.equal(same[2][name], tensor) for name, tensor in pixels[2].items())
    found["single"] = max((one - other).abs().max().item() for one, other in zip(pixels[:2], single[:2], strict=True))
    found["single_gradients"] = largest_difference(pixels[2], single[2])
    frozen.reference = {name: tensor + 1 for name, tensor in frozen.reference.items()}
    found["other_reference"] = frozen.why_no_embeddings()
    only_tower = new_model(sequence_parallel=model.config.sequence_parallel, freeze_vision=True)
    try:
        only_tower.encode_images(batch["pixel_values"], batch["image_grid_thw"])
    except RuntimeError as error:
        found["refused"] = str(error)
    return found


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside and are still alive; those of `known` do not count."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: dict[int, list[int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(tensor, torch.Tensor) and (place := tensor.untyped_storage().data_ptr()) not in self._known:
                entry = self._alive.setdefault(place, [tensor.untyped_storage().nbytes(), 0])
                entry[1] += 1
                weakref.finalize(tensor, self._gone, place)
        self.most = max(self.most, sum(size for size, _ in self._alive.values()))
        return result

    def _gone(self, place: int) -> None:
        self._alive[place][1] -= 1
        if not self._alive[place][1]:
            del self._alive[place]


def weight_pieces(model: Qwen25VLModel, _: Path) -> Found:
    """Weights leave piece by piece: the same bits, and no rank holds more than about a piece of others' or its own."""
    whole, bucket = weights_of(model), 100_000
    assembled = {name: torch.empty(tensor.numel()) for name, tensor in whole.items()}
    largest_block = 0
    with LiveBytes([*model.module.parameters(), *assembled.values()]) as live:
        for piece in model.export_hf_pieces(bucket):
            assembled[piece.name][piece.start : piece.start + piece.tensor.numel()].copy_(piece.tensor.reshape(-1))
            if "embed_tokens" in piece.name or "lm_head" in piece.name:
                largest_block = max(largest_block, piece.tensor.numel() * 4)
            shape = piece.shape == tuple(whole[piece.name].shape)
            del piece
            assert shape
    cut = ("model.embed_tokens.weight", "lm_head.weight")
    return {
        "bits": all(torch.equal(assembled[name], tensor.reshape(-1)) for name, tensor in whole.items()),
        "block": largest_block,
        "most": live.most,
        "largest_parameter": max(parameter.numel() * 4 * parallel.ranks().tensor_size
                                 for name, parameter in model.module.named_parameters() if "layers" in name),
        "embedding": whole[cut[0]].numel() * 4,
        "model": sum(tensor.numel() * 4 for tensor in whole.values()),
        "bucket": bucket,
    }


Check = Callable[[Any, Path], Found]


@dataclass(frozen=True)
class Plan:
    """A process grid and what is checked on it: with a new model each, and against HF with models of their own."""

    tensor: int
    pipeline: int
    checks: tuple[Check, ...]
    sequence_parallel: bool = False
    exact: bool = False


GRIDS = {
    "tensor": Plan(
        2,
        1,
        (round_trip, weight_pieces, scoring, masking, alignment, sharing, packed_sharing, tower_runs, embeddings, reference,
         training, resuming, frozen_resuming),
        exact=True,
    ),
    "data": Plan(
        1,
        1,
        (round_trip, weight_pieces, scoring, masking, sharing, tower_runs, embeddings, options, vision_geometry, training,
         resuming),
        exact=True,
    ),
    "pipeline": Plan(1, 2, (round_trip, weight_pieces, options, tower_runs, embeddings, reference, training, resuming)),
    "sequence": Plan(2, 1, (options, training), sequence_parallel=True),
}


def main(directory: Path) -> None:
    """Run every check on every grid."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))  # endless recomputation is to end somewhere
    found: dict[str, Found] = {}
    for grid, plan in GRIDS.items():
        parallel.initialise(plan.tensor, plan.pipeline, seed=1, timeout_s=300)
        here = found[grid] = {"scatter": scatter(None, directory), "against_hf": against_hf(plan.sequence_parallel)}
        if plan.exact:
            here["exact"] = exact()
        for check in plan.checks:
            here[check.__name__] = check(new_model(sequence_parallel=plan.sequence_parallel), directory)
        if dist.get_rank() == 0:
            print(grid, json.dumps(here, indent=1), flush=True)
        dist.barrier()
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        (directory / "results.json").write_text(json.dumps(found, indent=1))
    parallel.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
