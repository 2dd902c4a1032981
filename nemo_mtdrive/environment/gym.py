"""The environment with Gymnasium's API, for other trainers and for agents that are not language models.

An observation is the text to answer and the front image; an action is the answer as text. The reward is r_ij of Eq. 2.
`terminated` means that the review was clean, `truncated` that the turns are used up; `info` has the scores.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import gymnasium
import numpy as np
from gymnasium import spaces

from nemo_mtdrive.dialogue.answer import MAX_ANSWER_CHARACTERS
from nemo_mtdrive.environment.env import DrivingEnvironment, Environment, StepFailed
from nemo_mtdrive.environment.reward import turn_reward

MAX_TEXT_CHARACTERS = 65536
"""Longest question or feedback; feedback about a crowd of objects can be long."""


class ScoringFailed(RuntimeError):
    """An answer that could not be scored, through no fault of its own."""


class MultiTurnDrivingEnv(gymnasium.Env[dict[str, Any], str]):
    """One episode at a time over an environment in this process or a served one.

    Args:
        environment: a `DrivingEnvironment`, or the `EnvironmentClient` of a server.
        pdm_weight, format_weight: Eq. 2 (the paper: 0.8 and 0.2).
        progressive_weight: see `environment.reward`.
        render_mode: None or `rgb_array`.
        scene_ids: scenes to draw from; a `DrivingEnvironment` has its own, a client needs them.

    Raises:
        ValueError: no scenes to draw from.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, environment: Environment, pdm_weight: float, format_weight: float,
                 render_mode: str | None = None, scene_ids: Sequence[str] | None = None,
                 progressive_weight: float = 0.0) -> None:
        self.environment = environment
        self.pdm_weight = pdm_weight
        self.format_weight = format_weight
        self.progressive_weight = progressive_weight
        self._before: float | None = None
        self.render_mode = render_mode
        if scene_ids is None:
            scene_ids = environment.scenes.ids() if isinstance(environment, DrivingEnvironment) else ()
        self._ids = list(scene_ids)
        if not self._ids:
            raise ValueError("no scenes to draw from: give a source with some, or scene_ids for a served environment")
        self._episode_id = f"gym/{uuid4().hex}"
        shape = self._start(self._ids[0])["image"].shape
        self.close()
        self.observation_space = spaces.Dict({
            "text": spaces.Text(MAX_TEXT_CHARACTERS, min_length=0, charset=string.printable),
            "image": spaces.Box(0, 255, shape, np.uint8),
        })
        self.action_space = spaces.Text(MAX_ANSWER_CHARACTERS, min_length=0, charset=string.printable)

    def _start(self, scene_id: str) -> dict[str, Any]:
        [observation] = self.environment.reset_many([(self._episode_id, scene_id, True)])
        self._turn, self._before = 0, None
        self._image = observation.image
        return {"text": observation.prompt, "image": observation.image}

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode on `options["scene_id"]`, or on a scene drawn with the seed.

        Raises:
            UnknownScene: the scene of the options does not exist.
        """
        super().reset(seed=seed)
        scene_id = (options or {}).get("scene_id") or self._ids[int(self.np_random.integers(len(self._ids)))]
        return self._start(scene_id), {"scene_id": scene_id}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Answer the turn; the next observation's text is the feedback (empty after a clean review).

        Raises:
            ScoringFailed: the server could not score the answer; the episode is over, reset for another.
        """
        [result] = self.environment.step_many([(self._episode_id, self._turn, action)])
        if isinstance(result, StepFailed):
            raise ScoringFailed(f"turn {self._turn}: {result.reason}")
        self._turn += 1
        observation = {"text": result.feedback, "image": self._image}
        info = {"scores": result.scores, "format_score": result.format_score, "violations": result.violations,
                "trajectory": result.trajectory, "reason": result.reason}
        reward = turn_reward(result.scores, result.format_score, self.pdm_weight, self.format_weight,
                             self.progressive_weight, self._before)
        self._before = 0.0 if result.scores is None else result.scores["PDMS"]
        return observation, reward, result.reason == "clean", result.reason == "max_turns", info

    def render(self) -> np.ndarray[Any, np.dtype[np.uint8]] | None:  # type: ignore[override]
        """The front image, in mode `rgb_array`."""
        return self._image if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Forget the episode."""
        self.environment.close_many([self._episode_id])
