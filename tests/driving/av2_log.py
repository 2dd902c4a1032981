"""A small Argoverse 2 sensor log in its own format on disk: two lanes up a hill, a car ahead, a pedestrian, a cone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

NAME = "0a1b2c3d-0000-1111-2222-333344445555"
FRAMES, SPEED_MPS, PERIOD_NS = 80, 5.0, 100_000_000
START = np.array([5100.0, 2300.0])
SLOPE = 0.05
"""Metres up a metre east."""


def write_log(root: Path, frames: int = FRAMES) -> Path:
    """Write the log below `root`; the ego drives east at 5 m/s in the right lane."""
    folder = root / NAME
    (folder / "map").mkdir(parents=True)
    stamps = 315_969_000_000_000_000 + PERIOD_NS * np.arange(frames)
    x = START[0] + SPEED_MPS * 0.1 * np.arange(frames)
    flat = {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0}
    poses = pd.DataFrame({"timestamp_ns": stamps, **flat, "tx_m": x, "ty_m": START[1], "tz_m": SLOPE * (x - START[0])})
    poses.to_feather(folder / "city_SE3_egovehicle.feather")
    boxes = [_box(stamps, "car", "REGULAR_VEHICLE", (4.5, 1.9, 1.6), 20.0, 0.0),
             _box(stamps[10:40], "walker", "PEDESTRIAN", (0.6, 0.6, 1.7), 12.0, -6.0),
             _box(stamps, "cone", "CONSTRUCTION_CONE", (0.4, 0.4, 0.8), 15.0, -4.0),
             _box(stamps, "ego", "EGO_VEHICLE", (4.9, 2.1, 1.5), 1.3, 0.0)]
    pd.concat(boxes, ignore_index=True).to_feather(folder / "annotations_with_ego.feather")
    _write_map(folder / "map")
    return folder


def _box(stamps: np.ndarray, token: str, category: str, size: tuple[float, float, float], ahead: float,
         left: float) -> pd.DataFrame:
    """A box that keeps its place in the ego frame, so it drives as the ego does."""
    return pd.DataFrame({"timestamp_ns": stamps, "track_uuid": token, "category": category, "length_m": size[0],
                         "width_m": size[1], "height_m": size[2], "qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0,
                         "tx_m": ahead, "ty_m": left, "tz_m": size[2] / 2, "num_interior_pts": 50})


def _line(x0: float, x1: float, y: float) -> list[dict[str, float]]:
    return [{"x": START[0] + x, "y": START[1] + y, "z": SLOPE * x} for x in (x0, (x0 + x1) / 2, x1)]


def _lane(key: int, x0: float, x1: float, right: float, **links: object) -> dict[str, object]:
    return {"id": key, "is_intersection": False, "lane_type": "VEHICLE", "left_lane_boundary": _line(x0, x1, right + 3.5),
            "right_lane_boundary": _line(x0, x1, right), "left_lane_mark_type": "NONE", "right_lane_mark_type": "NONE",
            "predecessors": [], "successors": [], "left_neighbor_id": None, "right_neighbor_id": None} | links


def _write_map(folder: Path) -> None:
    lanes = [_lane(1, -40, 60, -1.75, successors=[3], left_neighbor_id=2),
             _lane(2, -40, 60, 1.75, successors=[4], right_neighbor_id=1),
             _lane(3, 60, 160, -1.75, predecessors=[1], left_neighbor_id=4),
             _lane(4, 60, 160, 1.75, predecessors=[2], right_neighbor_id=3)]
    area = [*_line(-40, 160, -3.0), *_line(-40, 160, 6.0)[::-1]]
    data = {"lane_segments": {str(lane["id"]): lane for lane in lanes},
            "drivable_areas": {"9": {"area_boundary": area, "id": 9}},
            "pedestrian_crossings": {"8": {"id": 8, "edge1": _line(50, 50.1, 0.0)[:2], "edge2": _line(54, 54.1, 5.0)[:2]}}}
    (folder / f"log_map_archive_{NAME}____TST_city_1.json").write_text(json.dumps(data))
    columns = SLOPE * (0.5 * np.arange(600) - 100.0)  # a pixel is half a metre, from 100 m west of the start
    heights = np.repeat(columns[None], 400, axis=0).astype(np.float16)
    heights[:50] = np.nan
    np.save(folder / f"{NAME}_ground_height_surface____TST.npy", heights)
    place = {"R": [1.0, 0.0, 0.0, 1.0], "t": (-(START - 100.0)).tolist(), "s": 2.0}
    (folder / f"{NAME}___img_Sim2_city.json").write_text(json.dumps(place))
