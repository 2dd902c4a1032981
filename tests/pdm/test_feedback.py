"""The agent's words, byte for byte, and that no failing metric is silent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import load_scene
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.feedback import _points_of, feedback_text, format_object, format_point
from tests.pdm.conftest import MakeScene, standing, straight_plan, track

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm"

PAPER_PLAN = np.array([[3.1, 0, 0], [6.21, 0, 0], [9.31, 0, 0], [12.42, 0, 0], [15.52, 0, 0], [18.62, 0, 0],
                       [21.73, 0, 0], [24.83, 0, 0]])
TRUCK_X = [20.0, 22.0, 24.5, 27.0, 29.0, 31.0, 32.6, 34.14, 35.5, 36.6, 44.0]
"""A truck that is too close at 3.5 s only: the example of Appendix A.1."""

BOXES = (
    "The format for describing these objects is: (x, y, z, l, w, h, heading, name). Where x, y, z are the center "
    "coordinates of the object in ego-coordinate system, l, w, h are length, width, height of the bounding box, "
    "heading is the object heading, and name is the object class name. The specific trajectory points and their "
    "corresponding objects are as follows:\n"
)
START = ("This was your previous trajectory prediction. Analyze this trajectory data and propose a revised prediction. "
         "Consider the following identified issues:\n")
END = "Based on these issues, provide an improved trajectory prediction."


def test_the_example_of_the_paper(make_scene: MakeScene) -> None:
    rows = [(0.5 * i, x, -0.85, -0.02, 2.0, 0.0) for i, x in enumerate(TRUCK_X)]
    scene = make_scene((track("truck", "vehicle", (10.26, 2.95, 4.39), rows),))
    review = PDMAgent("oracle", 1).review(scene, PAPER_PLAN[None])[0]
    assert review.feedback == (
        START
        + "1. The TTC metric reveals that certain trajectory points fail to maintain a safe distance from surrounding "
        "objects. " + BOXES
        # The paper's z, 1.59, is a lidar's; the box stands on the ground here.
        + "Trajectory Point 1: (+21.73, 0.0, 0.0) with Objects: "
        "(34.14, -0.85, 2.19, 10.26, 2.95, 4.39, -0.02, vehicle).\n" + END
    )
    (violation,) = review.violations
    assert (violation["metric"], violation["point"]) == ("TTC", 6)
    assert violation["object"][:7] == pytest.approx([34.14, -0.85, 2.195, 10.26, 2.95, 4.39, -0.02])
    json.dumps(review.violations)


def test_all_three_issues(make_scene: MakeScene) -> None:
    tracks = (standing("cone", "traffic_cone", (0.4, 0.4, 0.8), 20.0, 0.5),
              standing("car", "vehicle", (4.5, 1.9, 1.5), 22.0, -1.0))
    review = PDMAgent("oracle", 1).review(make_scene(tracks), straight_plan(6.2, lateral=4.0)[None])[0]
    cone = "(20.00, 0.50, 0.40, 0.40, 0.40, 0.80, 0.0, traffic_cone)"
    assert review.feedback == (
        START
        + "1. The DAC metric reveals that certain trajectory points fail to stay within the drivable area. "
        "The specific trajectory points are as follows:\nTrajectory Point 1: (+24.80, +4.00, 0.0).\n"
        "2. The NC metric reveals that certain trajectory points collide with surrounding objects. " + BOXES
        + f"Trajectory Point 1: (+18.60, +3.00, 0.0) with Objects: {cone}.\n"
        "3. The TTC metric reveals that certain trajectory points fail to maintain a safe distance from surrounding "
        "objects. " + BOXES
        + f"Trajectory Point 1: (+12.40, +2.00, 0.0) with Objects: {cone}, "
        "(22.00, -1.00, 0.75, 4.50, 1.90, 1.50, 0.0, vehicle).\n"
        f"Trajectory Point 2: (+15.50, +2.50, 0.0) with Objects: {cone}.\n"
        f"Trajectory Point 3: (+18.60, +3.00, 0.0) with Objects: {cone}.\n" + END
    )
    assert review.scores["NC"] == 0.5


def test_a_clean_plan_gets_no_words_whatever_its_comfort(make_scene: MakeScene) -> None:
    plan = straight_plan(6.2)
    plan[:, 0] *= np.linspace(1.0, 2.2, 8)  # accelerates far too hard
    review = PDMAgent("oracle", 1).review(make_scene(), plan[None])[0]
    assert review.scores["C"] == 0.0
    assert (review.feedback, review.violations) == ("", [])


def test_a_violation_between_points_goes_to_the_nearest() -> None:
    steps = np.zeros(41, dtype=bool)
    assert _points_of(steps) == []
    steps[[13, 14]] = True
    assert _points_of(steps) == [(2, 13)]
    steps[0] = True
    assert _points_of(steps) == [(0, 0)]
    steps[[10, 40]] = True
    assert _points_of(steps) == [(1, 10), (7, 40)]


@pytest.mark.parametrize("perception", ["oracle", "kinematic"])
def test_every_failing_metric_is_named_and_no_other(perception: str) -> None:
    agent = PDMAgent(perception, 1)
    for path in sorted(GOLDEN.glob("*.json"))[::3]:
        scene = load_scene(path)
        for review in agent.review(scene, np.stack([case.trajectory for case in scene.cases])):
            failing = {metric for metric in ("NC", "DAC", "TTC") if review.scores[metric] < 1.0}
            assert {violation["metric"] for violation in review.violations} == failing
            assert {metric for metric in ("NC", "DAC", "TTC") if f"The {metric} metric" in review.feedback} == failing
            assert bool(review.feedback) == bool(failing)
            assert "EP" not in review.feedback


def test_only_the_nearest_objects_are_quoted() -> None:
    boxes = [[10.0 + i, 0.0, 0.5, 1.0, 1.0, 1.0, 0.0, "pedestrian"] for i in range(9)]
    violations = [{"metric": "NC", "point": 2, "object": box} for box in reversed(boxes)]
    text = feedback_text(violations, straight_plan(6.2), max_objects=2)
    assert text.count("pedestrian") == 2
    assert "Objects: (10.00, 0.0, 0.50, 1.00, 1.00, 1.00, 0.0, pedestrian), (11.00," in text


def test_numbers() -> None:
    assert format_point([21.734, -0.004, -1.1]) == "(+21.73, 0.0, -1.10)"
    assert format_object([-0.004, 0.004, 1.5, 10.0, 2.0, 3.0, -0.02, "barrier"]) == (
        "(0.0, 0.0, 1.50, 10.00, 2.00, 3.00, -0.02, barrier)")
