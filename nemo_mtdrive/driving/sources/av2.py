"""Argoverse 2 sensor logs as scenes: windows of 2 s history and 4 s future every 0.5 s.

Ego frame and vehicle are AV2's own: the origin is the rear axle, the car a Ford Fusion. Positions stay in the city
frame. The logs have no lights and no camera pictures here, so pictures are drawn by `driving.camera`. The command comes
from where the ego went (NAVSIM's rule of thumb: more than 2 m to a side within the window), since the logs hold no
route; it is therefore a hint at the future and should not be called navigation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from nemo_mtdrive.driving.camera import render
from nemo_mtdrive.driving.scene import Array, Ego, Scene, SceneError, SceneMap, Track, Vehicle, to_ego_frame
from nemo_mtdrive.driving.sources.av2_ground import Ground, read_ground
from nemo_mtdrive.driving.sources.av2_map import read_map
from nemo_mtdrive.driving.sources.av2_route import driven_route, lanes_under
from nemo_mtdrive.driving.sources.lru import LRU, images_kept
from nemo_mtdrive.driving.sources.procedural import with_camera

LICENCE = "CC BY-NC-SA 4.0 (Argoverse 2)"
VEHICLE = Vehicle(name="av2_fusion", width=2.127, front_length=1.339 + 4.869 / 2, rear_length=4.869 / 2 - 1.339,
                  cog_position_from_rear_axle=1.425, wheel_base=2.85, height=1.476)
HISTORY_FRAMES, FUTURE_FRAMES, STRIDE = 20, 40, 5
"""Frames of 0.1 s before and after t = 0, and between two windows."""
TRACK_FRAMES = 50
TURN_M = 2.0
MOVING_MPS = 0.5
STANDING_MPS = 0.25
"""Annotated boxes tremble: below this speed they stand."""

_log = logging.getLogger(__name__)
_PLACE, _TURN, _SIZE = ["tx_m", "ty_m", "tz_m"], ["qw", "qx", "qy", "qz"], ["length_m", "width_m", "height_m"]
_TYPES = {
    "vehicle": "REGULAR_VEHICLE LARGE_VEHICLE BUS BOX_TRUCK TRUCK TRUCK_CAB VEHICULAR_TRAILER SCHOOL_BUS"
               " ARTICULATED_BUS RAILED_VEHICLE MESSAGE_BOARD_TRAILER TRAFFIC_LIGHT_TRAILER",
    "pedestrian": "PEDESTRIAN STROLLER WHEELCHAIR OFFICIAL_SIGNALER",
    "bicycle": "BICYCLE BICYCLIST MOTORCYCLE MOTORCYCLIST WHEELED_DEVICE WHEELED_RIDER",
    "traffic_cone": "CONSTRUCTION_CONE CONSTRUCTION_BARREL",
    "generic_object": "BOLLARD SIGN STOP_SIGN MOBILE_PEDESTRIAN_CROSSING_SIGN DOG ANIMAL",
}
TRACK_TYPE_OF = {category: kind for kind, names in _TYPES.items() for category in names.split()}
"""AV2 category -> track type; an unknown category is a generic_object. Two-wheelers are bicycles, as in nuPlan."""


@dataclass(frozen=True)
class Log:
    """One log at 10 Hz: times [n] s; ego [n, 7] x, y, heading, velocity and acceleration forward and left; tracks."""

    name: str
    times: Array
    ego: Array
    tracks: tuple[tuple[str, str, Array, NDArray[np.int64], Array], ...]
    """(token, type, size [3], frames [m], rows [m, 5] x, y, heading, vx, vy) of each track, in the city frame."""
    map: SceneMap
    ground: Ground | None
    lanes: tuple[str | None, ...]
    """The lane under the ego at every fifth frame."""

    def windows(self) -> list[int]:
        """Frames that can be t = 0."""
        return list(range(HISTORY_FRAMES, len(self.times) - FUTURE_FRAMES, STRIDE))


def find_logs(path: str) -> list[Path]:
    """The log folders at `path`: it is one, or it holds some.

    Raises:
        SceneError: neither.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise SceneError(f"{path or '(empty path)'}: no such folder; set it to an AV2 log or a folder of AV2 logs")
    logs = [entry for entry in [folder, *sorted(folder.iterdir())] if (entry / "city_SE3_egovehicle.feather").is_file()]
    if not logs:
        raise SceneError(f"{path}: no AV2 log (city_SE3_egovehicle.feather) in it; set it to a folder of AV2 logs")
    return logs


