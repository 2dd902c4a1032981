"""Gymnasium's API."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from nemo_mtdrive.environment.client import EnvironmentClient
from nemo_mtdrive.environment.env import DrivingEnvironment, StepFailed, UnknownScene
from nemo_mtdrive.environment.gym import MultiTurnDrivingEnv, ScoringFailed
from tests.environment.environment_fakes import FEEDBACK, MAX_TURNS, FakeReviewer, FakeScenes, answer


class DrivableScenes(FakeScenes):
    """Without the scene that cannot be driven."""

    def ids(self):
        return super().ids()[:4]


@pytest.fixture(params=["here", "served"])
def gym_env(request):
    """Over an environment in this process, and over a real server's client."""
    if request.param == "here":
        environment = DrivingEnvironment(DrivableScenes(), FakeReviewer(), MAX_TURNS)
        yield MultiTurnDrivingEnv(environment, pdm_weight=0.8, format_weight=0.2, render_mode="rgb_array")
        return
    client: EnvironmentClient = request.getfixturevalue("client")
    yield MultiTurnDrivingEnv(client, 0.8, 0.2, "rgb_array", scene_ids=DrivableScenes().ids())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_passes(gym_env):
    check_env(gym_env, skip_render_check=True)


def test_an_episode(gym_env):
    seen, info = gym_env.reset(options={"scene_id": "s2"})
    assert info == {"scene_id": "s2"} and seen["text"].startswith("As an autonomous driving system")
    assert gym_env.observation_space.contains(seen) and (gym_env.render() == 20).all()

    seen, reward, terminated, truncated, info = gym_env.step("no list")
    assert (reward, terminated, truncated, info["scores"]) == (0.0, False, False, None)
    assert "could not be read" in seen["text"]

    seen, reward, terminated, truncated, info = gym_env.step(answer(3.0))
    assert reward == pytest.approx(0.8 * 0.25 + 0.2) and not terminated and not truncated
    assert seen["text"] == FEEDBACK and gym_env.observation_space.contains(seen)

    seen, reward, terminated, truncated, info = gym_env.step(answer(0.0))
    assert reward == pytest.approx(1.0) and (terminated, truncated) == (True, False)
    assert seen["text"] == "" and info["reason"] == "clean"


def test_turns_used_up_are_a_truncation(gym_env):
    gym_env.reset(seed=1)
    for _ in range(MAX_TURNS):
        *_, terminated, truncated, _ = gym_env.step(answer(3.0))
    assert (terminated, truncated) == (False, True)


def test_the_seed_chooses_the_scene(gym_env):
    chosen = [gym_env.reset(seed=seed)[1]["scene_id"] for seed in range(12)]
    assert chosen == [gym_env.reset(seed=seed)[1]["scene_id"] for seed in range(12)] and len(set(chosen)) > 1
    with pytest.raises(UnknownScene):
        gym_env.reset(options={"scene_id": "nowhere"})


def test_two_gyms_share_an_environment(gym_env):
    other = MultiTurnDrivingEnv(gym_env.environment, 0.8, 0.2, scene_ids=["s1", "s2"])
    gym_env.reset(seed=1)
    other.reset(seed=2)
    gym_env.step(answer(3.0))
    assert other.step(answer(0.0))[2] and other.render() is None
    assert np.isfinite(gym_env.step(answer(0.0))[1])
    gym_env.close()
    other.close()
    if isinstance(gym_env.environment, DrivingEnvironment):
        assert gym_env.environment.open_episodes == 0


def test_an_answer_that_cannot_be_scored_is_not_a_zero():
    class Broken(DrivingEnvironment):
        def step_many(self, items):
            return [StepFailed(episode_id, turn, "ScoringFailed: the map has a hole") for episode_id, turn, _ in items]

    broken = MultiTurnDrivingEnv(Broken(DrivableScenes(), FakeReviewer(), MAX_TURNS), 0.8, 0.2)
    broken.reset(seed=1)
    with pytest.raises(ScoringFailed, match="turn 0: ScoringFailed: the map has a hole"):
        broken.step(answer(0.0))


def test_a_served_environment_needs_scene_ids(client):
    with pytest.raises(ValueError, match="scene_ids for a served environment"):
        MultiTurnDrivingEnv(client, 0.8, 0.2)
