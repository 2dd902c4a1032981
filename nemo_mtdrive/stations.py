"""One kind of work on many items, over processes that open what it takes once: each its own station.

What a station holds (a source of scenes, an agent, an engine) is costly to open and cannot be sent to another process, so
it is told how to open one. With one process the work is done in this one.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeVar

from nemo_mtdrive.process import die_with_parent

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

Station = TypeVar("Station")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessDied(RuntimeError):
    """A process of the work ended without a word, as when the machine has no memory left for it."""


def work_at_stations(open_station: Callable[[int], AbstractContextManager[Station]],
                     work: Callable[[Station, Item], Result], items: Sequence[Item],
                     processes: int) -> Iterator[tuple[int, Result]]:
    """Do the work on each item; yields (place of the item, its result) as it is done, in any order.

    Stations are closed when the work is done or the iterator is dropped; what has begun then is finished before. Ctrl-C in
    a terminal ends the processes at once.

    Args:
        open_station: given 0, 1, ... for each process; both functions must be importable by another process.
        processes: most processes; with one, or one item, the work is done in this one.

    Raises:
        ProcessDied: one was killed. Whatever else a station or the work raises.
    """
    if min(processes, len(items)) <= 1:
        with ExitStack() as stack:
            station = stack.enter_context(open_station(0)) if items else None
            for place, item in enumerate(items):
                yield place, work(station, item)  # type: ignore[arg-type]  # None only where there are no items
        return
    context = get_context("spawn")
    arguments = (open_station, work, context.Value("i", 0))
    pool = ProcessPoolExecutor(min(processes, len(items)), context, _open, arguments)
    futures: dict[Future[Result], int] = {pool.submit(_work, item): place for place, item in enumerate(items)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise ProcessDied("a process of this work was killed; where memory ran out, ask for fewer processes or smaller "
                          "batches, and run it again to go on") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_here: tuple[Any, Callable[[Any, Any], Any]]
"""This process's station and the work."""


def _open(open_station: Callable[[int], AbstractContextManager[Any]], work: Callable[[Any, Any], Any],
          counter: Synchronized[int]) -> None:
    """Open the station once a process."""
    global _here
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback beside that of the one who was asked to stop
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    stack = ExitStack()
    Finalize(None, stack.close, exitpriority=1)
    _here = (stack.enter_context(open_station(number)), work)


def _work(item: Any) -> Any:
    station, work = _here
    return work(station, item)
