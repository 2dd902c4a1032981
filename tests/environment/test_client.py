"""The client: equal to the environment in this process, and steady when servers come and go."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nemo_mtdrive.environment.client import EnvironmentClient, EnvironmentRefused, EnvironmentUnavailable
from nemo_mtdrive.environment.env import DrivingEnvironment, EpisodeError, OutOfOrder, UnknownEpisode, UnknownScene
from tests.environment.environment_fakes import MAX_TURNS, FakeReviewer, FakeScenes, answer

TOKEN = "a-secret-of-the-tests"


def _same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        first, second = vars(one), vars(other)
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_equal(second[key], value)
            assert getattr(second[key], "dtype", None) == getattr(value, "dtype", None)


def test_it_gives_what_the_environment_gives(client):
    here = DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS)
    resets = [("same/a", "s0", True), ("same/b", "s0", False), ("same/c", "s3", True)]
    _same(here.reset_many(resets), client.reset_many(resets))
    first = [("same/a", 0, answer(2.5)), ("same/b", 0, "no list \u4e00\x00"), ("same/c", 0, answer(0.25))]
    _same(here.step_many(first), client.step_many(first))
    second = [("same/b", 1, answer(-7.125)), ("same/a", 1, answer(0.0))]
    _same(here.step_many(second), client.step_many(second))
    _same([here.step("same/a", 0, "again")], [client.step("same/a", 0, "again")])
    client.close("same/a")
    with pytest.raises(UnknownEpisode):
        client.step("same/a", 2, "")


def test_replies_do_not_wait_for_acknowledgements(client):
    client.reset("n", "s0", want_image=False)
    spent = []
    for _ in range(20):
        began = time.perf_counter()
        client.step("n", 0, answer(2.0))
        spent.append(time.perf_counter() - began)
    assert min(spent) < 0.03  # 0.04 s and more with Nagle's algorithm


def test_arrays_can_be_written_to(client):
    seen = client.reset("w", "s1", want_image=True)
    seen.image[0, 0] = 1
    client.step("w", 0, answer(0.0)).trajectory[0] = 1.0


def test_refusals_are_the_environments(client):
    with pytest.raises(UnknownScene, match=r"^scene 'nowhere': the source has no such scene$"):
        client.reset("r", "nowhere", want_image=False)
    with pytest.raises(EpisodeError, match="can be scored but not driven"):
        client.reset("r", "bare", want_image=False)
    client.reset("r", "s0", want_image=False)
    with pytest.raises(OutOfOrder, match=r"^episode 'r': got turn 2, want turn 0$"):
        client.step("r", 2, "")
    with pytest.raises(EnvironmentUnavailable, match="scoring failed: RuntimeError: the map has a hole"):
        client.step("r", 0, answer(0.0).replace("(0,", "(901,"))
    assert client.step_many([]) == [] and client.reset_many([]) == []


def test_a_wrong_token_is_not_tried_again(server):
    with EnvironmentClient(server.url, "wrong", timeout_s=20.0, retries=5) as stranger:
        began = time.monotonic()
        with pytest.raises(EnvironmentRefused, match="401 the bearer token is missing or wrong"):
            stranger.reset("e", "s0", want_image=False)
        assert time.monotonic() - began < 1.0


def test_a_server_that_is_away_is_tried_again_and_then_unavailable(start):
    running = start().wait_ready()
    with EnvironmentClient(running.url, TOKEN, timeout_s=30.0, retries=3) as client:
        client.reset("e", "s0", want_image=False)
        client.step("e", 0, answer(2.0))
        running.process.kill()
        running.process.wait()
        began = time.monotonic()
        with pytest.raises(EnvironmentUnavailable, match=r"attempt 4 was the last: ConnectError"):
            client.step("e", 1, answer(2.0))
        assert 0.35 <= time.monotonic() - began < 3.0  # pauses of 0.1, 0.2 and 0.4 s, each times 0.5 to 1.5


def test_a_restarted_server_goes_on_where_the_episodes_were(start):
    here = DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS)
    running = start().wait_ready()
    with EnvironmentClient(running.url, TOKEN, timeout_s=30.0, retries=20) as client:
        for environment in (here, client):
            environment.reset_many([("e", "s0", False), ("f", "s1", False)])
            environment.step_many([("e", 0, answer(2.0))])
            environment.step_many([("e", 1, "unreadable"), ("f", 0, answer(3.0))])
        running.process.kill()
        running.process.wait()
        start(running.port)  # comes up while the client is trying again
        last = [("e", 2, answer(4.0)), ("f", 1, answer(1.0))]
        _same(here.step_many(last), client.step_many(last))


def test_a_server_that_somebody_starts_again_is_waited_for(start):
    running = start().wait_ready()
    with EnvironmentClient(running.url, TOKEN, timeout_s=120.0, retries=1, waits=True) as client, \
            EnvironmentClient(running.url, TOKEN, timeout_s=2.0, retries=1, waits=True) as hasty:
        client.reset("e", "s0", want_image=False)
        before = client.step("e", 0, answer(2.0))
        running.process.kill()
        running.process.wait()
        began = time.monotonic()
        with pytest.raises(EnvironmentUnavailable, match="ConnectError"):  # far more attempts than one
            hasty.reset("f", "s0", want_image=False)
        assert time.monotonic() - began > 0.5
        start(running.port)
        assert client.step("e", 1, answer(0.0)).reason == "clean"
        _same([client.step("e", 0, answer(9.0))], [before])


def test_another_server_takes_over(start):
    first, second = start().wait_ready(), start().wait_ready()
    with EnvironmentClient([first.url, second.url], TOKEN, timeout_s=30.0, retries=1) as client:
        client.reset("e", "s0", want_image=False)
        before = client.step("e", 0, answer(2.0))
        first.process.kill()
        first.process.wait()
        assert client.step("e", 1, answer(0.0)).reason == "clean"
        assert client.url == second.url
        _same([client.step("e", 0, answer(9.0))], [before])


def test_an_episode_that_this_client_never_opened_stays_unknown(client):
    with pytest.raises(UnknownEpisode, match="episode 'stranger': not open here; reset it first"):
        client.step("stranger", 0, "")


def test_the_deadline_holds_and_a_lost_reply_is_kept(start):
    here = DrivingEnvironment(FakeScenes(), FakeReviewer(), MAX_TURNS)
    slow = start(worker={"pause_s": 1.5}).wait_ready()
    with (EnvironmentClient(slow.url, TOKEN, timeout_s=0.3, retries=50) as hasty,
          EnvironmentClient(slow.url, TOKEN, timeout_s=30.0, retries=0) as patient):
        for environment in (here, hasty):
            environment.reset("e", "s0", want_image=False)
        began = time.monotonic()
        with pytest.raises(EnvironmentUnavailable, match="ReadTimeout|504 the deadline passed"):
            hasty.step("e", 0, answer(2.0))
        assert time.monotonic() - began < 1.5
        _same([here.step("e", 0, answer(2.0))], [patient.step("e", 0, "not an answer to this")])


def test_addresses_are_needed():
    with pytest.raises(ValueError, match="urls is empty"):
        EnvironmentClient([], TOKEN, timeout_s=1.0, retries=0)
    with EnvironmentClient("http://127.0.0.1:9", TOKEN, timeout_s=1.0, retries=0) as client, pytest.raises(
            EnvironmentUnavailable, match=r"not ready after 0\.1 s"):
        client.wait_ready(0.1)
