"""Every task of a job has its node, its GPUs and its ports, and none has another's."""

from __future__ import annotations

from collections import Counter

import pytest

from nemo_mtdrive.cluster.layout import PORT_LIMIT, ROLES, Allocation, Layout, make_layout
from nemo_mtdrive.config import Config, ConfigError

NODES = ("node1", "node2", "node3", "node4")


def config(ranks: int = 32, workers: int = 32, servers: int = 4, *, engine: str = "vllm", tensor: int = 1,
           sleep: bool = True) -> Config:
    made = Config()
    made.parallel.tensor, made.parallel.data = 1, ranks
    made.rollout.workers, made.rollout.engine, made.rollout.sleep = workers, engine, sleep
    made.rollout.vllm.tensor_parallel = tensor
    made.environment.servers = servers
    return made


def colocated(gpus: int = 8, ranks_per_node: int = 8, nodes: tuple[str, ...] = NODES, port_base: int = 20000) -> Allocation:
    return Allocation(nodes, gpus, ranks_per_node, port_base=port_base)


def test_the_paper_s_run_has_a_rank_and_an_engine_on_each_of_32_gpus() -> None:
    layout = make_layout(config(), colocated())
    for role in ("training-rank", "rollout-worker"):
        places = {(layout.node_of(role, index), layout.gpus_of(role, index)) for index in range(32)}
        assert places == {(node, (gpu,)) for node in NODES for gpu in range(8)}
    assert [layout.node_of("training-rank", rank) for rank in (0, 7, 8, 31)] == ["node1", "node1", "node2", "node4"]
    assert [layout.node_of("environment-server", index) for index in range(4)] == list(NODES)
    assert layout.gpus_of("environment-server", 0) == ()


def test_a_tensor_parallel_group_stays_on_a_node() -> None:
    layout = make_layout(config(), colocated())
    for first in range(0, 32, 4):
        assert len({layout.node_of("training-rank", rank) for rank in range(first, first + 4)}) == 1


def test_disaggregated_nodes_either_train_or_roll_out() -> None:
    allocation = Allocation((*NODES, "node5", "node6"), 8, 8, "disaggregated", 2)
    layout = make_layout(config(workers=4, servers=2, tensor=4, sleep=False), allocation)
    assert layout.step("training-rank").nodes == NODES
    assert layout.step("rollout-worker").nodes == layout.step("environment-server").nodes == ("node5", "node6")
    assert [(layout.node_of("rollout-worker", index), layout.gpus_of("rollout-worker", index)) for index in range(4)] == [
        ("node5", (0, 1, 2, 3)), ("node6", (0, 1, 2, 3)), ("node5", (4, 5, 6, 7)), ("node6", (4, 5, 6, 7))]


def test_tasks_are_numbered_as_srun_numbers_them() -> None:
    """Cyclic over three nodes with five workers: nodes 1 and 2 have two."""
    step = make_layout(config(24, workers=5), colocated(nodes=NODES[:3])).step("rollout-worker")
    assert (step.tasks_per_node, step.distribution) == (2, "cyclic")
    assert [step.node_of(index) for index in range(5)] == [0, 1, 2, 0, 1]
    assert [step.local_index(index) for index in range(5)] == [0, 0, 0, 1, 1]


def test_fewer_tasks_than_nodes_take_the_first_ones() -> None:
    assert make_layout(config(workers=1, servers=2), colocated()).step("environment-server").nodes == NODES[:2]


def all_ports(layout: Layout, attempt: int) -> list[int]:
    return [port for node in layout.allocation.nodes for port in layout.ports_of(node, attempt)]


@pytest.mark.parametrize("attempt", [1, 2])
def test_no_two_listeners_of_a_job_share_a_port(attempt: int) -> None:
    """Not even on different nodes: then it also works where nodes share an address."""
    layout = make_layout(config(), colocated())
    ports = all_ports(layout, attempt)
    assert max(Counter(ports).values()) == 1
    assert len(ports) == 4 + 32 + 3  # servers, episodes of each rank, master, control, smoke
    assert min(ports) >= 20000
    assert max(ports) < 20000 + layout.ports < PORT_LIMIT


def test_the_next_try_meets_elsewhere_and_the_servers_too() -> None:
    layout = make_layout(config(), colocated())
    assert set(all_ports(layout, 1)) & set(all_ports(layout, 2)) == {layout.port("environment", index) for index in range(4)}
    assert all_ports(layout, 1) == all_ports(layout, 3)


def test_without_gpus_nobody_has_one() -> None:
    layout = make_layout(config(2, workers=2, engine="native"), colocated(0, 1, NODES[:2]))
    assert all(layout.gpus_of(role, 0) == () for role in ROLES)


@pytest.mark.parametrize(("made", "allocation", "words"), [
    (config(16), colocated(), "16 training ranks, but 4 nodes with 8 ranks each are 32"),
    (config(48), colocated(8, 12), "RANKS_PER_NODE=12 on nodes with 8 GPUs"),
    (config(workers=33), colocated(), "set rollout.workers to at most 32"),
    (config(workers=16, tensor=4), colocated(), "take 16 GPUs of a node, which has 8; set rollout.workers to at most 8"),
    (config(sleep=False), colocated(), "LAYOUT=colocated: engine and trainer share GPUs; set rollout.sleep=true"),
    (config(24), Allocation(NODES, 8, 8, "disaggregated", 4), "ROLLOUT_NODES=4 of 4 nodes: set it to 1 to 3"),
    (config(), Allocation(NODES, 8, 8, "disaggregated"), "ROLLOUT_NODES=0 of 4 nodes"),
    (config(), colocated(port_base=PORT_LIMIT - 10), "the job takes 74 ports from there on"),
    (config(), colocated(port_base=80), "must lie between 1024"),
])
def test_what_does_not_fit_is_refused(made: Config, allocation: Allocation, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_layout(made, allocation)
