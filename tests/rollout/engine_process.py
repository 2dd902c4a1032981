"""`engine_process.py ENDPOINT FOLDER`: an engine of the rollout environment that does what a test asks for.

FOLDER holds hf.json and settings.json; requests and replies are msgpack over ZeroMQ, arrays as [dtype, shape, bytes].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import zmq

from nemo_mtdrive.config import RolloutConfig
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.rollout.engine import EngineError
from nemo_mtdrive.rollout.model_driver import ENGINES


def array(packed: list[Any] | None) -> np.ndarray | None:
    if packed is None:
        return None
    dtype, shape, data = packed
    return np.frombuffer(data, dtype).reshape(shape)


def packed(values: np.ndarray) -> list[Any]:
    return [values.dtype.str, list(values.shape), values.tobytes()]


def answer(engine: Any, method: str, arguments: list[Any]) -> Any:
    if method == "add":
        names, tokens, image = arguments
        return engine.add(names, array(tokens), array(image))
    if method == "extend":
        return engine.extend(arguments[0], array(arguments[1]))
    if method == "generate":
        return {name: [packed(x) for x in got] for name, got in engine.generate(*arguments).items()}
    if method == "load_weights":
        pairs, version = arguments
        return engine.load_weights(((name, torch.from_numpy(array(x).copy())) for name, x in pairs), version)
    if method == "state":
        from vllm.v1.metrics.reader import get_metrics_snapshot

        metrics = {m.name: m.value for m in get_metrics_snapshot() if hasattr(m, "value")}
        wanted = ("vllm:prefix_cache_queries", "vllm:prefix_cache_hits")
        resident = engine._call(engine._llm.collective_rpc("mtdrive_resident_bytes"))[0]
        return {"version": engine.version, "max_context": engine.max_context, "resident": resident,
                "images_sent": engine.counts.images_sent, **{name: metrics[name] for name in wanted}}  # fmt: skip
    assert method in ("remove", "sleep", "wake_up", "close")
    return getattr(engine, method)(*arguments)


def main(endpoint: str, folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    tokenizer = Tokenizer.load(TINY_TOKENIZER)
    engine = ENGINES["vllm"](json.loads((folder / "hf.json").read_text()), tokenizer, RolloutConfig(**settings), "")
    socket = zmq.Context.instance().socket(zmq.REP)
    socket.connect(endpoint)
    method = ""
    while method != "close":
        method, arguments = msgpack.unpackb(socket.recv())
        try:
            reply = ["", answer(engine, method, arguments)]
        except EngineError as error:
            reply = [type(error).__name__, str(error)]
        socket.send(msgpack.packb(reply))
    socket.close(linger=5000)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
