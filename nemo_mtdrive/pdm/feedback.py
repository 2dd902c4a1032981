"""What the PDM agent says of a trajectory: violated metrics as data and in the words of Appendix A.1.

DAC, NC and TTC are reported (Section 3.1), in this order. A point of the trajectory is named when the simulated car at
the point's time violates; a violation only between two points is put to the nearer one, so a failing metric is never
silent. Objects are given where they are at that time, in the ego frame of t = 0, resting on the ground: z is half their
height, and what the ground under them rises above the ego's where the scene knows its heights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import to_ego_frame
from nemo_mtdrive.pdm.cache import PreparedScene
from nemo_mtdrive.pdm.collisions import NO_HIT
from nemo_mtdrive.pdm.score import Measured
from nemo_mtdrive.pdm.simulate import STEPS_PER_POINT
from nemo_mtdrive.types import TRAJECTORY_POINTS

Array = NDArray[np.float64]

OPENING = (
    "This was your previous trajectory prediction. Analyze this trajectory data and propose a revised prediction. "
    "Consider the following identified issues:"
)
CLOSING = "Based on these issues, provide an improved trajectory prediction."

_BOX_FORMAT = (
    "The format for describing these objects is: (x, y, z, l, w, h, heading, name). Where x, y, z are the center "
    "coordinates of the object in ego-coordinate system, l, w, h are length, width, height of the bounding box, "
    "heading is the object heading, and name is the object class name. The specific trajectory points and their "
    "corresponding objects are as follows:"
)
_INTRODUCTIONS = {
    "DAC": "The DAC metric reveals that certain trajectory points fail to stay within the drivable area. "
           "The specific trajectory points are as follows:",
    "NC": f"The NC metric reveals that certain trajectory points collide with surrounding objects. {_BOX_FORMAT}",
    "TTC": "The TTC metric reveals that certain trajectory points fail to maintain a safe distance from surrounding "
           f"objects. {_BOX_FORMAT}",
}

MAX_OBJECTS = 4
"""Objects quoted for one point in the text, the nearest ones; `violations` holds all of them."""

POINT_STEPS = STEPS_PER_POINT * np.arange(1, TRAJECTORY_POINTS + 1)
"""[8] step of the simulation at which each point is due."""


@dataclass(frozen=True)
class Finding:
    """One violated point: with an object, or None for DAC."""

    metric: str
    point: int
    """0..7"""
    step: int
    """Step of the simulation (0.1 s) at which it was found."""
    track: int | None
    """Index into the observation's tracks."""


def _number(value: float, sign: str) -> str:
    text = f"{value:{sign}.2f}"
    return "0.0" if text.lstrip("+-") == "0.00" else text


def format_point(point: Sequence[float] | Array) -> str:
    """A trajectory point as the model writes it: `(+21.73, 0.0, -0.02)`."""
    return "(" + ", ".join(_number(float(value), "+") for value in point) + ")"


def format_object(box: Sequence[Any]) -> str:
    """An object [x, y, z, l, w, h, heading, name] as in the paper: `(34.14, -0.85, 1.59, ..., -0.02, vehicle)`."""
    return "(" + ", ".join(_number(float(value), "") for value in box[:-1]) + f", {box[-1]})"


def _points_of(violated: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(point, step) of points that are violated [41]; if only steps in between are, the point nearest to the first."""
    points = np.flatnonzero(violated[POINT_STEPS]).tolist()
    if points or not violated.any():
        return [(point, int(POINT_STEPS[point])) for point in points]
    step = int(np.argmax(violated))
    return [(int(np.argmin(np.abs(POINT_STEPS - step))), step)]


def find_violations(measured: Measured, row: int) -> list[Finding]:
    """The findings of one of the measured trajectories: DAC, NC, TTC, each in the order of points and tracks."""
    findings: list[Finding] = []
    if not measured.drivable_area[row]:
        findings += [Finding("DAC", point, step, None) for point, step in _points_of(measured.areas.non_drivable[row])]
    collisions = measured.collisions
    failing = []
    if collisions.no_collision[row] < 1.0:
        failing.append(("NC", collisions.at_fault[row]))
    if collisions.time_to_collision[row] < 1.0:
        failing.append(("TTC", collisions.ttc_after[row] != NO_HIT))
    for metric, hits in failing:
        tracks = np.flatnonzero(hits.any(axis=0)).tolist()
        found = [Finding(metric, point, step, track) for track in tracks for point, step in _points_of(hits[:, track])]
        findings += sorted(found, key=lambda finding: finding.point)
    return findings


def object_box(prepared: PreparedScene, step: int, track: int) -> list[Any]:
    """[x, y, z, l, w, h, heading, name] of a track at a step, in the ego frame of t = 0."""
    seen = prepared.observation
    while not seen.present[step, track]:
        # A track that TTC meets ahead of its first appearance: the box where it is first seen.
        step += 1
    pose = np.append(seen.centers[step, track], seen.headings[step, track])
    x, y, heading = to_ego_frame(pose, prepared.scene.ego.rear_axle_pose).tolist()
    length, width, height = seen.tracks[track].size.tolist()
    rise = float(prepared.terrain.heights(np.array([[x, y]]))[0])
    return [x, y, rise + 0.5 * height, length, width, height, heading, seen.tracks[track].type]


def violations_of(prepared: PreparedScene, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The findings as data, in the form of `types.StepResult.violations`."""
    boxes = prepared.boxes
    violations: list[dict[str, Any]] = []
    for found in findings:
        box = None
        if found.track is not None:
            if (found.step, found.track) not in boxes:
                boxes[found.step, found.track] = object_box(prepared, found.step, found.track)
            box = list(boxes[found.step, found.track])
        violations.append({"metric": found.metric, "point": found.point, "object": box})
    return violations


def _issue(metric: str, violations: Sequence[dict[str, Any]], trajectory: Array, max_objects: int) -> str:
    lines = [_INTRODUCTIONS[metric]]
    for number, point in enumerate(dict.fromkeys(violation["point"] for violation in violations), start=1):
        line = f"Trajectory Point {number}: {format_point(trajectory[point])}"
        boxes = [violation["object"] for violation in violations if violation["point"] == point and violation["object"]]
        if boxes:
            nearest = sorted(boxes, key=lambda box: math.dist(box[:2], trajectory[point, :2]))
            line += " with Objects: " + ", ".join(format_object(box) for box in nearest[:max_objects])
        lines.append(line + ".")
    return "\n".join(lines)


def feedback_text(violations: Sequence[dict[str, Any]], trajectory: Array, max_objects: int = MAX_OBJECTS) -> str:
    """The next user message for a trajectory [8, 3]; empty where nothing is violated.

    At most 8 points are named per issue, and for each at most `max_objects` objects, the nearest ones.
    """
    issues: list[str] = []
    for metric in _INTRODUCTIONS:
        named = [violation for violation in violations if violation["metric"] == metric]
        if named:
            issues.append(f"{len(issues) + 1}. {_issue(metric, named, trajectory, max_objects)}")
    return "\n".join([OPENING, *issues, CLOSING]) if issues else ""
