"""What IPSS and IPTC save (Section 3.4): a batch from a rollout process to usable tensors in three phases, on and off.

    python benchmarks/transfer.py [--json] [--scenes 8 --group 8 --width 448 --height 252 --generation-s 0.5]

A worker process "generates" (sleeps, as a host does while its GPU computes): episodes of different lengths end at times
spread over the second half of `generation-s`, and go to this process, the training rank. Measured are

    exposed_s   from the end of the last episode's generation until all episodes are in the trainer's hands
    phases_s    building the tensors of all micro-batches for log-prob, reference and update
    overhead_s  their sum: what transfer adds to a step

Peers are not installed here: "verl's legacy path" is this repository's baseline link, which does what that path does
(wait for all, float32 pixels per rollout, deserialise in each phase) and is kinder to it (no pickle, one dispatch).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.collect import Collected, EpisodeCollector
from nemo_mtdrive.transfer.images import grid_of, pixel_values
from nemo_mtdrive.transfer.link import LinkKind, open_receiver, open_sender
from nemo_mtdrive.transfer.segments import sweep
from nemo_mtdrive.transfer.stream import EpisodeStream
from nemo_mtdrive.transfer.tensors import TensorCache, Tensors
from nemo_mtdrive.types import Episode, RolloutTask, Turn

PHASES = ("log_prob", "reference", "update")
MICRO_BATCH = 8
TOKENS = 1200
"""Length of an episode, as a conversation of a few turns has it beside its image."""
ROOT = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
STORE: dict[str, Any] = {"shm_root": ROOT, "image_budget_bytes": 8 << 30}


@dataclass(frozen=True)
class Load:
    """What a step moves."""

    scenes: int
    group: int
    width: int
    height: int
    generation_s: float

    def tasks(self) -> list[RolloutTask]:
        """One task a scene."""
        return [RolloutTask(f"scene-{i}", self.group, seed=i, policy_version=0, step=0, temperature=1.0, slot=i)
                for i in range(self.scenes)]

    def images(self) -> list[NDArray[np.uint8]]:
        """One a scene [height, width, 3]."""
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, (self.height, self.width, 3), dtype=np.uint8) for _ in range(self.scenes)]


VARIANTS: dict[str, tuple[LinkKind, bool]] = {
    "ipss_off_iptc_off": ("baseline", False),
    "ipss_on_iptc_off": ("shm", False),
    "ipss_on_iptc_on": ("shm", True),
    "zmq_ipss_on_iptc_on": ("zmq", True),
}
"""Name -> (wire, whether the tensor cache is on)."""


def main() -> int:
    """Run the benchmark; JSON or a table on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    for name, value in (("scenes", 8), ("group", 8), ("width", 448), ("height", 252), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--generation-s", type=float, default=0.5)
    options = parser.parse_args()
    load = Load(options.scenes, options.group, options.width, options.height, options.generation_s)
    torch.set_num_threads(1)
    run_id = f"benchmark-{os.getpid()}"
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    worker = spawn.Process(target=roll_out, args=(there, load, run_id), daemon=True)
    worker.start()
    there.close()
    try:
        here.recv()  # its imports are done
        figures = measure(load, run_id, here, options.repeats)
    finally:
        here.close()
        worker.join(30)
        sweep(ROOT, run_id)
    report(load, figures, as_json=options.json)
    return 0


def measure(load: Load, run_id: str, worker: Connection, repeats: int) -> dict[str, dict[str, float]]:
    """Medians over `repeats` rounds after one to warm up; variants take turns, so that other load meets all alike."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for number in range(repeats + 1):
        print(f"round {number} of {repeats} ...", file=sys.stderr)
        for name, (kind, cached) in VARIANTS.items():
            steps[name].append(one_step(load, kind, cached, run_id, worker))
            sweep(ROOT, run_id)
    return {name: {key: statistics.median(step[key] for step in rows[1:]) for key in rows[0]}
            for name, rows in steps.items()}


def one_step(load: Load, kind: LinkKind, cached: bool, run_id: str, worker: Connection) -> dict[str, float]:
    """Rollout process -> collected -> three phases."""
    collector = EpisodeCollector(open_receiver(kind, "tcp://127.0.0.1:0", run_id, keep_frames=not cached, **STORE))
    worker.send((kind, collector.endpoint))
    collected = collector.collect(load.tasks(), deadline_s=120)
    taken = time.monotonic()
    generated, wire_bytes, overlapped_s = worker.recv()
    cache = TensorCache("cpu", 8 << 30, enabled=cached)
    start = time.perf_counter()
    for _ in PHASES:
        for first in range(0, load.scenes * load.group, MICRO_BATCH):
            cache.get(first, partial(build, collected, first, kind, cached))
    phases_s = time.perf_counter() - start
    collector.close()
    exposed_s = max(0.0, taken - generated)
    return {"exposed_s": exposed_s, "phases_s": phases_s, "overhead_s": exposed_s + phases_s,
            "overlapped_s": overlapped_s, "wire_bytes": float(wire_bytes)}


def build(collected: Collected, first: int, kind: LinkKind, cached: bool) -> Tensors:
    """The inputs of a micro-batch: pixels of each different image, or of each rollout with the baseline."""
    episodes = [episode for group in collected.groups for episode in group.episodes][first : first + MICRO_BATCH]
    rows = []
    pixels: dict[str, NDArray[Any]] = {}
    for episode in episodes:
        received = collected.received[episode.episode_id]
        decoded, images = (received.episode, received.images) if cached else received.decode_again()
        rows.append(decoded)
        for key in decoded.image_keys:
            pixels[f"{episode.index}/{key}" if kind == "baseline" else key] = images[key]
    return {
        "tokens": torch.from_numpy(np.stack([row.tokens for row in rows])),
        "logprobs": torch.from_numpy(np.stack([row.logprobs for row in rows])),
        "pixel_values": pixel_values(list(pixels.values())),
    }


def roll_out(pipe: Connection, load: Load, run_id: str) -> None:
    """The worker process: for each (kind, endpoint) let time pass and hand in each episode when its generation ends."""
    torch.set_num_threads(1)
    images = {image_key(image): image for image in load.images()}
    episodes = [make_episode(task, index, key, images[key])
                for task, key in zip(load.tasks(), images, strict=True) for index in range(load.group)]
    order = np.random.default_rng(1).permutation(len(episodes))
    pipe.send("ready")
    while True:
        try:
            kind, endpoint = pipe.recv()
        except EOFError:
            return
        sender = open_sender(kind, [endpoint], run_id, in_flight=64, lost_after_s=20, **STORE)
        stream = EpisodeStream(sender, threads=2, in_flight=64, flush_timeout_s=120)
        generated = time.monotonic() + load.generation_s
        for number, index in enumerate(order, start=1):
            ends = generated - load.generation_s * 0.5 * (1 - number / len(order))
            time.sleep(max(0.0, ends - time.monotonic()))
            stream.on_episode_end(episodes[index], {key: images[key] for key in episodes[index].image_keys})
        metrics = stream.on_rollout_end()
        pipe.send((generated, metrics.wire_bytes, metrics.overlapped_s))
        stream.close()


def make_episode(task: RolloutTask, index: int, key: str, image: NDArray[np.uint8]) -> Episode:
    """An episode of two turns."""
    rng = np.random.default_rng([task.slot, index])
    answer, scores = "(+3.1, 0.0, 0.0), " * 8, {"PDMS": 1.0}
    turns = tuple(
        Turn(j, 600 + 100 * j, 690 + 100 * j, answer, rng.normal(size=(8, 3)), scores, 1.0, 1.0, "") for j in range(2)
    )
    return Episode(
        task.episode_id(index), task.scene_id, index, task.seed, 0, rng.integers(0, 150000, TOKENS).astype(np.int32),
        np.full(TOKENS, -1, np.int16), np.zeros(TOKENS, np.float32), (key,), (grid_of(image),), turns, True, "clean",
    )


def report(load: Load, figures: dict[str, dict[str, float]], as_json: bool) -> None:
    """On stdout."""
    off, streamed, both = (figures[name]["overhead_s"] for name in list(VARIANTS)[:3])
    ratios = {
        "ipss_overhead": off / streamed, "iptc_overhead_on_top": streamed / both, "ipss_and_iptc_overhead": off / both,
        "wire_bytes": figures["ipss_off_iptc_off"]["wire_bytes"] / figures["ipss_on_iptc_on"]["wire_bytes"],
    }
    if as_json:
        peers = {"verl's legacy path, as this repository's baseline link": figures["ipss_off_iptc_off"]}
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        print(json.dumps({"machine": machine, "command": " ".join(["benchmarks/transfer.py", *sys.argv[1:]]),
                          "load": vars(load), "figures": figures, "peers": peers, "ratios": ratios}))
        return
    print(f"{load.scenes} scenes x {load.group} rollouts, images {load.width} x {load.height}")
    print(f"{'':24}{'exposed s':>12}{'phases s':>12}{'overhead s':>12}{'wire MB':>12}")
    for name, row in figures.items():
        seconds = "".join(f"{row[key]:12.3f}" for key in ("exposed_s", "phases_s", "overhead_s"))
        print(f"{name:24}{seconds}{row['wire_bytes'] / 1e6:12.2f}")
    print(", ".join(f"{name} {value:.1f}x" for name, value in ratios.items()))


if __name__ == "__main__":
    raise SystemExit(main())
