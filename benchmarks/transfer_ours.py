"""Our side of `benchmarks/transfer.py`, with IPSS and IPTC on and off, and the shared-memory floor; processes as in a run.

Two producers stand for rollout workers whose episodes are all ready, four consumers for training ranks. Links and caches are
the product's own (`transfer.link`, `.stream`, `.collect`, `.tensors`), opened before the clock starts, as in a run.

The floor moves what must be moved and does nothing else: the pixel rows of each different image, made beforehand, and the
tokens are copied into shared memory once, and out of it once by the consumer that needs them. No keys, no checks, no
messages but "it is there".
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transfer_load import CONSUMERS, MICRO_BATCH, PHASES, PRODUCERS, Load, checksum, cpu_seconds, episode_name

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.transfer.collect import Collected, EpisodeCollector
from nemo_mtdrive.transfer.images import PATCH_VALUES, ImageStore, grid_of, patchify, pixel_values
from nemo_mtdrive.transfer.link import LinkKind, open_receiver, open_sender
from nemo_mtdrive.transfer.segments import RunFolder, sweep
from nemo_mtdrive.transfer.stream import EpisodeStream
from nemo_mtdrive.transfer.tensors import TensorCache, Tensors
from nemo_mtdrive.types import Episode, RolloutTask, Turn

VARIANTS: dict[str, tuple[LinkKind, bool]] = {
    "ours": ("shm", True),
    "ours_ipss_off": ("baseline", True),
    "ours_iptc_off": ("shm", False),
    "ours_both_off": ("baseline", False),
}
"""Name -> (link, whether the tensor cache is on)."""
FLOOR = "shared_memory_floor"
ROOT = Path("/dev/shm")
STORE: dict[str, Any] = {"shm_root": ROOT, "image_budget_bytes": 4 << 30}
_SPAWN = multiprocessing.get_context("spawn")
_DEADLINE_S = 900.0
Result = tuple[dict[str, float], list[dict[str, int]]]


class OurSide:
    """Producers and consumers of a load, for all variants; a context manager.

    Args:
        load: what a step moves.
    """

    def __init__(self, load: Load) -> None:
        self._producers = [_start(produce, load, number) for number in range(PRODUCERS)]
        self._consumers = [_start(consume, load, number) for number in range(CONSUMERS)]
        self._runs = 0
        for _, pipe in (*self._producers, *self._consumers):
            receive(pipe)  # imports and data are there

    def __enter__(self) -> OurSide:
        return self

    def __exit__(self, *_: object) -> None:
        for _, pipe in (*self._producers, *self._consumers):
            pipe.close()
        for process, _pipe in (*self._producers, *self._consumers):
            process.join(60)

    def measure(self, variant: str, passes: int) -> dict[str, Any]:
        """`sums` of each phase from a first pass that warms up, and `passes`, a dict of figures each."""
        _, sums = self._step(variant, check=True)
        return {"passes": [self._step(variant, check=False)[0] for _ in range(passes)], "sums": sums}

    def _step(self, variant: str, *, check: bool) -> Result:
        """One step in a run of its own, so that nothing of the one before is in shared memory."""
        producers, consumers = ([pipe for _, pipe in side] for side in (self._producers, self._consumers))
        run_id = f"benchmark-{os.getpid()}-{self._runs}"
        self._runs += 1
        try:
            for consumer in consumers:
                consumer.send((variant, run_id, check))
            endpoints = [receive(consumer) for consumer in consumers]
            for producer in producers:
                producer.send((variant, run_id, endpoints))
            for producer in producers:
                receive(producer)  # connected
            used_before, start = cpu_seconds(), time.monotonic()
            for producer in producers:
                producer.send("go")
            moved = sum(receive(producer) for producer in producers)
            done = [receive(consumer) for consumer in consumers]
            cpu_s = cpu_seconds() - used_before
        finally:
            sweep(ROOT, run_id)
        figures = {"collect_s": max(collected for collected, _, _, _ in done) - start,
                   "total_s": max(end for _, end, _, _ in done) - start, "cpu_s": cpu_s,
                   "bytes_moved": moved + max(used for _, _, used, _ in done)}
        sums = [{name: value for *_, part in done for name, value in part[phase].items()} for phase in range(len(PHASES))]
        return figures, sums


def _start(work: Callable[..., None], load: Load, number: int) -> tuple[BaseProcess, Connection]:
    """A process of `work(pipe, load, number)`; it ends when its pipe does."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=work, args=(there, load, number), daemon=True)
    process.start()
    there.close()
    return process, here


