"""Where the tasks of a try find each other: endpoints.json from the layout and the nodes' addresses."""

from __future__ import annotations

import fcntl
import secrets
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_mtdrive.cluster.layout import Layout
from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.launch import Endpoints
from nemo_mtdrive.transfer.curve import CurveKeys

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915
_ANY_PORT = 9


def own_address(nodes: Sequence[str], this: str, interface: str = "") -> str:
    """The IPv4 address at which other nodes reach this one; loopback where there is no other.

    Args:
        nodes: of the job.
        this: this node's name.
        interface: as ib0; empty: the one that leads to another node of the job (a node's own name often stands for
            127.0.1.1 in its /etc/hosts).

    Raises:
        ConfigError: the interface has no IPv4 address, or a node's name none.
    """
    others = [node for node in nodes if node != this]
    if not others:
        return LOOPBACK
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if interface:
            request = struct.pack("256s", interface.encode()[:15])
            try:
                return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
            except OSError as error:
                raise ConfigError(f"NETWORK_INTERFACE={interface}: {error.strerror} on {this}; set it to one of "
                                  f"{', '.join(name for _, name in socket.if_nameindex())}") from error
        try:
            probe.connect((others[0], _ANY_PORT))  # UDP: nothing is sent, the kernel only chooses the way
        except OSError as error:
            raise ConfigError(f"{this} finds no way to {others[0]}: {error}") from error
        address: str = probe.getsockname()[0]
        return address


def resolve(nodes: Sequence[str]) -> dict[str, str]:
    """Addresses by name, where the preflight did not ask the nodes themselves.

    Raises:
        ConfigError: a name has none.
    """
    if len(nodes) == 1:
        return {nodes[0]: LOOPBACK}
    try:
        return {node: socket.gethostbyname(node) for node in nodes}
    except OSError as error:
        raise ConfigError(f"nodes {', '.join(nodes)}: {error}; with PREFLIGHT=on they say their addresses") from error


def make_cluster_endpoints(layout: Layout, addresses: Mapping[str, str], attempt: int, weights_root: Path) -> Endpoints:
    """Endpoints of one try; token, keys and run id are new.

    Args:
        layout: who runs where.
        addresses: of the nodes, by name.
        attempt: number of the try.
        weights_root: folder that all nodes see.
    """
    def at(role_node: str, port: int) -> str:
        return f"{addresses[role_node]}:{port}"

    def node(rank: int) -> str:
        return layout.node_of("training-rank", rank)

    servers, ranks = layout.step("environment-server").tasks, layout.step("training-rank").tasks
    return Endpoints(
        run_id=f"mtd{secrets.token_hex(4)}",
        environment_urls=["http://" + at(layout.node_of("environment-server", index), layout.port("environment", index))
                          for index in range(servers)],
        environment_token=secrets.token_urlsafe(24),
        control="tcp://" + at(node(0), layout.port("control", 0, attempt)),
        episodes=["tcp://" + at(node(rank), layout.port("episodes", rank, attempt)) for rank in range(ranks)],
        weights_root=str(weights_root),
        master_port=layout.port("master", 0, attempt),
        master_address=addresses[node(0)],
        keys=CurveKeys.make())
