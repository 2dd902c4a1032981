"""Pictures of the report page as inline SVG: small, sharp, and coloured by the page's style sheet (light and dark).

Bird's-eye views are in metres with forward up (SVG x = -y, SVG y = -x); camera overlays are in pixels of the image.
Only numbers from records reach the markup, never text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from nemo_mtdrive.evaluation.marks import MARKED, Window, corners, marks_of, points_in_image, ribbon
from nemo_mtdrive.telemetry.excerpt import CameraView, SceneExcerpt

_CLASSES = {"vehicle": "car", "pedestrian": "person", "bicycle": "person"}


def map_symbol(name: str, excerpt: SceneExcerpt) -> Markup:
    """The scene at t = 0 as `<g id=name>`, to be put into `<defs>` once and used by every panel."""
    parts = [_path("road", [ring for area in excerpt.drivable for ring in area], closed=True),
             _path("walk", excerpt.crosswalks, closed=True), _path("edge", excerpt.lane_edges, closed=False)]
    if excerpt.future is not None:
        parts.append(_path("human", [[[0.0, 0.0], *excerpt.future]], closed=False))
    for box in excerpt.boxes:
        kind = _CLASSES.get(box.type, "thing")
        if len(box.path) > 1:
            parts.append(_path(f"goes {kind}-goes", [box.path], closed=False))
        half = 0.5 * box.length
        parts.append(_path(kind, [corners(box.x, box.y, box.heading, half, half, box.width)], closed=True))
    ego = excerpt.ego
    parts.append(_path("ego", [corners(0.0, 0.0, 0.0, ego["front_length"], ego["rear_length"], ego["width"])],
                       closed=True))
    return Markup(f'<g id="{name}">{"".join(parts)}</g>')


def bird_eye(symbol: str | None, turn: Mapping[str, Any], window: Window) -> Markup:
    """One panel: the map by reference, the turn's trajectory and its marks as in Fig. 4."""
    parts = [] if symbol is None else [f'<use href="#{symbol}"/>']
    unit = (window.front - window.back) / 60.0
    if turn["trajectory"] is not None:
        parts.append(_path("plan", [[[0.0, 0.0], *turn["trajectory"]]], closed=False))
        parts += [_circle("point", x, y, 0.55 * unit) for x, y, *_ in turn["trajectory"]]
    for mark in sorted(marks_of(turn), key=lambda mark: MARKED.index(mark.metric)):
        name = mark.metric.lower()
        if mark.box is not None:
            x, y, heading, length, width = mark.box
            parts.append(_path(f"met {name}", [corners(x, y, heading, 0.5 * length, 0.5 * length, width)], closed=True))
        if mark.metric == "DAC":
            arm = 1.0 * unit
            parts.append(_path("dac", [[[mark.x - arm, mark.y - arm], [mark.x + arm, mark.y + arm]],
                                       [[mark.x - arm, mark.y + arm], [mark.x + arm, mark.y - arm]]], closed=False))
        else:
            # NC lies on top and is smaller: an obstacle of both metrics shows both colours.
            parts.append(_circle(f"dot {name}", mark.x, mark.y, (1.35 if name == "ttc" else 0.9) * unit))
    box = f"{-window.side:.1f} {-window.front:.1f} {2 * window.side:.1f} {window.front - window.back:.1f}"
    return Markup(f'<svg class="bird" viewBox="{box}" role="img" aria-label="bird\'s-eye view">{"".join(parts)}</svg>')


def camera_overlay(camera: CameraView, turns: Sequence[Mapping[str, Any]], width: int, height: int) -> Markup:
    """The trajectories of all turns as bands on the ground, one `<g data-turn=N>` each, over a width x height image."""
    groups = []
    for number, turn in enumerate(turns):
        parts = []
        if turn["trajectory"] is not None:
            band = ribbon(turn["trajectory"], camera, width, height)
            if len(band) > 2:
                parts.append(f'<path class="band" d="{_pixels(np.clip(band, -9 * width, 10 * width))}z"/>')
            for u, v in points_in_image(turn["trajectory"], camera, width, height):
                if 0.0 <= u <= width and 0.0 <= v <= height:
                    parts.append(f'<circle class="point" cx="{u:.1f}" cy="{v:.1f}" r="{0.006 * width:.1f}"/>')
        groups.append(f'<g data-turn="{number}">{"".join(parts)}</g>')
    return Markup(f'<svg class="overlay" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(groups)}</svg>')


def _pixels(points: Iterable[Sequence[float]]) -> str:
    return "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in points)


def _path(name: str, lines: Iterable[Any], *, closed: bool) -> str:
    """Ego-frame lines [n, >=2] as one path."""
    end = "z" if closed else ""
    drawn = "".join("M" + "L".join(f"{-row[1]:.2f} {-row[0]:.2f}" for row in line) + end for line in lines)
    return f'<path class="{name}" d="{drawn}"/>' if drawn else ""


def _circle(name: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="{name}" cx="{-y:.2f}" cy="{-x:.2f}" r="{radius:.2f}"/>'
