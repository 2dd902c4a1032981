"""Turns the metric caches that NAVSIM v1.1 wrote (`metric_cache.pkl`, a lzma pickle) into our safe form, once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import TRACK_TYPES, Ego, SceneError, Vehicle
from nemo_mtdrive.pdm.drivable import CARPARK, INTERSECTION, LANE, ROADBLOCK
from nemo_mtdrive.pdm.imported import ImportedCache
from nemo_mtdrive.pdm.observation import AGENT_TYPES, OBSERVED_STEPS
from nemo_mtdrive.pdm.records import PickleRefused, plain_list, read_pickle

Array = NDArray[np.float64]

FILE = "metric_cache.pkl"
"""What NAVSIM calls each: CACHE/LOG/TYPE/TOKEN/metric_cache.pkl."""

_LAYERS = {0: LANE, 1: INTERSECTION, 5: CARPARK, 11: LANE, 15: CARPARK, 17: ROADBLOCK}
"""nuPlan's SemanticMapLayer -> kind of a polygon here; its generic drivable area counts as a car park does."""

_NEEDED = ("trajectory", "ego_state", "observation", "centerline", "route_lane_ids", "drivable_area_map")
_VEHICLE = ("width", "front_length", "rear_length", "cog_position_from_rear_axle", "wheel_base", "name", "type", "height")
"""Order in which nuPlan pickles a vehicle's parameters."""


def read_metric_cache(path: Path) -> ImportedCache:
    """Read and convert one `metric_cache.pkl`; see `records` for what makes that safe.

    Raises:
        PickleRefused: not a metric cache of NAVSIM v1.1, or a broken one; one line that starts with the file's name.
        OSError: the file cannot be read.
    """
    record = read_pickle(path)
    try:
        return _convert(record, path)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise PickleRefused(f"{path}: not a metric cache of NAVSIM v1.1: {error}") from error


def find_metric_caches(path: Path) -> list[Path]:
    """The metric caches at a path: it is one, or a folder with some at any depth.

    Raises:
        SceneError: there are none.
    """
    found = [path] if path.is_file() else sorted(path.rglob(FILE))
    if not found:
        raise SceneError(f"{path}: no {FILE} there; set it to the cache.cache_path of NAVSIM's run_metric_caching.py")
    return found


def _convert(record: Any, path: Path) -> ImportedCache:
    missing = [name for name in _NEEDED if not hasattr(record, name)]
    if missing:
        raise PickleRefused(f"it has no {', '.join(missing)}; caches of NAVSIM v1.1 can be imported")
    ego = record.ego_state
    tracks, sizes, velocities, corners, present = _observed(record.observation)
    states = plain_list(record.trajectory.arguments[0])
    return ImportedCache(
        scene_id=_token(record, path), t0_us=int(ego._time_point.time_us), ego=_ego(ego), tracks=tracks, sizes=sizes,
        velocities=velocities, corners=corners, present=present, polygons=_polygons(record.drivable_area_map),
        route_lane_ids=tuple(str(name) for name in plain_list(record.route_lane_ids)),
        centerline=np.array([_pose(state) for state in plain_list(record.centerline.arguments[0])]),
        reference=np.array([_rear_axle(state._car_footprint) for state in states]),
        reference_us=np.array([int(state._time_point.time_us) for state in states]))


def _token(record: Any, path: Path) -> str:
    """The scene's token: the name of the folder in which NAVSIM put the cache."""
    written = getattr(record, "file_path", None)
    parts = [str(part) for part in getattr(written, "arguments", ())]
    token = parts[-2] if len(parts) >= 2 and parts[-1] == FILE else path.resolve().parent.name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", token) or set(token) <= {"."}:
        raise PickleRefused(f"its token {token!r} cannot be a file's name")
    return token


def _pose(state: Any) -> tuple[float, float, float]:
    return float(state.x), float(state.y), float(state.heading)


