"""Which agent reviews: by config, so that one's own plugs in without a change here (Sections 3.1 and 5 of the paper)."""

from __future__ import annotations

import importlib
from pathlib import Path

from nemo_mtdrive.config import AgentConfig, ConfigError
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import prepare
from nemo_mtdrive.pdm.imported import ImportedCaches
from nemo_mtdrive.pdm.learned import LearnedAgent
from nemo_mtdrive.pdm.review import Reviewer
from nemo_mtdrive.pdm.reward_model import RewardModelError


def open_reviewer(agent: AgentConfig, perception: str, cache_size: int) -> Reviewer:
    """Make the agent of a config: `pdm`, `learned`, or whatever `package.module:factory` returns.

    A factory is called as `factory(path=agent.path, perception=perception, cache_size=cache_size)`.

    Raises:
        ConfigError: an unknown kind, a factory that cannot be found or returns no reviewer, a model that cannot be used.
        SceneError: a folder of imported caches with none in it.
    """
    if agent.kind not in ("pdm", "learned"):
        return _from_factory(agent, perception, cache_size)
    make = ImportedCaches(Path(agent.navsim_caches)).prepare if agent.navsim_caches else prepare
    if agent.kind == "learned":
        try:
            return LearnedAgent(Path(agent.path), perception, cache_size, make)
        except RewardModelError as error:
            raise ConfigError(f"agent.path: {error}") from error
    return PDMAgent(perception, cache_size, make)


def _from_factory(agent: AgentConfig, perception: str, cache_size: int) -> Reviewer:
    module, _, name = agent.kind.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"agent.kind={agent.kind}: {error}; set it to pdm, learned or package.module:factory") from error
    reviewer = factory(path=agent.path, perception=perception, cache_size=cache_size)
    if not isinstance(reviewer, Reviewer):
        raise ConfigError(f"agent.kind={agent.kind}: it returned {type(reviewer).__name__}, which has no `review`; "
                          "see nemo_mtdrive.pdm.review.Reviewer")
    return reviewer
