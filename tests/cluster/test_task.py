"""A task knows who it is, which GPUs and CPUs are its own, and says how it ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemo_mtdrive.cluster.layout import Allocation, Layout, make_layout
from nemo_mtdrive.cluster.meeting import make_cluster_endpoints
from nemo_mtdrive.cluster.task import cpus_for, gpus_to_join, local_rank_of, place, python_of, rank_environment, visible_gpus
from nemo_mtdrive.config import Config, ConfigError


@pytest.fixture
def layout() -> Layout:
    config = Config()
    config.parallel.tensor, config.parallel.data, config.rollout.workers = 1, 16, 4
    config.rollout.engine, config.rollout.vllm.tensor_parallel, config.rollout.sleep = "vllm", 2, True
    return make_layout(config, Allocation(("node1", "node2"), 8, 8))


def test_a_task_is_who_srun_says(layout: Layout) -> None:
    assert place(layout, "training-rank", {"SLURM_PROCID": "9", "SLURMD_NODENAME": "node2"}) == 9
    assert place(layout, "rollout-worker", {"SLURM_PROCID": "2", "SLURMD_NODENAME": "node1"}) == 2


@pytest.mark.parametrize(("environment", "words"), [
    ({"SLURM_PROCID": "9", "SLURMD_NODENAME": "node1"}, "training-rank 9 is on node1, the layout has it on node2"),
    ({"SLURM_PROCID": "16", "SLURMD_NODENAME": "node1"}, "SLURM_PROCID=16: the layout has 16 tasks of training-rank"),
    ({"SLURMD_NODENAME": "node1"}, "SLURM_PROCID=None"),
])
def test_a_task_that_is_elsewhere_refuses(layout: Layout, environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        place(layout, "training-rank", environment)


def test_a_rank_finds_its_peers_and_its_gpu(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    endpoints = make_cluster_endpoints(layout, {"node1": "10.0.0.1", "node2": "10.0.0.2"}, 1, tmp_path)
    found = rank_environment(layout, endpoints, 11)
    assert {name: found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")} == {
        "RANK": "11", "LOCAL_RANK": "3", "WORLD_SIZE": "16", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": str(endpoints.master_port)}


def test_a_rank_that_the_site_binds_to_one_gpu_takes_that(layout: Layout) -> None:
    assert local_rank_of(layout, 11, {"CUDA_VISIBLE_DEVICES": "3"}) == 0
    assert local_rank_of(layout, 11, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == 3


def test_the_first_task_of_a_node_joins_for_all_that_share_its_gpus(layout: Layout) -> None:
    shared = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    assert [gpus_to_join(layout, rank, shared) for rank in (0, 7, 9)] == [{rank: rank for rank in range(8)}, {}, {}]
    assert gpus_to_join(layout, 8, shared) == {8 + gpu: gpu for gpu in range(8)}
    assert gpus_to_join(layout, 11, {"CUDA_VISIBLE_DEVICES": "3"}) == {11: 0}, "a task that sees one GPU joins for itself"


def test_a_worker_sees_its_own_gpus_alone(layout: Layout) -> None:
    shown = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c,GPU-d"}
    assert visible_gpus(layout.gpus_of("rollout-worker", 2), shown) == {"CUDA_VISIBLE_DEVICES": "GPU-c,GPU-d"}
    assert visible_gpus((), {}) == {}
    with pytest.raises(ConfigError, match="the layout has GPUs 2, 3 for this task, Slurm shows it none"):
        visible_gpus((2, 3), {})


def test_a_vllm_worker_has_its_own_python_unless_the_site_chose_one() -> None:
    config = Config()
    config.rollout.engine, config.rollout.python = "vllm", "/rollout/bin/python"
    ours = {"MTDRIVE_ROLLOUT_PYTHON": "config"}
    assert python_of("rollout-worker", config, ours) == "/rollout/bin/python"
    assert python_of("training-rank", config, ours) == python_of("rollout-worker", config, {}) == sys.executable
    config.rollout.engine = "native"
    assert python_of("rollout-worker", config, ours) == sys.executable


def test_environment_servers_have_the_last_cpus_to_themselves() -> None:
    server, rank = (cpus_for(role, range(64), 15) for role in ("environment-server", "training-rank"))
    assert server == list(range(48, 64))
    assert rank == list(range(48))


def test_where_cpus_are_few_all_share_them() -> None:
    assert cpus_for("environment-server", range(2), 1) == cpus_for("training-rank", range(2), 1) == [0, 1]
