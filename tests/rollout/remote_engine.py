"""An engine of the rollout environment, for tests that run in the training environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import zmq
from numpy.typing import NDArray

from nemo_mtdrive.config import RolloutConfig
from nemo_mtdrive.config_checks import rollout_python
from nemo_mtdrive.rollout import engine as engine_module
from nemo_mtdrive.rollout.engine import Generated

SCRIPT = Path(__file__).with_name("engine_process.py")
LIMIT_S = 1800.0


def rollout_interpreter() -> str:
    """Python of the rollout environment; the test skips, or in CI fails, where there is none."""
    python = rollout_python(RolloutConfig())
    if not os.access(python, os.X_OK):
        if os.environ.get("CI"):
            pytest.fail(f"{python} is absent, and in CI it must be there: make rollout-env")
        pytest.skip(f"{python} is absent: make rollout-env")
    return str(python)


class RemoteEngine:
    """`rollout.engine.Engine` by way of a process; errors come as they were raised there."""

    def __init__(self, folder: Path, hf: dict[str, Any], settings: dict[str, Any]) -> None:
        (folder / "hf.json").write_text(json.dumps(hf))
        (folder / "settings.json").write_text(json.dumps(settings))
        self.log = folder / "engine.log"
        self._socket = zmq.Context.instance().socket(zmq.REQ)
        self._socket.bind(f"ipc://{folder}/engine")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [rollout_interpreter(), str(SCRIPT), f"ipc://{folder}/engine", str(folder)],
                stdout=output, stderr=output, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._socket.send(msgpack.packb([method, arguments]))
        waited = 0.0
        while not self._socket.poll(500):
            waited += 0.5
            assert self.process.poll() is None, f"the engine ended:\n{self.log.read_text()[-3000:]}"
            assert waited < LIMIT_S, f"no answer to {method}:\n{self.log.read_text()[-3000:]}"
        kind, value = msgpack.unpackb(self._socket.recv())
        if kind:
            raise getattr(engine_module, kind)(value)
        return value

    @property
    def state(self) -> dict[str, Any]:
        return self._ask("state")

    @property
    def version(self) -> int | None:
        return self.state["version"]

    @property
    def max_context(self) -> int:
        return self.state["max_context"]

    def add(self, sequence_ids: Sequence[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None) -> None:
        self._ask("add", list(sequence_ids), _packed(tokens), None if image is None else _packed(image))

    def extend(self, sequence_id: str, tokens: NDArray[np.int32]) -> None:
        self._ask("extend", sequence_id, _packed(tokens))

    def generate(
        self, sequence_ids: Sequence[str], max_new_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> dict[str, Generated]:
        got = self._ask("generate", list(sequence_ids), max_new_tokens, temperature, list(seeds))
        return {name: Generated(*(_array(x) for x in pair)) for name, pair in got.items()}

    def remove(self, sequence_ids: Iterable[str]) -> None:
        self._ask("remove", list(sequence_ids))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self._ask("load_weights", [[name, _packed(tensor.numpy())] for name, tensor in weights], version)

    def sleep(self) -> None:
        self._ask("sleep")

    def wake_up(self) -> None:
        self._ask("wake_up")

    def close(self) -> None:
        """End it well; then its process has ended."""
        if self.process.poll() is None:
            self._ask("close")
            self.process.wait(60)
        self._socket.close(linger=0)

    def kill(self) -> None:
        """End it, and what it has started, whatever they do."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 60.0
        while in_session(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in in_session(self.process.pid):  # it was killed before vLLM's processes watched it
            os.kill(pid, signal.SIGKILL)
        self._socket.close(linger=0)


def in_session(leader: int) -> set[int]:
    """Processes of a session that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def _packed(values: np.ndarray) -> list[Any]:
    return [values.dtype.str, list(values.shape), np.ascontiguousarray(values).tobytes()]


def _array(packed: list[Any]) -> np.ndarray:
    dtype, shape, data = packed
    return np.frombuffer(data, dtype).reshape(shape)
