"""PDM-Closed: the rule-based planner whose drive is the reference for ego progress (EP).

15 proposals, five IDM speeds on each of three lines (the centreline, 1 m to its right, 1 m to its left), are unrolled
behind forecast leaders, simulated, scored, and the best one is the reference. Forecasts are constant-velocity from the
boxes of t = 0. Some of the original's habits look odd and are kept, since EP depends on them: see `idm.unroll`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
import shapely.ops
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, Track
from nemo_mtdrive.pdm.drivable import DrivableMap, ego_center, polygon_of
from nemo_mtdrive.pdm.geometry import box_corners, lengths_along, way_along, wrap_angle
from nemo_mtdrive.pdm.idm import FORECAST_STRIDE, Obstacles, unroll
from nemo_mtdrive.pdm.observation import (
    AGENT_TYPES,
    OBSERVED_STEPS,
    STOPPED_TRACK_SPEED,
    Observation,
    assemble,
    tracks_now,
)
from nemo_mtdrive.pdm.route import Route
from nemo_mtdrive.pdm.score import ego_progress, measure, pdm_score
from nemo_mtdrive.pdm.simulate import STEP_S, STEPS, simulate

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]

SPEED_FRACTIONS = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
LATERAL_OFFSETS_M = (0.0, -1.0, 1.0)
FALLBACK_SPEED = 15.0
"""Speed limit [m/s] of a lane that has none."""

_FORECAST_RADIUS_M = 100.0
_MOST_OBJECTS = {"static": 50, "vehicle": 50, "pedestrian": 25, "bicycle": 10}


@dataclass(frozen=True)
class Path:
    """A line [n, 3] to follow, with the arc length of its vertices [m]."""

    poses: Array
    lengths: Array

    @classmethod
    def along(cls, poses: Array, offset: float) -> Path:
        """The line moved sideways, vertex by vertex, to its left by `offset` [m]."""
        moved = poses.copy()
        moved[:, 0] += np.cos(poses[:, 2] + 0.5 * np.pi) * offset
        moved[:, 1] += np.sin(poses[:, 2] + 0.5 * np.pi) * offset
        moved[:, 2] = np.unwrap(moved[:, 2])
        return cls(moved, lengths_along(moved[:, :2]))

    def corridor(self, start: float, stop: float, width: float) -> shapely.Polygon:
        """The way from start to stop [m], as wide as the car."""
        low, high = np.clip([start, stop], 0.0, self.lengths[-1])
        vertices = self.poses[(low <= self.lengths) & (self.lengths <= high), :2]
        if len(vertices) > 1:
            part = shapely.LineString(vertices)
        else:
            part = shapely.ops.substring(shapely.LineString(self.poses[:, :2]), low, high)
        return part.buffer(0.5 * width, cap_style="square")


@dataclass(frozen=True)
class Forecast:
    """Constant-velocity forecast with the red lights of the route standing on their lane connectors."""

    observation: Observation
    """Of the N tracks; those that the ego overlaps at t = 0 are ignored."""
    corners: Array
    """[26, N, 4, 2] boxes at the samples, every 0.2 s."""
    motion: Array
    """[N, 3] as in `idm.Obstacles`."""
    lights: NDArray[np.object_]
    """[L] polygons; those that the ego is in are left out."""

    def order(self, sample: int, corridor: shapely.Polygon) -> Indices:
        """Obstacles that meet a corridor (tracks, then lights) as the tree of the original gives them."""
        tree = shapely.STRtree(np.concatenate([shapely.polygons(self.corners[sample]), self.lights]), node_capacity=10)
        found: Indices = tree.query(corridor, predicate="intersects")
        return found


def _nearest_tracks(scene: Scene) -> list[tuple[Track, Array]]:
    """Tracks of t = 0 within 100 m: static ones, vehicles, pedestrians, bicycles; of each kind the nearest, sorted."""
    center = ego_center(scene.ego)
    known = [(float(np.hypot(*(row[1:3] - center))), track, row) for track, row in tracks_now(scene)]
    chosen: list[tuple[Track, Array]] = []
    for kind, most in _MOST_OBJECTS.items():
        group = [entry for entry in known if entry[0] <= _FORECAST_RADIUS_M
                 and (entry[1].type == kind or (kind == "static" and entry[1].type not in AGENT_TYPES))]
        chosen += [(track, row) for _, track, row in sorted(group, key=lambda entry: entry[0])[:most]]
    return chosen


def _motion_now(track: Track) -> tuple[float, float, float]:
    """As in `Obstacles.motion`, from the row nearest to t = 0."""
    if track.type not in AGENT_TYPES:
        return 1.0, 0.0, 0.0
    row = track.states[np.argmin(np.abs(track.states[:, 0]))]
    return 1.0, float(np.hypot(row[4], row[5])), float(row[3])


def forecast(scene: Scene, route: Route) -> Forecast:
    """What PDM-Closed expects of the others: each agent keeps its speed along its heading; sampled every 0.2 s.

    Whatever overlaps the ego at t = 0 is ignored throughout.
    """
    pairs = _nearest_tracks(scene)
    tracks = tuple(track for track, _ in pairs)
    rows = np.array([row for _, row in pairs]).reshape(len(pairs), 6)
    speeds = np.where([track.type in AGENT_TYPES for track in tracks], np.hypot(rows[:, 4], rows[:, 5]), 0.0)
    forward = np.abs(wrap_angle(rows[:, 3] - np.arctan2(rows[:, 5], rows[:, 4]))) < 0.5 * np.pi
    direction = np.where(forward, rows[:, 3], rows[:, 3] + np.pi)
    times = (np.arange(OBSERVED_STEPS) // FORECAST_STRIDE * FORECAST_STRIDE)[:, None] * STEP_S
    poses = np.empty((OBSERVED_STEPS, len(tracks), 3))
    poses[..., 0] = rows[:, 1] + times * (np.cos(direction) * speeds)
    poses[..., 1] = rows[:, 2] + times * (np.sin(direction) * speeds)
    poses[..., 2] = rows[:, 3]
    seen = assemble(tracks, poses, np.ones(poses.shape[:2], dtype=bool), speeds <= STOPPED_TRACK_SPEED)

    red = {light.lane_connector_id for light in scene.traffic_lights if light.is_red} & set(route.lane_ids)
    lights = np.array([polygon_of(lane.polygon) for lane in scene.map.lanes if lane.id in red], dtype=object)
    ego, vehicle = scene.ego, scene.ego.vehicle
    box = shapely.Polygon(box_corners(ego_center(ego), ego.rear_axle_pose[2], vehicle.length, vehicle.width))
    seen.is_ignored[:] = shapely.intersects(shapely.polygons(seen.corners[0]), box)
    motion = np.array([_motion_now(track) for track in tracks]).reshape(len(tracks), 3)
    return Forecast(seen, seen.corners[::FORECAST_STRIDE], motion, lights[~shapely.within(box, lights)])


def _met_tracks(expected: Forecast, corridor: shapely.Polygon) -> Flags:
    """[26, N] tracks that are not ignored and meet a corridor."""
    low, high = expected.corners.min(axis=2), expected.corners.max(axis=2)
    bounds = corridor.bounds
    near = (low <= bounds[2:]).all(axis=-1) & (high >= bounds[:2]).all(axis=-1) & ~expected.observation.is_ignored
    shapely.prepare(corridor)
    near[near] = shapely.intersects(corridor, shapely.polygons(expected.corners[near]))
    return near


def _obstacles(expected: Forecast, path: Path, corridor: shapely.Polygon, *, in_order: bool) -> Obstacles:
    """What lies in a path's corridor; `in_order` as the original's trees give it, which matters for equal gaps only."""
    met, lights = _met_tracks(expected, corridor), np.flatnonzero(shapely.intersects(corridor, expected.lights))
    tracks = met.shape[1]
    lines = [np.append(np.flatnonzero(row), tracks + lights) for row in met]
    if in_order:
        lines = [np.array([m for m in expected.order(sample, corridor) if m in line], dtype=np.int64) if len(line) > 1
                 else line for sample, line in enumerate(lines)]
    rings = [expected.corners[sample, m][[0, 1, 2, 3, 0]] if m < tracks
             else shapely.get_coordinates(expected.lights[m - tracks].exterior) for sample, line in enumerate(lines)
             for m in line]
    sample_of, index = np.repeat(np.arange(len(lines)), [len(line) for line in lines]), np.concatenate(lines)
    centroids, motion = np.empty((len(index), 2)), np.zeros((len(index), 3))
    is_track = index < tracks
    centroids[is_track] = expected.observation.centers[::FORECAST_STRIDE][sample_of[is_track], index[is_track]]
    centroids[~is_track] = shapely.get_coordinates(shapely.centroid(expected.lights[index[~is_track] - tracks]))
    motion[is_track] = expected.motion[index[is_track]]
    line_xy = np.ascontiguousarray(path.poses[:, :2])
    return Obstacles(
        first=np.cumsum([0] + [len(line) for line in lines]),
        where=np.array([way_along(line_xy, path.lengths, x, y) for x, y in centroids]),
        motion=motion,
        first_vertex=np.cumsum([0] + [len(ring) for ring in rings]),
        vertices=np.concatenate(rings) if rings else np.zeros((0, 2)),
    )


def _proposals(scene: Scene, expected: Forecast, path: Path, wanted: Array) -> Array:
    """Poses [K, 51, 3] of the IDM policies with wanted speeds [K] on one path."""
    ego, vehicle = scene.ego, scene.ego.vehicle
    start = way_along(np.ascontiguousarray(path.poses[:, :2]), path.lengths, *ego.rear_axle_pose[:2])
    corridor = path.corridor(start, start + wanted[-1] * (OBSERVED_STEPS - 1) * STEP_S, vehicle.width)
    body = np.array([0.5 * vehicle.length, 0.5 * vehicle.width, vehicle.rear_axle_to_center])
    poses = np.empty((len(wanted), OBSERVED_STEPS, 3))
    for in_order in (False, True):
        obstacles = _obstacles(expected, path, corridor, in_order=in_order)
        if not unroll(path.poses, path.lengths, obstacles, body, start, float(ego.velocity[0]), wanted, poses):
            break
    return poses


def plan(scene: Scene, drivable: DrivableMap, route: Route, on_route: Flags) -> Array:
    """PDM-Closed's plan: 51 map-frame poses [51, 3] over 5 s, not yet simulated.

    Args:
        scene: ego, tracks and lights of t = 0 are used, nothing later.
        drivable: the map near the ego.
        route: from `find_route`.
        on_route: [P] polygons of `drivable` that are lanes of the route.
    """
    limit = route.speed_limit_mps
    wanted = SPEED_FRACTIONS * (limit if limit is not None and limit > 0.0 else FALLBACK_SPEED)
    expected = forecast(scene, route)
    poses = np.concatenate([_proposals(scene, expected, Path.along(route.centerline, offset), wanted)
                            for offset in LATERAL_OFFSETS_M])
    states = simulate(poses[:, :STEPS], scene.ego)
    line = np.ascontiguousarray(route.centerline[:, :2])
    measured = measure(states, scene.ego.vehicle, drivable, on_route, line, lengths_along(line), expected.observation)
    progress = ego_progress(measured, float(measured.clean_progress_m.max()))
    best: Array = poses[int(np.argmax(pdm_score(measured, progress)))]
    return best
