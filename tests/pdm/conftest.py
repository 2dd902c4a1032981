"""Hand-made scenes: a straight road along x whose numbers can be worked out on paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Ego, Lane, Roadblock, Scene, SceneMap, Track

MakeScene = Callable[..., Scene]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)


def straight_map() -> SceneMap:
    """One roadblock with one lane, 7 m wide, from x = -60 to 200."""
    ring = rectangle(-60.0, -3.5, 200.0, 3.5)
    centerline = np.column_stack([np.arange(-60.0, 201.0, 4.0), np.zeros(66)])
    lane = Lane("lane", "lane", "block", ring, centerline, 10.0, (), ())
    return SceneMap((Roadblock("block", "roadblock", ring, ("lane",), (), ()),), (lane,), (), ())


def track(token: str, kind: str, size: tuple[float, float, float], rows: list[tuple[float, ...]]) -> Track:
    return Track(token, kind, np.array(size), np.array(rows, dtype=float))


def standing(token: str, kind: str, size: tuple[float, float, float], x: float, y: float) -> Track:
    return track(token, kind, size, [(t, x, y, 0.0, 0.0, 0.0) for t in np.arange(0.0, 5.1, 0.5)])


@pytest.fixture
def make_scene() -> MakeScene:
    def make(tracks: tuple[Track, ...] = (), speed: float = 6.2, pose: tuple[float, float, float] = (0.0, 0.0, 0.0),
             **changes: Any) -> Scene:
        fields: dict[str, Any] = {
            "scene_id": "hand", "kind": "test", "ego": Ego(np.array(pose), np.array([speed, 0.0]), np.zeros(2)),
            "map": straight_map(), "route_roadblock_ids": ("block",), "traffic_lights": (), "tracks": tracks,
        }
        return Scene(**(fields | changes))

    return make


def straight_plan(speed: float, lateral: float = 0.0) -> np.ndarray:
    """[8, 3] constant speed straight on, drifting sideways to `lateral` at 4 s."""
    times = np.arange(1, 9) * 0.5
    return np.column_stack([speed * times, lateral * times / 4.0, np.zeros(8)])