def read_log(folder: Path) -> Log:
    """Read a log's poses, annotations and map; SceneError when a file is missing."""
    annotated = sorted(folder.glob("annotations*.feather"))
    if not annotated:
        raise SceneError(f"{folder}: no annotations*.feather; only annotated AV2 logs can be used")
    boxes = _table(annotated[0])
    boxes = boxes[boxes.category != "EGO_VEHICLE"]
    poses = _table(folder / "city_SE3_egovehicle.feather").set_index("timestamp_ns")
    stamps = np.sort(boxes.timestamp_ns.unique())
    if not np.isin(stamps, poses.index.to_numpy()).all():
        raise SceneError(f"{folder}: annotations at times without an ego pose; is the log whole?")
    times = (stamps - stamps[0]) / 1e9
    frames = poses.loc[stamps]
    rotation, position = _rotations(frames), frames[_PLACE].to_numpy(dtype=np.float64)
    heading = np.unwrap(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
    ego = np.column_stack([position[:, :2], heading, _motion(position[:, :2], heading, times)])
    tracks = _tracks_of(boxes, stamps, rotation, position, times)
    scene_map, ground = read_map(folder / "map"), read_ground(folder / "map")
    return Log(folder.name, times, ego, tracks, scene_map, ground, lanes_under(scene_map, ego[::STRIDE, :3]))


def _table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_feather(file)
    except (pa.ArrowException, OSError) as error:
        raise SceneError(f"{file}: not a feather file: {str(error).splitlines()[0]}") from error


def read_logs(folders: Sequence[Path]) -> tuple[list[Log], dict[str, str]]:
    """The logs that can be read, and the others' names -> why not, which are reported.

    Raises:
        SceneError: none can be read.
    """
    logs, skipped = [], {}
    for folder in folders:
        try:
            logs.append(read_log(folder))
        except SceneError as error:
            skipped[folder.name] = str(error)
            _log.warning("log skipped: %s", error)
    if not logs:
        raise SceneError(next(iter(skipped.values())))
    return logs, skipped


def _rotations(frame: pd.DataFrame) -> Array:
    """[n, 3, 3] of unit quaternions."""
    w, x, y, z = frame[_TURN].to_numpy(dtype=np.float64).T
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return np.stack(rows, axis=-1).reshape(-1, 3, 3)


def _smooth(values: Array) -> Array:
    """Moving average over half a second."""
    return np.convolve(np.pad(values, 2, mode="edge"), np.full(5, 0.2), mode="valid")


def _motion(position: Array, heading: Array, times: Array) -> Array:
    """[n, 4] velocity and acceleration, forward and to the left, in the ego's own frame."""
    velocity = np.gradient(position, times, axis=0)
    cos, sin = np.cos(heading), np.sin(heading)
    forward = _smooth(cos * velocity[:, 0] + sin * velocity[:, 1])
    sideways = _smooth(-sin * velocity[:, 0] + cos * velocity[:, 1])
    acceleration = _smooth(np.gradient(forward, times))
    turning = _smooth(np.gradient(heading, times))
    return np.column_stack([forward, sideways, acceleration, forward * turning])


def _tracks_of(boxes: pd.DataFrame, stamps: NDArray[np.int64], rotation: Array, position: Array,
               times: Array) -> tuple[tuple[str, str, Array, NDArray[np.int64], Array], ...]:
    """The annotated boxes, track by track, moved from the ego's frame of their time to the city frame."""
    boxes = boxes.sort_values(["track_uuid", "timestamp_ns"])
    frames = np.searchsorted(stamps, boxes.timestamp_ns.to_numpy())
    place = np.einsum("nij,nj->ni", rotation[frames], boxes[_PLACE].to_numpy(dtype=np.float64)) + position[frames]
    turned = rotation[frames] @ _rotations(boxes)
    heading = np.arctan2(turned[:, 1, 0], turned[:, 0, 0])
    sizes = boxes[_SIZE].to_numpy(dtype=np.float64)
    tokens, categories = boxes.track_uuid.to_numpy(), boxes.category.to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]])).tolist()
    found = []
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        part = slice(start, stop)
        velocity = _velocity(place[part, :2], times[frames[part]])
        rows = np.column_stack([place[part, :2], heading[part], velocity])
        kind = TRACK_TYPE_OF.get(str(categories[start]), "generic_object")
        found.append((str(tokens[start]), kind, np.median(sizes[part], axis=0), frames[part], rows))
    return tuple(found)


