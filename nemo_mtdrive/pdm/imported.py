"""Metric caches that NAVSIM made, in our safe form: one .npz of arrays and a JSON header, no pickle, versioned.

With one of these a trajectory is scored on NAVSIM's own preparation: its interpolated boxes, centreline, drivable area
and PDM-Closed reference, in place of ours.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import TRACK_TYPES, Ego, Scene, SceneError, SceneMap, Track, Vehicle
from nemo_mtdrive.pdm.cache import PreparedScene, prepare
from nemo_mtdrive.pdm.drivable import LANE, map_of_rings
from nemo_mtdrive.pdm.geometry import FRONT_LEFT, REAR_LEFT
from nemo_mtdrive.pdm.observation import (
    AGENT_TYPES,
    OBSERVED_STEPS,
    PERCEPTIONS,
    STOPPED_TRACK_SPEED,
    Observation,
    constant_velocity,
)
from nemo_mtdrive.pdm.reference import sample_poses, sample_times_us
from nemo_mtdrive.pdm.route import Route
from nemo_mtdrive.pdm.simulate import STEP_S, STEPS_PER_POINT

Array = NDArray[np.float64]

FORMAT = "nemo-mtdrive-metric-cache/1"
SUFFIX = ".npz"


@dataclass(frozen=True)
class ImportedCache:
    """What NAVSIM prepared for one scene; map frame, N tracks, P polygons."""

    scene_id: str
    t0_us: int
    """NAVSIM's clock at t = 0 [us]."""
    ego: Ego
    tracks: tuple[tuple[str, str], ...]
    """(token, type) of each."""
    sizes: Array
    """[N, 3] length, width, height."""
    velocities: Array
    """[N, 2] at its first appearance [m/s]; zeros for static objects."""
    corners: Array
    """[51, N, 4, 2] boxes at 10 Hz, in the order of `geometry`; zeros where absent."""
    present: NDArray[np.bool_]
    """[51, N]"""
    polygons: tuple[tuple[str, int, Array], ...]
    """(id, kind of `drivable`, closed ring [n, 2]) of each; holes are cut in by a bridge."""
    route_lane_ids: tuple[str, ...]
    centerline: Array
    """[n, 3] x, y, heading."""
    reference: Array
    """[k, 3] PDM-Closed's plan, not simulated."""
    reference_us: NDArray[np.int64]
    """[k] its times."""

    def scene(self) -> Scene:
        """The scene as far as the cache knows it: ego and tracks at 2 Hz; no map, history or command."""
        return Scene(self.scene_id, "navsim_cache", self.ego, SceneMap((), (), (), ()), (), (), self._tracks(),
                     source="navsim metric cache", extra={"t0_us": self.t0_us})

    def _tracks(self) -> tuple[Track, ...]:
        seen = self.observation
        steps = np.arange(0, OBSERVED_STEPS, STEPS_PER_POINT)
        tracks = []
        for n, (token, kind) in enumerate(self.tracks):
            rows = [(step * STEP_S, *seen.centers[step, n], seen.headings[step, n], *self.velocities[n])
                    for step in steps if self.present[step, n]]
            tracks.append(Track(token, kind, self.sizes[n], np.array(rows).reshape(len(rows), 6)))
        return tuple(tracks)

    @cached_property
    def observation(self) -> Observation:
        """NAVSIM's boxes at 51 steps."""
        centers = self.corners.mean(axis=2)
        ahead = self.corners[:, :, FRONT_LEFT] - self.corners[:, :, REAR_LEFT]
        moving = np.array([kind in AGENT_TYPES for _, kind in self.tracks], dtype=bool)
        speeds = np.where(moving, np.hypot(self.velocities[:, 0], self.velocities[:, 1]), 0.0)
        reach = np.linalg.norm(self.corners - centers[:, :, None], axis=-1).max(axis=(0, 2), initial=0.0)
        return Observation(
            tracks=tuple(Track(token, kind, size, np.zeros((0, 6)))
                         for (token, kind), size in zip(self.tracks, self.sizes, strict=True)),
            centers=np.ascontiguousarray(centers), headings=np.arctan2(ahead[..., 1], ahead[..., 0]),
            corners=np.ascontiguousarray(self.corners), present=self.present, radii=reach, is_agent=moving,
            is_stopped=speeds <= STOPPED_TRACK_SPEED, is_ignored=np.zeros(len(self.tracks), dtype=bool))

    def prepared(self, scene: Scene, perception: str) -> PreparedScene:
        """A scene ready to be scored on this cache; `kinematic` moves its boxes of t = 0 at constant velocity.

        Raises:
            ValueError: an unknown perception.
        """
        if perception not in PERCEPTIONS:
            raise ValueError(f"perception={perception!r}: set it to one of {', '.join(PERCEPTIONS)}")
        known = replace(scene, ego=self.ego, tracks=self._tracks(), extra={**scene.extra, "t0_us": self.t0_us})
        drivable, on_lane = map_of_rings(self.polygons), set(self.route_lane_ids)
        on_route = (drivable.kinds == LANE) & np.array([name in on_lane for name in drivable.ids], dtype=bool)
        start = sample_times_us(self.t0_us).clip(self.reference_us[0], self.reference_us[-1])
        return _Imported(
            known, self.observation if perception == "oracle" else constant_velocity(known), drivable,
            Route(self.route_lane_ids, self.centerline, None), on_route, np.ascontiguousarray(self.centerline[:, :2]),
            sample_poses(self.reference, self.reference_us, start))


