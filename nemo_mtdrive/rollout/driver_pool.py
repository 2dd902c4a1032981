"""Batches of scenes over several engines: one process an engine, on a GPU of its own where there are GPUs.

A batch is always played whole by one engine, so the episodes do not depend on how many engines there are, on which one
took the batch, or on whether an earlier run has done the others already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from nemo_mtdrive.environment.env import Environment
from nemo_mtdrive.rollout.model_driver import ModelDriver
from nemo_mtdrive.stations import work_at_stations
from nemo_mtdrive.types import Episode, RolloutTask

T = TypeVar("T")


@dataclass(frozen=True)
class Station(Generic[T]):
    """What an engine's process is made of; the functions must be importable by another process."""

    open_driver: Callable[[str], ModelDriver]
    """Given the device ("cpu", "cuda:0", ...)."""
    open_environment: Callable[[ModelDriver], Environment]
    """Given the driver, which a reviewer may want to ask."""
    collect: Callable[[Environment, list[Episode]], T]
    """What of a played batch is given back; episodes come ordered by scene, as the tasks were, then index."""
    threads: int
    """CPU threads of an engine."""


def only_episodes(environment: Environment, episodes: list[Episode]) -> list[Episode]:
    """Give back the episodes."""
    return episodes


def play_batches(station: Station[T], batches: Mapping[int, Sequence[RolloutTask]],
                 processes: int) -> Iterator[tuple[int, T]]:
    """Play each batch; yields (its number, what `station.collect` makes of it) as it is done, in any order.

    Args:
        processes: engines; with one, it runs in this process.

    Raises:
        ProcessDied: one was killed. Whatever else an engine or a reviewer raises.
    """
    numbers = list(batches)
    for place, played in work_at_stations(partial(_open, station), partial(_play, station),
                                          [batches[number] for number in numbers], processes):
        yield numbers[place], played


@contextmanager
def _open(station: Station[T], index: int) -> Iterator[tuple[ModelDriver, Environment]]:
    """Driver and environment of a process."""
    with _threads(station.threads), closing(station.open_driver(_device(index))) as driver:
        yield driver, station.open_environment(driver)


def _play(station: Station[T], opened: tuple[ModelDriver, Environment], tasks: Sequence[RolloutTask]) -> T:
    driver, environment = opened
    episodes: list[Episode] = []
    driver.play(tasks, environment, lambda episode, images: episodes.append(episode))
    place = {task.episode_id(index): (at, index) for at, task in enumerate(tasks) for index in range(task.group_size)}
    return station.collect(environment, sorted(episodes, key=lambda episode: place[episode.episode_id]))


def _device(index: int) -> str:
    """GPUs take turns."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{index % count}" if count else "cpu"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
