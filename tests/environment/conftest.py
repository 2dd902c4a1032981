"""A real server process on a real port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemo_mtdrive.environment.client import EnvironmentClient
from nemo_mtdrive.process import free_port

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-secret-of-the-tests"


class ServerProcess:
    """`environment_fakes.py` as a process: start, wait, stop."""

    def __init__(self, port: int, worker: dict[str, Any], options: dict[str, Any]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.environment.environment_fakes", str(port), TOKEN], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "FAKE_WORKER": json.dumps(worker), "FAKE_SERVER": json.dumps(options)})

    def wait_ready(self) -> ServerProcess:
        """Wait until it answers, a few seconds at most."""
        with EnvironmentClient(self.url, TOKEN, 5.0, 0) as client:
            client.wait_ready(30.0)
        return self

    def stop(self) -> tuple[int, str, str]:
        """SIGTERM, then (exit code, stdout, stderr)."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end: (exit code, stdout, stderr)."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out.decode(), err.decode()


Start = Callable[..., ServerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are gone after the test, however it ends."""
    started: list[ServerProcess] = []

    def start_server(port: int = 0, *, worker: dict[str, Any] | None = None, **options: Any) -> ServerProcess:
        started.append(ServerProcess(port or free_port(), worker or {}, options))
        return started[-1]

    yield start_server
    for server in started:
        server.process.kill()
        server.process.wait()
        for pipe in (server.process.stdout, server.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One server for the tests that do not stop it."""
    running = ServerProcess(free_port(), {}, {}).wait_ready()
    yield running
    code, out, _ = running.stop()
    assert (code, out) == (0, "")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[EnvironmentClient]:
    """A client of that server."""
    with EnvironmentClient(server.url, TOKEN, timeout_s=20.0, retries=0) as connected:
        yield connected


@pytest.fixture(scope="module")
def post(server: ServerProcess) -> Iterator[Callable[..., httpx.Response]]:
    """POST bytes with the right token unless told otherwise."""
    with httpx.Client(base_url=server.url, trust_env=False) as http:
        yield lambda path, content, token=f"Bearer {TOKEN}": http.post(path, content=content,
                                                                       headers={"Authorization": token})
