"""Can all ranks talk to each other? One all-reduce over gloo (CPU) or nccl (GPU), checked and timed, and clocks compared.

Every rank says NODE <tab> here <tab> RANK before it joins; a node that is not heard of when the time is over is the one
that is named. Rank 0 says the result, in the form of the preflight's lines. The ranks of a node come of one process: it
alone reads torch, some thousand files, from what may be a shared file system.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from nemo_mtdrive.process import die_with_parent

MOST_SKEW_S = 5.0
"""Clocks that differ by more make the times of files and logs useless [s]."""
ELEMENTS = 1 << 20
ROUNDS = 3


def run_smoke(nodes: Sequence[str], members: Mapping[int, int], master: tuple[str, int], timeout_s: float) -> int:
    """Let the ranks of this node join, each in its own process; returns the exit code.

    Args:
        nodes: the node of each rank.
        members: rank -> its GPU, where there are any.
        master: address and port of rank 0.
        timeout_s: for all to join, and for each operation.
    """
    context = multiprocessing.get_context("fork")  # before anything here has touched CUDA
    ranks = [context.Process(target=_run_rank, args=(nodes, rank, gpu, master, timeout_s)) for rank, gpu in members.items()]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return int(any(process.exitcode for process in ranks))


def _run_rank(nodes: Sequence[str], rank: int, local_rank: int, master: tuple[str, int], timeout_s: float) -> None:
    die_with_parent()
    said = _join(nodes, rank, local_rank, master, timeout_s)
    _say(*said)
    sys.exit(any("\tbad\t" in line for line in said))


def _say(*lines: str) -> None:
    """Lines in one write, as the ranks of a node share its standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _join(nodes: Sequence[str], rank: int, local_rank: int, master: tuple[str, int], timeout_s: float) -> list[str]:
    """Join, reduce, compare clocks; returns what to say (rank 0 alone has something).

    Raises:
        RuntimeError: torch's, where tasks do not come or do not answer.
    """
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = master[0], str(master[1])
    world = len(nodes)
    _say(f"{nodes[rank]}\there\t{rank}")
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))
    try:
        started = time.monotonic()
        values = torch.full((ELEMENTS,), float(rank + 1), device=device)
        dist.all_reduce(values)
        wanted = world * (world + 1) / 2
        right = bool((values == wanted).all())
        seconds = time.monotonic() - started
        skews = _skews(world, device)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if not right:
        return [f"{nodes[rank]}\tbad\tthe all-reduce of {world} ranks gave {values[0].item():g} here, not {wanted:g}"]
    if rank:
        return []
    size = ELEMENTS * 4 / (1 << 20)
    return clocks_off(nodes, skews) or [
        f"{nodes[0]}\tok\t{world} ranks over {backend}: {size:g} MB all-reduced in {seconds:.2f} s, clocks within "
        f"{max(skews) - min(skews):.2f} s"]


def _skews(world: int, device: torch.device) -> list[float]:
    """Each rank's clock less the median of all [s]: of some rounds the one nearest to it, as a rank may have been late."""
    best = [float("inf")] * world
    for _ in range(ROUNDS):
        dist.barrier()
        times = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(world)]
        dist.all_gather(times, torch.tensor([time.time()], dtype=torch.float64, device=device))
        clocks = [each.item() for each in times]
        middle = statistics.median(clocks)
        best = [min(old, clock - middle, key=abs) for old, clock in zip(best, clocks, strict=True)]
    return best


def clocks_off(nodes: Sequence[str], skews: Sequence[float]) -> list[str]:
    """A line for each node whose clock is off."""
    worst: dict[str, float] = {}
    for node, skew in zip(nodes, skews, strict=True):
        worst[node] = min(worst.get(node, float("inf")), skew, key=abs)
    return [f"{node}\tbad\tits clock is {skew:+.1f} s off the others (at most {MOST_SKEW_S:g} s); is its time service up?"
            for node, skew in worst.items() if abs(skew) > MOST_SKEW_S]
