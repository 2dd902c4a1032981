"""Which process runs where in a job of several nodes: a function of the nodes and the config, and of nothing else.

    colocated      rank r on node r // ranks_per_node; workers and environment servers on all nodes in turn. Rollout and
                   training take the same GPUs one after the other (rollout.sleep).
    disaggregated  the last `rollout_nodes` nodes have the workers and the environment servers, the others the ranks.

Tasks of a role are numbered as srun numbers them (SLURM_PROCID): ranks block after block, the others in turn (cyclic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nemo_mtdrive.config import Config, ConfigError

Role = Literal["environment-server", "rollout-worker", "training-rank"]
ROLES: tuple[Role, ...] = get_args(Role)
Kind = Literal["colocated", "disaggregated"]
PORT_LIMIT = 32768
"""Where Linux begins to give ports to outgoing connections (net.ipv4.ip_local_port_range); ours lie below."""
_SINGLE = 6
"""Ports of which a job has one, in two sets."""


@dataclass(frozen=True)
class Allocation:
    """What the scheduler gave, and how it is to be used."""

    nodes: tuple[str, ...]
    """Names, in the scheduler's order."""
    gpus: int
    """Of a node; 0: everything runs on CPUs."""
    ranks_per_node: int
    """Training ranks of each node that has any."""
    kind: Kind = "colocated"
    rollout_nodes: int = 0
    """disaggregated: how many nodes, the last ones, roll out."""
    port_base: int = 20000
    """The first of the job's ports."""


@dataclass(frozen=True)
class Step:
    """One role's tasks, as one srun starts them."""

    role: Role
    tasks: int
    nodes: tuple[str, ...]
    tasks_per_node: int
    """Most on a node."""
    distribution: Literal["block", "cyclic"]

    def node_of(self, index: int) -> int:
        """Place in `nodes` of a task."""
        return index // self.tasks_per_node if self.distribution == "block" else index % len(self.nodes)

    def local_index(self, index: int) -> int:
        """Number of a task among those of its role on its node."""
        return index % self.tasks_per_node if self.distribution == "block" else index // len(self.nodes)


@dataclass(frozen=True)
class Layout:
    """Who runs where; see the module."""

    allocation: Allocation
    steps: tuple[Step, ...]
    gpus_of_a_worker: int

    def step(self, role: Role) -> Step:
        """The step of a role."""
        return next(step for step in self.steps if step.role == role)

    def node_of(self, role: Role, index: int) -> str:
        """Name of a task's node."""
        step = self.step(role)
        return step.nodes[step.node_of(index)]

    def gpus_of(self, role: Role, index: int) -> tuple[int, ...]:
        """GPUs of a task, as numbers on its node; empty on CPUs."""
        if not self.allocation.gpus or role == "environment-server":
            return ()
        local = self.step(role).local_index(index)
        each = self.gpus_of_a_worker if role == "rollout-worker" else 1
        return tuple(range(local * each, (local + 1) * each))

    def port(self, use: Literal["master", "control", "smoke", "environment", "episodes"], index: int = 0,
             attempt: int = 0) -> int:
        """Where one listens: MASTER_PORT, the control channel, the preflight's smoke test, environment server or rank
        `index`. Every other try has other ports, so that none meets a connection of the try before."""
        servers, ranks = self.step("environment-server").tasks, self.step("training-rank").tasks
        turn = attempt % 2
        offset = {"master": turn, "control": 2 + turn, "smoke": 4 + turn, "environment": _SINGLE + index,
                  "episodes": _SINGLE + servers + turn * ranks + index}[use]
        return self.allocation.port_base + offset

    @property
    def ports(self) -> int:
        """How many ports the job takes from `port_base` on."""
        return _SINGLE + self.step("environment-server").tasks + 2 * self.step("training-rank").tasks

    def ports_of(self, node: str, attempt: int) -> list[int]:
        """Ports that will be listened at on a node."""
        found = [self.port("environment", index) for index in range(self.step("environment-server").tasks)
                 if self.node_of("environment-server", index) == node]
        ranks = [rank for rank in range(self.step("training-rank").tasks) if self.node_of("training-rank", rank) == node]
        found += [self.port("episodes", rank, attempt) for rank in ranks]
        if 0 in ranks:
            found += [self.port(use, 0, attempt) for use in ("master", "control", "smoke")]
        return sorted(found)

    def table(self) -> list[dict[str, Any]]:
        """A row a task: role, index, node, GPUs."""
        return [{"role": step.role, "index": index, "node": self.node_of(step.role, index),
                 "gpus": list(self.gpus_of(step.role, index))} for step in self.steps for index in range(step.tasks)]


def make_layout(config: Config, allocation: Allocation) -> Layout:
    """Place all tasks of a job.

    Raises:
        ConfigError: they do not fit on the nodes, or ports do not fit below `PORT_LIMIT`.
    """
    training, rollout = _split(allocation)
    needed, there = config.world_size, len(training) * allocation.ranks_per_node
    if needed != there:
        raise ConfigError(
            f"parallel.tensor x pipeline x data = {needed} training ranks, but {len(training)} nodes with "
            f"{allocation.ranks_per_node} ranks each are {there}; set NODES and RANKS_PER_NODE, or `parallel`")
    if allocation.gpus and allocation.ranks_per_node > allocation.gpus:
        raise ConfigError(f"RANKS_PER_NODE={allocation.ranks_per_node} on nodes with {allocation.gpus} GPUs: set at most "
                          "one rank a GPU")
    each = config.rollout.vllm.tensor_parallel if config.rollout.engine == "vllm" else 1
    workers = _in_turn("rollout-worker", config.rollout.workers, rollout)
    if allocation.gpus and workers.tasks_per_node * each > allocation.gpus:
        raise ConfigError(
            f"rollout.workers={workers.tasks} with {each} GPUs each on {len(rollout)} nodes take "
            f"{workers.tasks_per_node * each} GPUs of a node, which has {allocation.gpus}; set rollout.workers to at most "
            f"{allocation.gpus // each * len(rollout)}")
    if allocation.gpus and allocation.kind == "colocated" and config.rollout.engine == "vllm" and not config.rollout.sleep:
        raise ConfigError("LAYOUT=colocated: engine and trainer share GPUs; set rollout.sleep=true, or LAYOUT=disaggregated")
    steps = (_in_turn("environment-server", config.environment.servers, rollout), workers,
             Step("training-rank", needed, training, allocation.ranks_per_node, "block"))
    layout = Layout(allocation, steps, each)
    if allocation.port_base < 1024 or allocation.port_base + layout.ports > PORT_LIMIT:
        raise ConfigError(f"PORT_BASE={allocation.port_base}: the job takes {layout.ports} ports from there on, which must "
                          f"lie between 1024 and {PORT_LIMIT}")
    return layout


def _split(allocation: Allocation) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Nodes that train and nodes that roll out."""
    nodes, count = allocation.nodes, allocation.rollout_nodes
    if allocation.kind == "colocated":
        return nodes, nodes
    if not 0 < count < len(nodes):
        raise ConfigError(f"LAYOUT=disaggregated, ROLLOUT_NODES={count} of {len(nodes)} nodes: set it to 1 to "
                          f"{len(nodes) - 1}, or LAYOUT=colocated")
    return nodes[:-count], nodes[-count:]


def _in_turn(role: Role, tasks: int, nodes: Sequence[str]) -> Step:
    used = tuple(nodes[:tasks])
    return Step(role, tasks, used, -(-tasks // len(used)), "cyclic")
