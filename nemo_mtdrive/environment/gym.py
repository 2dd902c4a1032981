"""The environment with Gymnasium's API, for other trainers and for agents that are not language models.

An observation is the text to answer and the front image; an action is the answer as text. The reward is r_ij of Eq. 2.
`terminated` means that the review was clean, `truncated` that the turns are used up; `info` has the scores.
"""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from nemo_mtdrive.dialogue.answer import MAX_ANSWER_CHARACTERS
from nemo_mtdrive.environment.env import DrivingEnvironment
from nemo_mtdrive.types import StepResult

MAX_TEXT_CHARACTERS = 65536
"""Longest question or feedback; feedback about a crowd of objects can be long."""


class MultiTurnDrivingEnv(gymnasium.Env[dict[str, Any], str]):
    """One episode at a time over a `DrivingEnvironment`.

    Args:
        environment: where episodes are played.
        pdm_weight, format_weight: Eq. 2 (the paper: 0.8 and 0.2).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, environment: DrivingEnvironment, pdm_weight: float, format_weight: float,
                 render_mode: str | None = None) -> None:
        self.environment = environment
        self.pdm_weight = pdm_weight
        self.format_weight = format_weight
        self.render_mode = render_mode
        self._ids = list(environment.scenes.ids())
        if not self._ids:
            raise ValueError("the scene source is empty: give one with at least one scene")
        shape = environment.scenes.image(self._ids[0]).shape
        self.observation_space = spaces.Dict({
            "text": spaces.Text(MAX_TEXT_CHARACTERS, min_length=0, charset=string.printable),
            "image": spaces.Box(0, 255, shape, np.uint8),
        })
        self.action_space = spaces.Text(MAX_ANSWER_CHARACTERS, min_length=0, charset=string.printable)
        self._episode_id = f"gym/{id(self)}"
        self._turn = 0
        self._image: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode on `options["scene_id"]`, or on a scene drawn with the seed.

        Raises:
            UnknownScene: the scene of the options does not exist.
        """
        super().reset(seed=seed)
        scene_id = (options or {}).get("scene_id") or self._ids[int(self.np_random.integers(len(self._ids)))]
        observation = self.environment.reset(self._episode_id, scene_id, want_image=True)
        self._turn = 0
        self._image = observation.image
        return {"text": observation.prompt, "image": observation.image}, {"scene_id": scene_id}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Answer the turn; the next observation's text is the feedback (empty after a clean review)."""
        result = self.environment.step(self._episode_id, self._turn, action)
        self._turn += 1
        observation = {"text": result.feedback, "image": self._image}
        info = {"scores": result.scores, "format_score": result.format_score, "violations": result.violations,
                "trajectory": result.trajectory, "reason": result.reason}
        return observation, self._reward(result), result.reason == "clean", result.reason == "max_turns", info

    def render(self) -> np.ndarray[Any, np.dtype[np.uint8]] | None:  # type: ignore[override]
        """The front image, in mode `rgb_array`."""
        return self._image if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Forget the episode."""
        self.environment.close(self._episode_id)

    def _reward(self, result: StepResult) -> float:
        pdm = 0.0 if result.scores is None else result.scores["PDMS"]
        return self.pdm_weight * pdm + self.format_weight * result.format_score
