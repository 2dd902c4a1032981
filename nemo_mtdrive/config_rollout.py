"""Keys of rollout workers and their engines: the part `rollout` of `config.Config`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class VLLMConfig:
    """Of rollout.engine=vllm (docs/rollout.md)."""

    tensor_parallel: int = 1
    """GPUs (or CPU processes) of one worker."""
    gpu_memory_utilization: float = 0.85
    """Part of a GPU's memory for weights and KV cache."""
    cpu_cache_gb: float = 1.0
    """KV cache of one worker on a CPU."""
    enforce_eager: bool = False
    """No CUDA graphs; on a CPU always so."""
    weight_transfer: str = "ipc"
    """From the worker to vLLM's processes on GPUs: ipc (on the worker's own GPU) or nccl (on others)."""


@dataclass
class RolloutConfig:
    """Rollout workers and their sampling; evaluation uses the same (Section 4.1)."""

    engine: str = "native"
    """native (in the training environment) or vllm (in its own, `make rollout-env`)."""
    python: str = ""
    """Python of the rollout environment; empty: .venv-rollout/bin/python beside the package (engine=vllm)."""
    vllm: VLLMConfig = field(default_factory=VLLMConfig)
    sleep: bool = False
    """Engines give their memory back after each batch of tasks, for a trainer on the same device."""
    workers: int = 1
    max_turns: int = 6
    max_answer_tokens: int = 256
    max_context: int = 11500
    max_running: int = 256
    """Most episodes that a worker runs at once; bounds the engine's memory."""
    temperature: float = 1.0
    """Of sampling; the policy that is trained and scored is softmax(logits / temperature). 0 is greedy, to play."""
    top_p: float = 1.0
    """Answers are drawn from the most probable tokens that together have this much of the mass; the policy stays the whole
    softmax. Below 1 the slips of a small model become rare (docs/results.md)."""
    dtype: str = "bfloat16"
    threads: int = 2
    """CPU threads of one worker."""
    heartbeat_timeout_s: float = 120.0
    """A worker that is silent for so long is killed and started again."""
    episode_timeout_s: float = 1800.0
    """An episode that takes longer is cut after its turn, counted, and left out of the update."""
    stuck_timeout_s: float = 900.0
    """A worker that finishes no turn for so long, heartbeats or not, is killed and started again."""
    start_timeout_s: float = 600.0
    rollout_timeout_s: float = 3600.0
    """All episodes of a step are there by then, or the training ranks start again from the last checkpoint."""
    max_restarts: int = 3
    """Times that each worker is started again without a new checkpoint in between (docs/fault_tolerance.md)."""
