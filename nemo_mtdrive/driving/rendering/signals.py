"""Traffic lights: over the far side of the crossing, one head a lane, and on a post beside the stop line.

A light rules one lane connector. Connectors of one lane share a head when their states agree; where they differ, each
state has its own head, with an arrow for the turns it rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.driving.rendering.canvas import Canvas, Colour, raised
from nemo_mtdrive.driving.rendering.land import Land
from nemo_mtdrive.driving.rendering.markings import TURNS_RAD, stop_line_at, turn_of
from nemo_mtdrive.driving.rendering.view import View, lane_edges
from nemo_mtdrive.driving.scene import Array, Lane, Scene

HEAD_HEIGHT_M, POST_HEIGHT_M = 5.4, 3.0
FAR_SIDE_M = (13.0, 30.0)
"""The heads hang this far behind the edge of the crossing: where somebody at the stop line still sees them."""
FACING_COS = 0.5
SEEN_UP_TO_M = 110.0

POLE: Colour = (84, 88, 92)
HOUSING: Colour = (26, 28, 28)
BORDER: Colour = (226, 208, 90)
RED, GREEN, DARK = (255, 36, 26), (40, 246, 130), (60, 58, 54)


@dataclass(frozen=True)
class Head:
    """A signal head: its middle [3] in the ego frame, the direction [2] of those it speaks to, its state, and the turn
    it rules: -1 right, 1 left, 0 all or straight on.
    """

    middle: Array
    along: Array
    red: bool
    turn: int


@dataclass(frozen=True)
class Mast:
    """Heads on one pole: its foot [2] and how high its arm is [m] (None: the heads sit on the pole)."""

    foot: Array
    arm: float | None
    heads: tuple[Head, ...]


def masts(view: View, scene: Scene, land: Land) -> list[Mast]:
    """The masts that face the camera, two an approach."""
    lanes = {lane.id: lane for lane in scene.map.lanes}
    state = {light.lane_connector_id: light.is_red for light in scene.traffic_lights}
    walks = [view.local(walk.polygon) for walk in scene.map.crosswalks]
    approaches: dict[str, list[Lane]] = {}
    for lane in scene.map.lanes:
        if any(key in state and key in lanes for key in lane.outgoing):
            approaches.setdefault(lane.roadblock_id, []).append(lane)
    found = []
    for members in approaches.values():
        end = view.local(members[-1].centerline[-2:])
        along = (end[1] - end[0]) / max(math.dist(end[0], end[1]), 1e-6)
        ray = end[1] + 12.0 * along - view.canvas.position[:2]
        if ray @ along < FACING_COS * math.hypot(*ray) or not 0.0 < view.canvas.depth(end[1] + 12.0 * along) < SEEN_UP_TO_M:
            continue
        found += _approach(view, members, lanes, state, land, along, walks)
    return found


def _approach(view: View, members: list[Lane], lanes: Mapping[str, Lane], state: Mapping[str, bool], land: Land,
              along: Array, walks: list[Array]) -> list[Mast]:
    right = np.array([along[1], -along[0]])
    reach = [_length(lanes[key]) for lane in members for key in lane.outgoing
             if key in lanes and key in state and abs(turn_of(lanes[key])) < TURNS_RAD]
    end = view.local(members[-1].centerline[-1:])[0]
    behind = float(np.clip(max(reach, default=_far_edge(view, land, end, along)) + 1.0, *FAR_SIDE_M))
    heads, sides = [], []
    for lane in members:
        groups = _groups(lane, lanes, state)
        over = view.local(lane.centerline[-1:])[0] + behind * along
        for number, (red, turn) in enumerate(groups):
            aside = (number - (len(groups) - 1) / 2) * 1.3
            heads.append(Head(np.append(over + aside * right, HEAD_HEIGHT_M), along, red, turn))
            sides.append((red, turn))
    if not heads:
        return []
    last = heads[-1].middle[:2]
    foot = last + _verge(view, land, last, right) * right
    found = [Mast(foot, HEAD_HEIGHT_M + 0.75, tuple(heads))]
    outer = members[-1]
    edge = view.local(lane_edges(outer)[1])
    post = edge[-1] - stop_line_at(view.local(outer.centerline), walks) * along
    post = post + max(_verge(view, land, post, right), 0.8) * right
    # beside the stop line stands what the outer lane is told; several heads one over the other
    groups = _groups(outer, lanes, state)
    found.append(Mast(post, None, tuple(Head(np.append(post, POST_HEIGHT_M + 1.5 * k), along, red, turn)
                                        for k, (red, turn) in enumerate(groups))))
    return found


def _groups(lane: Lane, lanes: Mapping[str, Lane], state: Mapping[str, bool]) -> list[tuple[bool, int]]:
    """(red, turn) of the heads over a lane, from left to right."""
    ruled = [(state[key], turn_of(lanes[key])) for key in lane.outgoing if key in lanes and key in state]
    if len({red for red, _ in ruled}) == 1:
        return [(ruled[0][0], 0)]
    found = {(red, 0 if abs(turn) < TURNS_RAD else 1 if turn > 0 else -1) for red, turn in ruled}
    return sorted(found, key=lambda group: -group[1])


def _length(lane: Lane) -> float:
    return float(np.sqrt((np.diff(lane.centerline, axis=0) ** 2).sum(1)).sum())


def _far_edge(view: View, land: Land, start: Array, along: Array) -> float:
    """How far ahead of `start` the road ends that runs across [m]."""
    steps = np.arange(FAR_SIDE_M[0] - 5.0, FAR_SIDE_M[1], 0.5)
    clear = land.clearance(view.to_map(start + steps[:, None] * along)) > 0.5
    return float(steps[int(clear.argmax())]) if clear.any() else FAR_SIDE_M[0]


def _verge(view: View, land: Land, start: Array, right: Array) -> float:
    """How far to the right of `start` a pole can stand off the road [m]."""
    steps = np.arange(0.0, 20.0, 0.5)
    clear = land.clearance(view.to_map(start + steps[:, None] * right)) > 0.7
    return float(steps[int(clear.argmax())]) if clear.any() else 4.5


def paint_mast(canvas: Canvas, mast: Mast) -> None:
    """The pole, its arm and the heads."""
    base = float(canvas.terrain.heights(mast.foot[None])[0])
    foot = np.array([*mast.foot, base])
    distance = canvas.distance(foot)
    pole = canvas.air.shaded(POLE, distance, 0.4)
    if mast.arm is None:
        top = raised(foot, float(mast.heads[-1].middle[2]))
        canvas.capsules(np.array([[foot, top]]), np.array([[0.07, 0.07]]), [pole])
    else:
        top = raised(foot, mast.arm)
        left = max(mast.heads, key=lambda head: float(((head.middle[:2] - mast.foot) ** 2).sum()))
        end = np.array([*left.middle[:2], base + mast.arm])
        canvas.capsules(np.array([[foot, top], [top, end]]), np.array([[0.13, 0.09], [0.08, 0.06]]), [pole, pole])
    for head in mast.heads:
        _paint_head(canvas, head, base, distance)


def _paint_head(canvas: Canvas, head: Head, base: float, distance: float) -> None:
    """Red above, green below; heads grow a little with the distance, so that a small picture still tells them."""
    middle = raised(head.middle, base)
    size = float(np.clip(distance / 15.0, 1.1, 2.6))
    right = np.array([head.along[1], -head.along[0], 0.0])
    air = canvas.air

    def card(half_width: float, half_height: float) -> Array:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return middle + size * (corners[:, :1] * half_width * right + corners[:, 1:] * [0.0, 0.0, half_height])

    canvas.fill(card(0.31, 0.68), air.shaded(BORDER, distance, 0.4))
    canvas.fill(card(0.27, 0.64), air.shaded(HOUSING, distance, 0.2))
    lit = air.emitted(RED if head.red else GREEN, distance)
    dark = air.shaded(DARK, distance, 0.1)
    places = np.array([raised(middle, up * size) for up in (0.4, 0.0, -0.4)])
    on = 0 if head.red else 2
    colours = [lit if k == on else dark for k in range(3)]
    radii = size * np.array([0.22 if k == on else 0.15 for k in range(3)])
    canvas.disks(places, radii, colours)
    if head.turn and size * 0.2 * canvas.pixels_per_metre(middle) > 3.0:
        _arrow(canvas, places[on], -float(head.turn) * right, 0.16 * size, air.shaded(HOUSING, distance, 0.2))
    canvas.glow(places[on], 0.75 * size, lit, 0.75 if air.night else 0.45)


def _arrow(canvas: Canvas, middle: Array, toward: Array, size: float, colour: Colour) -> None:
    up = np.array([0.0, 0.0, 1.0])
    outline = [(1.0, 0.0), (0.1, 0.8), (0.1, 0.25), (-0.9, 0.25), (-0.9, -0.25), (0.1, -0.25), (0.1, -0.8)]
    canvas.fill(np.array([middle + size * (x * toward + y * up) for x, y in outline]), colour)
