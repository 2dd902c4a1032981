"""Where the road users are at 10 Hz over 5 s: recorded (oracle), or at constant velocity from t = 0 (kinematic)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Scene, Track
from nemo_mtdrive.pdm.geometry import box_corners, wrap_angle
from nemo_mtdrive.pdm.simulate import STEP_S

Array = NDArray[np.float64]

PERCEPTIONS = ("oracle", "kinematic")
"""oracle: the recorded future (privileged); kinematic: the boxes of t = 0, moved with their velocity."""

AGENT_TYPES = ("vehicle", "pedestrian", "bicycle")
"""Track types that move by themselves; the others are static objects."""

OBSERVED_STEPS = 51
"""t = 0.0 ... 5.0 s: the 4 s of a plan and the 1 s that TTC looks ahead."""

STOPPED_TRACK_SPEED = 0.05
"""A track whose first seen speed is at most this [m/s] counts as standing all the time."""

_TIMES_S = np.arange(OBSERVED_STEPS) * STEP_S


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


def assemble(
    tracks: tuple[Track, ...], poses: Array, present: NDArray[np.bool_], is_stopped: NDArray[np.bool_]
) -> Observation:
    """An `Observation` from box poses [T, N, 3]."""
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
        is_ignored=np.zeros(len(tracks), dtype=bool),
    )


def _seen(track: Track) -> Array:
    """The track's rows inside 0..5 s in the order of time."""
    rows = track.states[(track.states[:, 0] > -1e-6) & (track.states[:, 0] < _TIMES_S[-1] + 1e-6)]
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _speed(track: Track, row: Array) -> float:
    return float(np.hypot(row[4], row[5])) if track.type in AGENT_TYPES else 0.0


def recorded(scene: Scene) -> Observation:
    """The recorded boxes, linear between annotations; a track annotated once stands there all the time."""
    tracks = tuple(track for track in scene.tracks if len(_seen(track)))
    poses, present = np.zeros((OBSERVED_STEPS, len(tracks), 3)), np.zeros((OBSERVED_STEPS, len(tracks)), dtype=bool)
    stopped = np.zeros(len(tracks), dtype=bool)
    for n, track in enumerate(tracks):
        rows = _seen(track)
        first, last = rows[0, 0], rows[-1, 0]
        heading = np.unwrap(rows[:, 3])
        for column, values in enumerate((rows[:, 1], rows[:, 2], heading)):
            poses[:, n, column] = np.interp(_TIMES_S, rows[:, 0], values)
        present[:, n] = (first - _TIMES_S <= 1e-9) & (_TIMES_S - last <= 1e-9) if last > first else True
        stopped[n] = _speed(track, rows[0]) <= STOPPED_TRACK_SPEED
    poses[..., 2] = wrap_angle(poses[..., 2])
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
