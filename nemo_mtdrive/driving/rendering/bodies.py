"""What stands on the ground: vehicles with lights, people, cyclists, cones and barriers, traffic lights, trees."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour
from nemo_mtdrive.driving.rendering.roadside import paint_signal, paint_tree, signals, trees
from nemo_mtdrive.driving.rendering.vehicles import Box, Pose, paint_vehicle
from nemo_mtdrive.driving.scene import Array, Scene, Track, to_ego_frame

FAR_M = 120.0
BRAKING_MPS2 = -0.4
STOPPED_MPS = 0.3
LANE_NEAR_M = 1.5

SKIN: Colour = (226, 176, 148)
TROUSERS: Colour = (40, 46, 70)
CLOTHES: tuple[Colour, ...] = ((214, 40, 40), (246, 160, 20), (30, 120, 210), (150, 40, 150), (240, 220, 60),
                               (20, 150, 110))
TYRE: Colour = (26, 26, 28)
SHADOW: Colour = (58, 60, 62)
ORANGE: Colour = (240, 106, 20)


def paint_bodies(canvas: Canvas, scene: Scene) -> None:
    """Everything upright, from far to near."""
    jobs: list[tuple[float, int, Callable[[], None]]] = []

    def add(distance: float, job: Callable[[], None]) -> None:
        jobs.append((-distance, len(jobs), job))

    for track in scene.tracks:
        rows = np.flatnonzero(np.abs(track.states[:, 0]) < 1e-6)
        if not len(rows):
            continue
        x, y, heading = to_ego_frame(track.states[rows[0], 1:4], scene.ego.rear_axle_pose).tolist()
        distance = math.hypot(x - canvas.position[0], y - canvas.position[1])
        if distance < FAR_M and canvas.sees(np.array([x, y]), float(track.size[0])):
            add(distance, _painter(canvas, scene, track, (x, y, heading)))
    for signal in signals(scene):
        add(canvas.distance(signal.head), partial(paint_signal, canvas, signal))
    for place, size in trees(scene):
        if canvas.sees(place, 3.0):
            add(canvas.distance(np.append(place, 1.5)), partial(paint_tree, canvas, place, size))
    for _, _, job in sorted(jobs, key=lambda entry: entry[:2]):
        job()


def _painter(canvas: Canvas, scene: Scene, track: Track, pose: Pose) -> Callable[[], None]:
    # colours stay the same in every scene of a log, and say nothing of what somebody is about to do
    seed = zlib.crc32(f"{track.token}{np.round(track.size, 2).tolist()}".encode())
    if track.type == "vehicle":
        lit = is_braking(track) and not _parked(scene, track)
        return lambda: paint_vehicle(canvas, pose, track.size, seed, lit)
    if track.type == "pedestrian":
        return lambda: _paint_person(canvas, pose, float(track.size[2]), seed, riding=False)
    if track.type == "bicycle":
        return lambda: _paint_cyclist(canvas, pose, track.size, seed)
    if track.type == "traffic_cone":
        return lambda: _paint_cone(canvas, pose, track.size)
    return lambda: _paint_object(canvas, pose, track.size, track.type)


def is_braking(track: Track) -> bool:
    """Whether the brake lights are on at t = 0: it stands, or slows by more than 0.4 m/s^2 in the next half second."""
    times = track.states[:, 0]
    speed = np.hypot(track.states[:, 4], track.states[:, 5])
    now = speed[np.abs(times) < 1e-6]
    if not len(now):
        return False
    if now[0] < STOPPED_MPS:
        return True
    after = speed[np.abs(times - 0.5) < 1e-6]
    return bool(len(after) and (after[0] - now[0]) / 0.5 < BRAKING_MPS2)


def _parked(scene: Scene, track: Track) -> bool:
    """Whether a vehicle stands for good and beside all lanes: its lights are off."""
    if np.hypot(track.states[:, 4], track.states[:, 5]).max() > STOPPED_MPS:
        return False
    place = track.states[0, 1:3]
    return all(((lane.centerline - place) ** 2).sum(1).min() > LANE_NEAR_M**2 for lane in scene.map.lanes)


def _paint_person(canvas: Canvas, pose: Pose, height: float, seed: int, riding: bool) -> None:
    """A person as flat shapes that face the camera; standing legs apart show which way the walk goes."""
    x, y, heading = pose
    distance = math.hypot(x - canvas.position[0], y)
    coat = CLOTHES[seed % len(CLOTHES)]
    spread = 0.0 if riding else 0.16 * abs(math.sin(heading))
    base = 0.45 if riding else 0.0

    def card(points: list[tuple[float, float]]) -> Array:
        return np.array([[x, y + side, base + up * height] for side, up in points])

    cards = [card([(-0.16 - spread, 0.0), (-0.02 - spread, 0.0), (0.0, 0.5), (-0.18, 0.5)]),
             card([(0.16 + spread, 0.0), (0.02 + spread, 0.0), (0.0, 0.5), (0.18, 0.5)]),
             card([(-0.22, 0.46), (0.22, 0.46), (0.28, 0.8), (0.16, 0.86), (-0.16, 0.86), (-0.28, 0.8)])]
    if not riding:
        shadow = np.array([[-0.3, -0.35], [0.3, -0.35], [0.3, 0.35], [-0.3, 0.35]])
        canvas.fill_ground(np.array([x, y]) + shadow, SHADOW)
    legs = canvas.hazy(TROUSERS, distance)
    canvas.fill_all(cards, [legs, legs, canvas.hazy(coat, distance)])
    canvas.disk(np.array([x, y, base + 0.925 * height]), 0.075 * height, canvas.hazy(SKIN, distance))


def _paint_cyclist(canvas: Canvas, pose: Pose, size: Array, seed: int) -> None:
    x, y, heading = pose
    reach = 0.33 * float(size[0])
    for sign in (-1.0, 1.0):
        wheel = np.array([x + sign * reach * math.cos(heading), y + sign * reach * math.sin(heading), 0.34])
        along = np.array([math.cos(heading), math.sin(heading), 0.0])
        angles = np.linspace(0.0, 2 * math.pi, 13)[:-1]
        # a wheel seen from behind still has the width of its tyre
        rim = wheel + 0.34 * (np.cos(angles)[:, None] * along + np.sin(angles)[:, None] * np.array([0.0, 0.0, 1.0]))
        rim[:, 1] += 0.03 * np.sign(np.cos(angles))
        canvas.fill(rim, TYRE)
    _paint_person(canvas, pose, 1.35, seed, riding=True)


def _paint_cone(canvas: Canvas, pose: Pose, size: Array) -> None:
    x, y, _ = pose
    height, half = max(float(size[2]), 0.5), max(float(size[1]) / 2, 0.14)
    for low, high, colour in ((0.0, 0.35, ORANGE), (0.35, 0.65, (240, 240, 240)), (0.65, 1.0, ORANGE)):
        canvas.fill(np.array([[x, y - half * (1.05 - low), low * height], [x, y + half * (1.05 - low), low * height],
                              [x, y + half * (1.05 - high), high * height],
                              [x, y - half * (1.05 - high), high * height]]), colour)


def _paint_object(canvas: Canvas, pose: Pose, size: Array, kind: str) -> None:
    colour: Colour = {"barrier": (222, 222, 216), "czone_sign": ORANGE}.get(kind, (132, 128, 122))
    length, width, height = (max(float(side), 0.12) for side in size)
    box = Box(pose, (length, width), (0.0, max(height, 0.3)), 0.0, canvas.position)
    for name in box.visible:
        canvas.fill(box.face(name), canvas.hazy(colour, pose[0], box.light(name)))
    if kind == "barrier":
        band = Box(pose, (length + 0.02, width + 0.02), (0.55 * height, 0.8 * height), 0.0, canvas.position)
        for name in band.visible:
            if name != "top":
                canvas.fill(band.face(name), canvas.hazy((206, 40, 34), pose[0]))
