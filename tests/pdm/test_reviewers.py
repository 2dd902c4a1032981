"""Which agent a config gives, and what is said where it gives none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nemo_mtdrive.config import AgentConfig, ConfigError, check, load_config
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.learned import LearnedAgent
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.pdm.reviewers import open_reviewer
from nemo_mtdrive.pdm.reward_model import FILE, FORMAT
from nemo_mtdrive.types import SCORE_NAMES
from tests.pdm.conftest import MakeScene, straight_plan


class Applause:
    """An agent of one's own."""

    def __init__(self, path: str, perception: str, cache_size: int) -> None:
        self.made_with = (path, perception, cache_size)

    def review(self, scene: Scene, trajectories: np.ndarray) -> Sequence[Review]:
        return [Review(dict.fromkeys(SCORE_NAMES, 1.0), [], "") for _ in trajectories]


def check_agent(agent: AgentConfig) -> None:
    config = load_config("scratch_cpu", [])
    config.agent = agent
    check(config)


def no_agent(path: str, perception: str, cache_size: int) -> object:
    return object()


def test_the_two_that_are_built_in(reward_model_folder: Path) -> None:
    assert isinstance(open_reviewer(AgentConfig(), "kinematic", 1), PDMAgent)
    assert isinstance(open_reviewer(AgentConfig("learned", str(reward_model_folder)), "oracle", 1), LearnedAgent)


def test_ones_own_plugs_in_by_name(make_scene: MakeScene) -> None:
    config = AgentConfig(f"{__name__}:Applause", "my/files")
    check_agent(config)
    agent = open_reviewer(config, "oracle", 7)
    assert isinstance(agent, Applause) and agent.made_with == ("my/files", "oracle", 7)
    assert agent.review(make_scene(), straight_plan(6.2)[None])[0].scores["PDMS"] == 1.0


@pytest.mark.parametrize("kind", ["pdn", "", "nowhere.at_all:make", "nemo_mtdrive.pdm.agent", ":make", "os.path:", "a b:c"])
def test_an_unknown_agent_is_one_line_before_anything_starts(kind: str) -> None:
    with pytest.raises(ConfigError, match="agent.kind=.*set it to pdm, learned, or package.module:factory") as caught:
        check_agent(AgentConfig(kind))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="agent.kind="):
        open_reviewer(AgentConfig(kind), "oracle", 1)


def test_a_factory_that_is_missing_or_makes_no_agent() -> None:
    with pytest.raises(ConfigError, match="has no attribute 'nobody'"):
        open_reviewer(AgentConfig(f"{__name__}:nobody"), "oracle", 1)
    with pytest.raises(ConfigError, match="returned object, which has no `review`"):
        open_reviewer(AgentConfig(f"{__name__}:no_agent"), "oracle", 1)


def test_a_model_that_cannot_be_used(reward_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reward_model.safetensors there"):
        check_agent(AgentConfig("learned", str(tmp_path)))
    check_agent(AgentConfig("learned", str(reward_model_folder)))
    with pytest.raises(ConfigError, match="trained with perception=oracle, asked for kinematic"):
        open_reviewer(AgentConfig("learned", str(reward_model_folder)), "kinematic", 1)

    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            open_reviewer(AgentConfig("learned", str(tmp_path)), "oracle", 1)
        assert "\n" not in str(caught.value) and FILE in str(caught.value)

    whole = (reward_model_folder / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:len(whole) // 2])
    refused("not a reward model")
    weights = load_file(reward_model_folder / FILE)
    header = {"header": json.dumps({"format": FORMAT, "perception": "oracle"})}
    save_file(weights, tmp_path / FILE)
    refused("format None")
    save_file(weights | {"plan.0.bias": np.full_like(weights["plan.0.bias"], np.nan)}, tmp_path / FILE, header)
    refused("not finite")
    weights.pop("point.1.bias")
    save_file(weights, tmp_path / FILE, header)
    refused("not those of a reward model")
