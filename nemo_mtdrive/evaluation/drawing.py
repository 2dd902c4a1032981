"""Shapes as SVG data for the page's script: [name, path data], or [name, x, y, radius] with the number of the
trajectory's point as fifth where the circle is one. The style sheet colours them by name.

Bird's-eye views have forward up: SVG x = -y, SVG y = -x of the ego frame, metres.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.evaluation.marks import Window
from nemo_mtdrive.evaluation.shapes import Disc, Path, Shape

FORWARD_UP = np.array([[0.0, -1.0], [-1.0, 0.0]])
"""Ego frame -> SVG."""
AS_IT_IS = np.eye(2)
"""Pixels of a picture -> SVG."""


def svg_shapes(shapes: Iterable[Shape], frame: NDArray[np.float64], digits: int) -> list[list[Any]]:
    """The data of shapes; `frame` [2, 2] is `FORWARD_UP` or `AS_IT_IS`."""
    return [_path(shape, frame, digits) if isinstance(shape, Path) else _circle(shape, frame, digits) for shape in shapes]


def view_box(window: Window) -> str:
    """The `viewBox` of a bird's-eye view."""
    return f"{-window.side:.1f} {-window.front:.1f} {2 * window.side:.1f} {window.front - window.back:.1f}"


def path_data(points: Iterable[Sequence[float]], digits: int) -> str:
    """`M1.0 2.0L3.0 4.0`: a line through SVG points."""
    return "M" + "L".join(f"{x:.{digits}f} {y:.{digits}f}" for x, y in points)


def _path(shape: Path, frame: NDArray[np.float64], digits: int) -> list[Any]:
    end = "z" if shape.closed else ""
    return [shape.name, "".join(path_data((line @ frame).tolist(), digits) + end for line in shape.lines)]


def _circle(disc: Disc, frame: NDArray[np.float64], digits: int) -> list[Any]:
    x, y = (np.array([disc.x, disc.y]) @ frame).tolist()
    data = [disc.name, round(x, digits), round(y, digits), round(disc.radius, digits)]
    return data if disc.point is None else [*data, disc.point]
