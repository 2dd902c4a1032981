"""PDM understanding data (Section 3.2, Appendix A.2): yes-or-no questions on NC, DAC, TTC and EP, answered by the scorer.

Questions come in pairs from one scene, one whose answer is yes and one whose answer is no, so every metric and every form
is balanced exactly, and a scene alone gives no answer away. Counterfactual questions find the critical obstacle: an
object is taken away, and the score changes or does not; the other one of a pair is an object near the same trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.data.lines import Line, make_line, provenance_of, random_of
from nemo_mtdrive.data.plans import sample_plans
from nemo_mtdrive.dialogue.questions import ENOUGH_PROGRESS, FORMS, NO, YES, Question, question_text
from nemo_mtdrive.driving.scene import Scene, to_map_frame
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import PreparedScene
from nemo_mtdrive.pdm.collisions import NO_HIT
from nemo_mtdrive.pdm.drivable import classify
from nemo_mtdrive.pdm.feedback import Finding, find_violations, format_object, format_point, object_box
from nemo_mtdrive.pdm.geometry import ego_corners
from nemo_mtdrive.pdm.score import Measured, scores
from nemo_mtdrive.pdm.simulate import COLUMNS, HEADING, X, Y
from nemo_mtdrive.types import TRAJECTORY_POINTS

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Pair = tuple[Question, Question]
"""One whose answer is yes, one whose answer is no."""

NEAR_M = 30.0
"""An object of a counterfactual question is at t = 0 at most this far from some point of the trajectory."""


def points_on_road(prepared: PreparedScene, points: Array) -> Flags:
    """[n] whether a car that stands at points [n, 3] of the ego frame has all its corners in the drivable area, as DAC
    has it."""
    vehicle, poses = prepared.scene.ego.vehicle, to_map_frame(points, prepared.scene.ego.rear_axle_pose)
    states, corners = np.zeros((len(points), COLUMNS)), np.empty((len(points), 5, 2))
    states[:, [X, Y, HEADING]] = poses
    for place, (x, y, heading) in enumerate(poses):
        ego_corners(x, y, heading, 0.5 * vehicle.length, 0.5 * vehicle.width, vehicle.rear_axle_to_center, corners[place])
    areas = np.empty((4, len(points)), dtype=bool)
    classify(prepared.drivable.rings, prepared.drivable.kinds, prepared.on_route, states, corners, areas)
    return ~areas[1]


def score_without(prepared: PreparedScene, states: Array, track: int, metric: str) -> float:
    """NC or TTC of one simulated trajectory [1, 41, 11] in the scene without one of its tracks."""
    ignored = prepared.observation.is_ignored.copy()
    ignored[track] = True
    observation = replace(prepared.observation, is_ignored=ignored)
    measured = replace(prepared, observation=observation).measure(states)
    column = measured.no_collision if metric == "NC" else measured.collisions.time_to_collision
    return float(column[0])


@dataclass(frozen=True)
class Asking:
    """A scene's plans with all that the scorer says of them."""

    prepared: PreparedScene
    plans: Array
    """[B, 8, 3] as they are written."""
    states: Array
    """[B, 41, 11]"""
    measured: Measured
    scores: list[dict[str, float]]
    findings: list[list[Finding]]
    random: np.random.Generator

    @classmethod
    def of(cls, scene: Scene, agent: PDMAgent, random: np.random.Generator) -> Asking:
        """Draw plans of a scene and have them scored."""
        prepared, plans = agent.prepare(scene), sample_plans(scene, random)
        states = prepared.simulate(plans)
        measured = prepared.measure(states)
        found = [find_violations(measured, row) for row in range(len(plans))]
        return cls(prepared, plans, states, measured, scores(measured, prepared.reference_progress_m), found, random)

    def shuffled(self, rows: Flags) -> list[int]:
        """The rows that are True, in a random order."""
        return [int(row) for row in self.random.permutation(np.flatnonzero(rows))]

    def column(self, metric: str) -> Array:
        """[B] the scores of a metric."""
        return np.array([row[metric] for row in self.scores])

    def point(self, _metric: str) -> Pair | None:
        """Two points of the plans: a car that stands there keeps to the road, or not."""
        points = self.plans.reshape(-1, 3)
        on_road = points_on_road(self.prepared, points)
        yes, no = self.shuffled(on_road), self.shuffled(~on_road)
        if not yes or not no:
            return None
        return Question("DAC", "point", point=points[yes[0]]), Question("DAC", "point", point=points[no[0]])

    def trajectory(self, metric: str) -> Pair | None:
        """Two plans: one keeps the metric. Of EP both are clean, so that progress alone makes the difference."""
        column = self.column(metric)
        if metric == "EP":
            clean = self.measured.penalty >= 1.0
            yes, no = self.shuffled(clean & (column >= ENOUGH_PROGRESS)), self.shuffled(clean & (column < ENOUGH_PROGRESS))
        else:
            yes, no = self.shuffled(column >= 1.0), self.shuffled(column < 1.0)
        if not yes or not no:
            return None
        return Question(metric, "trajectory", self.plans[yes[0]]), Question(metric, "trajectory", self.plans[no[0]])

    def trajectory_point(self, metric: str) -> Pair | None:
        """Two points of a plan that breaks the metric: the agent names one of them."""
        for row in self.shuffled(self.column(metric) < 1.0):
            texts = [format_point(point) for point in self.plans[row]]
            named = {finding.point for finding in self.findings[row] if finding.metric == metric}
            marks = np.array([point in named for point in range(TRAJECTORY_POINTS)])
            told_apart = np.array([texts.count(text) == 1 for text in texts])
            yes, no = self.shuffled(told_apart & ~marks), self.shuffled(told_apart & marks)
            if yes and no:
                plan = self.plans[row]
                return (Question(metric, "trajectory_point", plan, plan[yes[0]]),
                        Question(metric, "trajectory_point", plan, plan[no[0]]))
        return None

    def object(self, metric: str) -> Pair | None:
        """Two objects near a plan that breaks the metric: without the one its score changes."""
        for row in self.shuffled(self.column(metric) < 1.0):
            hits = (self.measured.collisions.at_fault[row] if metric == "NC"
                    else self.measured.collisions.ttc_after[row] != NO_HIT).any(axis=0)
            shown = self._shown_now(self.plans[row])
            changes = {track: score_without(self.prepared, self.states[row:row + 1], track, metric)
                       != self.scores[row][metric] for track in shown if hits[track]}
            critical = [track for track, changed in changes.items() if changed]
            others = [track for track in shown if track not in critical]
            if critical and others:
                chosen = critical[int(self.random.integers(len(critical)))]
                return (Question(metric, "object", self.plans[row], obstacle=shown[chosen]),
                        Question(metric, "object", self.plans[row], obstacle=shown[others[0]]))
        return None

    def _shown_now(self, plan: Array) -> dict[int, str]:
        """Tracks that are there at t = 0 near a plan [8, 3], the nearest first -> their text; those that read alike are
        left out."""
        present = np.flatnonzero(self.prepared.observation.present[0])
        boxes = {int(track): object_box(self.prepared, 0, int(track)) for track in present}
        texts = {track: format_object(box) for track, box in boxes.items()}
        ways = {track: float(np.hypot(*(plan[:, :2] - np.array(box[:2])).T).min()) for track, box in boxes.items()}
        alike = list(texts.values())
        near = [track for track in sorted(ways, key=ways.__getitem__) if ways[track] <= NEAR_M]
        return {track: texts[track] for track in near if alike.count(texts[track]) == 1}


