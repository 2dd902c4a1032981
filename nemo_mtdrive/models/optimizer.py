"""Adam over megatron's data parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from nemo_mtdrive.models.network import Qwen25VLNetwork


@dataclass(frozen=True)
class OptimizerOptions:
    """Adam's settings; the learning rate comes with each step (`Qwen25VLModel.set_lr`)."""

    clip_gradient: float
    """Largest norm of the whole gradient; above 0."""
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    distributed: bool
    """Shard the optimizer's state over the data-parallel ranks (GPU only)."""

    def __post_init__(self) -> None:
        if self.clip_gradient <= 0:
            raise ValueError(f"clip_gradient={self.clip_gradient}: set it above 0 (a large number switches clipping off)")


def make_optimizer(network: Qwen25VLNetwork, options: OptimizerOptions) -> tuple[DistributedDataParallel, MegatronOptimizer]:
    """The network wrapped so that gradients are gathered over data-parallel ranks, and its optimizer.

    Takes data-parallel rank 0's weights everywhere; all ranks take part.
    """
    config = network.config
    data_parallel = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=options.distributed)
    wrapped = DistributedDataParallel(config, data_parallel, network)
    wrapped.broadcast_params()
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = wrapped.no_sync
    adam = OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        bf16=config.bf16,
        params_dtype=config.params_dtype,
        clip_grad=options.clip_gradient,
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        adam_eps=options.epsilon,
        use_distributed_optimizer=options.distributed,
    )
    return wrapped, get_megatron_optimizer(adam, [wrapped])
