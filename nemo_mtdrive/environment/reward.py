"""Eq. 2 of the paper, written once: r_ij = w_p * p_ij + w_f * f_ij, and what may be added to it.

`progressive_weight` w adds w * (p_ij - p_i,j-1) from the second turn on: the paper names a progressive reward among its
contributions and gives no formula for one (docs/mtgrpo.md), so w is 0 unless a config sets it.
"""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, float] | None
"""Of a turn's trajectory, by `types.SCORE_NAMES`; None where the answer had none, which counts as a PDMS of 0."""


def turn_reward(scores: Scores, format_score: float, pdm_weight: float, format_weight: float,
                progressive_weight: float = 0.0, before: float | None = None) -> float:
    """The reward of one turn.

    Args:
        scores: see `Scores`.
        format_score: f_ij, 0 or 1 (`dialogue.format_score`).
        pdm_weight, format_weight: w_p and w_f (the paper: 0.8 and 0.2).
        progressive_weight: w.
        before: p_i,j-1; None in the first turn.
    """
    pdm = 0.0 if scores is None else scores["PDMS"]
    progress = 0.0 if before is None else pdm - before
    return pdm_weight * pdm + format_weight * format_score + progressive_weight * progress
