"""f_ij of Eq. 2: whether an answer keeps to the format that the question asks for (Appendix A.1).

The question wants `[PT, (x, y, heading), ...]` with 8 points, and numbers of at most two decimals. An answer may be readable
without that: its trajectory is then scored, and only the format's part of the reward is lost.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.types import TRAJECTORY_POINTS

_TOO_PRECISE = re.compile(r"\.[0-9]{3}")


def format_score(text: str, trajectory: NDArray[np.float64] | None) -> float:
    """1.0 for an answer in the format, else 0.0.

    Args:
        text: the answer.
        trajectory: what was read from it, [8, 3]; None where nothing could be.
    """
    if trajectory is None or trajectory.shape != (TRAJECTORY_POINTS, 3) or not np.isfinite(trajectory).all():
        return 0.0
    start = text.index("[PT")
    return 0.0 if _TOO_PRECISE.search(text, start, text.index("]", start)) else 1.0
