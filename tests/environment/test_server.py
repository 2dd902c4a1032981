"""The server as a real process: refusals, sizes, life and death."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import msgpack
import pytest

from nemo_mtdrive.environment import messages
from nemo_mtdrive.environment.client import EnvironmentClient, EnvironmentUnavailable
from nemo_mtdrive.environment.episodes import StepFailed
from nemo_mtdrive.environment.service import MAX_BODY_BYTES, EnvironmentService
from tests.environment.environment_fakes import answer, eventually

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-secret-of-the-tests"
RESET = messages.pack_resets([("raw", "s0", False)])


def test_health_and_ready_need_no_token(server):
    for path, text in (("/health", "ok\n"), ("/ready", "ready\n")):
        reply = httpx.get(f"{server.url}{path}", trust_env=False)
        assert (reply.status_code, reply.text) == (200, text)


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"])
@pytest.mark.parametrize("path", ["/v1/reset", "/v1/step", "/v1/close"])
def test_a_wrong_token_is_refused_before_the_body_is_read(post, path, token):
    reply = post(path, b"not even msgpack", token.encode("latin-1"))
    assert (reply.status_code, reply.text) == (401, "the bearer token is missing or wrong\n")


def _item(**fields):
    return msgpack.packb({"items": [fields]})


@pytest.mark.parametrize(("path", "body", "line"), [
    ("/v1/reset", b"", "MessageError: body: not msgpack"),
    ("/v1/reset", b"\xc1", "MessageError: body: not msgpack"),
    ("/v1/reset", b"\x01", "MessageError: body: got int, want a map"),
    ("/v1/reset", b"\x91" * 5000 + b"\x01", "MessageError: body: not msgpack"),
    ("/v1/reset", msgpack.packb({}), "MessageError: items: got NoneType, want list"),
    ("/v1/reset", msgpack.packb({"items": [7]}), "MessageError: episode_id: got NoneType, want str"),
    ("/v1/reset", _item(episode_id=""), "MessageError: episode_id: got 0 characters, want 1 to 512"),
    ("/v1/step", _item(episode_id="e", turn=True, answer=""), "MessageError: turn: got bool, want int"),
    ("/v1/step", _item(episode_id="e", turn=0, answer=b""), "MessageError: answer: got bytes, want str"),
    ("/v1/close", _item(), "MessageError: episode_id: got NoneType, want str"),
    ("/v1/reset", messages.pack_resets([("e", "bare", False)]), "EpisodeError: scene 'bare': no history or command"),
])
def test_bad_bodies_are_one_line(post, path, body, line):
    reply = post(path, body)
    assert reply.status_code == 400 and reply.text.startswith(line) and reply.text.count("\n") == 1


def test_what_is_unknown_or_out_of_order_has_its_status(post):
    assert post("/v1/reset", messages.pack_resets([("e", "nowhere", False)])).status_code == 404
    assert post("/v1/step", messages.pack_steps([("nobody", 0, "")])).status_code == 404
    assert post("/v1/reset", RESET).status_code == 200
    reply = post("/v1/step", messages.pack_steps([("raw", 1, "")]))
    assert (reply.status_code, reply.text) == (409, "OutOfOrder: episode 'raw': got turn 1, want turn 0\n")


def test_a_scene_that_breaks_scoring_does_not_end_the_server(post):
    post("/v1/reset", RESET)
    reply = post("/v1/step", messages.pack_steps([("raw", 0, answer(0.0, first_x=901))]))
    assert reply.status_code == 200 and messages.unpack_results(reply.content) == [
        StepFailed("raw", 0, "RuntimeError: the map has a hole\nhere")]
    assert post("/v1/step", messages.pack_steps([("raw", 0, answer(0.0))])).status_code == 200


def test_bodies_are_bounded(post):
    reply = post("/v1/reset", b"x" * (MAX_BODY_BYTES + 1))
    assert reply.status_code == 413 and reply.text.startswith(f"body: want at most {MAX_BODY_BYTES} bytes")


def test_other_paths_and_methods_do_not_exist(server):
    for path, status in (("/docs", 404), ("/openapi.json", 404), ("/v1/step", 405)):
        assert httpx.get(server.url + path, trust_env=False).status_code == status


def test_health_answers_while_scoring_runs(start):
    slow = start(worker={"pause_s": 1.5}).wait_ready()
    with EnvironmentClient(slow.url, TOKEN, timeout_s=20.0, retries=0) as client:
        client.reset("e", "s0", want_image=False)
        scoring = threading.Thread(target=client.step, args=("e", 0, answer(0.0)))
        scoring.start()
        time.sleep(0.2)
        assert httpx.get(f"{slow.url}/health", trust_env=False).status_code == 200
        assert scoring.is_alive()
        scoring.join()


def test_sigterm_ends_it_with_0_and_nothing_on_stdout(start):
    running = start().wait_ready()
    code, out, err = running.stop()
    assert (code, out) == (0, "") and err == f"environment server: ready on {running.url}\n"


def test_sigterm_while_it_warms_up(start):
    warming = start(worker={"pause_s": 2.0})
    with EnvironmentClient(warming.url, TOKEN, timeout_s=5.0, retries=0) as client:
        assert eventually(lambda: _connects(warming.port))
        assert httpx.get(f"{warming.url}/ready", trust_env=False).status_code == 503
        with pytest.raises(EnvironmentUnavailable, match="503 scoring is warming up"):
            client.reset("e", "s0", want_image=False)
    assert warming.stop()[0] == 0


def test_a_busy_port_is_one_line_and_exit_code_2(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, out, err = start(port).ended()
    assert (code, out) == (2, "")
    assert err == (f"environment server: cannot listen on 127.0.0.1:{port}: Address already in use; "
                   "set another host or port\n")


def test_an_environment_that_cannot_be_made_is_one_line_and_exit_code_1(start):
    code, out, err = start(worker={"broken": True}).ended()
    assert (code, out, err) == (1, "", "environment server: cannot start: RuntimeError: no scenes here\n")


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", sys.argv[1], "0", "token"], stderr=subprocess.PIPE)
print(child.pid, child.stderr.readline().decode(), flush=True)
time.sleep(60)
"""


def test_it_dies_with_its_parent():
    """A parent that is killed outright cannot stop its server; the kernel does."""
    with subprocess.Popen([sys.executable, "-c", PARENT, "tests.environment.environment_fakes"], stdout=subprocess.PIPE,
                          cwd=ROOT) as parent:
        assert parent.stdout is not None
        child, said = parent.stdout.readline().split(maxsplit=1)
        assert b"ready on" in said and _alive(int(child))
        parent.kill()
    assert eventually(lambda: not _alive(int(child)))


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_an_empty_token_is_refused():
    with pytest.raises(ValueError, match="token is empty"):
        EnvironmentService("", 1)
