"""The PDM agent of Section 3.1: looks at trajectories, scores them, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.cache import Make, PreparedScene, SceneCache, prepare, simulate_plans
from nemo_mtdrive.pdm.feedback import feedback_text, find_violations, violations_of
from nemo_mtdrive.pdm.observation import PERCEPTIONS
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.pdm.score import scores
from nemo_mtdrive.pdm.simulate import check_trajectories

Array = NDArray[np.float64]


class PDMAgent:
    """Reviews by NAVSIM v1's PDM score.

    Feedback and scores see the others through one perception: the recorded future ("oracle") or the boxes of t = 0
    moved with constant velocity ("kinematic"). To evaluate what a kinematic agent taught, score with an oracle one.
    """

    def __init__(self, perception: str, cache_size: int, make: Make = prepare) -> None:
        """Make an agent that keeps `cache_size` prepared scenes; `make` prepares them (`ImportedCaches.prepare` does so
        from NAVSIM's own caches).

        Raises:
            ValueError: an unknown perception, or a cache size below 1.
        """
        if perception not in PERCEPTIONS:
            raise ValueError(f"perception={perception!r}: set it to one of {', '.join(PERCEPTIONS)}")
        self.perception = perception
        self._cache = SceneCache(perception, cache_size, make)

    def prepare(self, scene: Scene) -> PreparedScene:
        """The scene's prepared data, kept for the reviews that follow."""
        return self._cache.get(scene)

    def feedback(self, scene: Scene, trajectory: Array) -> str:
        """The feedback of `review` to one trajectory [8, 3], without its scores: EP's reference is not planned.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        plan = check_trajectories(np.asarray(trajectory)[None])
        prepared = self.prepare(scene)
        found = find_violations(prepared.measure(prepared.simulate(plan)), 0)
        return feedback_text(violations_of(prepared, found), plan[0])

    def review(self, scene: Scene, trajectories: Array) -> list[Review]:
        """Score trajectories [B, 8, 3] in the ego frame and find their violations.

        Raises:
            ValueError: another shape, or a number that is not finite.
        """
        plans = check_trajectories(trajectories)
        if not len(plans):
            return []
        prepared = self.prepare(scene)
        return _reviews(prepared, plans, prepared.simulate(plans))

    def review_many(self, requests: Sequence[tuple[Scene, Array]]) -> list[list[Review]]:
        """Review trajectories [B_i, 8, 3] of many scenes, all simulated in one batch; to the last bit as `review` of each.

        Raises:
            ValueError: another shape, or a number that is not finite; the request is named.
        """
        plans = []
        for number, (_, trajectories) in enumerate(requests):
            try:
                plans.append(check_trajectories(trajectories))
            except ValueError as error:
                raise ValueError(f"requests[{number}]: {error}") from error
        if not requests:
            return []
        prepared = [self.prepare(scene) for scene, _ in requests]
        states = simulate_plans(prepared, plans)
        ends = np.cumsum([len(rows) for rows in plans])
        return [_reviews(one, rows, states[end - len(rows):end])
                for one, rows, end in zip(prepared, plans, ends, strict=True)]


def _reviews(prepared: PreparedScene, plans: Array, states: Array) -> list[Review]:
    """Reviews of plans [B, 8, 3] that were simulated to states [B, 41, 11]."""
    if not len(plans):
        return []
    measured = prepared.measure(states)
    reviews = []
    for row, row_scores in enumerate(scores(measured, prepared.reference_progress_m)):
        violations = violations_of(prepared, find_violations(measured, row))
        reviews.append(Review(row_scores, violations, feedback_text(violations, plans[row])))
    return reviews
