"""The pool with real processes: what is killed, hangs or fails loses nothing, and nothing is done that nobody wants."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from nemo_mtdrive.environment import worker_pool
from nemo_mtdrive.environment.episodes import EpisodeError, UnknownScene
from nemo_mtdrive.environment.worker_pool import Deadline, DeadlinePassed, ScoringFailed, ScoringPool, WorkerFailed
from tests.environment.environment_fakes import FakeReviewer, eventually, scene, spec, trajectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)


def run(test, workers=2, stuck_s=worker_pool.STUCK_S, **arguments):
    """Run `test(pool)` with a pool that is started before and closed after it; returns (result, lines said)."""
    said = []

    async def main():
        pool = ScoringPool(spec(**arguments), workers, said.append, stuck_s=stuck_s)
        try:
            await pool.start()
            return await asyncio.wait_for(test(pool), 60.0)
        finally:
            await pool.close()

    return asyncio.run(main()), said


def soon(seconds=60.0):
    return Deadline(time.monotonic() + seconds)


def batch(*sideways, first_x=0.0):
    return np.stack([trajectory(y, first_x) for y in sideways])


def expected(name, plans):
    return FakeReviewer().review(scene(name, None), plans)


def test_reviews_are_the_reviewers_and_scenes_are_opened():
    async def test(pool):
        plans = batch(0.25, 3.0, -1e-7)
        assert await pool.review("s1", plans, soon()) == expected("s1", plans)
        prompt, key, image = await pool.open("s2", True, soon())
        assert prompt.startswith("As an autonomous driving system") and (image == 20).all()
        assert await pool.open("s2", False, soon()) == (prompt, key, None)
        assert await pool.review("s1", plans[:0], soon()) == []
        with pytest.raises(UnknownScene, match="scene 'nowhere': the source has no such scene"):
            await pool.review("nowhere", plans, soon())
        with pytest.raises(EpisodeError, match="can be scored but not driven"):
            await pool.open("bare", False, soon())
        assert await pool.review("bare", plans, soon()) == expected("bare", plans)

    run(test)


def test_one_bad_trajectory_breaks_no_other_of_its_batch():
    async def test(pool):
        plans = np.concatenate([batch(0.5), batch(0.0, first_x=901), batch(2.5)])
        first, bad, last = await pool.review("s0", plans, soon())
        assert [first, last] == expected("s0", plans[[0, 2]]) and bad == "RuntimeError: the map has a hole\nhere"

    run(test, workers=1)


def test_a_scene_stays_with_its_worker_and_load_is_even(tmp_path):
    log = tmp_path / "calls"

    async def test(pool):
        for _ in range(3):
            await asyncio.gather(*(pool.review(f"s{i}", batch(0.1), soon()) for i in range(4)))

    run(test, calls=str(log))
    owners = {}
    for line in log.read_text().splitlines():
        process, name, _ = line.split()
        owners.setdefault(name, set()).add(process)
    reviewed = [owner for name in ("s1", "s2", "s3") for owner in owners[name]]  # s0 also warms every worker up
    assert len(reviewed) == 3 and len(set(reviewed)) == 2


def test_an_idle_worker_helps_with_a_long_queue(tmp_path):
    log = tmp_path / "calls"

    async def test(pool):
        pieces = await asyncio.gather(*(pool.review("s1", batch(*[0.5] * 64), soon()) for _ in range(24)))
        assert pieces == [expected("s1", batch(*[0.5] * 64))] * 24

    run(test, calls=str(log), pause_s=0.05)
    helped = {line.split()[0] for line in log.read_text().splitlines() if line.split()[1] == "s1"}
    assert len(helped) == 2


def test_killed_workers_lose_and_double_nothing():
    """Workers are killed with SIGKILL all the while; every job has exactly the result of a run without kills."""
    rng = random.Random(5)
    jobs = [(f"s{rng.randrange(4)}", batch(*(rng.uniform(-4, 4) for _ in range(rng.randint(1, 5))))) for _ in range(200)]

    async def test(pool):
        answered, killed = [], []

        async def ask(index, name, plans):
            reviews = await pool.review(name, plans, soon())
            answered.append((index, reviews))
            if len(answered) in (20, 70, 120):
                killed.append(rng.choice([pid for pid in pool.process_ids if pid not in killed]))
                os.kill(killed[-1], signal.SIGKILL)

        await asyncio.gather(*(ask(i, *job) for i, job in enumerate(jobs)))
        assert sorted(index for index, _ in answered) == list(range(len(jobs)))
        assert all(reviews == expected(*jobs[index]) for index, reviews in answered)
        while pool.restarts < 3:  # the last death may be seen after the last answer
            await asyncio.sleep(0.01)
        assert pool.restarts == len(set(killed)) == 3

    _, said = run(test, workers=3, pause_s=0.01)
    assert any("was killed by SIGKILL; its work goes on, it is started again" in line for line in said)


def test_work_that_kills_workers_fails_alone(monkeypatch):
    monkeypatch.setattr(worker_pool, "MAX_DEATHS", 2)

    async def test(pool):
        poison = asyncio.create_task(pool.review("s1", batch(0.0, first_x=801), soon()))
        others = await asyncio.gather(*(pool.review(f"s{i % 4}", batch(0.1 * i), soon()) for i in range(40)))
        assert others == [expected(f"s{i % 4}", batch(0.1 * i)) for i in range(40)]
        with pytest.raises(ScoringFailed, match="a scoring worker died 2 times with this in hand"):
            await poison
        assert pool.restarts == 2

    run(test)


@pytest.mark.parametrize("turns", range(4))
def test_closing_as_a_worker_comes_back_ends(turns, monkeypatch):
    """The word that a worker is warm and the end of the pool, some turns of the event loop apart."""

    async def main():
        pool = ScoringPool(spec(), 1, lambda line: None)
        await pool.start()
        await pool.review("s1", batch(0.5), soon())
        waited, word = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def read(reader):
            if waited.is_set():
                await asyncio.Event().wait()  # nothing more is heard of it
            waited.set()
            return await word

        monkeypatch.setattr(worker_pool, "_read_message", read)
        os.kill(pool.process_ids[0], signal.SIGKILL)
        async with asyncio.timeout(60.0):
            await waited.wait()
            word.set_result({})
            for _ in range(turns):
                await asyncio.sleep(0)
            await pool.close()
        assert pool.ready == 0 and pool.process_ids == []

    asyncio.run(main())


def test_a_worker_that_hangs_is_killed_and_its_work_goes_on(monkeypatch):
    monkeypatch.setattr(worker_pool, "MAX_DEATHS", 1)

    async def test(pool):
        with pytest.raises(ScoringFailed, match="died 1 times"):
            await pool.review("s1", batch(0.0, first_x=701), soon())
        assert await pool.review("s1", batch(0.5), soon()) == expected("s1", batch(0.5))

    _, said = run(test, workers=1, stuck_s=0.4)
    assert said[0] == "scoring worker 0 answered nothing for 0.4 s; it is killed"


def test_work_past_its_deadline_is_dropped(tmp_path):
    log = tmp_path / "calls"

    async def test(pool):
        first = [asyncio.create_task(pool.review("s1", batch(*[1.0] * 64), soon())) for _ in range(2)]
        late = asyncio.create_task(pool.review("s2", batch(0.5), soon(0.05)))
        await asyncio.sleep(0.1)
        pool.drop_expired()
        with pytest.raises(DeadlinePassed):
            await asyncio.wait_for(late, 0.1)  # while the worker still has the first ones
        assert not any(task.done() for task in first)
        kept = Deadline(time.monotonic() + 0.05)
        waiting = asyncio.create_task(pool.review("s3", batch(0.5), kept))
        kept.extend(soon())
        await asyncio.gather(*first, waiting)

    run(test, workers=1, calls=str(log), pause_s=0.3)
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["s0", "s1", "s1", "s3"]


def test_workers_that_do_not_start_say_why():
    with pytest.raises(WorkerFailed, match="RuntimeError: no scenes here"):
        run(None, broken=True)
    with pytest.raises(ValueError, match="workers=0: set it to 1 or more"):
        ScoringPool(spec(), 0, print)


def test_nothing_is_left_behind():
    before = set(psutil.Process().children())

    async def test(pool):
        pending = asyncio.create_task(pool.review("s1", batch(0.5), soon()))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(ScoringFailed, match="the server ends"):
            await pending
        return [psutil.Process(p) for p in pool.process_ids]

    run(test, pause_s=0.5)
    assert eventually(lambda: set(psutil.Process().children()) <= before)
