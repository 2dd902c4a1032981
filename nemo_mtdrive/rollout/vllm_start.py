"""What vLLM is started with: its environment variables, its arguments, and the directory that it reads the model from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_mtdrive.rollout.engine import EngineError

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

    from nemo_mtdrive.config import RolloutConfig
    from nemo_mtdrive.dialogue.tokenizer import Tokenizer

GIGABYTE = 1 << 30
START_S = 1800.0
"""How long vLLM may take to start [s]; a job's own limit is rollout.start_timeout_s."""
CPU_BLOCK_TOKENS = 32
"""Tokens of a KV block on a CPU, where vLLM takes 128: only whole blocks are found again in the prefix cache."""
WORKER_EXTENSION = "nemo_mtdrive.rollout.vllm_worker.WorkerExtension"

PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", "patch_size": 14,
    "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
"""preprocessor_config.json of Qwen2.5-VL. vLLM opens it to know the largest image; our images pass it by."""


def set_environment(rollout: RolloutConfig, device: str) -> bool:
    """Set the variables that vLLM reads when it is imported, unless the user has; returns whether it runs on the CPU.

    Raises:
        EngineError: vLLM is not installed here, or not for that device.
    """
    if find_spec("vllm") is None:
        raise EngineError("vLLM is not installed in this environment: run `make rollout-env` and start its Python")
    _set_default({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr",
                  "HF_HUB_OFFLINE": "1", "VLLM_ENGINE_READY_TIMEOUT_S": f"{START_S:.0f}",
                  "VLLM_USE_V2_MODEL_RUNNER": "0"})  # `vllm_worker.PolicySampler` is a sampler of the first
    from vllm.platforms import current_platform

    on_cpu: bool = current_platform.is_cpu()
    if device and on_cpu != (device == "cpu"):
        raise EngineError(f"device={device}: this build of vLLM is for {current_platform.device_type}")
    if on_cpu:  # threads are this process's OMP_NUM_THREADS: bound ones of several workers would share one core
        _set_default({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"})
    elif rollout.vllm.weight_transfer == "ipc":  # handles of CUDA memory, over a socket between vLLM's own processes
        _set_default({"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"})
    return on_cpu


def _set_default(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def engine_arguments(directory: Path, rollout: RolloutConfig, max_context: int, on_cpu: bool) -> AsyncEngineArgs:
    """vLLM's arguments for a model directory without weights."""
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    settings = rollout.vllm
    device: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization, "enable_sleep_mode": True,
                              "weight_transfer_config": WeightTransferConfig(backend=settings.weight_transfer)}
    if on_cpu:
        device = {"kv_cache_memory_bytes": int(settings.cpu_cache_gb * GIGABYTE), "block_size": CPU_BLOCK_TOKENS}
    return AsyncEngineArgs(
        model=str(directory), load_format="dummy", dtype=rollout.dtype, max_model_len=max_context,
        max_num_seqs=rollout.max_running, tensor_parallel_size=settings.tensor_parallel,
        enforce_eager=on_cpu or settings.enforce_eager, enable_prefix_caching=True, seed=0,
        logprobs_mode="raw_logprobs", generation_config="vllm", limit_mm_per_prompt={"image": 1, "video": 0},
        mm_device_do_normalize=False,  # it takes bytes; our pixel values are normalised already, as the trainer's are
        skip_mm_profiling=on_cpu, enable_log_requests=False, worker_extension_cls=WORKER_EXTENSION, **device)


def write_model_directory(directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Configuration, tokenizer and processor of a Hugging Face directory; the weights come later, from memory."""
    tokenizer.save(directory)
    (directory / "config.json").write_text(json.dumps(dict(config), indent=1))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1))
