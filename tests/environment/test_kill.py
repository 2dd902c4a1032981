"""Whole servers and their workers are killed in mid-load: the client's results are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil

from nemo_mtdrive.environment.client import EnvironmentClient
from nemo_mtdrive.environment.env import DrivingEnvironment
from tests.environment.environment_fakes import MAX_TURNS, FakeReviewer, FakeScenes, answer, eventually, scene, trajectory

TOKEN = "a-secret-of-the-tests"
THREADS = 4


def answers_of(episode):
    """What an episode says, by its name alone."""
    rng = random.Random(episode)
    return [answer(round(rng.uniform(0.5, 3.0), 3)) if rng.random() < 0.9 else "unreadable" for _ in range(MAX_TURNS)]


def play(environment, group):
    """Play eight episodes of a scene to their end; every result by (episode, turn)."""
    episodes = [f"g{group}/{index}" for index in range(8)]
    environment.reset_many([(episode, f"s{group % 4}", False) for episode in episodes])
    results, running = {}, episodes
    for turn in range(MAX_TURNS):
        for result in environment.step_many([(episode, turn, answers_of(episode)[turn]) for episode in running]):
            assert (result.episode_id, result.turn) not in results
            results[result.episode_id, result.turn] = result
        running = [episode for episode in running if not results[episode, turn].done]
    environment.close_many(episodes)
    return results


def same(one, other):
    np.testing.assert_equal({key: vars(value) for key, value in one.items()},
                            {key: vars(value) for key, value in other.items()})


def test_a_server_killed_in_mid_load_loses_and_doubles_nothing(start):
    """Two servers; the one in use is killed, comes back, and then the other one is killed."""
    slow = {"worker": {"pause_s": 0.02}, "workers": 1}
    first, second = start(**slow).wait_ready(), start(**slow).wait_ready()
    done, enough = threading.Semaphore(0), threading.Event()

    def player(number):
        found, group = {}, number
        while not enough.is_set():
            found |= play(client, group)
            done.release()
            group += THREADS
        return found

    def load_goes_on():
        for _ in range(2 * THREADS):
            assert done.acquire(timeout=30)

    with (EnvironmentClient([first.url, second.url], TOKEN, timeout_s=60.0, retries=20) as client,
          ThreadPoolExecutor(THREADS) as threads):
        players = [threads.submit(player, number) for number in range(THREADS)]
        load_goes_on()
        first.process.kill()
        first.process.wait()
        back = start(first.port, **slow).wait_ready()
        load_goes_on()
        assert client.url == second.url
        second.process.kill()
        load_goes_on()
        enough.set()
        found = [each.result(60) for each in players]
        assert client.url == back.url

    here = DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS)
    for number, results in enumerate(found):
        groups = sorted({int(episode[1:].split("/")[0]) for episode, _ in results})
        assert groups == list(range(number, max(groups) + 1, THREADS))
        wanted = {}
        for group in groups:
            wanted |= play(here, group)
        assert len(results) == len(wanted)
        same(results, wanted)


def test_a_worker_killed_in_mid_load_loses_and_doubles_nothing(start, tmp_path):
    log = tmp_path / "calls"
    running = start(worker={"pause_s": 0.02, "calls": str(log)}, workers=2).wait_ready()
    here = FakeReviewer()
    rng = random.Random(1)
    items = [(f"s{rng.randrange(4)}", np.stack([trajectory(rng.uniform(-3, 3)) for _ in range(rng.randint(40, 80))]))
             for _ in range(40)]
    with EnvironmentClient(running.url, TOKEN, timeout_s=60.0, retries=0) as client, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.score_many, items, feedback=True)
        assert eventually(lambda: len(log.read_text().splitlines()) > 3)
        worker = psutil.Process(running.process.pid).children()[0]
        os.kill(worker.pid, signal.SIGKILL)
        scored = asked.result(60)
        assert scored == [here.review(scene(name, None), plans) for name, plans in items]
        metrics = httpx.get(f"{running.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False).text
        total = sum(len(plans) for _, plans in items)
        assert f"nemo_mtdrive_environment_scored_trajectories_total {float(total)}" in metrics
        assert "nemo_mtdrive_environment_worker_restarts_total 1.0" in metrics
        client.wait_ready(30.0)
    code, _, err = running.stop()
    assert code == 0 and "scoring worker 0 was killed by SIGKILL" in err


def test_sigterm_finishes_what_is_in_hand_and_refuses_the_rest(start):
    running = start(worker={"pause_s": 1.0}, workers=1).wait_ready()
    with EnvironmentClient(running.url, TOKEN, timeout_s=20.0, retries=0) as client, ThreadPoolExecutor(1) as threads, \
            httpx.Client(trust_env=False) as open_before:
        open_before.get(f"{running.url}/health")
        asked = threads.submit(client.score, "s1", trajectory(0.5)[None])
        time.sleep(0.3)
        running.process.terminate()
        time.sleep(0.2)
        refused = open_before.get(f"{running.url}/ready")
        assert (refused.status_code, refused.text[:22]) == (503, "the server is draining")
        assert asked.result(20)[0].scores["PDMS"] == 1 / 1.5
        assert running.ended()[0] == 0


def test_a_full_queue_is_waited_for(start):
    """Eight clients against a queue that holds one request: all get their scores, nobody counts it as a failure."""
    running = start(worker={"pause_s": 0.1}, workers=1, queue_items=4).wait_ready()
    plans = np.stack([trajectory(0.1 * index) for index in range(4)])

    def ask(number):
        with EnvironmentClient(running.url, TOKEN, timeout_s=60.0, retries=0) as client:
            return client.score(f"s{number % 4}", plans)

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(ask, range(6)))
    wanted = [review.scores for review in FakeReviewer().review(scene("s0", None), plans)]
    assert [[review.scores for review in reviews] for reviews in found] == [wanted] * 6
    metrics = httpx.get(f"{running.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False).text
    assert 'requests_total{route="/v1/score",status="503"}' in metrics
