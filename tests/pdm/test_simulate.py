"""The tracker's least-squares fits against dense ones, and drives that can be foreseen."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Ego
from nemo_mtdrive.pdm.reference import reference_poses, sample_poses, sample_times_us
from nemo_mtdrive.pdm.simulate import (
    _SPEED_FIT,
    HEADING,
    STEP_S,
    STEPS,
    VX,
    VY,
    X,
    Y,
    _fit_curvature,
    check_trajectories,
    simulate,
)
from tests.pdm.conftest import straight_plan


def ego(speed: float, pose: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Ego:
    return Ego(np.array(pose), np.array([speed, 0.0]), np.zeros(2))


def test_speed_fit_solves_the_original_least_squares() -> None:
    count = STEPS - 1
    rows = np.tril(np.full((count, count), STEP_S**2))
    rows[:, 0] = STEP_S
    penalty = np.zeros((count - 2, count))
    penalty[:, 1:-1] = -np.eye(count - 2)
    penalty[-1, -1] = 1.0
    driven = np.random.default_rng(1).normal(1.0, 0.3, count)
    solution = np.linalg.solve(rows.T @ rows + 1e-4 * penalty.T @ penalty, rows.T @ driven)
    speeds = solution[0] + np.append(0.0, np.cumsum(solution[1:]) * STEP_S)
    assert driven @ _SPEED_FIT == pytest.approx(speeds, abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0])
def test_curvature_fit_solves_the_original_least_squares(scale: float) -> None:
    generator = np.random.default_rng(2)
    count = STEPS - 1
    speeds, turns = scale * generator.uniform(1.0, 12.0, count), generator.normal(0.0, 0.05, count)
    rows = np.tril(np.ones((count, count))) * (speeds * STEP_S**2)[:, None]
    rows[:, 0] = speeds * STEP_S
    penalty = 1e-2 * np.eye(count)
    penalty[0, 0] = 1e-10
    solution = np.linalg.solve(rows.T @ rows + penalty, rows.T @ turns)
    wanted = solution[0] + np.append(0.0, np.cumsum(solution[1:]) * STEP_S)
    got = np.empty(count)
    _fit_curvature(turns, speeds, got)
    assert got == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_constant_speed_is_kept_in_any_frame() -> None:
    pose = (664000.0, 3998000.0, 2.5)
    states = simulate(reference_poses(straight_plan(8.0)[None], np.array(pose)), ego(8.0, pose))[0]
    way = 8.0 * STEP_S * np.arange(STEPS)
    assert states[:, X] == pytest.approx(pose[0] + way * np.cos(2.5), abs=1e-6)
    assert states[:, Y] == pytest.approx(pose[1] + way * np.sin(2.5), abs=1e-6)
    assert states[:, HEADING] == pytest.approx(np.full(STEPS, 2.5), abs=1e-9)
    assert states[:, VX] == pytest.approx(np.full(STEPS, 8.0), abs=1e-6)


def test_standing_car_stays_and_sideways_speed_lasts_one_state() -> None:
    start = Ego(np.zeros(3), np.array([0.0, 0.4]), np.array([0.0, 0.1]))
    states = simulate(reference_poses(np.zeros((1, 8, 3)), start.rear_axle_pose), start)[0]
    assert not states[1:].any()
    assert states[0, VY] == 0.4


def test_plan_is_linear_between_points_the_short_way_round() -> None:
    plan = straight_plan(10.0)
    plan[:, 2] = np.pi - 0.1
    plan[1, 2] = -np.pi + 0.1
    poses = reference_poses(plan[None], np.zeros(3))[0]
    assert poses.shape == (STEPS, 3)
    assert poses[:, 0] == pytest.approx(np.arange(STEPS) * 1.0)
    assert np.unwrap(poses[5:11, 2]) == pytest.approx(np.pi - 0.1 + 0.04 * np.arange(6))


def test_a_real_clock_moves_samples_by_a_microsecond() -> None:
    late = sample_times_us(1630335398550000) - 1630335398550000
    assert np.array_equal(sample_times_us(0), np.arange(STEPS) * 100000)
    assert set(late - np.arange(STEPS) * 100000) == {-1, 0}
    poses = sample_poses(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([0, 100000]), np.array([99999]))
    assert poses[0, 0] == pytest.approx(0.99999, abs=1e-12)


@pytest.mark.parametrize("shape", [(8, 3), (2, 7, 3), (2, 8, 2)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want \[B, 8, 3\]"):
        check_trajectories(np.zeros(shape))


def test_the_row_that_is_not_finite_is_named() -> None:
    plans = np.zeros((3, 8, 3))
    plans[1, 4, 0] = np.nan
    with pytest.raises(ValueError, match=r"trajectories\[1\].*not finite"):
        check_trajectories(plans)