def _velocity(place: Array, times: Array) -> Array:
    """[n, 2] smoothed over half a second; zero for what stands."""
    if len(place) < 2:
        return np.zeros((len(place), 2))
    velocity = np.gradient(place, times, axis=0)
    velocity = np.column_stack([_smooth(velocity[:, 0]), _smooth(velocity[:, 1])])
    velocity[np.hypot(velocity[:, 0], velocity[:, 1]) < STANDING_MPS] = 0.0
    return velocity


def cut(log: Log, frame: int) -> Scene:
    """The window of a log with t = 0 at `frame`, as a scene without a camera."""
    pose = log.ego[frame, :3].copy()
    pose[2] = np.arctan2(np.sin(pose[2]), np.cos(pose[2]))
    poses = to_ego_frame(log.ego[:, :3], pose)
    future = poses[frame + STRIDE : frame + FUTURE_FRAMES + 1 : STRIDE]
    side = future[-1, 1]
    return Scene(
        scene_id=scene_id(log.name, frame),
        kind="av2/moving" if log.ego[frame, 3] > MOVING_MPS else "av2/standing",
        ego=Ego(pose, log.ego[frame, 3:5].copy(), log.ego[frame, 5:7].copy(), VEHICLE),
        map=log.map,
        route_roadblock_ids=driven_route(log.map, log.lanes[frame // STRIDE :]),
        traffic_lights=(),
        tracks=_tracks(log, frame),
        history=poses[frame - 3 * STRIDE : frame + 1 : STRIDE],
        command="TURN LEFT" if side > TURN_M else "TURN RIGHT" if side < -TURN_M else "GO STRAIGHT",
        future=future,
        source=f"Argoverse 2 sensor log {log.name}",
        licence=LICENCE,
        extra={} if log.ground is None else {"ground": log.ground.around(pose[:2])},
    )


def _tracks(log: Log, frame: int) -> tuple[Track, ...]:
    """Every 0.5 s over 0..5 s what is annotated; where the log ends earlier, rows are missing."""
    found = []
    for token, kind, size, frames, rows in log.tracks:
        due = (frames >= frame) & (frames <= frame + TRACK_FRAMES) & ((frames - frame) % STRIDE == 0)
        if due.any():
            states = np.column_stack([0.1 * (frames[due] - frame), rows[due]])
            found.append(Track(token, kind, size, states))
    return tuple(found)


def scene_id(log_name: str, frame: int) -> str:
    """The id of a window: the log's first eight characters and the frame."""
    return f"{log_name[:8]}-{frame:03d}"


class AV2Scenes:
    """All windows of the logs at a path; at most `count` unless that is 0."""

    def __init__(self, path: str, count: int, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise SceneError(f"av2 scenes: got pictures of {width} x {height}; set both sides to 1 or more")
        logs, self._skipped = read_logs(find_logs(path))
        windows = [(log, frame) for log in logs for frame in log.windows()]
        if not windows:
            raise SceneError(f"{path}: no window in it: its logs are shorter than {HISTORY_FRAMES + FUTURE_FRAMES + 1} "
                             "frames")
        self._windows = {scene_id(log.name, frame): (log, frame) for log, frame in windows[: count or None]}
        self._size = (width, height)
        self._scenes = LRU(256, self._cut)
        self._images = LRU(images_kept(width, height), lambda name: render(self.load(name), width, height))

    @property
    def skipped(self) -> Mapping[str, str]:
        """Logs that cannot be read -> why."""
        return self._skipped

    def ids(self) -> Sequence[str]:
        """The ids, log by log, by rising time."""
        return list(self._windows)

    def load(self, scene_id: str) -> Scene:
        """The window; KeyError for an unknown id."""
        return self._scenes.get(scene_id)

    def image(self, scene_id: str) -> NDArray[np.uint8]:
        """A drawn front picture, RGB [H, W, 3]."""
        return self._images.get(scene_id)

    def _cut(self, scene_id: str) -> Scene:
        return with_camera(cut(*self._windows[scene_id]), *self._size)
