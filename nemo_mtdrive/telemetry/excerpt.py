"""A scene cut down to what a picture of it needs, so that a recorded episode can be drawn without its scene source.

All positions are in the rear-axle frame of the ego at t = 0 (x forward, y left), rounded to a centimetre, and cut to a
window around the ego; a scene of 100-300 KB becomes 5-30 KB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from shapely import LineString, MultiPolygon, Polygon, box, line_merge, make_valid, unary_union
from shapely.geometry.base import BaseGeometry

from nemo_mtdrive.driving.scene import Array, Scene, Track, to_ego_frame

SCHEMA = "nemo-mtdrive-excerpt/1"
WINDOW = (-25.0, -40.0, 85.0, 40.0)
"""x min, y min, x max, y max of what is kept [m]: 4 s at 80 km/h ahead, and what may come from behind."""

Ring = list[list[float]]


@dataclass(frozen=True)
class Box:
    """A road user or object at t = 0: centre, size [m], heading [rad], and where its centre goes later."""

    type: str
    x: float
    y: float
    heading: float
    length: float
    width: float
    height: float
    path: Ring
    """[n][2] centres from t = 0 to 4 s; one row for what does not move."""


@dataclass(frozen=True)
class CameraView:
    """The pinhole of the front camera: 3x3 intrinsics for a picture of width x height, 4x4 camera to ego."""

    width: int
    height: int
    intrinsics: list[list[float]]
    extrinsics: list[list[float]]


@dataclass(frozen=True)
class SceneExcerpt:
    """See the module's docstring for the frame; rings are [n][2] without the closing point repeated."""

    scene_id: str
    kind: str
    command: str | None
    speed: float
    """Of the ego at t = 0 [m/s]."""
    ego: dict[str, float]
    """width, front_length, rear_length [m] from the rear axle."""
    drivable: list[list[Ring]]
    """Areas as [outer ring, holes...]."""
    lane_edges: list[Ring]
    """Open lines."""
    centerlines: list[Ring]
    """Open lines in driving direction."""
    crosswalks: list[Ring]
    boxes: list[Box]
    history: Ring | None
    """[4][3]"""
    future: Ring | None
    """[8][3], the human's or the expert's."""
    camera: CameraView | None

    def to_json(self) -> dict[str, Any]:
        """The JSON form; `excerpt_from_json` is its inverse."""
        return {"schema": SCHEMA} | asdict(self)


def excerpt_from_json(data: Mapping[str, Any]) -> SceneExcerpt:
    """Read what `SceneExcerpt.to_json` made.

    Raises:
        ValueError: another schema, or a key that is missing or unknown.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema: got {data.get('schema')!r}, want {SCHEMA!r}")
    fields = {key: value for key, value in data.items() if key != "schema"}
    try:
        fields["boxes"] = [Box(**item) for item in fields["boxes"]]
        fields["camera"] = None if fields["camera"] is None else CameraView(**fields["camera"])
        return SceneExcerpt(**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an excerpt of a scene: {error}") from error


def excerpt_of(scene: Scene) -> SceneExcerpt:
    """Cut a scene down to its picture."""
    origin = scene.ego.rear_axle_pose
    vehicle = scene.ego.vehicle
    window = box(*WINDOW)
    road_map = scene.map
    drivable = [block.polygon for block in road_map.roadblocks if block.kind == "roadblock"]
    drivable += [area.polygon for area in (*road_map.intersections, *road_map.carparks)]
    area = unary_union([_polygon(_to_ego(ring, origin)) for ring in drivable]).intersection(window)
    lanes = [lane for lane in road_map.lanes if lane.kind == "lane"]
    edges = unary_union([_polygon(_to_ego(lane.polygon, origin)).boundary for lane in lanes]).intersection(window)
    human = scene.future if scene.future is not None else scene.extra.get("human_trajectory")
    return SceneExcerpt(
        scene_id=scene.scene_id,
        kind=scene.kind,
        command=scene.command,
        speed=round(float(np.hypot(*scene.ego.velocity)), 2),
        ego={"width": vehicle.width, "front_length": vehicle.front_length, "rear_length": vehicle.rear_length},
        drivable=[_rings(polygon) for polygon in _polygons(area)],
        lane_edges=_lines(edges),
        centerlines=[line for lane in road_map.lanes
                     for line in _lines(LineString(_to_ego(lane.centerline, origin)).intersection(window))],
        crosswalks=[_rings(part)[0] for walk in road_map.crosswalks
                    for part in _polygons(_polygon(_to_ego(walk.polygon, origin)).intersection(window))],
        boxes=[made for track in scene.tracks if (made := _box(track, origin)) is not None],
        history=None if scene.history is None else _rows(scene.history, 3),
        future=None if human is None else _rows(np.asarray(human, dtype=np.float64), 3),
        camera=None if scene.camera is None else CameraView(
            scene.camera.width, scene.camera.height, scene.camera.intrinsics.tolist(),
            scene.camera.extrinsics.tolist()),
    )


def _to_ego(points: Array, origin: Array) -> Array:
    return to_ego_frame(np.column_stack([points, np.zeros(len(points))]), origin)[:, :2]


def _rows(values: Array | Sequence[Any], digits: int = 2) -> Ring:
    rounded: Ring = np.round(np.asarray(values, dtype=np.float64), digits).tolist()
    return rounded


def _polygon(ring: Array) -> BaseGeometry:
    return make_valid(Polygon(ring))


def _polygons(shape: BaseGeometry) -> list[Polygon]:
    parts = getattr(shape, "geoms", [shape])
    whole: list[Polygon] = []
    for part in parts:
        if isinstance(part, MultiPolygon):
            whole += part.geoms
        elif isinstance(part, Polygon) and part.area > 0.01:
            whole.append(part)
    return whole


def _rings(polygon: Polygon) -> list[Ring]:
    thin = polygon.simplify(0.03)
    return [_rows(np.asarray(ring.coords)[:-1]) for ring in (thin.exterior, *thin.interiors)]


def _lines(shape: BaseGeometry) -> list[Ring]:
    merged = line_merge(shape)
    parts = getattr(merged, "geoms", [merged])
    return [_rows(np.asarray(part.simplify(0.03).coords)) for part in parts
            if isinstance(part, LineString) and part.length > 0.1]


def _box(track: Track, origin: Array) -> Box | None:
    """None for a track that is not there at t = 0 or lies outside the window."""
    now = track.states[np.abs(track.states[:, 0]) < 1e-6]
    if not len(now):
        return None
    x, y, heading = to_ego_frame(now[0, 1:4], origin)
    if not (WINDOW[0] <= x <= WINDOW[2] and WINDOW[1] <= y <= WINDOW[3]):
        return None
    later = track.states[track.states[:, 0] <= 4.0 + 1e-6]
    path = to_ego_frame(later[:, 1:4], origin)[:, :2]
    moves = float(np.abs(path - path[0]).max()) > 0.25
    length, width, height = (round(float(value), 2) for value in track.size)
    return Box(track.type, round(float(x), 2), round(float(y), 2), round(math.remainder(float(heading), math.tau), 3),
               length, width, height, _rows(path if moves else path[:1]))
