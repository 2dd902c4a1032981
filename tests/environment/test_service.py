"""The endpoints in this process: back-pressure, deadlines, what is sent twice, metrics."""

from __future__ import annotations

import asyncio
import re

import msgpack
import numpy as np
import pytest

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment import service as service_module
from nemo_mtdrive.environment.episodes import StepFailed
from nemo_mtdrive.environment.kept import KeptReplies
from nemo_mtdrive.environment.service import EnvironmentService
from nemo_mtdrive.environment.worker_pool import Deadline
from tests.environment.asgi import Held, ask, service
from tests.environment.environment_fakes import FakeReviewer, answer, scene, trajectory

PLANS = np.stack([trajectory(0.25), trajectory(3.0)])
SCORE = messages.pack_scores([("s1", PLANS)], feedback=True)


def play(test, **options):
    """Run `test(service, scoring)` in an event loop."""
    async def main():
        scoring = Held()
        return await asyncio.wait_for(test(service(scoring, **options), scoring), 20.0)

    return asyncio.run(main())


async def start(served, *episodes):
    reply = await ask(served, "/v1/reset", messages.pack_resets([(e, "s0", False) for e in episodes]))
    assert reply.status == 200


async def settled(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("did not come true")


def test_scores_are_the_reviewers():
    async def test(served, scoring):
        items = [("s1", PLANS), ("s3", PLANS[:1]), ("nowhere", PLANS), ("s1", PLANS[1:]), ("s2", PLANS[:0])]
        reply = await ask(served, "/v1/score", messages.pack_scores(items, feedback=True))
        first, second, unknown, third, none = messages.unpack_reviews(reply.body)
        whole = FakeReviewer().review(scene("s1", None), PLANS)
        assert (first, third, none) == (whole, whole[1:], []) and second == whole[:1]
        assert unknown == "UnknownScene: scene 'nowhere': the source has no such scene"
        assert scoring.agent.calls == [("s1", 3), ("s3", 1)]  # a scene's trajectories are one batch
        reply = await ask(served, "/v1/score", messages.pack_scores(items[:1], feedback=False))
        assert [(r.scores, r.violations, r.feedback) for r in messages.unpack_reviews(reply.body)[0]] == [
            (r.scores, [], "") for r in whole]

    play(test)


def test_trajectories_may_come_as_lists_or_one_by_one():
    async def test(served, scoring):
        for field, value in (("trajectories", PLANS.tolist()), ("trajectory", PLANS[1].tolist()),
                             ("trajectory", messages.unpack(messages.pack({"t": PLANS[1]}))["t"])):
            body = msgpack.packb({"items": [{"scene_id": "s1", field: value}]})
            [reviews] = messages.unpack_reviews((await ask(served, "/v1/score", body)).body)
            assert reviews[-1].scores["PDMS"] == 0.25

    play(test)


def test_a_full_queue_is_503_with_retry_after_and_the_rest_goes_on():
    async def test(served, scoring):
        scoring.go.clear()
        first = asyncio.create_task(ask(served, "/v1/score", messages.pack_scores([("s1", PLANS[[0] * 8])], False)))
        await settled(lambda: b"queue_items 8.0" in served.metrics.text())
        refused = await ask(served, "/v1/score", messages.pack_scores([("s1", PLANS[[0] * 3])], False))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.text == "the queue is full: 8 items in it, at most 10\n"
        fits = asyncio.create_task(ask(served, "/v1/score", SCORE))
        await asyncio.sleep(0.01)
        scoring.go.set()
        assert [(await first).status, (await fits).status] == [200, 200]
        large = await ask(served, "/v1/score", messages.pack_scores([("s1", PLANS[[0] * 50])], False))
        assert large.status == 200 and served.idle  # larger than the queue, but alone

    play(test, queue_items=10)


def test_a_deadline_is_504_and_the_answer_is_kept_for_who_asks_again():
    async def test(served, scoring):
        await start(served, "e")
        scoring.go.clear()
        step = messages.pack_steps([("e", 0, answer(2.0))])
        late = await ask(served, "/v1/step", step, x_deadline_s="0.05")
        assert (late.status, late.text) == (504, "the deadline passed; the work was dropped\n") and scoring.dropped == 1
        again = asyncio.create_task(ask(served, "/v1/step", step))
        other = asyncio.create_task(ask(served, "/v1/step", messages.pack_steps([("e", 0, "something else")])))
        await asyncio.sleep(0.01)
        scoring.go.set()
        assert (await again).body == (await other).body and scoring.agent.calls == [("s0", 1)]

    play(test)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon", "", "1e400"])
def test_a_deadline_is_a_number_of_seconds(value):
    async def test(served, scoring):
        reply = await ask(served, "/v1/score", SCORE, x_deadline_s=value)
        assert (reply.status, reply.text) == (400, f"X-Deadline-S: got {value!r}, want seconds\n")

    play(test)


def test_a_request_id_is_scored_once():
    async def test(served, scoring):
        scoring.go.clear()
        both = [asyncio.create_task(ask(served, "/v1/score", SCORE, x_request_id="one")) for _ in range(2)]
        await asyncio.sleep(0.01)
        scoring.go.set()
        replies = [*[await task for task in both], await ask(served, "/v1/score", SCORE, x_request_id="one")]
        assert len({reply.body for reply in replies}) == 1 and scoring.agent.calls == [("s1", 2)]
        other = await ask(served, "/v1/score", messages.pack_scores([("s2", PLANS)], False), x_request_id="one")
        assert other.status == 400 and "used before with another body" in other.text
        long = await ask(served, "/v1/score", SCORE, x_request_id="x" * 129)
        assert (long.status, long.text) == (400, "X-Request-Id: got 129 characters, want at most 128\n")
        await ask(served, "/v1/score", SCORE, x_request_id="two")
        assert scoring.agent.calls == [("s1", 2)] * 2

    play(test)


def test_kept_replies_are_bounded_and_failures_are_not_kept():
    async def test():
        now = [0.0]
        kept = KeptReplies(max_replies=3, max_bytes=100, max_age_s=10.0, clock=lambda: now[0])

        async def work(size):
            if size < 0:
                raise ValueError
            return b"x" * size

        async def add(name, size):
            task = asyncio.create_task(work(size))
            kept.keep(name, b"", Deadline(0.0), task)
            await asyncio.wait({task})
            await asyncio.sleep(0)
            return task

        (await add("failed", -1)).exception()
        assert len(kept) == 0
        for name in "abcd":
            await add(name, 10)
        assert [kept.task(name, b"", Deadline(0.0)) is not None for name in "abcd"] == [False, True, True, True]
        await add("large", 85)
        assert [kept.task(name, b"", Deadline(0.0)) is not None for name in ("d", "large")] == [True, True]
        assert len(kept) == 2
        now[0] = 11.0
        await add("late", 1)
        assert len(kept) == 1

    asyncio.run(test())


def test_one_scene_that_breaks_fails_its_own_items():
    async def test(served, scoring):
        await start(served, "a", "b", "c")

        async def review(scene_id, trajectories, deadline):
            reviews = FakeReviewer().review(scene(scene_id, None), np.minimum(trajectories, 9.0))
            return ["RuntimeError: hole" if t[0, 0] > 900 else r for t, r in zip(trajectories, reviews, strict=True)]

        scoring.review = review
        items = [("a", 0, answer(2.0)), ("b", 0, answer(0.0, first_x=901)), ("c", 0, "unreadable")]
        reply = await ask(served, "/v1/step", messages.pack_steps(items))
        a, b, c = messages.unpack_results(reply.body)
        assert a.scores["PDMS"] == pytest.approx(1 / 3) and b == StepFailed("b", 0, "RuntimeError: hole")
        assert c.format_score == 0.0
        again = messages.unpack_results((await ask(served, "/v1/step", messages.pack_steps([("b", 0, answer(0.0))]))).body)
        assert again[0].reason == "clean"  # it had not moved
        assert re.search(r"scoring_failures_total 1\.0\n", served.metrics.text().decode())

    play(test)


def test_a_reset_that_was_overtaken_does_not_start_anew():
    async def test(served, scoring):
        scoring.go.clear()
        slow = asyncio.create_task(ask(served, "/v1/reset", messages.pack_resets([("e", "s0", True)])))
        await asyncio.sleep(0.01)
        held, scoring.go = scoring.go, asyncio.Event()
        scoring.go.set()
        await start(served, "e")
        first = await ask(served, "/v1/step", messages.pack_steps([("e", 0, answer(2.0))]))
        held.set()
        assert (await slow).status == 200
        assert (await ask(served, "/v1/step", messages.pack_steps([("e", 0, "")]))).body == first.body
        assert (await ask(served, "/v1/step", messages.pack_steps([("e", 1, "")]))).status == 200

    play(test)


def test_metrics_say_what_happened():
    async def test(served, scoring):
        await start(served, "a", "b")
        await ask(served, "/v1/step", messages.pack_steps([("a", 0, answer(0.0)), ("b", 0, answer(2.0))]))
        await ask(served, "/v1/score", SCORE)
        await ask(served, "/v1/score", b"")
        assert (await ask(served, "/metrics", method="GET", token="wrong")).status == 401
        reply = await ask(served, "/metrics", method="GET")
        lines = reply.text.splitlines()
        for line in ('requests_total{route="/v1/score",status="200"} 1.0',
                     'requests_total{route="/v1/score",status="400"} 1.0',
                     'request_seconds_count{route="/v1/score"} 2.0', "queue_items 0.0", "queue_limit_items 1000.0",
                     "episodes 2.0", "scored_trajectories_total 4.0", "scoring_failures_total 0.0",
                     "worker_restarts_total 0.0", "workers_ready 1.0"):
            assert f"nemo_mtdrive_environment_{line}" in lines
        other = service(Held())
        assert b'route="/v1/score"' not in other.metrics.text()  # no state is shared

    play(test)


def test_ready_and_draining():
    async def test(served, scoring):
        scoring.ready = 0
        reply = await ask(served, "/ready", method="GET")
        assert (reply.status, reply.text) == (503, "0 of 1 scoring workers are warm\n")
        assert (await ask(served, "/v1/score", SCORE)).status == 200  # it waits until one is
        served.draining = True
        for path, method in (("/ready", "GET"), ("/v1/score", "POST")):
            reply = await ask(served, path, SCORE, method=method)
            assert reply.status == 503 and reply.text.startswith("the server is draining")
        assert (await ask(served, "/health", method="GET")).text == "ok\n"

    play(test)


def test_bodies_are_bounded_in_size_number_and_time(monkeypatch):
    async def test(served, scoring):
        monkeypatch.setattr(service_module, "MAX_BODY_BYTES", 100)
        reply = await ask(served, "/v1/score", b"x" * 101, chunk=10)
        assert (reply.status, reply.text) == (413, "body: want at most 100 bytes; send fewer items a request\n")
        monkeypatch.setattr(service_module, "MAX_BODIES_BYTES", 50)
        reply = await ask(served, "/v1/score", b"x" * 60, chunk=10)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        reply = await ask(served, "/v1/score", b"x" * 40, chunk=10)
        assert reply.status == 400  # what was refused is not counted any more

    play(test)


def test_before_the_start_nothing_is_answered():
    async def test():
        reply = await ask(EnvironmentService("a-secret-of-the-tests", 1), "/v1/score", SCORE)
        assert (reply.status, reply.text) == (503, "scoring is warming up\n")

    asyncio.run(test())
