"""Turns and episodes made by hand, with the scores that a test wants."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_mtdrive.types import Episode, Turn

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>bold</b> {{ 7*7 }}"


def make_turn(index: int, pdms: float | None, *, nc: float = 1.0, dac: float = 1.0, answer: str = "answer",
              trajectory: np.ndarray | None = None, violations: list[dict[str, Any]] | None = None) -> Turn:
    """A turn with this PDMS (None: did not parse)."""
    scores = {"NC": nc, "DAC": dac, "TTC": 1.0, "EP": pdms or 0.0, "C": 1.0, "DDC": 1.0, "PDMS": pdms or 0.0}
    path = trajectory if trajectory is not None else np.column_stack([3.0 * np.arange(1, 9), np.zeros((8, 2))])
    feedback = "feedback" if violations else ""
    if pdms is None:
        return Turn(index, 0, 10, answer, None, None, 0.0, 0.0, feedback, violations or [])
    return Turn(index, 0, 10, answer, path, scores, 1.0, 0.8 * pdms + 0.2, feedback, violations or [])


def make_episode(scene_id: str, *turns: Turn, index: int = 0, valid: bool = True, image: str = "none") -> Episode:
    """An episode of these turns."""
    return Episode(f"after_rl/0/{scene_id}/{index}", scene_id, index, 1, 1, np.zeros(4, np.int32),
                   np.zeros(4, np.int16), np.zeros(4, np.float32), (image,), ((1, 8, 16),), turns, valid,
                   "clean" if valid else "error: lost")
