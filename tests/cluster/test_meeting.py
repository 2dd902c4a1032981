"""The tasks of a try find each other at the nodes' addresses; one node keeps to loopback."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from nemo_mtdrive.cluster import files, stages
from nemo_mtdrive.cluster.layout import Allocation, Layout, make_layout
from nemo_mtdrive.cluster.meeting import LOOPBACK, make_cluster_endpoints, own_address, resolve
from nemo_mtdrive.config import Config, ConfigError
from nemo_mtdrive.launch import read_endpoints

ADDRESSES = {"node1": "10.0.0.1", "node2": "10.0.0.2"}


@pytest.fixture
def layout() -> Layout:
    config = Config()
    config.parallel.tensor, config.parallel.data, config.rollout.workers, config.environment.servers = 1, 4, 2, 2
    return make_layout(config, Allocation(("node1", "node2"), 0, 2, port_base=21000))


def test_each_listener_is_at_its_own_node(layout: Layout, tmp_path: Path) -> None:
    endpoints = make_cluster_endpoints(layout, ADDRESSES, 1, tmp_path)
    assert endpoints.environment_urls == ["http://10.0.0.1:21006", "http://10.0.0.2:21007"]
    assert [each.rpartition(":")[0] for each in endpoints.episodes] == ["tcp://10.0.0.1"] * 2 + ["tcp://10.0.0.2"] * 2
    assert endpoints.control == f"tcp://10.0.0.1:{layout.port('control', 0, 1)}"
    assert (endpoints.master_address, endpoints.master_port) == ("10.0.0.1", layout.port("master", 0, 1))
    assert len({endpoints.control, *endpoints.episodes, *endpoints.environment_urls}) == 7


def test_tries_share_no_secret(layout: Layout, tmp_path: Path) -> None:
    first, second = (make_cluster_endpoints(layout, ADDRESSES, attempt, tmp_path) for attempt in (1, 2))
    assert first.keys is not None and second.keys is not None
    assert first.run_id != second.run_id
    assert first.keys.secret != second.keys.secret
    assert first.environment_token != second.environment_token


def test_meet_writes_for_the_owner_only_and_forgets_the_try_before(
        layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTDRIVE_TRY", "2")
    files.write_layout(layout, tmp_path)
    (tmp_path / "status.json").write_text("{}")
    said = tmp_path / "preflight.txt"
    said.write_text("node2\tok\t10.0.0.2\nnode1\tok\t10.0.0.1\n")
    old = tmp_path / "slurm" / "weights" / "mtdrive-old" / "weights"
    old.mkdir(parents=True)
    stages.meet(tmp_path, said)
    path = tmp_path / "endpoints.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_endpoints(path)
    assert found.master_port == layout.port("master", 0, 2)
    assert found.weights_root == str(tmp_path / "slurm" / "weights")
    assert not old.parent.exists()
    assert not (tmp_path / "status.json").exists()


def test_the_layout_comes_back_as_it_was(layout: Layout, tmp_path: Path) -> None:
    files.write_layout(layout, tmp_path)
    assert files.read_layout(tmp_path) == layout
    assert (tmp_path / "slurm" / "layout.tsv").read_text().splitlines()[-1] == "training-rank\t4\t2\t2\tblock\tnode1,node2"


def test_a_node_alone_is_reached_on_loopback() -> None:
    assert own_address(["node1"], "node1") == LOOPBACK
    assert resolve(["node1"]) == {"node1": LOOPBACK}


def test_the_way_to_another_node_tells_the_address() -> None:
    assert own_address(["here", "localhost"], "here") == "127.0.0.1"


def test_an_interface_can_be_named() -> None:
    assert "lo" in [name for _, name in socket.if_nameindex()]
    assert own_address(["node1", "node2"], "node1", "lo") == "127.0.0.1"
    with pytest.raises(ConfigError, match="NETWORK_INTERFACE=ib9: .* on node1; set it to one of .*lo"):
        own_address(["node1", "node2"], "node1", "ib9")


def test_a_node_that_has_no_name_anywhere_is_named() -> None:
    with pytest.raises(ConfigError, match="node1 finds no way to nowhere.invalid"):
        own_address(["node1", "nowhere.invalid"], "node1")
    with pytest.raises(ConfigError, match="with PREFLIGHT=on they say their addresses"):
        resolve(["node1", "nowhere.invalid"])


ENVIRONMENT = {"MTDRIVE_NODES": "a b", "MTDRIVE_GPUS": "8", "MTDRIVE_RANKS_PER_NODE": "8", "MTDRIVE_LAYOUT": "disaggregated",
               "MTDRIVE_ROLLOUT_NODES": "1", "MTDRIVE_PORT_BASE": "20000"}


def test_the_batch_script_tells_the_allocation() -> None:
    assert files.allocation_from(ENVIRONMENT) == Allocation(("a", "b"), 8, 8, "disaggregated", 1, 20000)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("MTDRIVE_NODES", " ", "MTDRIVE_NODES is empty"), ("MTDRIVE_GPUS", "h100:8", "MTDRIVE_GPUS='h100:8': set it to a whole"),
    ("MTDRIVE_LAYOUT", "both", "LAYOUT=both: set it to colocated or disaggregated"),
])
def test_what_it_tells_wrongly_is_refused(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        files.allocation_from(ENVIRONMENT | {name: value})
    with pytest.raises(ConfigError, match=f"{name} is not set"):
        files.allocation_from({key: text for key, text in ENVIRONMENT.items() if key != name})
