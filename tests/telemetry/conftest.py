"""A small scene made by hand: a straight road of two lanes, a lead vehicle, a pedestrian, a cone out of sight."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_mtdrive.driving.camera import front_camera
from nemo_mtdrive.driving.scene import Area, Ego, Lane, Roadblock, Scene, SceneMap, Track


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def track(token: str, kind: str, size: tuple[float, float, float], x: float, y: float, speed: float) -> Track:
    times = np.arange(0.0, 5.01, 0.5)
    zeros = np.zeros_like(times)
    states = np.column_stack([times, x + speed * times, zeros + y, zeros, zeros + speed, zeros])
    return Track(token, kind, np.array(size), states)


@pytest.fixture
def scene() -> Scene:
    """The road runs along +x in the map frame; the ego stands at (100, 50), heading +x, in the right lane."""
    lanes = tuple(Lane(f"l{i}", "lane", "b0", box(50, 48 + 4 * i, 250, 52 + 4 * i),
                       np.array([[50.0, 50 + 4 * i], [250.0, 50 + 4 * i]]), 15.0, (), ()) for i in range(2))
    block = Roadblock("b0", "roadblock", box(50, 48, 250, 56), ("l0", "l1"), (), ())
    connector = Roadblock("b1", "roadblock_connector", box(120, 0, 130, 100), (), (), ())
    tracks = (track("lead", "vehicle", (4.6, 1.9, 1.6), 120.0, 50.0, 6.0),
              track("walker", "pedestrian", (0.6, 0.6, 1.75), 115.0, 46.0, 0.0),
              track("far", "traffic_cone", (0.4, 0.4, 0.8), 240.0, 50.0, 0.0))
    future = np.column_stack([4.0 * np.arange(1, 9), np.zeros(8), np.zeros(8)])
    return Scene(
        scene_id="hand", kind="lead", ego=Ego(np.array([100.0, 50.0, 0.0]), np.array([8.0, 0.0]), np.zeros(2)),
        map=SceneMap((block, connector), lanes, (), (), (Area("w", box(110, 48, 113, 56)),)),
        route_roadblock_ids=("b0",), traffic_lights=(), tracks=tracks, history=np.zeros((4, 3)), command="GO STRAIGHT",
        future=future, camera=front_camera(224, 112, "hand.png"))