@dataclass(frozen=True)
class _Imported(PreparedScene):
    """A prepared scene whose reference is given, not planned."""

    planned: Array
    """[41, 3]"""

    @cached_property
    def reference(self) -> Array:
        """[41, 3] PDM-Closed's plan as NAVSIM cached it."""
        return self.planned


def save_cache(cache: ImportedCache, path: Path) -> None:
    """Write a cache whole or not at all."""
    header = {"format": FORMAT, "scene_id": cache.scene_id, "t0_us": cache.t0_us, "tracks": cache.tracks,
              "vehicle": asdict(cache.ego.vehicle), "route_lane_ids": cache.route_lane_ids,
              "polygons": [(name, kind, len(ring)) for name, kind, ring in cache.polygons]}
    rings = [ring for _, _, ring in cache.polygons]
    arrays = {"ego": np.concatenate([cache.ego.rear_axle_pose, cache.ego.velocity, cache.ego.acceleration]),
              "rings": np.concatenate(rings) if rings else np.zeros((0, 2))}
    arrays |= {name: getattr(cache, name) for name in (
        "sizes", "velocities", "corners", "present", "centerline", "reference", "reference_us")}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    temporary.replace(path)


def load_cache(path: Path) -> ImportedCache:
    """Read what `save_cache` wrote.

    Raises:
        SceneError: not such a file, or a broken one; the message starts with the file's name.
        OSError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _from_arrays({name: arrays[name] for name in arrays.files})
    except (KeyError, TypeError, ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise SceneError(f"{path}: not an imported metric cache ({FORMAT}): {error}") from error


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> ImportedCache:
    header: dict[str, Any] = json.loads(arrays["header"].tobytes())
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r}")
    tracks = tuple((str(token), str(kind)) for token, kind in header["tracks"])
    count = len(tracks)
    shapes = {"ego": (7,), "sizes": (count, 3), "velocities": (count, 2), "corners": (OBSERVED_STEPS, count, 4, 2),
              "present": (OBSERVED_STEPS, count), "centerline": (-1, 3), "reference": (-1, 3), "rings": (-1, 2)}
    for name, shape in shapes.items():
        found = arrays[name]
        if found.ndim != len(shape) or any(want not in (-1, got) for got, want in zip(found.shape, shape, strict=True)):
            raise ValueError(f"{name}: got shape {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError(f"{name}: got a number that is not finite")
    times = arrays["reference_us"].astype(np.int64)
    if len(times) != len(arrays["reference"]) or len(times) < 2 or (np.diff(times) <= 0).any():
        raise ValueError("reference_us: want rising times, one for each pose of the reference")
    if any(kind not in TRACK_TYPES for _, kind in tracks):
        raise ValueError(f"tracks: want types of {', '.join(TRACK_TYPES)}")
    ego, stops = arrays["ego"], np.cumsum([0] + [int(size) for _, _, size in header["polygons"]])
    rings = [arrays["rings"][start:stop] for start, stop in pairwise(stops.tolist())]
    return ImportedCache(
        str(header["scene_id"]), int(header["t0_us"]), Ego(ego[:3], ego[3:5], ego[5:7], Vehicle(**header["vehicle"])),
        tracks, arrays["sizes"], arrays["velocities"], arrays["corners"], arrays["present"].astype(bool),
        tuple((str(name), int(kind), ring) for (name, kind, _), ring in zip(header["polygons"], rings, strict=True)),
        tuple(str(name) for name in header["route_lane_ids"]), arrays["centerline"], arrays["reference"], times)


class ImportedCaches:
    """A folder of imported caches, each read when its scene is asked for."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            SceneError: no such folder, or none in it.
        """
        self._files = {path.stem: path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")}
        if not self._files:
            raise SceneError(f"{folder}: no imported metric caches (*{SUFFIX}) there; make them with `nemo-mtdrive "
                             "import-caches`")

    def prepare(self, scene: Scene, perception: str) -> PreparedScene:
        """The scene prepared from its cache, or, where there is none, by us.

        Raises:
            SceneError: its cache is broken.
        """
        path = self._files.get(scene.scene_id)
        if path is None:
            return prepare(scene, perception)
        cache = load_cache(path)
        if cache.scene_id != scene.scene_id:
            raise SceneError(f"{path}: it is the cache of scene {cache.scene_id!r}; name it after its scene")
        return cache.prepared(scene, perception)
