"""The records that every layer shares, with shapes and units. No torch here.

The vocabulary is the paper's (MTDrive, arXiv 2601.22930, Section 3): an *episode* is one rollout o_i of a
question, made of *turns* j = 0..N-1; the G episodes of one scene form a *group*. Positions are metres, angles
radians, times seconds; trajectories are 8 x [x, y, heading] in the rear-axle frame of the ego at t = 0
(x forward, y left), one point every 0.5 s from 0.5 s to 4.0 s.

Worked example, G = 2, an episode of two turns and one of one turn::

    Group(scene_id="g7", episodes=(
        Episode(index=0, turns=(Turn(index=0, reward=0.2), Turn(index=1, reward=1.0)), ...),
        Episode(index=1, turns=(Turn(index=0, reward=0.9),), ...)))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAJECTORY_POINTS = 8
"""Number of points of a planned trajectory (4 s at 2 Hz)."""

TRAJECTORY_STEP_S = 0.5
"""Time between two points of a trajectory [s]."""

NOT_OURS = -1
"""Value of `Episode.turn_of_token` for tokens that the model did not write (prompt, image, feedback)."""

SCORE_NAMES = ("NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS")
"""Keys of a `Turn.scores` mapping, each in 0..1 (NAVSIM v1; Eq. 1 of the paper)."""


@dataclass(frozen=True)
class Observation:
    """What the environment shows at the start of an episode: the text of the question and the front image."""

    episode_id: str
    scene_id: str
    prompt: str
    image_key: str
    """Content hash of the image; equal pixels have equal keys."""
    image: NDArray[np.uint8] | None
    """[H, W, 3] RGB, sides multiples of 28; None when the caller said it has the key already."""


@dataclass(frozen=True)
class StepResult:
    """The environment's reply to one answer of the model: r_phi's parts and the agent's feedback (Section 3.1)."""

    episode_id: str
    turn: int
    trajectory: NDArray[np.float64] | None
    """[8, 3], or None when the answer could not be parsed."""
    scores: dict[str, float] | None
    """`SCORE_NAMES` -> 0..1; None when there was no trajectory to score."""
    format_score: float
    """f_ij of Eq. 2, 0 or 1."""
    feedback: str
    """Text of the next user message; empty when the agent found no violation."""
    violations: list[dict[str, Any]]
    """The same as data: {"metric": "NC"|"DAC"|"TTC", "point": 0..7, "object": [x,y,z,l,w,h,heading,name]|None}."""
    done: bool
    reason: str
    """"" while the episode goes on, else "clean" or "max_turns"."""


@dataclass(frozen=True)
class Turn:
    """One answer of the model inside an episode, with its reward r_ij (Eq. 2)."""

    index: int
    start: int
    """Position in `Episode.tokens` of the first token of the answer."""
    stop: int
    """One past the last token of the answer, the closing <|im_end|> included."""
    answer: str
    trajectory: NDArray[np.float64] | None
    scores: dict[str, float] | None
    format_score: float
    reward: float
    feedback: str
    violations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pdm_score(self) -> float:
        """p_ij of Eq. 2: PDMS in 0..1; 0 for an answer without a trajectory."""
        return 0.0 if self.scores is None else self.scores["PDMS"]


@dataclass(frozen=True)
class Episode:
    """One rollout o_i: the whole conversation token by token, and its turns."""

    episode_id: str
    scene_id: str
    index: int
    """i in 0..G-1 inside the group."""
    seed: int
    policy_version: int
    tokens: NDArray[np.int32]
    """[T] the conversation, image placeholders expanded; the trainer scores these very ids (never re-encoded)."""
    turn_of_token: NDArray[np.int16]
    """[T] the turn j that wrote this token, or `NOT_OURS`."""
    logprobs: NDArray[np.float32]
    """[T] the engine's log-probability of each token that the model wrote, 0 elsewhere."""
    image_keys: tuple[str, ...]
    image_grids: tuple[tuple[int, int, int], ...]
    """(t, h, w) in 14-pixel patches for each image, in the order of their placeholders."""
    turns: tuple[Turn, ...]
    valid: bool
    """False when machinery failed (server, engine): such an episode is masked, never scored 0."""
    reason: str
    """Why it ended: "clean", "max_turns", "context", or "error: ..." when not valid."""

    @property
    def rewards(self) -> list[float]:
        """[turns] r_ij in order of j."""
        return [turn.reward for turn in self.turns]


@dataclass(frozen=True)
class Group:
    """The G episodes of one scene, ordered by `Episode.index`; advantages are normalised inside it."""

    scene_id: str
    episodes: tuple[Episode, ...]


@dataclass(frozen=True)
class RolloutTask:
    """A scene to be rolled out G times by one worker."""

    scene_id: str
    group_size: int
    seed: int
    policy_version: int
    step: int
    """Trainer step, part of the episode ids."""
    temperature: float
    """0 is greedy."""
    purpose: str = "train"
    """"train" or "validation"."""
    slot: int = 0
    """Place of the task in its step: a scene may be drawn twice in a step, where one epoch ends and the next begins."""

    def episode_id(self, index: int) -> str:
        """The id of the index-th episode; the same task gives the same ids, so repeats are recognised."""
        return f"{self.purpose}/{self.step}/{self.slot}/{self.scene_id}/{index}"