def understanding(scene: Scene, image_key: str, agent: PDMAgent, pairs: int, seed: int) -> Iterator[Line]:
    """Up to `pairs` pairs of questions of a scene, each of another metric and form as far as the scene has them.

    Metrics take turns in a random order, forms within them too, so that no metric is asked about more because it has
    more forms.
    """
    random = random_of(seed, scene.scene_id, "understanding")
    asking = Asking.of(scene, agent, random)
    made = 0
    for metric, form in _order(random):
        if made == pairs:
            return
        ask: Callable[[str], Pair | None] = getattr(asking, form)
        pair = ask(metric)
        if pair is None:
            continue
        made += 1
        for question, answer in zip(pair, (YES, NO), strict=True):
            provenance = provenance_of(scene, seed, ["scorer"], perception=agent.perception, metric=metric, form=form)
            name = f"{metric}/{form}/{answer.rstrip('.').lower()}"
            yield make_line(name, "understanding", image_key, [question_text(question), answer], provenance)


def _order(random: np.random.Generator) -> list[tuple[str, str]]:
    """All (metric, form): a round of metrics in random order with a form of each, then the next round."""
    metrics = list(dict.fromkeys(metric for asked in FORMS.values() for metric in asked))
    rounds: list[tuple[str, str]] = []
    left = {metric: [form for form, asked in FORMS.items() if metric in asked] for metric in metrics}
    while any(left.values()):
        for place in random.permutation(len(metrics)):
            forms = left[metrics[place]]
            if forms:
                rounds.append((metrics[place], forms.pop(int(random.integers(len(forms))))))
    return rounds
