"""Properties that hold for any plan: frames, batches, orders, numbers of any size, and what may only fall or rise."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nemo_mtdrive.driving.scene import Area, Ego, Scene, SceneMap, Track, load_scene
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import PreparedScene, prepare
from nemo_mtdrive.pdm.feedback import find_violations
from nemo_mtdrive.pdm.score import Measured, scores
from nemo_mtdrive.types import SCORE_NAMES
from tests.pdm.conftest import rectangle, standing

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm"
NAMES = ("g005_curve", "g014_intersection_straight", "g041_cone_and_car", "g068_multi_agent")
few = settings(max_examples=20, deadline=None, derandomize=True, database=None)

scene_names = st.sampled_from(NAMES)
finite = st.floats(allow_nan=False, allow_infinity=False)
seeds = st.integers(0, 2**32 - 1)


@cache
def golden(name: str) -> Scene:
    return load_scene(GOLDEN / f"{name}.json")


@cache
def ready(name: str) -> PreparedScene:
    return prepare(golden(name), "oracle")


def some_plans(name: str, seed: int, count: int = 4) -> np.ndarray:
    """Mixtures of the scene's cases: near what was driven, and all different."""
    random = np.random.default_rng(seed)
    cases = np.stack([case.trajectory for case in golden(name).cases])
    weights = random.dirichlet(np.full(len(cases), 0.2), count)
    plans: np.ndarray = np.einsum("bc,cij->bij", weights, cases)
    return plans


def measure(name: str, plans: np.ndarray) -> Measured:
    return ready(name).measure(ready(name).simulate(plans))


