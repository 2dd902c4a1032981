"""Two "nodes" for tests: network namespaces joined by a link of 1 Gbit/s, or the loopback where those are not allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RATE = "1gbit"


@dataclass(frozen=True)
class Node:
    """One end of the link."""

    address: str
    """Where its processes listen."""
    namespace: str | None
    interface: str | None

    def command(self, *command: str) -> list[str]:
        """A command, run on this node."""
        return ["ip", "netns", "exec", self.namespace, *command] if self.namespace else list(command)

    def sent_bytes(self) -> int | None:
        """What its interface has sent, headers included; None on the loopback, which carries others' traffic as well."""
        if self.interface is None:
            return None
        counter = self.command("cat", f"/sys/class/net/{self.interface}/statistics/tx_bytes")
        return int(subprocess.run(counter, check=True, capture_output=True, text=True).stdout)


def why_no_namespaces() -> str | None:
    """What keeps this machine from making network namespaces with a shaped link; None when it can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"no `{tool}` (install iproute2)"
    try:
        with two_namespaces(f"probe-{os.getpid()}"):
            return None
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}`: {error.stderr.strip()}"


@contextmanager
def two_namespaces(name: str) -> Iterator[tuple[Node, Node]]:
    """Two nodes with a link between them that is shaped both ways; gone afterwards. Needs root."""
    spaces = [f"mtd-{name}-{side}" for side in "ab"]
    nodes = tuple(Node(f"10.213.0.{number}", space, f"veth-{side}")
                  for number, space, side in zip((1, 2), spaces, "ab", strict=True))
    try:
        for space in spaces:
            _run("ip", "netns", "add", space)
        _run("ip", "link", "add", "veth-a", "netns", spaces[0], "type", "veth", "peer", "name", "veth-b", "netns", spaces[1])
        for node in nodes:
            _run(*node.command("ip", "addr", "add", f"{node.address}/24", "dev", str(node.interface)))
            _run(*node.command("ip", "link", "set", "lo", "up"))
            _run(*node.command("ip", "link", "set", str(node.interface), "up"))
            shape = ["root", "tbf", "rate", RATE, "burst", "256kb", "latency", "50ms"]
            _run(*node.command("tc", "qdisc", "add", "dev", str(node.interface), *shape))
        yield nodes[0], nodes[1]
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


@contextmanager
def loopback() -> Iterator[tuple[Node, Node]]:
    """Two nodes that share this machine's network, without shaping."""
    yield Node("127.0.0.1", None, None), Node("127.0.0.2", None, None)


def sent_since(node: Node, before: int | None) -> int | None:
    """Bytes a node's interface has sent since; None where that cannot be told."""
    now = node.sent_bytes()
    return None if now is None or before is None else now - before


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def shared_memory_of(node: Node, root: Path) -> Path:
    """A node's own root of shared memory: namespaces share the file systems."""
    path = root / node.address
    path.mkdir(exist_ok=True)
    return path