def receive(pipe: Connection) -> Any:
    """What the other end says; RuntimeError when it ended or takes too long."""
    if not pipe.poll(_DEADLINE_S):
        raise RuntimeError(f"a process of the benchmark did not answer within {_DEADLINE_S:g} s")
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a process of the benchmark ended: see its message above") from None


def requests(pipe: Connection) -> Iterator[Any]:
    """What the main process asks for, until it closes the pipe."""
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def tasks(load: Load) -> list[RolloutTask]:
    """One a scene."""
    return [RolloutTask(f"scene-{scene}", load.group, seed=scene, policy_version=0, step=0, temperature=1.0, slot=scene)
            for scene in range(load.scenes)]


def make_episode(load: Load, scene: int, index: int, key: str, image: NDArray[np.uint8]) -> Episode:
    """An episode of two turns."""
    task, tokens = tasks(load)[scene], load.tokens(scene, index)
    answer, scores = "(+3.1, 0.0, 0.0), " * 8, {"PDMS": 1.0}
    turns = tuple(Turn(j, 600 + 100 * j, 690 + 100 * j, answer, np.full((8, 3), 1.0 * j), scores, 1.0, 1.0, "")
                  for j in range(2))
    return Episode(task.episode_id(index), task.scene_id, index, task.seed, 0, tokens, np.full(len(tokens), -1, np.int16),
                   np.zeros(len(tokens), np.float32), (key,), (grid_of(image),), turns, True, "clean")


class Rollouts:
    """A producer's episodes, and what the floor copies of them."""

    def __init__(self, load: Load, number: int) -> None:
        self.load, self.scenes = load, load.produced(number)
        self.owners = {scene: consumer for consumer in range(CONSUMERS) for scene in load.share(consumer)}
        self.images = {scene: load.image(scene) for scene in self.scenes}
        self.keys = {scene: image_key(image) for scene, image in self.images.items()}  # in a run the environment names them
        self.episodes = [(scene, make_episode(load, scene, index, self.keys[scene], self.images[scene]))
                         for scene in self.scenes for index in range(load.group)]

    @cached_property
    def arrays(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Scene -> pixel rows of its image, tokens of its group."""
        return {scene: (patchify([self.images[scene]])[0].numpy(), self.tokens(scene)) for scene in self.scenes}

    def tokens(self, scene: int) -> NDArray[np.int64]:
        """[group, length]"""
        return np.stack([self.load.tokens(scene, index).astype(np.int64) for index in range(self.load.group)])


def produce(pipe: Connection, load: Load, number: int) -> None:
    """A rollout worker's process."""
    rollouts = Rollouts(load, number)
    for variant, run_id, endpoints in requests(pipe):
        if variant == FLOOR:
            _copy_in(pipe, rollouts, run_id, endpoints)
        else:
            _stream(pipe, rollouts, VARIANTS[variant][0], run_id, endpoints)


def consume(pipe: Connection, load: Load, number: int) -> None:
    """A training rank's process."""
    patchify([load.image(0)])  # compiled
    for variant, run_id, check in requests(pipe):
        if variant == FLOOR:
            _copy_out(pipe, load, number, run_id, check)
        else:
            _collect(pipe, load, number, VARIANTS[variant], run_id, check)


def _stream(pipe: Connection, rollouts: Rollouts, kind: LinkKind, run_id: str, endpoints: list[str]) -> None:
    """Hand in all episodes as fast as the link takes them; says the bytes that went out."""
    # A rank needs all episodes' tokens, but with the baseline pixels would go along: there each gets its share only.
    routes = [[endpoint] for endpoint in endpoints] if kind == "baseline" else [endpoints]
    streams = [EpisodeStream(open_sender(kind, route, run_id, in_flight=64, lost_after_s=60, **STORE), threads=2,
                             in_flight=64, flush_timeout_s=_DEADLINE_S) for route in routes]
    pipe.send("connected")
    pipe.recv()
    for scene, episode in rollouts.episodes:
        stream = streams[rollouts.owners[scene] if kind == "baseline" else 0]
        stream.on_episode_end(episode, {rollouts.keys[scene]: rollouts.images[scene]})
    pipe.send(sum(stream.on_rollout_end().wire_bytes for stream in streams))
    for stream in streams:
        stream.close()


def _collect(
    pipe: Connection, load: Load, number: int, variant: tuple[LinkKind, bool], run_id: str, check: bool
) -> None:
    """Collect the step, then make each phase's tensors."""
    kind, cached = variant
    mine = [tasks(load)[scene] for scene in load.share(number)]
    collector = EpisodeCollector(
        open_receiver(kind, "tcp://127.0.0.1:0", run_id, keep_frames=not cached, **STORE))
    pipe.send(collector.endpoint)
    collected = collector.collect(mine if kind == "baseline" else tasks(load), deadline_s=_DEADLINE_S)
    at = time.monotonic()
    cache = TensorCache("cpu", 64 << 30, enabled=cached)
    sums = []
    for _ in PHASES:
        found: dict[str, int] = {}
        for task in mine:
            for first in range(0, load.group, MICRO_BATCH):
                chosen = range(first, min(first + MICRO_BATCH, load.group))
                build = partial(build_micro_batch, collected, task, chosen, kind, cached)
                tensors = cache.get((task.scene_id, first), build)
                if check:
                    found |= checksums(tensors, task.slot, chosen)
        sums.append(found)
    end = time.monotonic()
    with RunFolder(ROOT, run_id) as folder:
        used = ImageStore(folder, 0).used_bytes
    pipe.send((at, end, used, sums))
    collector.close()


def build_micro_batch(collected: Collected, task: RolloutTask, chosen: range, kind: LinkKind, cached: bool) -> Tensors:
    """The inputs of a micro-batch: pixels of each different image, or of each rollout with the baseline."""
    rows: list[Episode] = []
    pixels: dict[str, NDArray[Any]] = {}
    for index in chosen:
        received = collected.received[task.episode_id(index)]
        episode, images = (received.episode, received.images) if cached else received.decode_again()
        rows.append(episode)
        for key in episode.image_keys:
            pixels[f"{index}/{key}" if kind == "baseline" else key] = images[key]
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows])).to(torch.int64)
    return {
        "tokens": tokens, "positions": torch.arange(tokens.shape[1]).expand(3, *tokens.shape).contiguous(),
        "mask": torch.from_numpy(np.stack([row.turn_of_token for row in rows]) >= 0),
        "logprobs": torch.from_numpy(np.stack([row.logprobs for row in rows])),
        "pixel_values": pixel_values(list(pixels.values())), "images": torch.tensor(len(pixels)),
    }


