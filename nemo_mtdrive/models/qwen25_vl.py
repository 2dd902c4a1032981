"""Qwen2.5-VL as the trainers see it: NeMo's model class behind NeMo-Aligner's interface, run by megatron's schedule.

The same calls serve SFT and mtGRPO. A trainer sets `loss_function`, cuts its batch into micro-batches and does, each
step::

    model.set_lr(lr)
    model.prepare_for_training_step()
    loss, metrics = model.get_loss_and_metrics(microbatches, forward_only=False)
    gradient_norm = model.finish_training_step()

A micro-batch is a dict of tensors: tokens int64 [B, T], positions int64 [3, B, T], lengths int64 [B], and where there
are images pixel_values float32 [N, 1176], image_grid_thw int64 [n, 3], image_index int64 [runs] (which of the n images
feeds each run of placeholders); image_features [cells, hidden] (`encode_images`) may stand in place of pixel_values, and
image_ids int64 [n] name the images by content, so that micro-batches of a phase share what they have in common; plus
whatever the loss function reads. With mask bool [B, T] only those tokens get a
log-prob (the others 0), which saves the output layer on prompts and images; without it all real tokens but the first
do. A packed micro-batch (`packing`) is a row [1, T] with segments int32 [S + 1]; padded and packed ones may be mixed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo.collections.vlm.qwen2vl.model.base import Qwen2VLModel
from torch import Tensor
from transformers import Qwen2_5_VLConfig

from nemo_mtdrive.models import parallel, parameters
from nemo_mtdrive.models.aligner import AlignableGenerativeInterface
from nemo_mtdrive.models.architecture import Qwen25VLConfig, megatron_config
from nemo_mtdrive.models.export import export_hf_pieces
from nemo_mtdrive.models.logprobs import Scores, Scoring, scored_tokens, spread
from nemo_mtdrive.models.network import Qwen25VLNetwork
from nemo_mtdrive.models.optimizer import OptimizerOptions, make_optimizer
from nemo_mtdrive.models.packing import predicted_tokens
from nemo_mtdrive.models.vision_memory import FeatureMemory
from nemo_mtdrive.transfer.weights import WeightPiece

Microbatch = dict[str, Any]
LossFunction = Callable[[Tensor, Microbatch], tuple[Tensor, dict[str, Tensor]]]
"""(logprobs float32 [B, T] with entry 0 zero, micro-batch) -> (loss to be summed, {name: number to be summed}). When
`want_entropy` is set the micro-batch that it sees has "entropy" float32 [B, T] too."""


class Qwen25VLModel(Qwen2VLModel, AlignableGenerativeInterface):
    """See the module's docstring. `module` is this rank's part of the network, a `Qwen25VLNetwork`."""

    module: Qwen25VLNetwork
    _trained: DistributedDataParallel

    def __init__(self, config: Qwen25VLConfig, optimizer_options: OptimizerOptions, engine: Any = None) -> None:
        super().__init__(config, model_version="qwen25-vl")
        self.hf_config = Qwen2_5_VLConfig.from_dict(config.hf)
        self.optimizer_options = optimizer_options
        self.engine = engine
        self.loss_function: LossFunction | None = None
        self.want_entropy = False
        self.temperature = 1.0
        """The policy is softmax(logits / temperature): the distribution that rollouts sample from."""
        self.feature_memory_bytes = 1 << 30
        """Image features that a phase without gradients keeps for micro-batches that show the same images."""
        self.images_encoded: Counter[str] = Counter()
        """Images that went through this rank's vision tower, by what for: see `vision_metrics`."""
        self._shared_vision: dict[str, Tensor] | None = None
        self.optimizer: MegatronOptimizer | None = None
        self.reference: dict[str, Tensor] | None = None
        """This rank's shards of the reference weights pi_ref, on the CPU."""
        object.__setattr__(self, "_trained", None)  # the network again, wrapped: torch must not register it twice

    # ---- weights

    @classmethod
    def _get_connector(cls, *args: Any, **kwargs: Any) -> Any:
        """NeMo looks up the connector of `importer("hf://...")` and `exporter("hf")` here."""
        from nemo_mtdrive.models import connectors  # noqa: F401  registers them

        return super()._get_connector(*args, **kwargs)

    def load_hf_state(self, state: Mapping[str, Tensor]) -> None:
        """Take whole weights under HF's names; every rank copies its shard."""
        parameters.load_hf_state(self.module, self.hf_config, state)
        if self.optimizer is not None:
            self.optimizer.reload_model_params()

    def export_hf_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole weights under HF's names on every rank; all ranks must run it to the end together."""
        return parameters.export_hf_state(self.module, self.hf_config)

    def export_hf_pieces(self, piece_bytes: int) -> Iterator[WeightPiece]:
        """The same in pieces, so that no rank holds more than a piece; see `export.export_hf_pieces`."""
        return export_hf_pieces(self.module, self.hf_config, piece_bytes)

    @torch.no_grad()
    def set_reference(self) -> None:
        """pi_ref <- pi_theta (Algorithm 1): keep a copy of the current weights."""
        self.reference = {name: tensor.detach().cpu().clone() for name, tensor in self.module.named_parameters()}

    # ---- training

    def prepare_for_training(self) -> None:
        """Wrap the network for data parallelism and make the optimizer; later calls only put it in training mode."""
        if self.optimizer is None:
            trained, self.optimizer = make_optimizer(self.module, self.optimizer_options)
            object.__setattr__(self, "_trained", trained)
        self.module.train()

    def finish_training(self) -> None:
        """Training stops for a while (rollouts come next)."""
        self.module.eval()

    def set_lr(self, lr: float, weight_decay: float = 0.0) -> None:
        """Set learning rate and weight decay of the next steps; biases and norms do not decay (megatron's `wd_mult`)."""
        for group in self._optimizer().param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)

    def prepare_for_training_step(self) -> None:
        """Zero the gradients."""
        self._optimizer().zero_grad()
        self._trained.zero_grad_buffer()

    def get_loss_and_metrics(self, batch: Sequence[Microbatch], forward_only: bool) -> tuple[float, dict[str, float]]:
        """Run the loss function over the micro-batches and, unless `forward_only`, its gradients.

        What is optimised is the plain sum of the losses over all micro-batches and data-parallel ranks: the loss
        function normalises. Returns that sum and the metrics summed alike, equal on every rank.
        """
        loss_function = self.loss_function
        if loss_function is None:
            raise RuntimeError("loss_function is not set: the algorithm sets it before training")
        if not forward_only:
            self._optimizer()  # says so where there is none
        # mcore averages over micro-batches and data-parallel ranks; this makes it a sum again.
        scale = float(len(batch) * parallel.ranks().data_size)

        def reduce(scores: Scores, scored: Tensor, microbatch: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
            entropy = {} if scores.entropy is None else {"entropy": spread(scores.entropy, scored)}
            loss, metrics = loss_function(spread(scores.logprobs, scored), microbatch | entropy)
            return loss * scale, {"loss": loss.detach(), **metrics}

        results = self._schedule(batch, reduce, "update", forward_only, want_entropy=self.want_entropy)
        summed: dict[str, float] | None = None
        if parallel.ranks().is_last_stage:
            summed = {name: sum(float(result[name]) for result in results) for name in results[0]}
        metrics = parallel.share_from_last_stage(summed)
        return metrics.pop("loss"), metrics

    def finish_training_step(self) -> float:
        """Step the optimizer; returns the norm of the whole gradient before clipping, equal on every rank.

        Where the norm is not finite nothing is stepped: weights and optimizer state stay as they are.
        """
        optimizer = self._optimizer()
        overflow = optimizer.prepare_grads()
        norm = math.inf if overflow else float(optimizer.get_grad_norm())
        if math.isfinite(norm):
            optimizer.step()
        return norm

    # ---- scoring

    def get_inference_log_probs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """float32 [B, T] for each micro-batch, on every rank, without gradients; entry 0 and padding are 0.

        An image that neighbouring micro-batches share is encoded once (`image_ids`, `feature_memory_bytes`).
        """
        return self._score(microbatches, "log_prob")

    def _score(self, microbatches: Sequence[Microbatch], phase: str) -> list[Tensor]:
        shapes: list[torch.Size] = []

        def reduce(scores: Scores, scored: Tensor, _: Microbatch, **__: Any) -> Tensor:
            return spread(scores.logprobs, scored)

        training = self.module.training
        self.module.eval()
        results = self._schedule(microbatches, reduce, phase, forward_only=True, collect=True, shapes=shapes)
        self.module.train(training)
        if parallel.ranks().pipeline_size == 1:
            return results
        flat = torch.cat([result.flatten() for result in results]) if results else torch.empty(0)
        parts = parallel.broadcast_from_last_stage(flat).split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def get_init_policy_logprobs(self, rollout_batches: Sequence[Microbatch]) -> list[Tensor]:
        """`get_inference_log_probs` under the reference weights, which are swapped in and out again bit by bit."""
        if self.reference is None:
            raise RuntimeError("no reference weights: call set_reference() first")
        current = {name: tensor.detach().clone() for name, tensor in self.module.named_parameters()}
        self._copy_in(self.reference)
        try:
            return self._score(rollout_batches, "reference")
        finally:
            self._copy_in(current)

    # ---- images

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Visual embeddings [cells, hidden] of images, to stand in micro-batches in place of their pixels.

        They hold for every phase of a step, since tower and merger are frozen and the reference has the same. Empty on
        pipeline stages that see no image.

        Raises:
            RuntimeError: they would not hold; says why.
        """
        reason = self.why_no_embeddings()
        if reason:
            raise RuntimeError(f"visual embeddings cannot be shared by the phases: {reason}")
        if not self.module.pre_process:
            return torch.empty(0, self.config.hidden_size, device=parallel.device())
        before = self.module.images_encoded
        features = self.module.encode_images(pixel_values.to(parallel.device()), image_grid_thw)
        self.images_encoded["embeddings"] += self.module.images_encoded - before
        return features

    def why_no_embeddings(self) -> str:
        """Why visual embeddings do not hold for all phases of a step and the reference; "" where they do."""
        parts = {"vision": self.config.freeze_vision_model, "projector": self.config.freeze_vision_projection}
        for part, frozen in parts.items():
            if not frozen:
                return f"model.freeze_{part}=false, so every update changes them; set it to true"
        if self.reference is not None and self.reference is not self._shared_vision:
            for name, tensor in self.module.named_parameters():
                if name.startswith("vision_") and not torch.equal(tensor.detach().cpu(), self.reference[name]):
                    return f"the reference has another {name}; set transfer.visual_embeddings=off"
            self._shared_vision = self.reference
        return ""

    def vision_metrics(self) -> dict[str, float]:
        """`vision/encoded_PHASE`: images that went through this rank's vision tower in each phase since the last call;
        "embeddings" are those that stand for all phases."""
        found, self.images_encoded = self.images_encoded, Counter()
        phases = ("embeddings", "log_prob", "reference", "update")
        return {f"vision/encoded_{phase}": float(found[phase]) for phase in phases}

    # ---- generation

    def prepare_for_inference(self) -> None:
        """Rollouts come next."""
        self.module.eval()

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the rollout engine given at construction; the arguments are `Engine.generate`'s."""
        if self.engine is None:
            raise RuntimeError("this model has no rollout engine: give engine= when it is built")
        return self.engine.generate(*args, **kwargs)

    def finish_inference(self) -> None:
        """Rollouts are done."""
        self.module.train()

    # ---- inside

    def _optimizer(self) -> MegatronOptimizer:
        if self.optimizer is None:
            raise RuntimeError("the model is not being trained: call prepare_for_training() first")
        return self.optimizer

    def _schedule(
        self,
        microbatches: Sequence[Microbatch],
        reduce: Callable[..., Any],
        phase: str,
        forward_only: bool,
        collect: bool = False,
        want_entropy: bool = False,
        shapes: list[torch.Size] | None = None,
    ) -> list[Any]:
        """Run megatron's schedule (with or without pipeline); returns what `reduce` gave, on the last stage.

        `phase` is what images are counted under; `shapes` gets the shape of each micro-batch's tokens.
        """
        if not microbatches:
            raise ValueError("no micro-batches: every data-parallel rank needs at least one")
        device = parallel.device()

        def step(iterator: Iterator[Microbatch], network: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            microbatch = _to(next(iterator), device)
            scored = scored_mask(microbatch)
            if shapes is not None:
                shapes.append(microbatch["tokens"].shape)
            features = microbatch.get("image_features")
            if features is None and forward_only and self.module.pre_process:
                features = memory.features(microbatch, self.module.encode_images)
            output = network(
                microbatch["tokens"],
                microbatch["positions"],
                microbatch.get("pixel_values"),
                microbatch.get("image_grid_thw"),
                microbatch.get("image_index"),
                microbatch.get("segments"),
                Scoring(scored, self.temperature, want_entropy),
                features,
            )
            return output, lambda output, **options: reduce(output, scored, microbatch, **options)

        memory = FeatureMemory(self.feature_memory_bytes, self.hf_config.vision_config.spatial_merge_size**2)
        batch, length = microbatches[0]["tokens"].shape
        before = self.module.images_encoded
        with torch.set_grad_enabled(not forward_only):
            results = get_forward_backward_func()(
                forward_step_func=step,
                data_iterator=iter(microbatches),
                model=[self.module if forward_only else self._trained],
                num_microbatches=len(microbatches),
                seq_length=length,
                micro_batch_size=batch,
                forward_only=forward_only,
                collect_non_loss_data=collect,
            )
        self.images_encoded[phase] += self.module.images_encoded - before
        return list(results)

    @torch.no_grad()
    def _copy_in(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.module.named_parameters():
            tensor.copy_(state[name])


def build_model(
    hf_config: Mapping[str, Any] | Qwen2_5_VLConfig,
    *,
    optimizer: OptimizerOptions,
    sequence_parallel: bool,
    dtype: torch.dtype,
    max_length: int,
    recompute: str = "none",
    freeze_vision: bool = False,
    freeze_projector: bool = False,
    engine: Any = None,
) -> Qwen25VLModel:
    """Build this rank's part of the model on its device; `parallel.initialise` comes first, the weights after.

    Sizes of the tensor and pipeline groups are those that `parallel.initialise` was given; see `megatron_config`.
    """
    ranks = parallel.ranks()
    config = megatron_config(
        hf_config,
        tensor_size=ranks.tensor_size,
        pipeline_size=ranks.pipeline_size,
        sequence_parallel=sequence_parallel,
        dtype=dtype,
        max_length=max_length,
        recompute=recompute,
        freeze_vision=freeze_vision,
        freeze_projector=freeze_projector,
    )
    model = Qwen25VLModel(config, optimizer, engine)
    model.configure_model()
    model.module.to(device=parallel.device(), dtype=dtype)
    return model


def scored_mask(microbatch: Microbatch) -> Tensor:
    """bool [B, T], or [1, T] of a packed micro-batch: the tokens that get a log-prob."""
    tokens = microbatch["tokens"]
    if "segments" in microbatch:
        scored = predicted_tokens(microbatch["segments"], tokens.shape[1])
    else:
        scored = scored_tokens(microbatch["lengths"], tokens.shape[1])
    return scored & microbatch["mask"] if "mask" in microbatch else scored


def _to(microbatch: Microbatch, device: torch.device) -> Microbatch:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in microbatch.items()
    }
