"""Eq. 2 by hand, with and without the progressive reward, and where episodes get it."""

from __future__ import annotations

import pytest

from nemo_mtdrive.config import ConfigError, load_config
from nemo_mtdrive.environment.reward import turn_reward
from nemo_mtdrive.rollout.multi_turn import RolloutSettings
from nemo_mtdrive.types import StepResult, Turn


def test_eq_2_by_hand() -> None:
    assert turn_reward({"PDMS": 0.5}, 1.0, 0.8, 0.2) == pytest.approx(0.6, abs=1e-15)
    assert turn_reward(None, 0.0, 0.8, 0.2) == 0.0
    assert turn_reward({"PDMS": 0.5}, 0.0, 0.8, 0.2, before=0.1) == 0.4  # off by default


def test_progress_by_hand() -> None:
    assert turn_reward({"PDMS": 0.5}, 1.0, 0.8, 0.2, 0.5, before=0.1) == pytest.approx(0.6 + 0.5 * 0.4, abs=1e-15)
    assert turn_reward(None, 0.0, 0.8, 0.2, 0.5, before=0.4) == -0.2
    assert turn_reward({"PDMS": 0.5}, 1.0, 0.8, 0.2, 0.5) == pytest.approx(0.6, abs=1e-15)  # the first turn has no other


def test_an_episodes_progress_adds_up_to_its_last_score_less_its_first() -> None:
    settings = RolloutSettings(6, 16, 64, 0.0, 0.0, progressive_weight=2.0)
    scores, turns = [0.2, None, 0.7, 1.0], list[Turn]()
    for index, score in enumerate(scores):
        of_turn = None if score is None else {"PDMS": score}
        result = StepResult("e", index, None, of_turn, 1.0, "", [], False, "")
        turns.append(Turn(index, 0, 0, "", None, of_turn, 1.0, settings.reward(result, turns), ""))
    assert [turn.reward for turn in turns] == pytest.approx([0.0, -0.4, 1.4, 0.6])
    assert sum(turn.reward for turn in turns) == pytest.approx(2.0 * (1.0 - 0.2))


def test_progress_is_refused_where_the_last_reward_is_carried_on() -> None:
    with pytest.raises(ConfigError, match=r"^reward.progressive_weight: set it to 0 with mtgrpo.estimator=unbiased"):
        load_config("scratch_cpu", ["reward.progressive_weight=0.5", "mtgrpo.estimator=unbiased"])
    assert load_config("scratch_cpu", ["reward.progressive_weight=0.5"]).reward.progressive_weight == 0.5
