"""PDM-Closed: the rule-based planner whose drive is the reference for ego progress (EP).

15 proposals, five IDM speeds on each of three lines (the centreline, 1 m to its right, 1 m to its left), are unrolled
behind forecast leaders, simulated, scored, and the best one is the reference. Forecasts are constant-velocity from the
boxes of t = 0. Some of the original's habits look odd and are kept, since EP depends on them: see `_Leaders`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
import shapely.ops
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, Track, Vehicle
from nemo_mtdrive.pdm.drivable import DrivableMap, ego_center, polygon_of
from nemo_mtdrive.pdm.geometry import box_corners, lengths_along, wrap_angle
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

SPEED_FRACTIONS = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
LATERAL_OFFSETS_M = (0.0, -1.0, 1.0)
FALLBACK_SPEED = 15.0
"""Speed limit [m/s] of a lane that has none."""

_MIN_GAP_M, _HEADWAY_S, _MAX_ACCELERATION, _MAX_DECELERATION, _EXPONENT = 1.0, 1.5, 1.5, 3.0, 10
_FORECAST_STRIDE = 2
_FORECAST_RADIUS_M = 100.0
_MOST_OBJECTS = {"static": 50, "vehicle": 50, "pedestrian": 25, "bicycle": 10}


@dataclass(frozen=True)
class Path:
    """A line [n, 3] to follow, with the arc length of its vertices [m]."""

    poses: Array
    lengths: Array
    line: shapely.LineString

    @classmethod
    def along(cls, poses: Array, offset: float) -> Path:
        """The line moved sideways, vertex by vertex, to its left by `offset` [m]."""
        moved = poses.copy()
        moved[:, 0] += np.cos(poses[:, 2] + 0.5 * np.pi) * offset
        moved[:, 1] += np.sin(poses[:, 2] + 0.5 * np.pi) * offset
        moved[:, 2] = np.unwrap(moved[:, 2])
        lengths = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(moved[:, :2], axis=0), axis=1)))
        return cls(moved, lengths, shapely.LineString(moved[:, :2]))

    def at(self, distance: Array) -> Array:
        """Poses [..., 3] at arc lengths [...], clipped to the line."""
        clipped = np.clip(distance, min(1e-5, self.lengths[-1]), self.lengths[-1])
        after = np.searchsorted(self.lengths, clipped).clip(1, len(self.lengths) - 1)
        before = after - 1
        span = np.where(self.lengths[after] > self.lengths[before], self.lengths[after] - self.lengths[before], 1.0)
        slope = (self.poses[after] - self.poses[before]) / span[..., None]
        poses = slope * (clipped - self.lengths[before])[..., None] + self.poses[before]
        poses[..., 2] = wrap_angle(poses[..., 2])
        return poses

    def corridor(self, start: float, stop: float, width: float) -> shapely.Polygon:
        """The way from start to stop [m], as wide as the car."""
        low, high = np.clip([start, stop], 0.0, self.lengths[-1])
        vertices = self.poses[(low <= self.lengths) & (self.lengths <= high), :2]
        part = shapely.LineString(vertices) if len(vertices) > 1 else shapely.ops.substring(self.line, low, high)
        return part.buffer(0.5 * width, cap_style="square")


@dataclass(frozen=True)
class Forecast:
    """Constant-velocity forecast with the red lights of the route standing on their lane connectors."""

    observation: Observation
    obstacles: tuple[NDArray[np.object_], ...]
    """For each sample of 0.2 s, polygons of the tracks, then of the lights."""
    trees: tuple[shapely.STRtree, ...]
    """Of the obstacles."""
    ignored: NDArray[np.bool_]
    """Obstacles that the ego overlaps at t = 0 (a light: stands in)."""


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
    times = (np.arange(OBSERVED_STEPS) // _FORECAST_STRIDE * _FORECAST_STRIDE)[:, None] * STEP_S
    poses = np.empty((OBSERVED_STEPS, len(tracks), 3))
    poses[..., 0] = rows[:, 1] + times * (np.cos(direction) * speeds)
    poses[..., 1] = rows[:, 2] + times * (np.sin(direction) * speeds)
    poses[..., 2] = rows[:, 3]
    red = {light.lane_connector_id for light in scene.traffic_lights if light.is_red} & set(route.lane_ids)
    lights = np.array([polygon_of(lane.polygon) for lane in scene.map.lanes if lane.id in red], dtype=object)
    ego, vehicle = scene.ego, scene.ego.vehicle
    box = shapely.Polygon(box_corners(ego_center(ego), ego.rear_axle_pose[2], vehicle.length, vehicle.width))
    seen = assemble(tracks, poses, np.ones(poses.shape[:2], dtype=bool), speeds <= STOPPED_TRACK_SPEED)
    samples = seen.corners[::_FORECAST_STRIDE]
    obstacles = tuple(np.concatenate([shapely.polygons(corners), lights]) for corners in samples)
    seen.is_ignored[:] = shapely.intersects(obstacles[0][:len(tracks)], box)
    ignored = np.append(seen.is_ignored, shapely.within(box, lights))
    return Forecast(seen, obstacles, tuple(shapely.STRtree(sample, node_capacity=10) for sample in obstacles), ignored)


class _Leaders:
    """The leading obstacle of each proposal on one path.

    Kept from the original: leaders are looked up at even steps only, so at step 1 there is none and progress 0 stands
    for it, which brakes; and the three numbers of a leader are written over those of the proposal before, so the rear
    length of a free road or the speed of a vehicle can stay behind.
    """

    def __init__(self, path: Path, expected: Forecast, vehicle: Vehicle, start: float, top_speed: float) -> None:
        self._path, self._forecast, self._vehicle, self._free_m = path, expected, vehicle, path.line.length
        reach = top_speed * (OBSERVED_STEPS - 1) * STEP_S
        self._corridor = path.corridor(start, start + reach, vehicle.width)

    def __call__(self, step: int, progress: Array) -> Array:
        """[K, 3] progress [m], speed [m/s] and rear length [m] of the leaders of proposals at progress [K]."""
        sample = step // _FORECAST_STRIDE
        obstacles, tree = self._forecast.obstacles[sample], self._forecast.trees[sample]
        met = tree.query(self._corridor, predicate="intersects")
        met = met[~self._forecast.ignored[met]]
        where = shapely.line_locate_point(self._path.line, shapely.centroid(obstacles[met]))
        ahead = where > progress[:, None]
        if ahead.any():
            poses = self._path.at(progress)
            gaps = np.where(ahead, shapely.distance(self._ego_boxes(poses)[:, None], obstacles[met]), np.inf)
        leaders, current = np.empty((len(progress), 3)), np.zeros(3)
        for row, own in enumerate(progress):
            if ahead[row].any():
                nearest = int(np.argmin(gaps[row]))
                current[0] = own + gaps[row, nearest]
                if met[nearest] < len(self._forecast.observation.tracks):
                    current[1] = self._speed(met[nearest], poses[row, 2])
            else:
                current[0], current[2] = self._free_m, 0.5 * self._vehicle.length
            leaders[row] = current
        return leaders

    def _ego_boxes(self, poses: Array) -> NDArray[np.object_]:
        forward = np.column_stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])])
        centers = poses[:, :2] + self._vehicle.rear_axle_to_center * forward
        return shapely.polygons(box_corners(centers, poses[:, 2], self._vehicle.length, self._vehicle.width))

    def _speed(self, track: int, heading: float) -> float:
        seen = self._forecast.observation
        if not seen.is_agent[track]:
            return 0.0
        row = seen.tracks[track].states[np.argmin(np.abs(seen.tracks[track].states[:, 0]))]
        return float(np.hypot(row[4], row[5]) * np.cos(row[3] - heading))


def _idm_step(progress: Array, speed: Array, leaders: Array, wanted: Array) -> tuple[Array, Array]:
    """One Euler step of the intelligent driver model for proposals [K]."""
    desired_gap = (_MIN_GAP_M + speed * _HEADWAY_S
                   + speed * (speed - leaders[:, 1]) / (2.0 * np.sqrt(_MAX_ACCELERATION * _MAX_DECELERATION)))
    gap = np.maximum(leaders[:, 0] - progress - leaders[:, 2], _MIN_GAP_M)
    acceleration = _MAX_ACCELERATION * (1.0 - (speed / wanted) ** _EXPONENT - (desired_gap / gap) ** 2)
    acceleration = np.clip(acceleration, -_MAX_DECELERATION, _MAX_ACCELERATION)
    return progress + STEP_S * speed, speed + STEP_S * acceleration


def _unroll(path: Path, leaders: _Leaders, start: float, ego_speed: float, wanted: Array) -> Array:
    """Poses [K, 51, 3] of the IDM policies with wanted speeds [K] on one path."""
    progress, speed, leading = np.full(len(wanted), start), np.full(len(wanted), ego_speed), np.zeros((len(wanted), 3))
    unrolled = [progress]
    for step in range(1, OBSERVED_STEPS):
        if step % _FORECAST_STRIDE == 0:
            leading = leaders(step, progress)
        progress, speed = _idm_step(progress, speed, leading, wanted)
        unrolled.append(progress)
    return path.at(np.stack(unrolled, axis=1))


def plan(scene: Scene, drivable: DrivableMap, route: Route, on_route: NDArray[np.bool_]) -> Array:
    """PDM-Closed's plan: 51 map-frame poses [51, 3] over 5 s, not yet simulated.

    Args:
        scene: ego, tracks and lights of t = 0 are used, nothing later.
        drivable: the map near the ego.
        route: from `find_route`.
        on_route: [P] polygons of `drivable` that are lanes of the route.
    """
    ego = scene.ego
    limit = route.speed_limit_mps
    wanted = SPEED_FRACTIONS * (limit if limit is not None and limit > 0.0 else FALLBACK_SPEED)
    expected = forecast(scene, route)
    proposals = []
    for offset in LATERAL_OFFSETS_M:
        path = Path.along(route.centerline, offset)
        start = path.line.project(shapely.Point(ego.rear_axle_pose[:2]))
        leaders = _Leaders(path, expected, ego.vehicle, start, wanted[-1])
        proposals.append(_unroll(path, leaders, start, float(ego.velocity[0]), wanted))
    poses = np.concatenate(proposals)
    states = simulate(poses[:, :STEPS], ego)
    line = np.ascontiguousarray(route.centerline[:, :2])
    measured = measure(states, ego.vehicle, drivable, on_route, line, lengths_along(line), expected.observation)
    progress = ego_progress(measured, float(measured.clean_progress_m.max()))
    return poses[int(np.argmax(pdm_score(measured, progress)))]
