"""What `nemo-mtdrive serve-env` takes; light, since the parser of every command imports it."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_mtdrive.config import AgentConfig, EnvironmentConfig, RolloutConfig
from nemo_mtdrive.process import available_cpus

TOKEN_VARIABLE = "NEMO_MTDRIVE_TOKEN"
DEFAULT_PORT = 8765
EXAMPLE = f"""nemo-mtdrive serve-env --run-dir runs/demo

Serves /v1/reset, /v1/step, /v1/close (episodes of several turns) and /v1/score (scores alone) as msgpack over HTTP, and
/health, /ready, /metrics. Fields, errors and metrics: docs/environment.md. Ends on SIGTERM or Ctrl-C, with exit code 0.

  {TOKEN_VARIABLE}=secret nemo-mtdrive serve-env --scenes DIR --port {DEFAULT_PORT} --workers 4
  python - <<END
  import numpy as np
  from nemo_mtdrive.environment.client import EnvironmentClient
  with EnvironmentClient("http://127.0.0.1:{DEFAULT_PORT}", "secret", timeout_s=60.0, retries=4) as client:
      client.wait_ready(120.0)
      print(client.score("p0000007", np.zeros((1, 8, 3)))[0].scores)
  END
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `serve-env`."""
    defaults = EnvironmentConfig()
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run-dir", type=Path, metavar="RUN", help="a run that `rl` prepared: its scenes, agent and token")
    what.add_argument("--scenes", type=_address, metavar="ADDRESS",
                      help="scenes to serve without a run: a folder of scene files, or an address as procedural://?count=500")
    parser.add_argument("--index", type=int, default=0, help="which of a run's servers (default: %(default)s)")
    alone = parser.add_argument_group("with --scenes (a run has these in its config)")
    alone.add_argument("--host", default=defaults.host,
                       help="where to listen; the token is sent in clear: trusted networks only (default: %(default)s)")
    alone.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one (default: %(default)s)")
    alone.add_argument("--token-file", type=Path, metavar="FILE",
                       help=f"holds the secret that clients send; else {TOKEN_VARIABLE} of the environment is taken")
    alone.add_argument("--workers", type=int, default=available_cpus(),
                       help="scoring processes (default: the CPUs, here %(default)s)")
    alone.add_argument("--queue-items", type=int, default=defaults.queue_items,
                       help="answers and trajectories that may wait; more get 503 and Retry-After (default: %(default)s)")
    alone.add_argument("--cache-scenes", type=int, default=defaults.cache_scenes,
                       help="prepared scenes kept in memory, all workers together (default: %(default)s)")
    alone.add_argument("--max-turns", type=int, default=RolloutConfig().max_turns,
                       help="of an episode (default: %(default)s)")
    alone.add_argument("--perception", choices=("oracle", "kinematic"), default=defaults.perception,
                       help="recorded future, or constant velocity from t = 0 (default: %(default)s)")
    alone.add_argument("--agent", default=AgentConfig().kind, metavar="KIND",
                       help="who reviews: pdm, learned, or package.module:factory (default: %(default)s)")
    alone.add_argument("--agent-path", default="", metavar="DIR", help="of a learned agent")


def _address(text: str) -> str:
    return text if "://" in text else f"files://{Path(text).resolve()}"
