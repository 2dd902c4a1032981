"""Peak memory of log-probs and entropies of many tokens, forward and backward: fused with the projection, and dense.

    python benchmarks/log_prob_memory.py [--json] [--tokens 2048] [--vocabulary 152064] [--hidden 256]

Each way has a process of its own; what counts is how far its resident memory rose above what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor

GIGABYTE = 1e9


def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies as the trainers get them."""
    from nemo_mtdrive.models.logprobs import project_and_score

    scores = project_and_score(hidden, weight, targets, 1.0, want_entropy=True)
    assert scores.entropy is not None
    return scores.logprobs, scores.entropy


def dense(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same from whole logits."""
    table = torch.log_softmax(hidden @ weight.t(), dim=-1)
    return table.gather(1, targets[:, None]).squeeze(1), -(table.exp() * table).sum(1)


def measure(side: str, tokens: int, vocabulary: int, size: int) -> dict[str, float]:
    """Rise of the peak [GB], CPU time [s], and a number that both ways must agree on."""
    from megatron.core import parallel_state

    import nemo_mtdrive.models.logprobs  # noqa: F401  # its import is not what is measured

    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        torch.manual_seed(0)
        hidden = (torch.randn(tokens, size) / size**0.5).requires_grad_()
        weight, targets = torch.randn(vocabulary, size, requires_grad=True), torch.randint(vocabulary, (tokens,))
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        logprobs, entropy = (fused if side == "fused" else dense)(hidden, weight, targets)
        (logprobs.sum() + entropy.sum()).backward()
        rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / GIGABYTE
        torch.distributed.destroy_process_group()
    assert weight.grad is not None
    return {"peak_gb": rise, "cpu_s": time.process_time() - begin, "gradient_norm": float(weight.grad.norm())}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways, and how they compare."""
    sides = {}
    for side in ("fused", "dense"):
        print(side, file=sys.stderr)
        command = [sys.executable, "-W", "ignore", *sys.argv, "--side", side]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        sides[side] = json.loads(ran.stdout.splitlines()[-1])
    gap = abs(sides["fused"]["gradient_norm"] / sides["dense"]["gradient_norm"] - 1)
    return {
        "benchmark": "log_prob_memory",
        "command": " ".join(["python", *sys.argv]),
        "machine": {"device": "cpu", "cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
        "setting": {"tokens": options.tokens, "vocabulary": options.vocabulary, "hidden": options.hidden,
                    "whole_logits_gb": 4 * options.tokens * options.vocabulary / GIGABYTE},
        "figures": sides["fused"] | {"gradient_gap": gap},
        "peers": {"dense": sides["dense"]},
        "ratios": {"memory": sides["dense"]["peak_gb"] / sides["fused"]["peak_gb"],
                   "cpu_time": sides["fused"]["cpu_s"] / sides["dense"]["cpu_s"]},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=152064)
    parser.add_argument("--hidden", type=int, default=256, help="width of the hidden states")
    parser.add_argument("--side", choices=("fused", "dense"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.tokens, options.vocabulary, options.hidden)))
        return 0
    result = compare(options)
    if options.json:
        print(json.dumps(result))
        return 0
    for side, found in (("fused", result["figures"]), ("dense", result["peers"]["dense"])):
        print(f"{side}: peak {found['peak_gb']:.2f} GB, {found['cpu_s']:.1f} s of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
