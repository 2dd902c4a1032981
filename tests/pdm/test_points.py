"""Which of the 8 points a violation names: those at whose time the simulated car violates, and where the object is then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Ego, Scene, load_scene, to_map_frame
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import prepare
from nemo_mtdrive.pdm.collisions import NO_HIT
from nemo_mtdrive.pdm.review import Review
from tests.pdm.conftest import MakeScene, standing, straight_plan, track

FILES = sorted((Path(__file__).parent.parent / "golden" / "pdm").glob("*.json"))
POINT_TIMES_S = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]


def named(review: Review, metric: str) -> list[int]:
    return sorted({violation["point"] for violation in review.violations if violation["metric"] == metric})


def points_at(flags: list[bool]) -> list[int]:
    """Points at whose own time (41 flags, 0.1 s apart) there is a violation."""
    return [point for point, time_s in enumerate(POINT_TIMES_S) if flags[round(10 * time_s)]]


@pytest.mark.parametrize("path", FILES[::5], ids=lambda path: path.stem)
def test_dac_points_are_the_originals(path: Path) -> None:
    """The golden files hold, step by step, whether the original found the car off the road."""
    scene = load_scene(path)
    reviews = PDMAgent("oracle", 1).review(scene, np.stack([case.trajectory for case in scene.cases]))
    for case, review in zip(scene.cases, reviews, strict=True):
        assert case.expected is not None
        off_road = [bit == "1" for bit in case.expected["raw"]["pred"]["non_drivable"]]
        wanted = points_at(off_road)
        if any(off_road) and not wanted:
            first = off_road.index(True)
            wanted = [min(range(8), key=lambda point: abs(round(10 * POINT_TIMES_S[point]) - first))]
        assert named(review, "DAC") == wanted, case.name


@pytest.mark.parametrize("path", FILES[1::5], ids=lambda path: path.stem)
def test_nc_and_ttc_points_are_those_of_each_object(path: Path) -> None:
    scene = load_scene(path)
    trajectories = np.stack([case.trajectory for case in scene.cases])
    prepared = prepare(scene, "oracle")
    measured = prepared.measure(prepared.simulate(trajectories))
    reviews = PDMAgent("oracle", 1).review(scene, trajectories)
    hits = {"NC": measured.collisions.at_fault, "TTC": measured.collisions.ttc_after != NO_HIT}
    for row, review in enumerate(reviews):
        for metric, flags in hits.items():
            of_objects = {n: points_at(flags[row, :, n].tolist()) for n in range(flags.shape[2])}
            at_their_time = {point for points in of_objects.values() for point in points}
            between = sum(1 for n, points in of_objects.items() if not points and flags[row, :, n].any())
            assert at_their_time <= set(named(review, metric))
            entries = [violation for violation in review.violations if violation["metric"] == metric]
            assert len(entries) == sum(len(points) for points in of_objects.values()) + between


def test_a_collision_between_two_points_names_the_nearer(make_scene: MakeScene) -> None:
    """A cyclist rides across just as the car passes: no point's own time is hit, yet the failing NC is not silent."""
    rows = [(0.5 * i, 18.2, 13.0 * (2.3 - 0.5 * i), -np.pi / 2, 0.0, -13.0) for i in range(11)]
    scene = make_scene((track("cyclist", "bicycle", (0.6, 0.6, 1.5), rows),))
    review = PDMAgent("oracle", 1).review(scene, straight_plan(6.2)[None])[0]
    assert review.scores["NC"] == 0.0
    measured = prepare(scene, "oracle").measure(prepare(scene, "oracle").simulate(straight_plan(6.2)[None]))
    steps = np.flatnonzero(measured.collisions.at_fault[0, :, 0])
    assert steps.tolist() == [23]
    assert named(review, "NC") == [4]  # 2.5 s is nearer to 2.3 s than 2.0 s


def moved(scene: Scene, pose: np.ndarray) -> Scene:
    """The same scene elsewhere: its origin put at `pose`."""
    def points(xy: np.ndarray) -> np.ndarray:
        return to_map_frame(np.column_stack([xy, np.zeros(len(xy))]), pose)[:, :2]

    def states(rows: np.ndarray) -> np.ndarray:
        turned = to_map_frame(rows[:, 1:4], pose)
        velocity = to_map_frame(np.column_stack([rows[:, 4:6], np.zeros(len(rows))]), np.array([0.0, 0.0, pose[2]]))
        return np.column_stack([rows[:, 0], turned, velocity[:, :2]])

    road = replace(scene.map, roadblocks=tuple(replace(b, polygon=points(b.polygon)) for b in scene.map.roadblocks),
                   lanes=tuple(replace(v, polygon=points(v.polygon), centerline=points(v.centerline))
                               for v in scene.map.lanes))
    ego = Ego(to_map_frame(scene.ego.rear_axle_pose, pose), scene.ego.velocity, scene.ego.acceleration)
    return replace(scene, ego=ego, map=road, tracks=tuple(replace(t, states=states(t.states)) for t in scene.tracks))


def test_boxes_are_in_the_egos_frame_wherever_the_scene_lies(make_scene: MakeScene) -> None:
    here = make_scene((standing("car", "vehicle", (4.5, 1.9, 1.5), 22.0, -1.0),
                       standing("cone", "traffic_cone", (0.4, 0.4, 0.8), 20.0, 0.5)))
    plan = straight_plan(6.2, lateral=1.0)[None]
    wanted = PDMAgent("oracle", 1).review(here, plan)[0]
    assert {violation["metric"] for violation in wanted.violations} >= {"NC", "TTC"}
    found = PDMAgent("oracle", 1).review(moved(here, np.array([3100.0, -250.0, 2.3])), plan)[0]
    assert [(v["metric"], v["point"]) for v in found.violations] == [(v["metric"], v["point"]) for v in wanted.violations]
    for got, want in zip(found.violations, wanted.violations, strict=True):
        assert got["object"][-1] == want["object"][-1]
        assert got["object"][:7] == pytest.approx(want["object"][:7], abs=1e-6)
    assert found.feedback == wanted.feedback