def _vehicle(footprint: Any) -> Vehicle:
    given = dict(zip(_VEHICLE, footprint._vehicle_parameters.arguments, strict=True))
    height = given["height"] if given["height"] is not None else Vehicle.height
    lengths = {name: float(given[name]) for name in _VEHICLE[:5]}
    return Vehicle(name=str(given["name"]), height=float(height), **lengths)


def _rear_axle(footprint: Any) -> tuple[float, float, float]:
    """nuPlan keeps the centre of the box; the rear axle is behind it."""
    x, y, heading = _pose(footprint._center)
    behind = _vehicle(footprint).rear_axle_to_center
    return x - behind * np.cos(heading), y - behind * np.sin(heading), heading


def _ego(state: Any) -> Ego:
    moving = state._dynamic_car_state
    velocity, acceleration = (np.array([float(vector._x), float(vector._y)]) for vector in (
        moving._rear_axle_velocity_2d, moving._rear_axle_acceleration_2d))
    return Ego(np.array(_rear_axle(state._car_footprint)), velocity, acceleration, _vehicle(state._car_footprint))


def _observed(observation: Any) -> tuple[tuple[tuple[str, str], ...], Array, Array, Array, NDArray[np.bool_]]:
    """Tracks (token, type), sizes [N, 3], first velocities [N, 2], corners [51, N, 4, 2], present [51, N]."""
    maps = [map_.arguments for map_ in plain_list(observation._occupancy_maps)]
    every = int(getattr(observation, "_observation_sample_res", 1))
    objects = {str(token): thing for token, thing in observation._unique_objects.items()}
    places = {token: place for place, token in enumerate(objects)}
    corners, present = np.zeros((OBSERVED_STEPS, len(objects), 4, 2)), np.zeros((OBSERVED_STEPS, len(objects)), dtype=bool)
    for step in range(OBSERVED_STEPS):
        tokens, polygons = maps[step // every][:2]
        for token, polygon in zip(plain_list(tokens), plain_list(polygons), strict=True):
            ring = shapely.get_coordinates(polygon.exterior)
            if len(ring) != 5:
                raise PickleRefused(f"track {token}: its polygon has {len(ring) - 1} corners, want 4")
            corners[step, places[str(token)]], present[step, places[str(token)]] = ring[:4], True
    kinds = [TRACK_TYPES[int(thing._tracked_object_type.arguments[0])] for thing in objects.values()]
    boxes = [thing._box for thing in objects.values()]
    sizes = np.array([[float(box._length), float(box._width), float(box._height)] for box in boxes]).reshape(-1, 3)
    velocities = np.array([[float(thing._velocity._x), float(thing._velocity._y)] if kind in AGENT_TYPES else [0.0, 0.0]
                           for kind, thing in zip(kinds, objects.values(), strict=True)]).reshape(-1, 2)
    return tuple(zip(objects, kinds, strict=True)), sizes, velocities, corners, present


def _polygons(drivable: Any) -> tuple[tuple[str, int, Array], ...]:
    tokens, layers, polygons = (plain_list(value) for value in drivable.arguments[:3])
    found = []
    for token, layer, polygon in zip(tokens, layers, polygons, strict=True):
        value = int(layer.arguments[0])
        if value not in _LAYERS:
            raise PickleRefused(f"polygon {token}: map layer {value} is not one of a drivable map")
        found.append((str(token), _LAYERS[value], _ring(polygon)))
    return tuple(found)


def _ring(polygon: Any) -> Array:
    """One closed ring [n, 2] for a polygon: holes and further parts are joined by bridges there and back.

    By the even-odd rule a bridge adds nothing: it is crossed twice or not at all.
    """
    rings: Sequence[Array] = [shapely.get_coordinates(part) for part in shapely.get_rings(shapely.get_parts(polygon))]
    if not rings:
        return np.zeros((0, 2))
    return np.concatenate([rings[0], *(np.vstack([ring, rings[0][:1]]) for ring in rings[1:])])