def moved(scene: Scene, by: np.ndarray, angle: float) -> Scene:
    """The same scene elsewhere on the map, turned about the origin."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def points(array: np.ndarray) -> np.ndarray:
        return array @ turn + by

    def areas(values: tuple[Area, ...]) -> tuple[Area, ...]:
        return tuple(replace(area, polygon=points(area.polygon)) for area in values)

    def track(known: Track) -> Track:
        states = known.states.copy()
        states[:, 1:3], states[:, 3], states[:, 4:6] = points(states[:, 1:3]), states[:, 3] + angle, states[:, 4:6] @ turn
        return replace(known, states=states)

    pose = np.append(points(scene.ego.rear_axle_pose[:2]), scene.ego.rear_axle_pose[2] + angle)
    known = scene.map
    here = SceneMap(
        tuple(replace(block, polygon=points(block.polygon)) for block in known.roadblocks),
        tuple(replace(lane, polygon=points(lane.polygon), centerline=points(lane.centerline)) for lane in known.lanes),
        areas(known.intersections), areas(known.carparks))
    return replace(scene, ego=replace(scene.ego, rear_axle_pose=pose), map=here,
                   tracks=tuple(track(known) for known in scene.tracks))


@few
@given(scene_names, st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-10.0, 10.0), seeds)
def test_scores_do_not_depend_on_the_place_or_the_direction(
    name: str, x: float, y: float, angle: float, seed: int
) -> None:
    plans, here = some_plans(name, seed), ready(name)
    # Near 100 m the square in which map elements are looked up turns with the map's axes, not with the car.
    there = prepare(moved(golden(name), np.array([x, y]), angle), "oracle")
    got = scores(there.measure(there.simulate(plans)), there.reference_progress_m)
    for row, wanted in zip(got, scores(here.measure(here.simulate(plans)), here.reference_progress_m), strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)


@few
@given(scene_names, seeds, st.integers(1, 9))
def test_a_batch_is_its_rows_and_their_order_does_not_count(name: str, seed: int, count: int) -> None:
    plans, reference = some_plans(name, seed, count), ready(name).reference_progress_m
    together, order = scores(measure(name, plans), reference), np.random.default_rng(seed).permutation(count)
    assert [scores(measure(name, plan[None]), reference)[0] for plan in plans] == together
    assert scores(measure(name, plans[order]), reference) == [together[row] for row in order]


@few
@given(st.sampled_from(NAMES[2:]), seeds)
def test_the_order_of_tracks_does_not_count(name: str, seed: int) -> None:
    scene, plans = golden(name), some_plans(name, seed)
    order = np.random.default_rng(seed).permutation(len(scene.tracks))
    other = replace(scene, tracks=tuple(scene.tracks[i] for i in order))
    for got, wanted in zip(PDMAgent("oracle", 1).review(other, plans), PDMAgent("oracle", 1).review(scene, plans),
                           strict=True):
        assert got.scores == wanted.scores
        assert sorted(map(repr, got.violations)) == sorted(map(repr, wanted.violations))


@few
@given(scene_names, arrays(np.float64, (2, 8, 3), elements=finite))
def test_any_finite_plan_is_scored_soundly(name: str, plans: np.ndarray) -> None:
    measured = measure(name, plans)
    for row, values in enumerate(scores(measured, ready(name).reference_progress_m)):
        assert all(0.0 <= value <= 1.0 for value in values.values()), values
        failing = {metric for metric in ("NC", "DAC", "TTC") if values[metric] < 1.0}
        assert {found.metric for found in find_violations(measured, row)} == failing


@few
@given(arrays(np.float64, 3, elements=finite), arrays(np.float64, 4, elements=finite), seeds)
def test_any_finite_ego_is_scored_soundly(pose: np.ndarray, motion: np.ndarray, seed: int) -> None:
    scene = replace(golden(NAMES[0]), ego=Ego(pose, motion[:2], motion[2:]))
    with np.errstate(over="ignore", invalid="ignore"):
        for review in PDMAgent("oracle", 1).review(scene, some_plans(NAMES[0], seed)):
            assert all(0.0 <= review.scores[name] <= 1.0 for name in SCORE_NAMES), review.scores


@few
@given(scene_names, seeds, st.floats(2.0, 40.0), st.floats(-4.0, 4.0), st.sampled_from(["vehicle", "barrier"]))
def test_one_more_object_never_helps(name: str, seed: int, forward: float, left: float, kind: str) -> None:
    scene, plans = golden(name), some_plans(name, seed)
    x, y, heading = scene.ego.rear_axle_pose
    ahead, aside = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    more = standing("more", kind, (2.0, 1.5, 1.5), *(np.array([x, y]) + forward * ahead + left * aside))
    crowded = prepare(replace(scene, tracks=(*scene.tracks, more)), "oracle")
    before, after = measure(name, plans), crowded.measure(crowded.simulate(plans))
    assert (after.no_collision <= before.no_collision).all()
    assert (after.collisions.time_to_collision <= before.collisions.time_to_collision).all()
    for same in ("drivable_area", "comfort", "driving_direction", "progress_m"):
        assert np.array_equal(getattr(after, same), getattr(before, same))


@few
@given(scene_names, seeds, st.floats(0.0, 60.0), st.floats(1.0, 30.0))
def test_more_drivable_area_never_hurts(name: str, seed: int, forward: float, half_side: float) -> None:
    scene, plans = golden(name), some_plans(name, seed)
    x, y = scene.ego.rear_axle_pose[:2] + forward
    area = Area("more", rectangle(x - half_side, y - half_side, x + half_side, y + half_side))
    wider = prepare(replace(scene, map=replace(scene.map, carparks=(*scene.map.carparks, area))), "oracle")
    assert (wider.measure(wider.simulate(plans)).drivable_area >= measure(name, plans).drivable_area).all()


@few
@given(scene_names, seeds, st.floats(0.0, 100.0), st.floats(0.0, 100.0))
def test_ep_rises_with_the_own_progress_and_falls_with_the_reference(
    name: str, seed: int, more_m: float, reference_m: float
) -> None:
    measured = measure(name, some_plans(name, seed))
    farther = replace(measured, progress_m=measured.progress_m + more_m)
    for nearer, far, harder in zip(scores(measured, reference_m), scores(farther, reference_m),
                                   scores(measured, reference_m + more_m), strict=True):
        assert harder["EP"] <= nearer["EP"]
        assert harder["PDMS"] <= nearer["PDMS"]
        if max(measured.clean_progress_m.max(), reference_m) > 5.0:  # else EP is 1 whatever the progress
            assert far["EP"] >= nearer["EP"] - 1e-12 or nearer["EP"] == 1.0
