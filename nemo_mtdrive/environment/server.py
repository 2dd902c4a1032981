"""The environment behind HTTP: one process with its own scenes and scoring, for rollout workers on this or other nodes.

    GET  /health    200 while the process lives
    GET  /ready     200 once scoring is warm, 503 before
    POST /v1/reset  {items: [{episode_id, scene_id, want_image}]}  -> {items: [Observation]}
    POST /v1/step   {items: [{episode_id, turn, answer}]}          -> {items: [StepResult]}
    POST /v1/close  {items: [{episode_id}]}                        -> {items: []}

Bodies are msgpack (`messages`). POSTs carry `Authorization: Bearer TOKEN`. An error is one line of text: 400 a bad
body, 401 no token, 404 an unknown episode or scene, 409 a turn out of order, 413 a body too large, 503 not ready yet,
500 the scoring failed. Scoring runs in one worker thread, in the order of arrival, so /health answers meanwhile; for
more cores start more servers.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.env import DrivingEnvironment, EpisodeError, OutOfOrder, UnknownEpisode, UnknownScene
from nemo_mtdrive.process import die_with_parent

MAX_BODY_BYTES = 16 * 2**20
"""Largest request body; a step of 1,000 answers has about 0.3 MB."""
KEEP_ALIVE_S = 75
"""How long an idle connection stays open [s]; longer than the client keeps it, so the client closes first."""
SHUTDOWN_S = 5
"""How long running requests may take to end after SIGTERM [s]."""

Answer = Callable[[DrivingEnvironment, bytes], bytes]


class _Refused(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status
        self.line = line


def _reset(environment: DrivingEnvironment, body: bytes) -> bytes:
    return messages.pack_observations(environment.reset_many(messages.unpack_resets(body)))


def _step(environment: DrivingEnvironment, body: bytes) -> bytes:
    return messages.pack_results(environment.step_many(messages.unpack_steps(body)))


def _close(environment: DrivingEnvironment, body: bytes) -> bytes:
    environment.close_many(messages.unpack_closes(body))
    return messages.pack({"items": []})


class EnvironmentService:
    """The FastAPI application (`app`) over an environment that may still be loading."""

    def __init__(self, token: str, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        if not token:
            raise ValueError("token is empty: set it to a secret of your own")
        self._token = token.encode()
        self._max_body_bytes = max_body_bytes
        self._environment: DrivingEnvironment | None = None
        self.scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self.app = FastAPI(title="nemo_mtdrive environment", docs_url=None, redoc_url=None, openapi_url=None)
        self.app.add_api_route("/health", self._health, methods=["GET"])
        self.app.add_api_route("/ready", self._ready, methods=["GET"])
        for path, answer in (("/v1/reset", _reset), ("/v1/step", _step), ("/v1/close", _close)):
            self.app.add_api_route(path, self._endpoint(answer), methods=["POST"])

    def start(self, environment: DrivingEnvironment) -> None:
        """Answer requests from this (warm) environment; /ready is 200 from now on."""
        self._environment = environment

    async def _health(self) -> Response:
        return _line(200, "ok")

    async def _ready(self) -> Response:
        return _line(200, "ready") if self._environment is not None else _line(503, "scoring is warming up")

    def _endpoint(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                self._authorise(request)
                if self._environment is None:
                    raise _Refused(503, "scoring is warming up")
                body = await self._body(request)
                reply = await asyncio.get_running_loop().run_in_executor(
                    self.scoring, self._answer, answer, self._environment, body)
            except _Refused as refused:
                return _line(refused.status, refused.line)
            return Response(reply, media_type="application/msgpack")

        return endpoint

    def _authorise(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.encode(), self._token):
            raise _Refused(401, "the bearer token is missing or wrong")

    async def _body(self, request: Request) -> bytes:
        """The whole body; reading stops as soon as it is too large, whatever its Content-Length says."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise _Refused(413, f"body: want at most {self._max_body_bytes} bytes; send fewer items a request")
        return bytes(body)

    @staticmethod
    def _answer(answer: Answer, environment: DrivingEnvironment, body: bytes) -> bytes:
        try:
            return answer(environment, body)
        except (UnknownEpisode, UnknownScene) as error:
            raise _Refused(404, f"{type(error).__name__}: {error}") from error
        except OutOfOrder as error:
            raise _Refused(409, f"OutOfOrder: {error}") from error
        except (messages.MessageError, EpisodeError) as error:
            raise _Refused(400, f"{type(error).__name__}: {error}") from error
        except Exception as error:  # the boundary of the process: a scene that breaks scoring must not end the server
            _say(f"scoring failed: {type(error).__name__}: {error}")
            raise _Refused(500, f"scoring failed: {type(error).__name__}: {error}") from error


def _line(status: int, text: str) -> Response:
    return Response(" ".join(text.split()) + "\n", status_code=status, media_type="text/plain; charset=utf-8")


def _say(text: str) -> None:
    print("environment server:", " ".join(text.split()), file=sys.stderr, flush=True)


class _Server(uvicorn.Server):
    """uvicorn, but SIGTERM and SIGINT end it with exit code 0 (uvicorn raises the signal again after its shutdown)."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        previous = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sig, handler in previous.items():
                signal.signal(sig, handler)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 takes a free one.

    Raises:
        OSError: the port is busy, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each reply waits 40 ms to be acknowledged
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def serve(make_environment: Callable[[], DrivingEnvironment], *, host: str, port: int, token: str,
          with_parent: bool = True) -> int:
    """Serve until SIGTERM or SIGINT; call it from the main thread of a process of its own.

    The port is taken first; then the environment is made and warmed in the scoring thread, while /health answers
    already. Nothing is printed on stdout.

    Args:
        make_environment: builds the environment (scenes, agent, max_turns).
        host, port: where to listen; keep to loopback unless the network is trusted, the token is not encrypted.
        token: the secret that clients must send.
        with_parent: end when the process that started this one ends, however that ends.

    Returns:
        The exit code: 0 after a signal, 1 when the environment cannot be made, 2 when the request was wrong.
    """
    parent = os.getppid()
    if with_parent:
        die_with_parent()
        if os.getppid() != parent:  # it ended before we asked to be told
            return 1
    try:
        service = EnvironmentService(token)
        listener = listen(host, port)
    except (OSError, OverflowError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _say(f"cannot listen on {host}:{port}: {reason}; set another host or port")
        return 2
    failures: list[BaseException] = []
    config = uvicorn.Config(service.app, log_level="warning", access_log=False, server_header=False, lifespan="off",
                            timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=SHUTDOWN_S)
    server = _Server(config)

    def make_ready() -> None:
        try:
            environment = make_environment()
            environment.warm_up()
        except Exception as error:  # told below with the exit code, whatever it is
            failures.append(error)
            server.should_exit = True
            return
        service.start(environment)
        _say(f"ready on {_address(listener)}")

    service.scoring.submit(make_ready)
    with listener:
        server.run(sockets=[listener])
    service.scoring.shutdown(cancel_futures=True)
    for failure in failures:
        _say(f"cannot start: {type(failure).__name__}: {failure}")
    return 1 if failures else 0


def _address(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in str(host) else f"http://{host}:{port}"


