"""Two nodes on a shaped link: workers on one, ranks on the other; what crosses it is counted, and ends are killed.

In network namespaces joined by 1 Gbit/s where that is allowed (root); else, in CI, the same over the loopback without
shaping, and outside of CI the tests skip.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from nemo_mtdrive.transfer import wire

from .make_episodes import make_episode
from .networks import Node, loopback, sent_since, shared_memory_of, two_namespaces, why_no_namespaces
from .node import GROUP, scene_image, step

SCENES = 6
EPISODES = SCENES * GROUP
IMAGE_BYTES = scene_image(0).nbytes
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Where the workers are, and where the ranks are."""
    reason = why_no_namespaces()
    if reason and not os.environ.get("CI"):
        pytest.skip(f"no network namespaces here: {reason}; run as root with iproute2")
    network: AbstractContextManager[tuple[Node, Node]] = loopback() if reason else two_namespaces(str(os.getpid()))
    with network as both:
        yield both


class Program:
    """A `tests.transfer.node` process; read line by line."""

    def __init__(self, node: Node, *arguments: str) -> None:
        command = node.command(sys.executable, "-m", "tests.transfer.node", *arguments)
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def said(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait(30)}"
        found: dict[str, Any] = json.loads(line)
        return found

    def said_last(self) -> tuple[list[str], dict[str, Any]]:
        """Of a rank: the episodes that came, and its last line."""
        came = []
        while "digest" not in (line := self.said()):
            came.append(line["episode"])
        return came, line

    def kill(self) -> None:
        """With no chance to say anything."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def end(self) -> None:
        """Let it finish; it must end well."""
        self._process.communicate("end\n", timeout=60)
        assert self._process.returncode == 0

    def close(self) -> None:
        """However the test ended."""
        self._process.kill()
        self._process.communicate()


class Cluster:
    """Starts processes on the two nodes and ends them."""

    def __init__(self, nodes: tuple[Node, Node], root: Path, stack: ExitStack) -> None:
        self.sending, self.receiving = nodes
        self._root = root
        self._stack = stack

    def worker(self, indices: list[int], endpoints: list[str]) -> Program:
        return self._start(self.sending, "worker", str(SCENES), json.dumps(indices), *endpoints)

    def rank(self, endpoint: str | None = None) -> tuple[Program, str]:
        program = self._start(self.receiving, "rank", str(SCENES), endpoint or f"tcp://{self.receiving.address}:0")
        return program, program.said()["endpoint"]

    def _start(self, node: Node, role: str, *arguments: str) -> Program:
        program = Program(node, role, str(shared_memory_of(node, self._root)), *arguments)
        self._stack.callback(program.close)
        return program


@pytest.fixture
def cluster(nodes: tuple[Node, Node], shm_root: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(nodes, shm_root, stack)


def episode_bytes() -> int:
    """What all episodes of the step take as frames, once."""
    return sum(len(frame) for scene, task in enumerate(step(SCENES)) for index in range(GROUP)
               for frame in wire.encode(make_episode(task, index, scene_image(scene))))


def whole_step() -> set[str]:
    return {task.episode_id(index) for task in step(SCENES) for index in range(GROUP)}


def test_images_cross_the_link_once_for_all_ranks_of_a_node(cluster: Cluster) -> None:
    ranks = [cluster.rank() for _ in range(2)]
    before = cluster.sending.sent_bytes()
    workers = [cluster.worker([number, number + 2], [endpoint for _, endpoint in ranks]) for number in range(2)]
    found = [rank.said_last() for rank, _ in ranks]
    on_link = sent_since(cluster.sending, before)
    for came, last in found:
        assert sorted(came) == sorted(whole_step())
        assert (last["episodes"], last["duplicates"], last["refused"]) == (EPISODES, 0, 0)
    assert len({last["digest"] for _, last in found}) == 1
    payload = SCENES * IMAGE_BYTES + 2 * episode_bytes()
    assert sum(last["wire_bytes"] for _, last in found) == payload
    if on_link is not None:
        assert payload < on_link < 1.1 * payload, "beside the payload only headers, acknowledgements and what was lost"
    for program in (*workers, *(rank for rank, _ in ranks)):
        program.end()


def test_a_rank_killed_in_mid_stream_is_replaced_and_nothing_is_lost_or_doubled(cluster: Cluster) -> None:
    undisturbed = reference_digest(cluster)
    steady, steady_at = cluster.rank()
    doomed, doomed_at = cluster.rank()
    workers = [cluster.worker([number, number + 2], [steady_at, doomed_at]) for number in range(2)]
    while doomed.said()["there"] < EPISODES // 3:
        pass
    doomed.kill()
    successor, _ = cluster.rank(doomed_at)
    for rank in (steady, successor):
        came, last = rank.said_last()
        assert sorted(came) == sorted(whole_step()) and last["digest"] == undisturbed
        rank.end()
    for worker in workers:
        assert worker.said() == {"started": True} and worker.said()["episodes"] == EPISODES // 2
        worker.end()


def test_a_worker_killed_in_mid_stream_is_replaced_and_nothing_is_lost_or_doubled(cluster: Cluster) -> None:
    undisturbed = reference_digest(cluster)
    rank, endpoint = cluster.rank()
    steady, doomed = cluster.worker([0, 1], [endpoint]), cluster.worker([2, 3], [endpoint])
    came = [rank.said()["episode"] for _ in range(EPISODES // 3)]
    doomed.kill()
    successor = cluster.worker([2, 3], [endpoint])  # has its tasks again, from the first
    rest, last = rank.said_last()
    assert sorted(came + rest) == sorted(whole_step()) and last["digest"] == undisturbed
    rank.end()
    for worker in (steady, successor):
        assert worker.said() == {"started": True} and worker.said()["episodes"] == EPISODES // 2
        worker.end()


def reference_digest(cluster: Cluster) -> str:
    """Of the step when nobody dies."""
    from nemo_mtdrive.transfer.collect import digest
    from nemo_mtdrive.types import Group

    return digest([Group(task.scene_id, tuple(make_episode(task, index, scene_image(scene)) for index in range(GROUP)))
                   for scene, task in enumerate(step(SCENES))])
