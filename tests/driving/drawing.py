"""Hand-made scenes for the camera's tests: a straight road in the map's own axes, and tracks placed on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_mtdrive.driving.scene import (
    Area,
    Array,
    Ego,
    Lane,
    Roadblock,
    Scene,
    SceneMap,
    Track,
    TrafficLight,
    to_map_frame,
)

WIDTH, HEIGHT = 224, 112


def track_ahead(scene: Scene, kind: str, size: tuple[float, float, float], at: tuple[float, float, float],
                speeds: tuple[float, float] = (0.0, 0.0), token: str = "probe") -> Track:
    """A track at a pose of the ego frame; speeds [m/s] at t = 0 and from 0.5 s on."""
    x, y, heading = to_map_frame(np.array(at), scene.ego.rear_axle_pose).tolist()
    speed = np.array([speeds[0]] + [speeds[1]] * 10)
    rows = [[0.5 * k, x, y, heading, v * np.cos(heading), v * np.sin(heading)] for k, v in enumerate(speed)]
    return Track(token, kind, np.array(size), np.array(rows))


def _lane(name: str, kind: str, block: str, line: Array, incoming: Sequence[str], outgoing: Sequence[str]) -> Lane:
    along = np.gradient(line, axis=0)
    along /= np.sqrt((along**2).sum(1, keepdims=True))
    left = 1.75 * np.column_stack([-along[:, 1], along[:, 0]])
    polygon = np.vstack([line + left, (line - left)[::-1]])
    return Lane(name, kind, block, polygon, line, 13.0, tuple(incoming), tuple(outgoing))


def empty_road(lights: Sequence[tuple[str, bool]] = ()) -> Scene:
    """The ego at the origin, heading +x, on a lane that ends 30 m ahead at a crossing 20 m wide, with connectors
    `straight` and `left`; `lights` names connectors and whether they are red.
    """
    before = _lane("a.0", "lane", "a", np.column_stack([np.arange(-50.0, 31.0, 2.0), np.zeros(41)]), (),
                   ("straight", "left"))
    straight = _lane("straight", "lane_connector", "c", np.column_stack([np.linspace(30.0, 50.0, 11), np.zeros(11)]),
                     ("a.0",), ("b.0",))
    angles = np.linspace(0.0, np.pi / 2, 11)
    turn = np.column_stack([30.0 + 10.0 * np.sin(angles), 10.0 - 10.0 * np.cos(angles)])
    left = _lane("left", "lane_connector", "d", turn, ("a.0",), ())
    after = _lane("b.0", "lane", "b", np.column_stack([np.arange(50.0, 131.0, 2.0), np.zeros(41)]), ("straight",), ())
    blocks = tuple(Roadblock(lane.roadblock_id, "roadblock" if lane.kind == "lane" else "roadblock_connector",
                             lane.polygon, (lane.id,), (), ()) for lane in (before, straight, left, after))
    crossing = Area("x", np.array([[30.0, -10.0], [50.0, -10.0], [50.0, 10.0], [30.0, 10.0]]))
    ego = Ego(np.zeros(3), np.array([5.0, 0.0]), np.zeros(2))
    return Scene("road", "test/road", ego, SceneMap(blocks, (before, straight, left, after), (crossing,), ()),
                 ("a", "c", "b"), tuple(TrafficLight(*light) for light in lights), ())
