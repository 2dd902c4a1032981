"""Baselines and small geometry, against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Ego, Scene
from nemo_mtdrive.driving.trajectory import (
    ade,
    box_corners,
    boxes_overlap,
    constant_velocity,
    constant_yaw_rate,
    dense,
    fde,
    interpolate_poses,
)


def test_constant_velocity(scenes: list[Scene]) -> None:
    scene = replace(scenes[0], ego=Ego(np.zeros(3), np.array([8.0, 0.5]), np.zeros(2)))
    trajectory = constant_velocity(scene)
    np.testing.assert_allclose(trajectory[0], [4.0, 0.25, 0.0])
    np.testing.assert_allclose(trajectory[7], [32.0, 2.0, 0.0])


def test_constant_yaw_rate_is_an_arc(scenes: list[Scene]) -> None:
    # 0.1 rad in half a second at 5 m/s: a circle of 25 m radius to the left
    history = np.array([[0, 0, -0.3], [0, 0, -0.2], [0, 0, -0.1], [0, 0, 0.0]])
    scene = replace(scenes[0], ego=Ego(np.zeros(3), np.array([5.0, 0.0]), np.zeros(2)), history=history)
    trajectory = constant_yaw_rate(scene)
    np.testing.assert_allclose(trajectory[-1], [25 * math.sin(0.8), 25 * (1 - math.cos(0.8)), 0.8])
    np.testing.assert_allclose(np.hypot(trajectory[:, 0], trajectory[:, 1] - 25.0), 25.0)
    straight = constant_yaw_rate(replace(scene, history=np.zeros((4, 3))))
    np.testing.assert_allclose(straight, constant_velocity(scene))
    with pytest.raises(ValueError, match="history"):
        constant_yaw_rate(replace(scene, history=None))


def test_errors() -> None:
    actual = np.zeros((8, 3))
    predicted = np.column_stack([3.0 * np.arange(8), 4.0 * np.arange(8), np.ones(8)])
    assert ade(predicted, actual) == pytest.approx(17.5)
    assert fde(predicted, actual) == pytest.approx(35.0)


def test_interpolation_takes_the_short_way_round() -> None:
    poses = np.array([[0.0, 0.0, 3.0], [2.0, 0.0, -3.0]])
    middle = interpolate_poses(np.array([0.0, 1.0]), poses, np.array([0.5]))[0]
    assert middle[0] == pytest.approx(1.0)
    assert abs(middle[2]) == pytest.approx(math.pi)


def test_dense_starts_at_the_origin() -> None:
    trajectory = np.column_stack([np.arange(1, 9), np.zeros(8), np.zeros(8)])
    rows = dense(trajectory, 0.1)
    assert rows.shape == (41, 3)
    np.testing.assert_allclose(rows[:, 0], 0.2 * np.arange(41))


def test_boxes() -> None:
    corners = box_corners(np.array([[0.0, 0.0, math.pi / 2]]), 4.0, 2.0, 1.0)[0]
    np.testing.assert_allclose(corners, [[-1, 3], [1, 3], [1, -1], [-1, -1]], atol=1e-12)
    first = box_corners(np.zeros((3, 3)), 4.0, 2.0, 0.0)
    second = box_corners(np.array([[3.9, 0.0, 0.0], [4.1, 0.0, 0.0], [2.6, 1.6, math.pi / 4]]), 4.0, 2.0, 0.0)
    assert boxes_overlap(first, second).tolist() == [True, False, True]
    # corners apart although both bounding boxes meet: only the turned box's own axis separates them
    turned = box_corners(np.array([[3.0, 2.0, -math.pi / 4]]), 4.0, 1.0, 0.0)
    assert boxes_overlap(first[:1], turned).tolist() == [False]
