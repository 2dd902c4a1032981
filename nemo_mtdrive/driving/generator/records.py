"""What the simulation moves: drivers and walkers as rows of structured arrays, and the lines they follow.

The kernels of `motion`, `lane_change` and `priority` are compiled and read these records by field name. Lengths are
metres from the rear axle along a line, offsets are metres to the left of it, times are scene times in seconds (t = 0 is
the moment that is recorded).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.scene import Array

Rows = NDArray[Any]
"""A structured array of `DRIVER`, `WALKER` or `CONFLICT`."""
Row = Any
"""One record of such an array, its fields by name; numpy has no type that says which fields."""

STEP_S = 0.1
WARM_UP_S = 4.0
AHEAD_S = 5.0
STEPS = round((WARM_UP_S + AHEAD_S) / STEP_S) + 1
SPACING = 0.5
"""Between the vertices of a line [m]."""
VEHICLE, BICYCLE = 0, 1
NEVER = 1e9

DRIVER = np.dtype([
    ("line", np.int64), ("s", np.float64), ("speed", np.float64), ("acceleration", np.float64),
    # the body; to_center: rear axle to the middle of the box
    ("type", np.int64), ("length", np.float64), ("width", np.float64), ("height", np.float64), ("to_center", np.float64),
    # how it drives: desired speed, headway, acceleration, comfortable braking, readiness to change lanes (0 or 1)
    ("wish", np.float64), ("headway", np.float64), ("power", np.float64), ("braking", np.float64),
    ("changes", np.int64), ("passes", np.int64),
    # lateral offset: eases from `offset_from` to `offset_to` over `shift_length` from `shift_start` on
    ("offset_from", np.float64), ("offset_to", np.float64), ("shift_start", np.float64), ("shift_length", np.float64),
    ("changed_at", np.float64),
    # what it was told to do: stand still until; brake from, how hard, down to; change to a line at a time
    ("hold_until", np.float64), ("brake_from", np.float64), ("brake_with", np.float64), ("brake_to", np.float64),
    ("change_at", np.float64), ("change_to", np.int64),
], align=True)

WALKER = np.dtype([
    ("x", np.float64), ("y", np.float64), ("dx", np.float64), ("dy", np.float64),
    ("length", np.float64), ("width", np.float64), ("height", np.float64),
    ("distance", np.float64), ("speed", np.float64), ("begins", np.float64),
    # 0: stays on the pavement, 1: crosses but lets those go who cannot stop any more, 2: looks at nobody
    ("crosses", np.int64),
    # drivers see it only from this walked distance on (it comes from behind something)
    ("hidden_until", np.float64),
    ("walked", np.float64), ("now", np.float64),
], align=True)

CONFLICT = np.dtype([
    ("yields", np.int64), ("goes", np.int64),
    ("yields_from", np.float64), ("yields_to", np.float64), ("goes_from", np.float64), ("goes_to", np.float64),
    ("merges", np.int64),
], align=True)

TRACE = ("x", "y", "heading", "speed", "acceleration", "s", "line", "offset", "shifting", "gap")
"""Columns of a driver's trace, a row every 0.1 s; x, y, heading are the rear axle's."""


class World(NamedTuple):
    """Everything that does not move, L lines, C conflicts, W walkers, K disks of standing things."""

    starts: NDArray[np.int64]
    """[L + 1] first vertex of each line in x, y, heading, cap."""
    x: Array
    y: Array
    heading: Array
    cap: Array
    """Largest speed at a vertex from which every later curve can be met by gentle braking."""
    left: NDArray[np.int64]
    """[L] the line to the left, -1 for none."""
    right: NDArray[np.int64]
    change_from: Array
    """[L] lanes may be changed between these arc lengths."""
    change_to: Array
    ends: NDArray[np.int64]
    """[L] 1 where the lane merges into another."""
    stop: Array
    """[L] arc length of the stop line, NEVER without."""
    light: NDArray[np.int64]
    """[L] group of signals, -1 without."""
    green_from: Array
    """[groups] the light is green between these times."""
    green_to: Array
    conflicts: Rows
    meet_s: Array
    """[L, W] where a line meets a walker's way, NaN where it does not; `meet_walked`: how far the walker has come."""
    meet_walked: Array
    still_x: Array
    """[K] disks that cover standing things."""
    still_y: Array
    still_r: Array


def driver(line: int, s: float, speed: float, body: tuple[float, float, float], **values: float) -> Rows:
    """A row [1] of `DRIVER`; body is (length, width, height), other fields by name."""
    row = np.zeros(1, dtype=DRIVER)
    row["line"], row["s"], row["speed"] = line, s, speed
    row["length"], row["width"], row["height"] = body
    row["to_center"] = 0.28 * body[0]
    defaults = {"wish": 10.0, "headway": 1.4, "power": 1.5, "braking": 2.0, "shift_length": 1.0, "changed_at": -NEVER,
                "hold_until": -NEVER, "brake_from": NEVER, "change_at": NEVER, "change_to": -1}
    for name, value in (defaults | values).items():
        row[name] = value
    return row


def walker(start: Array, direction: Array, size: tuple[float, float, float], distance: float, speed: float, begins: float,
           *, crosses: int, hidden_until: float = -NEVER) -> Rows:
    """A row [1] of `WALKER`; one that has begun before the warm-up is on its way already."""
    row = np.zeros(1, dtype=WALKER)
    row["x"], row["y"] = start
    row["dx"], row["dy"] = direction
    row["length"], row["width"], row["height"] = size
    row["distance"], row["speed"], row["begins"], row["crosses"] = distance, speed, begins, crosses
    row["hidden_until"] = hidden_until
    if begins < -WARM_UP_S:
        row["walked"], row["now"] = min((-WARM_UP_S - begins) * speed, distance), speed
    return row
