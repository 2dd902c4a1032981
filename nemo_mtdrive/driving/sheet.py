"""A scene on one sheet: what the three cameras see, the view from above, and the facts in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nemo_mtdrive.driving.bird_eye import EGO, HUMAN, PLANNED, draw
from nemo_mtdrive.driving.camera import front_camera, on_ground, project, render, render_strip
from nemo_mtdrive.driving.rendering.atmosphere import appearance_of
from nemo_mtdrive.driving.scene import Array, Camera, Scene
from nemo_mtdrive.driving.trajectory import dense

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

WIDTH_PX, MARGIN_PX = 1600, 16
ABOVE_PX, ABOVE_M = 664, 74.0
PAPER: Colour = (250, 250, 248)
INK: Colour = (34, 40, 48)
DIM: Colour = (104, 112, 122)
BAND_HALF_M = 0.7


def scene_sheet(scene: Scene, stored: Picture | None = None, trajectories: Sequence[Array] = ()) -> Picture:
    """The sheet, uint8 RGB, `WIDTH_PX` wide.

    Args:
        scene: what to show.
        stored: the front picture that lies with the scene, shown instead of a drawn one; a small one is shown as the
            model sees it, beside a large drawn one.
        trajectories: each [n, 3] in the ego frame, drawn from above and on the front picture.
    """
    inner = WIDTH_PX - 2 * MARGIN_PX
    strip = render_strip(scene, inner // 4)
    above = draw(scene, trajectories, ABOVE_PX, ABOVE_M)
    front_width = inner - ABOVE_PX - MARGIN_PX
    front = _front(scene, stored, front_width, trajectories)
    top = 62
    height = top + strip.shape[0] + 2 * MARGIN_PX + ABOVE_PX + MARGIN_PX
    sheet = np.full((height, WIDTH_PX, 3), PAPER, dtype=np.uint8)
    row = top + strip.shape[0] + MARGIN_PX
    left = MARGIN_PX + ABOVE_PX + MARGIN_PX
    for picture, x, y in ((strip, MARGIN_PX, top), (above, MARGIN_PX, row), (front, left, row)):
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    words = _facts(scene)
    below = row + front.shape[0] + MARGIN_PX
    if stored is not None:
        small = _fitted(stored, 224, min(112, row + ABOVE_PX - below - 2))
        x = WIDTH_PX - MARGIN_PX - small.shape[1]
        sheet[below : below + small.shape[0], x : x + small.shape[1]] = small
    return _written(sheet, scene, words, (left, below), bool(trajectories))


def with_trajectories(picture: Picture, camera: Camera, scene: Scene, trajectories: Sequence[tuple[Array, Colour]],
                      ) -> Picture:
    """A copy of a front picture with bands on the ground where the ego would drive: (poses [n, 3], colour) each."""
    drawn = picture.copy()
    for poses, colour in trajectories:
        path = dense(poses, 0.1)
        side = BAND_HALF_M * np.column_stack([-np.sin(path[:, 2]), np.cos(path[:, 2])])
        edges, seen = [], np.ones(len(path), dtype=bool)
        for offset in (side, -side):
            pixels, depth = project(on_ground(path[:, :2] + offset, scene), camera)
            edges.append(pixels)
            seen &= depth > 1.0
        if seen.sum() < 2:
            continue
        outline = np.round(np.vstack([edges[0][seen], edges[1][seen][::-1]]) * 16).astype(np.int32)
        layer = drawn.copy()
        cv2.fillPoly(layer, [outline], colour, cv2.LINE_AA, 4)
        drawn = np.asarray(cv2.addWeighted(layer, 0.5, drawn, 0.5, 0.0), dtype=np.uint8)
        cv2.polylines(drawn, [outline], True, colour, 1, cv2.LINE_AA, 4)
    return drawn


def _front(scene: Scene, stored: Picture | None, width: int, trajectories: Sequence[Array]) -> Picture:
    """The front picture with the expert's and the given trajectories: the stored one when it is a large one."""
    height = round(width * 9 / 16)
    if stored is not None and scene.camera is not None and stored.shape[1] >= width // 2:
        height = round(width * stored.shape[0] / stored.shape[1])
        way = cv2.INTER_AREA if stored.shape[1] > width else cv2.INTER_CUBIC
        front = np.asarray(cv2.resize(stored, (width, height), interpolation=way), dtype=np.uint8)
        scale = np.diag([width / scene.camera.width, height / scene.camera.height, 1.0])
        camera = replace(scene.camera, intrinsics=scale @ scene.camera.intrinsics)
    else:
        front, camera = render(scene, width, height), front_camera(width, height, "")
    ways = [] if scene.future is None else [(scene.future, HUMAN)]
    ways += [(poses, PLANNED[number % len(PLANNED)]) for number, poses in enumerate(trajectories)]
    return with_trajectories(front, camera, scene, ways)


