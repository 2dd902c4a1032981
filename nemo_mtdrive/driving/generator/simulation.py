"""`simulate`: everybody reacts to everybody, from the warm-up to 5 s after t = 0."""

from __future__ import annotations

import numpy as np
from numba import njit

from nemo_mtdrive.driving.generator.lane_change import mobil, pass_aside, shifting, start_change
from nemo_mtdrive.driving.generator.motion import (
    STANDSTILL_GAP,
    advance,
    following,
    free_road,
    look_ahead,
    offset_at,
    place_disks,
    pose_of,
    vertex,
)
from nemo_mtdrive.driving.generator.priority import give_way, signal_gap, waits, walker_gap
from nemo_mtdrive.driving.generator.records import NEVER, STEP_S, STEPS, TRACE, WARM_UP_S, Rows, World
from nemo_mtdrive.driving.scene import Array

REACTION_STEPS = 2
"""Drivers decide anew every second step (0.2 s)."""
CHANGE_STEPS = 4
PREVIEW_S = 0.6
_COLUMNS = len(TRACE)


def simulate(world: World, drivers: Rows, walkers: Rows) -> tuple[Array, Array]:
    """Run the drivers [n] and walkers [m]; both arrays are moved on to the end.

    Returns:
        Traces of the drivers [STEPS, n, 10] (`records.TRACE`) and of the walkers [STEPS, m, 3] (x, y, speed), rows every
        0.1 s from -4 s to 5 s.
    """
    traces = np.zeros((STEPS, len(drivers), _COLUMNS))
    walks = np.zeros((STEPS, len(walkers), 3))
    _run(world, drivers, walkers, traces, walks)
    return traces, walks


@njit(cache=True)
def _run(world: World, drivers: Rows, walkers: Rows, traces: Array, walks: Array) -> None:
    n = len(drivers)
    poses, wanted, gaps = np.zeros((n, 3)), np.zeros(n), np.full(n, NEVER)
    all_disks = np.empty((8 * n, 4))
    for step in range(STEPS):
        time = step * STEP_S - WARM_UP_S
        for i in range(n):
            d = drivers[i]
            if time >= d.change_at:
                x, y, _ = pose_of(world, d)
                start_change(world, d, d.change_to, x, y, time)
                d.change_at = NEVER
            poses[i, 0], poses[i, 1], poses[i, 2] = pose_of(world, d)
        disks = all_disks[: place_disks(drivers, poses, all_disks)]
        if step % REACTION_STEPS == 0:
            for i in range(n):
                wanted[i], gaps[i] = decide(world, drivers, walkers, i, poses, disks, time)
                if step % CHANGE_STEPS == 0 and not mobil(world, drivers, i, poses, disks, wanted[i], time):
                    pass_aside(world, drivers, i, poses, disks, time)
        for i in range(n):
            d = drivers[i]
            offset, _ = offset_at(d, d.s)
            row = traces[step, i]
            row[0], row[1], row[2] = poses[i, 0], poses[i, 1], poses[i, 2]
            row[3], row[4], row[5], row[6], row[7] = d.speed, d.acceleration, d.s, d.line, offset
            row[8] = 0.0
            if shifting(d):
                row[8] = 1.0 if d.offset_to > d.offset_from else -1.0
            row[9] = gaps[i]
            cap = world.cap[vertex(world, d.line, d.s + PREVIEW_S * d.speed)]
            advance(d, free_road(d, cap) + wanted[i], time)
        for w in range(len(walkers)):
            p = walkers[w]
            walks[step, w, 0], walks[step, w, 1] = p.x + p.walked * p.dx, p.y + p.walked * p.dy
            walks[step, w, 2] = p.now
            goes = time >= p.begins and p.walked < p.distance
            if goes and p.crosses == 1:
                goes = not waits(world, drivers, walkers, w)
            # one step up to speed takes about half a second
            p.now += min(max((p.speed if goes else 0.0) - p.now, -3.0 * STEP_S), 3.0 * STEP_S)
            p.walked += p.now * STEP_S


@njit(cache=True)
def decide(world: World, drivers: Rows, walkers: Rows, own: int, poses: Array, disks: Array,
           time: float) -> tuple[float, float]:
    """What leaders, lights, priority and people ask of a driver's acceleration [m/s^2, <= 0], and the gap ahead [m]."""
    d = drivers[own]
    gap, speed, _ = look_ahead(world, drivers, own, d, poses, disks, min(90.0, 20.0 + 5.0 * d.speed))
    asked = following(d, gap, max(speed, 0.0))
    if speed < -0.5 and gap < NEVER:
        # somebody comes towards it: its own half of the gap is all there is
        asked = min(asked, following(d, max(0.5 * gap - 2.0, 0.3), 0.0))
    for stop in (signal_gap(world, d, time), walker_gap(world, walkers, d, time)):
        if stop < NEVER:
            # a line may be approached closer than a bumper
            asked = min(asked, following(d, stop + STANDSTILL_GAP - 0.4, 0.0))
    return min(asked, give_way(world, drivers, own, time)), gap


def row_at(time: float) -> int:
    """Index into a trace of the scene time [s]."""
    return round((time + WARM_UP_S) / STEP_S)


def box_poses(traces: Array, drivers: Rows) -> Array:
    """[STEPS, n, 3] poses of the box centres of traces [STEPS, n, 10]."""
    ahead = drivers["to_center"]
    poses = traces[:, :, :3].copy()
    poses[:, :, 0] += ahead * np.cos(traces[:, :, 2])
    poses[:, :, 1] += ahead * np.sin(traces[:, :, 2])
    return poses


