"""Qwen2.5-VL as the trainers see it: NeMo's model class behind NeMo-Aligner's interface, run by megatron's schedule.

The same calls serve SFT and mtGRPO. A trainer sets `loss_function`, cuts its batch into micro-batches and does, each
step::

    model.set_lr(lr)
    model.prepare_for_training_step()
    loss, metrics = model.get_loss_and_metrics(microbatches, forward_only=False)
    gradient_norm = model.finish_training_step()

A micro-batch is a dict of tensors: tokens int64 [B, T], positions int64 [3, B, T], lengths int64 [B], and where there
are images pixel_values float32 [N, 1176], image_grid_thw int64 [n, 3], image_index int64 [runs] (which of the n images
feeds each run of placeholders); plus whatever the loss function reads. With mask bool [B, T] only those tokens get a
log-prob (the others 0), which saves the output layer on prompts and images; without it all real tokens but the first
do. A packed micro-batch (`packing`) is a row [1, T] with segments int32 [S + 1]; padded and packed ones may be mixed.
"""

from __future__ import annotations

import math
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
from nemo_mtdrive.models.logprobs import Scores, Scoring, scored_tokens, spread
from nemo_mtdrive.models.network import Qwen25VLNetwork
from nemo_mtdrive.models.optimizer import OptimizerOptions, make_optimizer
from nemo_mtdrive.models.packing import predicted_tokens

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

        results = self._schedule(batch, reduce, forward_only, want_entropy=self.want_entropy)
        summed: dict[str, float] | None = None
        if parallel.ranks().is_last_stage:
            summed = {name: sum(float(result[name]) for result in results) for name in results[0]}
        metrics = parallel.share_from_last_stage(summed)
        return metrics.pop("loss"), metrics

    def finish_training_step(self) -> float:
        """Step the optimizer; returns the norm of the whole gradient before clipping.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are spoilt, resume from a checkpoint.
        """
        done, norm, _ = self._optimizer().step()
        if not done or norm is None or not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm}: lower the learning rate and resume from the last checkpoint")
        return float(norm)

    # ---- scoring

    def get_inference_log_probs(self, microbatches: Sequence[Microbatch]) -> list[Tensor]:
        """float32 [B, T] for each micro-batch, on every rank, without gradients; entry 0 and padding are 0."""

        def reduce(scores: Scores, scored: Tensor, _: Microbatch, **__: Any) -> Tensor:
            return spread(scores.logprobs, scored)

        training = self.module.training
        self.module.eval()
        results = self._schedule(microbatches, reduce, forward_only=True, collect=True)
        self.module.train(training)
        if parallel.ranks().pipeline_size == 1:
            return results
        flat = torch.cat([result.flatten() for result in results]) if results else torch.empty(0)
        sizes = [microbatch["tokens"].shape for microbatch in microbatches]
        parts = parallel.broadcast_from_last_stage(flat).split([math.prod(size) for size in sizes])
        return [part.view(size) for part, size in zip(parts, sizes, strict=True)]

    def get_init_policy_logprobs(self, rollout_batches: Sequence[Microbatch]) -> list[Tensor]:
        """`get_inference_log_probs` under the reference weights, which are swapped in and out again bit by bit."""
        if self.reference is None:
            raise RuntimeError("no reference weights: call set_reference() first")
        current = {name: tensor.detach().clone() for name, tensor in self.module.named_parameters()}
        self._copy_in(self.reference)
        try:
            return self.get_inference_log_probs(rollout_batches)
        finally:
            self._copy_in(current)

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
        forward_only: bool,
        collect: bool = False,
        want_entropy: bool = False,
    ) -> list[Any]:
        """Run megatron's schedule (with or without pipeline); returns what `reduce` gave, on the last stage."""
        if not microbatches:
            raise ValueError("no micro-batches: every data-parallel rank needs at least one")
        device = parallel.device()

        def step(iterator: Iterator[Microbatch], network: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            microbatch = _to(next(iterator), device)
            scored = scored_mask(microbatch)
            output = network(
                microbatch["tokens"],
                microbatch["positions"],
                microbatch.get("pixel_values"),
                microbatch.get("image_grid_thw"),
                microbatch.get("image_index"),
                microbatch.get("segments"),
                Scoring(scored, self.temperature, want_entropy),
            )
            return output, lambda output, **options: reduce(output, scored, microbatch, **options)

        batch, length = microbatches[0]["tokens"].shape
        with torch.set_grad_enabled(not forward_only):
            return get_forward_backward_func()(
                forward_step_func=step,
                data_iterator=iter(microbatches),
                model=[self.module if forward_only else self._trained],
                num_microbatches=len(microbatches),
                seq_length=length,
                micro_batch_size=batch,
                forward_only=forward_only,
                collect_non_loss_data=collect,
            )

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
