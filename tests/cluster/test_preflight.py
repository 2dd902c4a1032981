"""A node that is not fit says what is wrong with it, in one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from nemo_mtdrive.cluster import preflight
from nemo_mtdrive.cluster.layout import Allocation, make_layout
from nemo_mtdrive.cluster.preflight import (
    GIGABYTE,
    Findings,
    check_canary,
    check_disks,
    check_gpus,
    check_ports,
    query_gpus,
    read_addresses,
)
from nemo_mtdrive.cluster.smoke import clocks_off
from nemo_mtdrive.config import Config
from nemo_mtdrive.process import free_port

Usage = namedtuple("Usage", "total used free")
HEALTHY = [f"{index}, 4 MiB, 0" for index in range(8)]


def gpus(*lines: str) -> list[str]:
    return check_gpus(8, {}, lambda: "\n".join(lines) + "\n")


def test_eight_healthy_gpus_are_no_problem() -> None:
    assert gpus(*HEALTHY) == []
    assert gpus(*[line.replace(", 0", ", [N/A]") for line in HEALTHY]) == []  # error correction is off


def test_each_sick_gpu_is_named() -> None:
    assert gpus(*HEALTHY[:7]) == ["7 GPUs answer, the job wants 8"]
    assert gpus(*HEALTHY[:7], "7, 4 MiB, 3") == ["GPU 7 has 3 uncorrected memory errors"]
    assert gpus("0, 40213 MiB, 0", *HEALTHY[1:]) == ["GPU 0: 40213 MiB are in use by another process"]
    assert gpus(*HEALTHY[:7], "Unable to determine the device handle") == [
        "nvidia-smi says 'Unable to determine the device handle'", "7 GPUs answer, the job wants 8"]


def test_a_driver_that_fails_is_a_problem() -> None:
    def fail() -> str:
        raise OSError("exit code 9 (No devices were found)")

    assert check_gpus(8, {}, fail) == ["nvidia-smi failed: exit code 9 (No devices were found)"]
    assert check_gpus(0, {}, fail) == []  # the job wants none


def test_without_a_driver_what_slurm_handed_out_counts() -> None:
    assert check_gpus(2, {"CUDA_VISIBLE_DEVICES": "0,1"}, lambda: None) == []
    assert check_gpus(2, {"CUDA_VISIBLE_DEVICES": "0"}, lambda: None) == ["1 GPUs were handed out, the job wants 2"]


@pytest.mark.parametrize(("script", "said"), [("echo '0, 4 MiB, 0'", "0, 4 MiB, 0\n"), ("exit 9", None)])
def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str | None) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if said is None:
        with pytest.raises(OSError, match="exit code 9"):
            query_gpus()
    else:
        assert query_gpus() == said


def test_no_nvidia_smi_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_gpus() is None


def test_a_full_shared_disk_is_no_node_s_fault_and_a_full_local_one_is(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: Usage(1, 1, GIGABYTE // 2))
    found = Findings()
    check_disks(tmp_path, 20 * GIGABYTE, 1024 << 20, found)
    assert found.run == [f"the disk is full: 0.50 GB are free at {tmp_path}, MIN_FREE_GB wants 20; make room there"]
    assert [words.split(",")[0].split(" are")[0] for words in found.node] == ["512 MB", "512 MB"]
    assert found.lines("node3", "")[0].startswith("node3\tbad\t512 MB are free at ")


def test_enough_room_is_no_problem(tmp_path: Path) -> None:
    found = Findings()
    check_disks(tmp_path, 0, 0, found)
    assert found.lines("node3", "10.0.0.3") == ["node3\tok\t10.0.0.3"]


def test_the_canary_is_read_and_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary.1"
    canary.write_text("word\n")
    assert check_canary(canary, "word", "node3") == []
    assert (tmp_path / "canary.1.node3").read_text() == "word"
    monkeypatch.setattr(preflight, "CANARY_S", 0.0)
    assert "reads 'word'" in check_canary(canary, "other", "node3")[0]  # a file system that shows what was
    assert "No such file or directory here: is the file system mounted?" in check_canary(tmp_path / "none", "word", "n")[0]


def test_busy_ports_and_ephemeral_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.parallel.tensor, config.parallel.data, config.rollout.workers = 1, 1, 1
    layout = make_layout(config, Allocation(("node1",), 0, 1, port_base=min(free_port(), 30000)))
    monkeypatch.setattr(preflight, "EPHEMERAL", tmp_path / "none")
    port = layout.port("environment")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        assert check_ports(layout, "node1", "127.0.0.1", 1).node == [
            f"port {port} is busy at 127.0.0.1; a process of an earlier job may be left"]
    (tmp_path / "range").write_text(f"{port} 60999\n")
    monkeypatch.setattr(preflight, "EPHEMERAL", tmp_path / "range")
    said = check_ports(layout, "node1", "127.0.0.1", 1).run[0]
    assert f"lies in node1's ephemeral range {port}-60999; set PORT_BASE" in said


def test_addresses_are_read_from_what_the_nodes_said(tmp_path: Path) -> None:
    said = tmp_path / "preflight.txt"
    said.write_text("node1\tok\t10.0.0.1\nnode2\tbad\t2 GPUs answer\nnoise\nnode3\tok\t10.0.0.3\n")
    assert read_addresses(said) == {"node1": "10.0.0.1", "node3": "10.0.0.3"}


def test_a_clock_that_is_off_names_its_node() -> None:
    assert clocks_off(["a", "a", "b", "b"], [0.0, 0.2, -0.1, 3.0]) == []
    assert clocks_off(["a", "a", "b", "b"], [0.0, 0.0, 61.0, 61.4]) == [
        "b\tbad\tits clock is +61.0 s off the others (at most 5 s); is its time service up?"]


def test_the_command_checks_this_machine_and_says_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "SLURMD_NODENAME": "node7"}
    command = [sys.executable, "-m", "nemo_mtdrive.cli", "preflight", "--run-dir", str(tmp_path), "--least-free-gb", "0",
               "--image-store-mb", "1"]
    fit = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (fit.returncode, fit.stdout) == (0, "node7\tok\t127.0.0.1\n"), fit.stderr
    environment["PATH"], environment["CUDA_VISIBLE_DEVICES"] = str(tmp_path), "0"
    command += ["--gpus", "8"]
    unfit = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (unfit.returncode, unfit.stdout) == (1, "node7\tbad\t1 GPUs were handed out, the job wants 8\n"), unfit.stderr
