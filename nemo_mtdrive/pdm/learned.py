"""An agent that was learned, not written: reviews by a reward model (the outlook in Section 5 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.cache import Make, PreparedScene, SceneCache, prepare
from nemo_mtdrive.pdm.features import NOBODY, describe
from nemo_mtdrive.pdm.feedback import POINT_STEPS, Finding, feedback_text, violations_of
from nemo_mtdrive.pdm.observation import AGENT_TYPES
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.pdm.reward_model import HEADS, Predictions, RewardModel, RewardModelError
from nemo_mtdrive.pdm.score import COMFORT_WEIGHT, EP_WEIGHT, TTC_WEIGHT
from nemo_mtdrive.pdm.simulate import check_trajectories

Array = NDArray[np.float64]

LIKELY = 0.5
"""From this probability on the model is taken at its word: a metric is clean, a point is violated."""


class LearnedAgent:
    """Reviews by a reward model trained on PDM labels; the same scores, violations and text as `PDMAgent` gives.

    A metric that the model holds for violated names the points that it holds for violated, with their objects; where it
    is sure of none, the likeliest one. So here, too, a failing metric is never silent, and a clean one never named.
    """

    def __init__(self, folder: Path, perception: str, cache_size: int, make: Make = prepare) -> None:
        """Load the model in `folder`; keep `cache_size` scenes that `make` prepared.

        Raises:
            RewardModelError: no model there, or one trained with another perception.
            ValueError: a cache size below 1.
        """
        self._model = RewardModel.load(folder)
        if self._model.perception != perception:
            raise RewardModelError(f"{folder}: trained with perception={self._model.perception}, asked for {perception}; "
                                   "set the same, or train another")
        self.perception = perception
        self._cache = SceneCache(perception, cache_size, make)

    def review(self, scene: Scene, trajectories: Array) -> list[Review]:
        """Predict the scores of trajectories [B, 8, 3] in the ego frame and find their violations.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        plans = check_trajectories(trajectories)
        if not len(plans):
            return []
        prepared = self._cache.get(scene)
        features = describe(prepared, plans)
        predicted = self._model.predict(features)
        return [self._review(prepared, predicted, features.objects[row], row, plan) for row, plan in enumerate(plans)]

    @staticmethod
    def _review(prepared: PreparedScene, predicted: Predictions, objects: NDArray[np.int64], row: int,
                plan: Array) -> Review:
        clean = dict(zip(HEADS, predicted.heads[row].tolist(), strict=True))
        findings: list[Finding] = []
        if clean["DAC"] < LIKELY:
            findings += [Finding("DAC", int(point), int(POINT_STEPS[point]), None)
                         for (point,) in _likely(predicted.off_road[row])]
        for metric, chances in (("NC", predicted.collides[row]), ("TTC", predicted.too_close[row])):
            if clean[metric] < LIKELY and (objects != NOBODY).any():
                findings += [Finding(metric, int(point), int(POINT_STEPS[point]), int(objects[point, place]))
                             for point, place in _likely(np.where(objects == NOBODY, -1.0, chances))]
        violations = violations_of(prepared, findings)
        return Review(_scores(violations, clean), violations, feedback_text(violations, plan))


def _likely(chances: NDArray[Any]) -> NDArray[np.int64]:
    """Index rows of the entries from `LIKELY` on, in order; the largest one where there is none."""
    found = np.argwhere(chances >= LIKELY)
    return found if len(found) else np.argwhere(chances == chances.max())[:1]


def _scores(violations: list[dict[str, Any]], clean: dict[str, float]) -> dict[str, float]:
    """The scores by `types.SCORE_NAMES` that agree with the violations; PDMS by Eq. 1."""
    hit = [violation["object"][-1] for violation in violations if violation["metric"] == "NC"]
    named = {violation["metric"] for violation in violations}
    collision = 1.0 if not hit else 0.0 if any(kind in AGENT_TYPES for kind in hit) else 0.5
    drivable, ttc = float("DAC" not in named), float("TTC" not in named)
    penalty = collision * drivable
    comfort, direction = float(clean["C"] >= LIKELY), float(clean["DDC"] >= LIKELY)
    progress = clean["EP"] if penalty > 0.0 else 0.0
    weighted = EP_WEIGHT * progress + TTC_WEIGHT * ttc + COMFORT_WEIGHT * comfort
    return {"NC": collision, "DAC": drivable, "TTC": ttc, "EP": progress, "C": comfort, "DDC": direction,
            "PDMS": penalty * weighted / (EP_WEIGHT + TTC_WEIGHT + COMFORT_WEIGHT)}
