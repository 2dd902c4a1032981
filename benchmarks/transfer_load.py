"""The work of `benchmarks/transfer.py`, the same for ours and for the peers: episodes of noise. Needs no torch."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

PHASES = ("log_prob", "reference", "update")
CONSUMERS = 4
PRODUCERS = 2
TEXT_TOKENS = 800
"""Tokens of an episode beside its image, as a conversation of a few turns has them."""
MICRO_BATCH = 8
"""Episodes whose tensors a phase wants at once."""
SIZES = {"540p": (532, 952), "1080p": (1092, 1932)}
"""Name -> (height, width) [pixels] as Qwen2.5-VL's processor resizes such a camera image."""


@dataclass(frozen=True)
class Load:
    """What a step moves: `rollouts` episodes, `group` of each scene, one front image a scene."""

    rollouts: int
    group: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.rollouts < 1 or self.group < 1 or self.rollouts % (self.group * CONSUMERS):
            raise ValueError(f"{self.rollouts} rollouts in groups of {self.group}: set a multiple of "
                             f"{self.group * CONSUMERS}, so that each of {CONSUMERS} consumers has whole groups")
        if self.height % 28 or self.width % 28:
            raise ValueError(f"images of {self.width} x {self.height}: set multiples of 28")

    @classmethod
    def parse(cls, text: str, group: int) -> Load:
        """`256x540p`, or `16x224x112` (rollouts x width x height). ValueError for anything else."""
        count, _, size = text.partition("x")
        try:
            if size in SIZES:
                return cls(int(count), group, *SIZES[size])
            width, height = (int(side) for side in size.split("x"))
            return cls(int(count), group, height, width)
        except ValueError as error:
            raise ValueError(f"workload {text!r}: {error}; set ROLLOUTSx540p, ROLLOUTSx1080p or "
                             "ROLLOUTSxWIDTHxHEIGHT") from error

    @property
    def scenes(self) -> int:
        """Different images."""
        return self.rollouts // self.group

    @property
    def image_tokens(self) -> int:
        """Of one image."""
        return self.height * self.width // 28**2

    @property
    def patches(self) -> int:
        """Rows of pixel_values of one image."""
        return self.height * self.width // 14**2

    @property
    def length(self) -> int:
        """Tokens of an episode."""
        return self.image_tokens + TEXT_TOKENS

    def share(self, consumer: int) -> range:
        """The scenes of a consumer."""
        each = self.scenes // CONSUMERS
        return range(consumer * each, (consumer + 1) * each)

    def produced(self, producer: int) -> range:
        """The scenes that a producer rolls out."""
        return range(producer, self.scenes, PRODUCERS)

    def image(self, scene: int) -> NDArray[np.uint8]:
        """[height, width, 3]."""
        return np.random.default_rng([1, scene]).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)

    def tokens(self, scene: int, index: int) -> NDArray[np.int32]:
        """[image tokens + text tokens] of one rollout."""
        return np.random.default_rng([2, scene, index]).integers(0, 150_000, self.length, dtype=np.int32)


def cpu_seconds() -> float:
    """What this process and all below it that live have taken of the processors so far."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def episode_name(scene: int, index: int) -> str:
    """Under which checksums of an episode are compared."""
    return f"{scene}/{index}"


def checksum(*arrays: NDArray[Any]) -> int:
    """CRC-32 over the bytes of arrays in turn."""
    running = 0
    for array in arrays:
        running = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, running)
    return running
