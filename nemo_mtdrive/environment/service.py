"""The environment's HTTP endpoints: who may ask, how much, until when, and what is answered.

    GET  /health    200 while the process lives
    GET  /ready     200 while all scoring workers are warm and new work is taken, else 503
    GET  /metrics   Prometheus text; needs the token
    POST /v1/reset  {items: [{episode_id, scene_id, want_image}]}      -> {items: [Observation]}
    POST /v1/step   {items: [{episode_id, turn, answer}]}              -> {items: [StepResult | {episode_id, turn, error}]}
    POST /v1/close  {items: [{episode_id}]}                            -> {items: []}
    POST /v1/score  {items: [{scene_id, trajectories}], feedback?}     -> {items: [{reviews: [...]} | {error}]}

Bodies are msgpack (`messages`). POSTs carry `Authorization: Bearer TOKEN`, may carry `X-Deadline-S` (seconds that the
client will wait; later the work is dropped) and, for /v1/score, `X-Request-Id` (the same id again gets the kept reply).
An error is one line of text: 400 a bad body or header, 401 no token, 404 an unknown episode or scene, 408 a body that
does not come, 409 a turn out of order, 413 a body too large, 500 a scene cannot be opened, 503 not ready, draining, or
(with Retry-After) the queue is full, 504 the deadline passed. A scene whose scoring fails is an `error` of its items.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.episodes import EpisodeError, OutOfOrder, UnknownEpisode, UnknownScene
from nemo_mtdrive.environment.kept import KeptReplies
from nemo_mtdrive.environment.metrics import ServerMetrics
from nemo_mtdrive.environment.served import ServedEnvironment
from nemo_mtdrive.environment.worker_pool import Deadline, DeadlinePassed, ScoringFailed, ScoringPool

MAX_BODY_BYTES = 16 * 2**20
"""Largest request body; a step of 1,000 answers has about 0.3 MB, 12,288 trajectories have 3 MB."""
MAX_BODIES_BYTES = 16 * MAX_BODY_BYTES
"""Bodies that may be in memory at once."""
BODY_S = 30.0
"""How long a body may take to come [s]."""
LONGEST_DEADLINE_S = 600.0
"""Deadline of requests that name none, and the latest that one may name [s]."""
RETRY_AFTER_S = 1
"""When to come again after a full queue [s]."""
MAX_REQUEST_ID = 128

Work = Callable[[], Coroutine[None, None, bytes]]


class Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, line: str, retry_after_s: int | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.line = line
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}


class EnvironmentService:
    """The FastAPI application (`app`) over a pool that may still be starting.

    Args:
        token: the secret of its clients.
        queue_items: items (episodes or trajectories) that may be waiting or in hand; more are refused with 503. One
            request that is larger is taken when nothing else is in hand.
    """

    def __init__(self, token: str, queue_items: int) -> None:
        if not token:
            raise ValueError("token is empty: set it to a secret of your own")
        self._token = token.encode()
        self._queue_items = queue_items
        self._environment: ServedEnvironment | None = None
        self._pool: ScoringPool | None = None
        self._kept = KeptReplies()
        self._tasks: dict[asyncio.Task[bytes], int] = {}
        self._items = 0
        self._open_requests = 0
        self._bodies_bytes = 0
        self.draining = False
        self.metrics = ServerMetrics()
        self.app = FastAPI(title="nemo_mtdrive environment", docs_url=None, redoc_url=None, openapi_url=None)
        for path, get in (("/health", self._health), ("/ready", self._ready), ("/metrics", self._metrics)):
            self.app.add_api_route(path, self._measured(path, get), methods=["GET"])
        for path, plan in (("/v1/reset", self._reset), ("/v1/step", self._step), ("/v1/close", self._close),
                           ("/v1/score", self._score)):
            self.app.add_api_route(path, self._measured(path, self._posted(plan)), methods=["POST"])

    def start(self, pool: ScoringPool, max_turns: int) -> None:
        """Answer requests from this (warm) pool; /ready is 200 from now on."""
        environment = ServedEnvironment(pool, max_turns)
        self._pool, self._environment = pool, environment
        self.metrics.watch(
            {"queue_items": ("Episodes and trajectories waiting or in hand", lambda: self._items),
             "queue_limit_items": ("Items above which requests are refused with 503", lambda: self._queue_items),
             "episodes": ("Episodes kept", lambda: len(environment.episodes)),
             "workers_ready": ("Scoring workers that are warm", lambda: pool.ready)},
            {"scored_trajectories": ("Trajectories reviewed", lambda: environment.scored),
             "scoring_failures": ("Trajectories whose review failed", lambda: environment.failed),
             "worker_restarts": ("Scoring workers that died and were started again", lambda: pool.restarts)})

    @property
    def idle(self) -> bool:
        """Whether no request is in hand."""
        return not self._open_requests and not self._tasks

    async def _health(self, request: Request) -> Response:
        return _line(200, "ok")

    async def _ready(self, request: Request) -> Response:
        self._working()
        return _line(200, "ready")

    async def _metrics(self, request: Request) -> Response:
        self._authorise(request)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _reset(self, environment: ServedEnvironment, body: bytes, deadline: Deadline) -> tuple[int, Work]:
        items = messages.unpack_resets(body)

        async def work() -> bytes:
            return messages.pack_observations(await environment.reset_many(items, deadline))

        return len(items), work

    def _step(self, environment: ServedEnvironment, body: bytes, deadline: Deadline) -> tuple[int, Work]:
        items = messages.unpack_steps(body)

        async def work() -> bytes:
            return messages.pack_results(await environment.step_many(items, deadline))

        return len(items), work

    def _close(self, environment: ServedEnvironment, body: bytes, deadline: Deadline) -> tuple[int, Work]:
        episode_ids = messages.unpack_closes(body)

        async def work() -> bytes:
            environment.close_many(episode_ids)
            return messages.pack({"items": []})

        return 0, work

    def _score(self, environment: ServedEnvironment, body: bytes, deadline: Deadline) -> tuple[int, Work]:
        items, feedback = messages.unpack_scores(body)

        async def work() -> bytes:
            return messages.pack_reviews(await environment.score_many(items, deadline), feedback)

        return sum(len(trajectories) for _, trajectories in items), work

    def _measured(self, route: str, answer: Callable[[Request], Awaitable[Response]],
                  ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            began, status = time.perf_counter(), 500
            self._open_requests += 1
            try:
                response = await answer(request)
                status = response.status_code
            except Refused as refused:
                status = refused.status
                response = _line(refused.status, refused.line, refused.headers)
            finally:
                self._open_requests -= 1
                self.metrics.answered(route, status, time.perf_counter() - began)
            return response

        return endpoint

    def _posted(self, plan: Callable[[ServedEnvironment, bytes, Deadline], tuple[int, Work]],
                ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that takes a body, does what `plan` makes of it, and waits for it until the deadline."""
        async def answer(request: Request) -> Response:
            self._authorise(request)
            environment = self._working(all_warm=False)
            deadline = _deadline(request)
            at = deadline.at
            request_id = _request_id(request)
            body = await self._body(request, deadline)
            try:
                task = self._kept.task(request_id, body, deadline) if request_id else None
                if task is None:
                    task = self._begin(*plan(environment, body, deadline))
                    if request_id:
                        self._kept.keep(request_id, body, deadline, task)
                reply = await self._until(at, task)
            except (UnknownEpisode, UnknownScene) as error:
                raise Refused(404, f"{type(error).__name__}: {error}") from error
            except OutOfOrder as error:
                raise Refused(409, f"OutOfOrder: {error}") from error
            except (messages.MessageError, EpisodeError) as error:
                raise Refused(400, f"{type(error).__name__}: {error}") from error
            except ScoringFailed as error:
                raise Refused(500, f"ScoringFailed: {error}") from error
            except DeadlinePassed as error:
                raise Refused(504, "the deadline passed; the work was dropped") from error
            return Response(reply, media_type="application/msgpack")

        return answer

    def _authorise(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), self._token):
            raise Refused(401, "the bearer token is missing or wrong")

    def _working(self, all_warm: bool = True) -> ServedEnvironment:
        """The environment, where new work is taken."""
        if self.draining:
            raise Refused(503, "the server is draining: it finishes what it has and ends")
        if self._environment is None or self._pool is None:
            raise Refused(503, "scoring is warming up")
        if all_warm and self._pool.ready < self._pool.size:
            raise Refused(503, f"{self._pool.ready} of {self._pool.size} scoring workers are warm")
        return self._environment

    async def _body(self, request: Request, deadline: Deadline) -> bytes:
        """The whole body; reading stops as soon as it is too large, whatever its Content-Length says."""
        body = bytearray()
        try:
            async with asyncio.timeout(min(BODY_S, deadline.left_s)):
                async for chunk in request.stream():
                    body += chunk
                    self._bodies_bytes += len(chunk)
                    if len(body) > MAX_BODY_BYTES:
                        raise Refused(413, f"body: want at most {MAX_BODY_BYTES} bytes; send fewer items a request")
                    if self._bodies_bytes > MAX_BODIES_BYTES:
                        raise Refused(503, "too many large requests at once", RETRY_AFTER_S)
        except TimeoutError as error:
            raise Refused(408, "the body did not come in time") from error
        except ClientDisconnect as error:
            raise Refused(400, "the body was cut short") from error
        finally:
            self._bodies_bytes -= len(body)
        return bytes(body)

    def _begin(self, items: int, work: Work) -> asyncio.Task[bytes]:
        """Start work that may outlast its request; refuse it when the queue is full."""
        if self._items and self._items + items > self._queue_items:
            raise Refused(503, f"the queue is full: {self._items} items in it, at most {self._queue_items}", RETRY_AFTER_S)
        task = asyncio.create_task(work())
        self._items += items
        self._tasks[task] = items
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self._items -= self._tasks.pop(task)
        if not task.cancelled():
            task.exception()  # seen: where its request has gone already, nobody else will ask

    async def _until(self, at: float, task: asyncio.Task[bytes]) -> bytes:
        """The result of work, or what it raises; the work goes on when the deadline of this request comes first."""
        done, _ = await asyncio.wait({task}, timeout=max(0.0, at - time.monotonic()))
        if not done:
            assert self._pool is not None, "work begins after the start"
            self._pool.drop_expired()
            raise DeadlinePassed
        return task.result()


def _deadline(request: Request) -> Deadline:
    text = request.headers.get("x-deadline-s", str(LONGEST_DEADLINE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Refused(400, f"X-Deadline-S: got {text[:40]!r}, want seconds")
    return Deadline(time.monotonic() + min(seconds, LONGEST_DEADLINE_S))


def _request_id(request: Request) -> str:
    """The id under which the reply is kept, "" for none; steps and resets need none, their items have ids."""
    name: str = request.headers.get("x-request-id", "")
    if len(name) > MAX_REQUEST_ID:
        raise Refused(400, f"X-Request-Id: got {len(name)} characters, want at most {MAX_REQUEST_ID}")
    return f"{request.url.path} {name}" if name else ""


def _line(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(" ".join(text.split()) + "\n", status_code=status, headers=dict(headers or {}),
                    media_type="text/plain; charset=utf-8")
