"""Where the road users are at 10 Hz over 5 s: recorded (oracle), or at constant velocity from t = 0 (kinematic)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, Track
from nemo_mtdrive.pdm.geometry import box_corners, shorter_turn, wrapped
from nemo_mtdrive.pdm.kernel import kernel
from nemo_mtdrive.pdm.simulate import STEP_S, STEPS

Array = NDArray[np.float64]

PERCEPTIONS = ("oracle", "kinematic")
"""oracle: the recorded future (privileged); kinematic: the boxes of t = 0, moved with their velocity."""

AGENT_TYPES = ("vehicle", "pedestrian", "bicycle")
"""Track types that move by themselves; the others are static objects."""

OBSERVED_STEPS = 51
"""t = 0.0 ... 5.0 s: the 4 s of a plan and the 1 s that TTC looks ahead."""

STOPPED_TRACK_SPEED = 0.05
"""A track whose first seen speed is at most this [m/s] counts as standing all the time."""

WINDOW = 8
"""Steps of the ego for which the bounds of a track are known together."""

_LOOKAHEAD = OBSERVED_STEPS - STEPS
_TIMES_S = np.arange(OBSERVED_STEPS) * STEP_S
_SLACK_M = 0.01


class Seen(NamedTuple):
    """The arrays of an `Observation` for compiled code, track by track."""

    centers: Array
    """[N, T, 2] nan where the track is absent: it is then near nothing."""
    corners: Array
    """[N, T, 4, 2]"""
    radii: Array
    is_agent: NDArray[np.bool_]
    is_stopped: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    reach: Array
    """[N, 6, 4] min x, min y, max x, max y that a track may touch while the ego is in window w and, for TTC, 1 s on."""


@kernel
def _fill_reach(centers: Array, radii: Array, reach: Array) -> None:
    """Fill reach [N, W, 4] from centers as in `Seen`; a window in which the track is absent stays empty (inf, -inf)."""
    reach[:, :, :2], reach[:, :, 2:] = np.inf, -np.inf
    for n in range(reach.shape[0]):
        radius = radii[n] + _SLACK_M
        for w in range(reach.shape[1]):
            bounds = reach[n, w]
            for t in range(w * WINDOW, min((w + 1) * WINDOW + _LOOKAHEAD, centers.shape[1])):
                x, y = centers[n, t, 0], centers[n, t, 1]
                if x == x:
                    bounds[0], bounds[2] = min(bounds[0], x - radius), max(bounds[2], x + radius)
                    bounds[1], bounds[3] = min(bounds[1], y - radius), max(bounds[3], y + radius)


@dataclass(frozen=True)
class Observation:
    """N tracks at T steps. Where `present` is False the other arrays hold no meaning."""

    tracks: tuple[Track, ...]
    centers: Array
    """[T, N, 2] box centres, map frame."""
    headings: Array
    """[T, N]"""
    corners: Array
    """[T, N, 4, 2] in the order of `geometry`."""
    present: NDArray[np.bool_]
    """[T, N]"""
    radii: Array
    """[N] half diagonals [m]."""
    is_agent: NDArray[np.bool_]
    """[N] vehicle, pedestrian or bicycle."""
    is_stopped: NDArray[np.bool_]
    """[N] never moves, for the classification of collisions."""
    is_ignored: NDArray[np.bool_]
    """[N] never collides; only a planner's forecast sets it."""

    @cached_property
    def seen(self) -> Seen:
        """The same for compiled code."""
        centers = np.ascontiguousarray(np.where(self.present[..., None], self.centers, np.nan).swapaxes(0, 1))
        reach = np.empty((len(self.radii), -(-STEPS // WINDOW), 4))
        _fill_reach(centers, self.radii, reach)
        return Seen(centers, np.ascontiguousarray(self.corners.swapaxes(0, 1)), self.radii, self.is_agent,
                    self.is_stopped, self.is_ignored, reach)


def assemble(
    tracks: tuple[Track, ...], poses: Array, present: NDArray[np.bool_], is_stopped: NDArray[np.bool_],
    is_ignored: NDArray[np.bool_] | None = None,
) -> Observation:
    """An `Observation` from box poses [T, N, 3]; no track is ignored by default."""
    sizes = np.array([track.size for track in tracks]).reshape(len(tracks), 3)
    return Observation(
        tracks=tracks,
        centers=np.ascontiguousarray(poses[..., :2]),
        headings=np.ascontiguousarray(poses[..., 2]),
        corners=np.ascontiguousarray(box_corners(poses[..., :2], poses[..., 2], sizes[:, 0], sizes[:, 1])),
        present=present,
        radii=0.5 * np.hypot(sizes[:, 0], sizes[:, 1]),
        is_agent=np.array([track.type in AGENT_TYPES for track in tracks], dtype=bool),
        is_stopped=is_stopped,
        is_ignored=np.zeros(len(tracks), dtype=bool) if is_ignored is None else is_ignored,
    )


def _seen(track: Track) -> Array:
    """The track's rows inside 0..5 s in the order of time."""
    times = track.states[:, 0]
    rows = track.states
    if len(times) and not (times.min() > -1e-6 and times.max() < _TIMES_S[-1] + 1e-6):
        rows = rows[(times > -1e-6) & (times < _TIMES_S[-1] + 1e-6)]
    return rows if (rows[1:, 0] >= rows[:-1, 0]).all() else rows[np.argsort(rows[:, 0], kind="stable")]


def _speed(track: Track, row: Array) -> float:
    return float(np.hypot(row[4], row[5])) if track.type in AGENT_TYPES else 0.0


@kernel
def _interpolate(
    rows: Array, starts: NDArray[np.int64], times: Array, poses: Array, present: NDArray[np.bool_]
) -> None:
    """Fill poses [T, N, 3] and present [T, N] from rows [t, x, y, heading, ...], those of track n at starts[n]."""
    headings = np.empty(len(rows))
    for n in range(poses.shape[1]):
        first, last = starts[n], starts[n + 1] - 1
        headings[first] = rows[first, 3]
        for k in range(first + 1, last + 1):
            headings[k] = headings[k - 1] + shorter_turn(rows[k, 3] - rows[k - 1, 3])
        k = first
        for t in range(len(times)):
            while k < last and rows[k + 1, 0] <= times[t]:
                k += 1
            poses[t, n, 0], poses[t, n, 1], heading = rows[k, 1], rows[k, 2], headings[k]
            if k < last and times[t] > rows[k, 0]:
                part = (times[t] - rows[k, 0]) / (rows[k + 1, 0] - rows[k, 0])
                poses[t, n, 0] += part * (rows[k + 1, 1] - rows[k, 1])
                poses[t, n, 1] += part * (rows[k + 1, 2] - rows[k, 2])
                heading += part * (headings[k + 1] - headings[k])
            poses[t, n, 2] = wrapped(heading)
            begun, over = rows[first, 0] - times[t] <= 1e-9, times[t] - rows[last, 0] > 1e-9
            present[t, n] = (begun and not over) or rows[last, 0] <= rows[first, 0]


def recorded(scene: Scene) -> Observation:
    """The recorded boxes, linear between annotations; a track annotated once stands there all the time."""
    pairs = [(track, rows) for track in scene.tracks if len(rows := _seen(track))]
    tracks = tuple(track for track, _ in pairs)
    poses, present = np.empty((OBSERVED_STEPS, len(tracks), 3)), np.empty((OBSERVED_STEPS, len(tracks)), dtype=bool)
    if pairs:
        starts = np.append(0, np.cumsum([len(rows) for _, rows in pairs]))
        _interpolate(np.concatenate([rows for _, rows in pairs]), starts, _TIMES_S, poses, present)
    stopped = np.array([_speed(track, rows[0]) <= STOPPED_TRACK_SPEED for track, rows in pairs], dtype=bool)
    return assemble(tracks, poses, present, stopped)


def tracks_now(scene: Scene) -> list[tuple[Track, Array]]:
    """The tracks annotated at t = 0 with their row [t, x, y, heading, vx, vy] there."""
    pairs = ((track, _seen(track)) for track in scene.tracks)
    return [(track, rows[0]) for track, rows in pairs if len(rows) and abs(rows[0, 0]) < 1e-6]


def constant_velocity(scene: Scene) -> Observation:
    """The boxes of t = 0 moved along their velocity, headings kept; static objects stay, later tracks do not exist."""
    pairs = tracks_now(scene)
    tracks = tuple(track for track, _ in pairs)
    rows = np.array([row for _, row in pairs]).reshape(len(pairs), 6)
    speeds = np.array([_speed(track, row) for track, row in pairs])
    moves = np.array([track.type in AGENT_TYPES for track in tracks], dtype=bool)
    velocity = np.where(moves[:, None], rows[:, 4:6], 0.0)
    poses = np.zeros((OBSERVED_STEPS, len(tracks), 3))
    poses[..., :2] = rows[:, 1:3] + _TIMES_S[:, None, None] * velocity
    poses[..., 2] = rows[:, 3]
    return assemble(tracks, poses, np.ones(poses.shape[:2], dtype=bool), speeds <= STOPPED_TRACK_SPEED)


def observe(scene: Scene, perception: str) -> Observation:
    """The observation of a perception setting.

    Raises:
        ValueError: an unknown perception.
    """
    if perception not in PERCEPTIONS:
        raise ValueError(f"perception: got {perception!r}, set it to one of {', '.join(PERCEPTIONS)}")
    return recorded(scene) if perception == "oracle" else constant_velocity(scene)
