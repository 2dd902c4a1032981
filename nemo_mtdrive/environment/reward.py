"""Eq. 2 of the paper, written once: r_ij = w_p * p_ij + w_f * f_ij."""

from __future__ import annotations

from collections.abc import Mapping


def turn_reward(scores: Mapping[str, float] | None, format_score: float, pdm_weight: float, format_weight: float) -> float:
    """The reward of one turn.

    Args:
        scores: of its trajectory, by `types.SCORE_NAMES`; None where the answer had none, which counts as a PDMS of 0.
        format_score: f_ij, 0 or 1.
        pdm_weight, format_weight: w_p and w_f (the paper: 0.8 and 0.2).
    """
    return pdm_weight * (0.0 if scores is None else scores["PDMS"]) + format_weight * format_score
