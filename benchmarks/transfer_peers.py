"""The peers' side of `benchmarks/transfer.py`: one step through verl 0.9, in the environment that `make peers` installs.

    .tools/peers/bin/python benchmarks/transfer_peers.py PEER WORKLOAD GROUP [--passes 1]

PEER is `dataproto`, `dataproto_zero_copy` or `transfer_queue`. Prints one JSON object: checksums of each phase's tensors
from a first pass that warms everything up, and the figures of the passes after it. Each peer does what verl's trainer does
with the same data, with its own classes, and starts with the image processor's work done (pixel_values are there, free):

* DataProto: two rollout actors return a DataProto each, with `multi_modal_inputs` as an object array of dicts of tensors
  (`AgentLoopWorker._postprocess`); the driver waits for all and concatenates; each phase chunks the batch, puts the chunks
  into Ray's object store (`dispatch_nd_compute_dataproto`) and calls the four consumers with them;
* TransferQueue: each rollout is put under its own key when it ends (`AgentLoopWorkerTQ._agent_loop_postprocess`); in each
  phase each consumer gets its keys' fields (`tqbridge`), SimpleStorage with its default two units.

A phase then concatenates the pixels of each micro-batch, as verl's engines do.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
from transfer_load import CONSUMERS, MICRO_BATCH, PHASES, PRODUCERS, Load, checksum, cpu_seconds, episode_name

PEERS = ("dataproto", "dataproto_zero_copy", "transfer_queue")
os.environ.update(OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
                  RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_memory_usage_threshold="0.98")
if len(sys.argv) > 1 and sys.argv[1] == "dataproto_zero_copy":  # read when Ray is imported, by every process
    os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"
warnings.filterwarnings("ignore")

import ray  # noqa: E402
import torch  # noqa: E402
import transfer_queue as tq  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.utils.ray_utils import parallel_put  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402

Step = tuple[dict[str, float], list[dict[str, int]]]
PARTITION = "train"


def main() -> int:
    """One step; its figures as JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("workload", help="256x540p, 32x1080p or ROLLOUTSxWIDTHxHEIGHT")
    parser.add_argument("group", type=int, help="rollouts of a scene")
    parser.add_argument("--passes", type=int, default=1, help="timed steps after the first, which takes checksums")
    options = parser.parse_args()
    load = Load.parse(options.workload, options.group)
    logging.disable(logging.WARNING)
    pixels = load.rollouts * load.patches * 1176 * 4
    ray.init(num_cpus=CONSUMERS + PRODUCERS + 4, object_store_memory=int(2.6 * pixels) + (1 << 29), _memory=1 << 30,
             include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        figures = measure(load, options.peer, options.passes)
    finally:
        ray.shutdown()
    print(json.dumps(figures))
    return 0


def measure(load: Load, peer: str, passes: int) -> dict[str, Any]:
    """`sums` of each phase and `passes`, a dict of figures each."""
    queue = peer == "transfer_queue"
    if queue:
        tq.init()
    producers = [Producer.remote(load, number) for number in range(PRODUCERS)]
    consumers = [Consumer.remote() for _ in range(CONSUMERS)]
    ray.get([actor.ready.remote(connect=queue) for actor in (*producers, *consumers)])
    step = transfer_queue_step if queue else data_proto_step
    _, sums = step(load, producers, consumers, True)
    timed = [step(load, producers, consumers, False)[0] for _ in range(passes)]
    if queue:
        tq.close()
    return {"passes": timed, "sums": sums}


def data_proto_step(load: Load, producers: list[Any], consumers: list[Any], check: bool) -> Step:
    """verl's controller path: the batch goes through the driver, and to the consumers anew in each phase."""
    ray.get([producer.roll_out.remote() for producer in producers])
    cpu_before, start = cpu_seconds(), time.perf_counter()
    batch = DataProto.concat(ray.get([producer.generate_sequences.remote() for producer in producers]))
    collected = time.perf_counter()
    let_go = [producer.let_go.remote() for producer in producers]  # beside what follows
    order = np.argsort(batch.non_tensor_batch["scene"] * load.group + batch.non_tensor_batch["index"])
    batch.reorder(torch.from_numpy(order))
    sums = []
    for phase in PHASES:
        parts = parallel_put(batch.chunk(CONSUMERS), max_workers=min(CONSUMERS, os.cpu_count() or 1))
        sums += run_phase(phase, consumers, parts, check)
        del parts
        let_go += [consumer.let_go.remote() for consumer in consumers]
    ray.get(let_go)
    total_s, cpu_s = time.perf_counter() - start, cpu_seconds() - cpu_before
    moved = data_proto_bytes(batch) * (1 + len(PHASES))
    return {"collect_s": collected - start, "total_s": total_s, "cpu_s": cpu_s, "bytes_moved": moved}, sums


def transfer_queue_step(load: Load, producers: list[Any], consumers: list[Any], check: bool) -> Step:
    """verl's TransferQueue path: rollouts are put one by one; consumers get their keys' data in each phase."""
    keys = [[episode_name(scene, index) for scene in load.share(consumer) for index in range(load.group)]
            for consumer in range(CONSUMERS)]
    ray.get([producer.roll_out.remote() for producer in producers])
    cpu_before, start = cpu_seconds(), time.perf_counter()
    size = sum(ray.get([producer.stream.remote() for producer in producers]))
    collected = time.perf_counter()
    sums = []
    for phase in PHASES:
        sums += run_phase(phase, consumers, keys, check)
    total_s, cpu_s = time.perf_counter() - start, cpu_seconds() - cpu_before
    tq.kv_clear(keys=[key for part in keys for key in part], partition_id=PARTITION)
    moved = size * (1 + len(PHASES))
    return {"collect_s": collected - start, "total_s": total_s, "cpu_s": cpu_s, "bytes_moved": moved}, sums


def run_phase(phase: str, consumers: list[Any], parts: list[Any], check: bool) -> list[dict[str, int]]:
    """Call all consumers; episode name -> checksum, consumers together."""
    calls = [getattr(consumer, phase).remote(part, check) for consumer, part in zip(consumers, parts, strict=True)]
    return [{name: value for found in ray.get(calls) for name, value in found.items()}]


def data_proto_bytes(batch: DataProto) -> int:
    """Tensor bytes of a batch."""
    pixels = batch.non_tensor_batch["multi_modal_inputs"]
    tensors = [*batch.batch.values(), *(tensor for item in pixels for tensor in item.values())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def give_memory_back() -> None:
    """Free memory that malloc keeps goes back to the system: 256x540p need all of 24 GB, and Ray ends who passes that."""
    ctypes.CDLL(None).malloc_trim(0)


def pixel_rows(image: np.ndarray) -> torch.Tensor:
    """pixel_values of an image that needs no resizing, by Qwen2.5-VL's own processor."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(do_resize=False)([image], return_tensors="pt")["pixel_values"]


@ray.remote(num_cpus=1)
class Producer:
    """A rollout worker whose episodes are all ready."""

    def __init__(self, load: Load, number: int) -> None:
        torch.set_num_threads(1)
        self._load, self._scenes = load, load.produced(number)
        self._fields: list[dict[str, Any]] = []

    def ready(self, connect: bool = False) -> None:
        """Connected to the queue."""
        if connect:
            tq.init()

    def roll_out(self) -> None:
        """Make the rollouts of a step; they are given away with it, as 256x540p hardly fit a small machine's memory."""
        for scene in self._scenes:
            rows = pixel_rows(self._load.image(scene))
            grid = torch.tensor([[1, self._load.height // 14, self._load.width // 14]])
            for index in range(self._load.group):  # a processor call each: every rollout has tensors of its own
                self._fields.append(rollout_fields(self._load, scene, index) | {
                    "multi_modal_inputs": {"pixel_values": rows.clone(), "image_grid_thw": grid.clone()}})

    def generate_sequences(self) -> DataProto:
        """All rollouts as one DataProto."""
        rollouts, self._fields = self._fields, []
        names = [name for name, value in rollouts[0].items() if isinstance(value, torch.Tensor)]
        batch = TensorDict({name: torch.stack([fields[name] for fields in rollouts]) for name in names},
                           batch_size=len(rollouts))
        others = {name: np.array([fields[name] for fields in rollouts]) for name in ("scene", "index")}
        others["multi_modal_inputs"] = np.array([fields["multi_modal_inputs"] for fields in rollouts], dtype=object)
        return DataProto(batch=batch, non_tensor_batch=others)

    def let_go(self) -> None:
        """Free memory goes back."""
        give_memory_back()

    async def stream(self) -> int:
        """Put each rollout when it ends; the bytes of its tensors."""
        rollouts, self._fields = self._fields, []
        await asyncio.gather(*(
            tq.async_kv_batch_put(keys=[episode_name(fields["scene"], fields["index"])],
                                  fields=list_of_dict_to_tensordict([fields]), tags=[{"status": "success"}],
                                  partition_id=PARTITION)
            for fields in rollouts))
        tensors = [tensor for fields in rollouts for tensor in (*fields.values(), *fields["multi_modal_inputs"].values())
                   if isinstance(tensor, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rollout_fields(load: Load, scene: int, index: int) -> dict[str, Any]:
    """The tensors beside the pixels that verl's rollouts carry."""
    tokens = torch.from_numpy(load.tokens(scene, index).astype(np.int64))
    return {"scene": scene, "index": index, "input_ids": tokens, "attention_mask": torch.ones_like(tokens),
            "position_ids": torch.arange(len(tokens)).expand(3, -1).contiguous(), "response_mask": torch.ones_like(tokens),
            "rollout_log_probs": torch.zeros(len(tokens))}


@ray.remote(num_cpus=1)
class Consumer:
    """A training rank: makes the tensors of its micro-batches usable, in each phase."""

    def __init__(self) -> None:
        torch.set_num_threads(1)

    def ready(self, connect: bool = False) -> None:
        """Imports done; connected to the queue."""
        if connect:
            tq.init()

    def let_go(self) -> None:
        """Free memory goes back."""
        give_memory_back()

    def log_prob(self, data: DataProto | list[str], check: bool) -> dict[str, int]:
        """A phase."""
        return self._use(data, check)

    def reference(self, data: DataProto | list[str], check: bool) -> dict[str, int]:
        """A phase."""
        return self._use(data, check)

    def update(self, data: DataProto | list[str], check: bool) -> dict[str, int]:
        """A phase."""
        return self._use(data, check)

    def _use(self, data: DataProto | list[str], check: bool) -> dict[str, int]:
        """Checksums of each rollout's tensors where asked for, else nothing."""
        if isinstance(data, DataProto):
            tokens = list(data.batch["input_ids"])
            inputs = list(data.non_tensor_batch["multi_modal_inputs"])
            where = zip(data.non_tensor_batch["scene"], data.non_tensor_batch["index"], strict=True)
            names = [episode_name(scene, index) for scene, index in where]
        else:
            found = tq.kv_batch_get(keys=data, partition_id=PARTITION)
            tokens = list(found["input_ids"].unbind())
            inputs = [item.data if hasattr(item, "data") and not isinstance(item, dict) else item
                      for item in found["multi_modal_inputs"]]
            names = data
        sums = {}
        for first in range(0, len(names), MICRO_BATCH):
            part = slice(first, first + MICRO_BATCH)
            ids = torch.stack(tokens[part])
            pixels = torch.cat([item["pixel_values"] for item in inputs[part]])
            if check:
                for number, name in enumerate(names[part]):
                    rows = len(pixels) // len(ids)
                    sums[name] = checksum(ids[number].numpy(), pixels[number * rows : (number + 1) * rows].numpy())
        return sums


if __name__ == "__main__":
    raise SystemExit(main())
