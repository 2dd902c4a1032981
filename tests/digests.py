"""What a checkpoint holds, as a digest of every tensor, so that two runs can be compared bit by bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_mtdrive.process import free_port

CODE = """
import hashlib, json, os, sys
from pathlib import Path
from nemo_mtdrive.models import parallel
from megatron.core import dist_checkpointing
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
parallel.initialise(1, 1, 0, 60.0)
def add(found, name, value):
    if isinstance(value, dict):
        for key, inner in value.items():
            add(found, f"{name}/{key}", inner)
    elif isinstance(value, (list, tuple)):
        for key, inner in enumerate(value):
            add(found, f"{name}/{key}", inner)
    else:
        data = value.contiguous().numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()
        found[name] = hashlib.sha256(data).hexdigest()
every = []
for checkpoint in sys.argv[2:]:
    found = {}
    for part in ("weights", "optimizer"):
        add(found, part, dist_checkpointing.load_plain_tensors(str(Path(checkpoint) / "model" / part)))
    every.append(found)
print(json.dumps(every))
parallel.shutdown()
"""


def digests(checkpoints: Sequence[Path]) -> list[dict[str, str]]:
    """Of every tensor of each checkpoint (weights, optimizer, reference) by name; read in a process of its own."""
    done = subprocess.run([sys.executable, "-c", CODE, str(free_port()), *map(str, checkpoints)], capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    every: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    assert all(len(found) > 20 for found in every)
    return every
