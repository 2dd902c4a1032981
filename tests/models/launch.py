"""Start two gloo ranks that run the checks of `ranks.py`, and read what they found.

NeMo takes 10 s and more to import, so one pair of processes runs every check, in three process grids one after the
other, and the tests read its numbers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900


def run(script: Path, ranks: int, directory: Path) -> dict[str, Any]:
    """Run `script DIRECTORY` as `ranks` gloo processes; returns the results.json that rank 0 writes there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    logs = [directory / f"rank_{rank}.log" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-W", "ignore", str(script), str(directory)]
        with log.open("w") as stream:
            processes.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + LIMIT_S
    try:
        codes = [process.poll() for process in processes]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.2)
            codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(code != 0 for code in codes):
        tails = [f"rank {rank} ended with {codes[rank]}:\n{log.read_text()[-3000:]}" for rank, log in enumerate(logs)]
        raise AssertionError("\n".join(tails))
    return json.loads((directory / "results.json").read_text())
