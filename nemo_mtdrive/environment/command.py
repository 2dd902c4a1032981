"""`nemo-mtdrive serve-env --scenes ADDRESS`: serve scenes without a run, for scores or for another trainer."""

from __future__ import annotations

import argparse
import os

from nemo_mtdrive.config import AgentConfig, ConfigError
from nemo_mtdrive.driving.sources import SceneSource, open_scenes
from nemo_mtdrive.environment.arguments import TOKEN_VARIABLE
from nemo_mtdrive.environment.worker import WorkerSpec
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reviewers import open_reviewer


def serve_scenes(options: argparse.Namespace) -> int:
    """Serve the scenes of an address until a signal; returns the exit code.

    Raises:
        ConfigError: no token, or a number that cannot work.
        SceneError: no such source, or no scenes in it.
    """
    from nemo_mtdrive.environment.server import serve  # not in the workers, which import this module for `scoring_parts`

    for name in ("workers", "queue_items", "cache_scenes", "max_turns"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: set it to 1 or more")
    token = options.token_file.read_text().strip() if options.token_file else os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise ConfigError(f"no token: set --token-file FILE or {TOKEN_VARIABLE} to a secret of your own")
    open_scenes(options.scenes)  # refused here, not in a worker
    kept = max(1, options.cache_scenes // options.workers)
    spec = WorkerSpec(f"{__name__}:scoring_parts", {
        "scenes": options.scenes, "agent": options.agent, "agent_path": options.agent_path,
        "perception": options.perception, "cache_scenes": kept}, kept)
    return serve(spec, workers=options.workers, queue_items=options.queue_items, max_turns=options.max_turns,
                 host=options.host, port=options.port, token=token, with_parent=False)


def scoring_parts(scenes: str, agent: str, agent_path: str, perception: str,
                  cache_scenes: int) -> tuple[SceneSource, Reviewer]:
    """Scenes and reviewer of one scoring worker."""
    return (open_scenes(scenes),
            open_reviewer(AgentConfig(agent, agent_path), perception, cache_scenes))
