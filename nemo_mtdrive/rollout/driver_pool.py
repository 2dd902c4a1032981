"""Batches of scenes over several engines: one process an engine, on a GPU of its own where there are GPUs.

A batch is always played whole by one engine, so the episodes do not depend on how many engines there are, on which one
took the batch, or on whether an earlier run has done the others already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nemo_mtdrive.environment.env import Environment
from nemo_mtdrive.process import die_with_parent
from nemo_mtdrive.rollout.model_driver import ModelDriver
from nemo_mtdrive.types import Episode, RolloutTask

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


T = TypeVar("T")


class EngineProcessDied(RuntimeError):
    """An engine's process ended without a word, as when the machine has no memory left for it."""


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
        EngineProcessDied: one was killed. Whatever else an engine or a reviewer raises.
    """
    if processes == 1 or len(batches) == 1:
        with _threads(station.threads):
            driver = station.open_driver(_device(0))
            try:
                environment = station.open_environment(driver)
                for number, tasks in batches.items():
                    yield number, station.collect(environment, _play(driver, environment, tasks))
            finally:
                driver.close()
        return
    context = get_context("spawn")
    counter = context.Value("i", 0)
    with ProcessPoolExecutor(min(processes, len(batches)), context, _open, (station, counter)) as pool:
        futures: dict[Future[T], int] = {
            pool.submit(_play_here, list(tasks)): number for number, tasks in batches.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise EngineProcessDied("an engine's process was killed; where memory ran out, use fewer engines or smaller "
                                    "batches; what is done is kept, run it again to go on") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _play(driver: ModelDriver, environment: Environment, tasks: Sequence[RolloutTask]) -> list[Episode]:
    episodes: list[Episode] = []
    driver.play(tasks, environment, lambda episode, images: episodes.append(episode))
    place = {task.episode_id(index): (at, index) for at, task in enumerate(tasks) for index in range(task.group_size)}
    return sorted(episodes, key=lambda episode: place[episode.episode_id])


_process: tuple[Station[Any], ModelDriver, Environment]


def _open(station: Station[Any], counter: Synchronized[int]) -> None:
    """Open driver and environment once a process."""
    global _process
    import torch

    die_with_parent()
    with counter.get_lock():
        index = counter.value
        counter.value += 1
    torch.set_num_threads(station.threads)
    driver = station.open_driver(_device(index))
    Finalize(None, driver.close, exitpriority=1)
    _process = (station, driver, station.open_environment(driver))


def _play_here(tasks: Sequence[RolloutTask]) -> Any:
    station, driver, environment = _process
    return station.collect(environment, _play(driver, environment, tasks))


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