def _fitted(picture: Picture, width: int, height: int) -> Picture:
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _facts(scene: Scene) -> list[str]:
    """What the picture cannot say, a line each."""
    kinds = Counter(track.type for track in scene.tracks)
    names = {"traffic_cone": "cone", "czone_sign": "sign of works", "generic_object": "object", "bicycle": "cyclist"}
    users = ", ".join(f"{count} {names.get(kind, kind)}{'s' if count > 1 else ''}" for kind, count in kinds.most_common())
    ruled = {connector for lane in scene.map.lanes if lane.roadblock_id in scene.route_roadblock_ids
             for connector in (lane.id, *lane.outgoing)}
    states = {light.is_red for light in scene.traffic_lights if light.lane_connector_id in ruled
              and any(lane.id == light.lane_connector_id and lane.roadblock_id in scene.route_roadblock_ids
                      for lane in scene.map.lanes)}
    light = "none" if not states else "red" if states == {True} else "green" if states == {False} else "red and green"
    appearance = appearance_of(scene)
    weather = f"{appearance.get('weather', 'clear')}, {appearance.get('time_of_day', 'day')}"
    lines = [f"Around: {users or 'nobody'}", f"Light on the route: {light}    Weather: {weather}"]
    if scene.future is not None:
        end = scene.future[-1]
        lines.append(f"After 4 s the recorded driver is {end[0]:.1f} m ahead, {end[1]:+.1f} m to the left, "
                     f"turned by {math.degrees(end[2]):+.0f} degrees")
    return lines


def _written(sheet: Picture, scene: Scene, facts: Sequence[str], place: tuple[int, int], planned: bool) -> Picture:
    """The sheet with its title and the facts."""
    image = Image.fromarray(sheet)
    pen = ImageDraw.Draw(image)
    bold, plain, small = _font(26, bold=True), _font(17), _font(15)
    title = scene.kind.replace("/", "  /  ").replace("_", " ")
    pen.text((MARGIN_PX, 14), title, INK, bold)
    right = f"{scene.command or 'no command'}    {scene.ego.velocity[0]:.1f} m/s    {scene.scene_id}"
    pen.text((WIDTH_PX - MARGIN_PX - pen.textlength(right, plain), 22), right, DIM, plain)
    x, y = place
    for line in facts:
        pen.text((x, y), line, INK, small)
        y += 25
    y += 4
    entries: list[tuple[Colour, str]] = [(EGO, "ego and its past"), (HUMAN, "recorded or expert")]
    if planned:
        entries.append((PLANNED[0], "given"))
    for colour, label in entries:
        pen.rounded_rectangle((x, y + 4, x + 22, y + 12), 3, colour)
        pen.text((x + 30, y - 2), label, DIM, small)
        x += 52 + int(pen.textlength(label, small))
    return np.array(image, dtype=np.uint8)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface that comes with matplotlib: there on every machine, equal on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
