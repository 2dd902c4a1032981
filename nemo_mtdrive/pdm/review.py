"""What any agent says of a trajectory, and the one method that makes an agent (the paper's Sections 3.1 and 5).

The multi-turn loop is agent-agnostic: whatever has `review` can give rewards and feedback. `pdm.agent.PDMAgent` is the
paper's own, by rules; others plug in by config.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene


@dataclass(frozen=True)
class Review:
    """What an agent has to say of one trajectory."""

    scores: dict[str, float]
    """`types.SCORE_NAMES` -> 0..1."""
    violations: list[dict[str, Any]]
    """{"metric": "DAC"|"NC"|"TTC", "point": 0..7, "object": [x, y, z, l, w, h, heading, name] | None}."""
    feedback: str
    """The next user message, empty where nothing is violated."""


@runtime_checkable
class Reviewer(Protocol):
    """Any agent that gives trajectory-level feedback; the multi-turn loop needs nothing else of it."""

    def review(self, scene: Scene, trajectories: NDArray[np.float64]) -> Sequence[Review]:
        """Review trajectories [B, 8, 3] of one scene, in order.

        Each trajectory's review is what it would get alone. No trajectories get no reviews.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        ...


@runtime_checkable
class GivesFeedback(Protocol):
    """An agent that can do without the scores (`PDMAgent` then plans no reference for EP)."""

    def feedback(self, scene: Scene, trajectory: NDArray[np.float64]) -> str:
        """What `review` says to one trajectory [8, 3]."""
        ...


def feedback_to(reviewer: Reviewer, scene: Scene, trajectory: NDArray[np.float64]) -> str:
    """The feedback to one trajectory [8, 3]; agents that have a shorter way to it than a review have `feedback`."""
    if isinstance(reviewer, GivesFeedback):
        return reviewer.feedback(scene, trajectory)
    return reviewer.review(scene, trajectory[None])[0].feedback