def checksums(tensors: Tensors, scene: int, chosen: range) -> dict[str, int]:
    """Of each rollout: its tokens and its image's rows, its own ones or the group's."""
    images = tensors["pixel_values"].numpy()
    rows = np.split(images, int(tensors["images"]))
    return {episode_name(scene, index): checksum(tensors["tokens"][place].numpy(), rows[place % len(rows)])
            for place, index in enumerate(chosen)}


def _copy_in(pipe: Connection, rollouts: Rollouts, run_id: str, doors: list[str]) -> None:
    """The floor: pixel rows and tokens into shared memory, a file a scene; says the bytes."""
    arrays = rollouts.arrays
    with RunFolder(ROOT, run_id) as folder:
        pipe.send("connected")
        pipe.recv()
        moved = 0
        for scene, parts in arrays.items():
            with open(folder.path / str(scene), "wb") as file:
                for part in parts:
                    file.write(part.reshape(-1).view(np.uint8).data)
                    moved += part.nbytes
            with open(doors[rollouts.owners[scene]], "wb", buffering=0) as door:
                door.write(f"{scene}\n".encode())
        pipe.send(moved)


def _copy_out(pipe: Connection, load: Load, number: int, run_id: str, check: bool) -> None:
    """The floor: this consumer's scenes out of shared memory, once; the phases use the same tensors."""
    pixel_bytes = load.patches * PATCH_VALUES * 4
    with RunFolder(ROOT, run_id) as folder:
        door = folder.path / f"door-{number}"
        os.mkfifo(door)
        told = os.open(door, os.O_RDWR)
        pipe.send(str(door))
        kept: dict[int, Tensors] = {}
        while len(kept) < len(load.share(number)):
            scene = int(read_line(told))
            content = np.memmap(folder.path / str(scene), np.uint8, "r")
            rows = torch.empty(load.patches, PATCH_VALUES)
            tokens = torch.empty(load.group, load.length, dtype=torch.int64)
            rows.numpy().reshape(-1).view(np.uint8)[:] = content[:pixel_bytes]
            tokens.numpy().reshape(-1).view(np.uint8)[:] = content[pixel_bytes:]
            kept[scene] = {"pixel_values": rows, "tokens": tokens, "images": torch.tensor(1)}
        end = time.monotonic()
        os.close(told)
    found = {name: value for scene, tensors in kept.items() if check
             for name, value in checksums(tensors, scene, range(load.group)).items()}
    pipe.send((end, end, 0, [found] * len(PHASES)))


def read_line(file: int) -> bytes:
    """A line from a pipe into which several write."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(file, 1)
    return line
