"""What scoring needs of a scene, made once and kept for the many trajectories that follow."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.terrain import Terrain
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.pdm.closed import plan
from nemo_mtdrive.pdm.drivable import LANE, DrivableMap, drivable_map
from nemo_mtdrive.pdm.geometry import lengths_along
from nemo_mtdrive.pdm.observation import OBSERVED_STEPS, Observation, observe
from nemo_mtdrive.pdm.reference import Sampling, plan_sampling, references_many, sample_poses, sample_times_us, together
from nemo_mtdrive.pdm.route import Route, find_route
from nemo_mtdrive.pdm.score import Measured, measure
from nemo_mtdrive.pdm.simulate import STEP_S, initial_state, simulate, simulate_many

Array = NDArray[np.float64]


def clock_us(scene: Scene) -> int:
    """The time of t = 0 [us] where the file gives it (`t0_us`), else 0."""
    value = scene.extra.get("t0_us", 0)
    return value if isinstance(value, int) else 0


@dataclass(frozen=True)
class PreparedScene:
    """A scene ready to be scored under one perception."""

    scene: Scene
    observation: Observation
    drivable: DrivableMap
    route: Route
    on_route: NDArray[np.bool_]
    """[P] polygons of `drivable` that are lanes of the route."""
    centerline: Array
    """[n, 2] line along which progress counts."""

    @cached_property
    def reference(self) -> Array:
        """[41, 3] PDM-Closed's plan, map frame, not simulated; planned when it is first asked for (three quarters of the
        time that a scene takes, and feedback does without)."""
        start_us = clock_us(self.scene)
        planned_us = start_us + np.arange(OBSERVED_STEPS) * round(STEP_S * 1e6)
        planned = plan(self.scene, self.drivable, self.route, self.on_route)
        return sample_poses(planned, planned_us, sample_times_us(start_us))

    @cached_property
    def reference_progress_m(self) -> float:
        """Its progress x NC x DAC under this perception, which EP is held against."""
        return float(self.measure(simulate(self.reference[None], self.scene.ego)).clean_progress_m[0])

    @cached_property
    def terrain(self) -> Terrain:
        """Heights of the ground, for the boxes that feedback quotes."""
        return Terrain(self.scene)

    @cached_property
    def boxes(self) -> dict[tuple[int, int], list[Any]]:
        """Boxes that feedback quoted, by step and track: most trajectories of a scene hit the same ones."""
        return {}

    @cached_property
    def _lengths(self) -> Array:
        return lengths_along(self.centerline)

    @cached_property
    def start(self) -> tuple[Array, float, Array, Sampling]:
        """Origin [3], wheel base, initial state [11] and clock: what simulation needs."""
        ego = self.scene.ego
        return (np.asarray(ego.rear_axle_pose), ego.vehicle.wheel_base, initial_state(ego),
                plan_sampling(clock_us(self.scene)))

    def simulate(self, trajectories: Array) -> Array:
        """Checked trajectories [B, 8, 3] -> simulated states [B, 41, 11]."""
        return simulate_plans([self], [trajectories])

    def measure(self, states: Array) -> Measured:
        """Measure simulated states [B, 41, 11]."""
        return measure(states, self.scene.ego.vehicle, self.drivable, self.on_route, self.centerline,
                       self._lengths, self.observation)


def simulate_plans(scenes: Sequence[PreparedScene], trajectories: Sequence[Array]) -> Array:
    """Simulate the checked trajectories [B_s, 8, 3] of each scene, all in one batch.

    Returns:
        [sum of B_s, 41, 11] states, scene after scene.
    """
    origins, wheel_bases, states, samplings = zip(*(scene.start for scene in scenes), strict=True)
    row_scene = np.repeat(np.arange(len(scenes)), [len(plans) for plans in trajectories])
    plans = trajectories[0] if len(trajectories) == 1 else np.concatenate(trajectories)
    reference = references_many(plans, row_scene, np.stack(origins), together(samplings))
    return simulate_many(reference, row_scene, np.stack(states), np.array(wheel_bases))


def prepare(scene: Scene, perception: str) -> PreparedScene:
    """Build the map arrays, the observation and the route of a scene.

    Raises:
        ValueError: an unknown perception.
    """
    observation = observe(scene, perception)
    drivable = drivable_map(scene.map, scene.ego)
    route = find_route(scene, drivable)
    lanes = set(route.lane_ids)
    on_route = (drivable.kinds == LANE) & np.array([name in lanes for name in drivable.ids], dtype=bool)
    return PreparedScene(scene, observation, drivable, route, on_route, np.ascontiguousarray(route.centerline[:, :2]))


Make = Callable[[Scene, str], PreparedScene]
"""Prepares a scene for a perception."""


def _fingerprint(scene: Scene) -> bytes:
    """Tells scenes of one id apart; the map is taken in by its ids, its outline by its number of vertices."""
    digest = hashlib.blake2b(digest_size=16)
    vehicle = scene.ego.vehicle
    for array in (scene.ego.rear_axle_pose, scene.ego.velocity, scene.ego.acceleration):
        digest.update(array.tobytes())
    for track in scene.tracks:
        digest.update(track.token.encode())
        digest.update(track.size.tobytes())
        digest.update(track.states.tobytes())
    shape = [(block.id, len(block.polygon)) for block in scene.map.roadblocks]
    shape += [(lane.id, len(lane.centerline)) for lane in scene.map.lanes]
    digest.update(repr((vehicle, scene.route_roadblock_ids, scene.traffic_lights, shape)).encode())
    return digest.digest()


class SceneCache:
    """The prepared scenes that were used last; safe for several threads."""

    def __init__(self, perception: str, size: int, make: Make = prepare) -> None:
        """Keep at most `size` scenes, prepared by `make(scene, perception)`.

        Raises:
            ValueError: size below 1.
        """
        if size < 1:
            raise ValueError(f"cache_size={size}: set it to 1 or more")
        self._perception, self._size, self._make = perception, size, make
        self._entries: OrderedDict[str, tuple[bytes, Scene, PreparedScene]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, scene: Scene) -> PreparedScene:
        """The prepared form of a scene, made now if it is not kept or has changed."""
        with self._lock:
            entry = self._entries.get(scene.scene_id)
            if entry is not None and entry[1] is scene:
                self._entries.move_to_end(scene.scene_id)
                return entry[2]
        mark = _fingerprint(scene)
        prepared = entry[2] if entry is not None and entry[0] == mark else self._make(scene, self._perception)
        with self._lock:
            self._entries[scene.scene_id] = (mark, scene, prepared)
            self._entries.move_to_end(scene.scene_id)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return prepared
