"""`MapBuilder`: lanes, roadblocks and areas of a generated map, in the conventions of the scene file.

A lane's polygon is its left boundary in driving direction followed by its right boundary backwards; a roadblock's
lanes stand in the order left to right. The camera reads lane edges off this order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nemo_mtdrive.driving.generator.geometry import offset
from nemo_mtdrive.driving.scene import Area, Array, Lane, Roadblock, SceneMap


@dataclass
class _Links:
    incoming: list[str] = field(default_factory=list)
    outgoing: list[str] = field(default_factory=list)


class MapBuilder:
    """Collects blocks and links; `build` freezes them into a `SceneMap`."""

    def __init__(self, lane_width: float, speed_limit_mps: float) -> None:
        self.lane_width = lane_width
        self._speed_limit = speed_limit_mps
        self._blocks: dict[str, tuple[str, Array, tuple[str, ...]]] = {}
        self._lanes: dict[str, tuple[str, str, Array, Array]] = {}
        self._links: dict[str, _Links] = {}
        self.intersections: list[Area] = []
        self.crosswalks: list[Area] = []
        self.carparks: list[Area] = []

    def add_roadblock(self, block_id: str, left_edge: Array, lanes: int) -> list[str]:
        """A roadblock of `lanes` lanes to the right of `left_edge` [n, 2]; returns the lane ids, left to right."""
        edges = [offset(left_edge, -self.lane_width * i) for i in range(lanes + 1)]
        centers = [offset(left_edge, -self.lane_width * (i + 0.5)) for i in range(lanes)]
        return self.add_shaped(block_id, list(zip(edges[:-1], edges[1:], centers, strict=True)))

    def add_shaped(self, block_id: str, lanes: list[tuple[Array, Array, Array]]) -> list[str]:
        """A roadblock of lanes given as (left edge, right edge, centreline), left to right; returns the lane ids."""
        ids = [f"{block_id}.{i}" for i in range(len(lanes))]
        for lane_id, (left, right, center) in zip(ids, lanes, strict=True):
            self._add_lane(lane_id, "lane", block_id, np.vstack([left, right[::-1]]), center)
        self._add_block(block_id, "roadblock", np.vstack([lanes[0][0], lanes[-1][1][::-1]]), ids)
        return ids

    def add_connector(self, block_id: str, centerlines: list[Array], lane_links: list[tuple[str, str]]) -> list[str]:
        """A roadblock connector; each lane connector follows a centreline [n, 2] and joins (from lane, to lane)."""
        half = self.lane_width / 2
        ids = []
        for i, center in enumerate(centerlines):
            lane_id = f"{block_id}.{i}"
            polygon = np.vstack([offset(center, half), offset(center, -half)[::-1]])
            self._add_lane(lane_id, "lane_connector", block_id, polygon, center)
            ids.append(lane_id)
        outline = np.vstack([offset(centerlines[0], half), offset(centerlines[-1], -half)[::-1]])
        self._add_block(block_id, "roadblock_connector", outline, ids)
        for lane_id, (before, after) in zip(ids, lane_links, strict=True):
            self.link(before, lane_id)
            self.link(lane_id, after)
        return ids

    def link(self, before: str, after: str) -> None:
        """One lane goes on into another, and so do their blocks."""
        for first, second in ((before, after), (self._lanes[before][1], self._lanes[after][1])):
            if second not in self._links[first].outgoing:
                self._links[first].outgoing.append(second)
                self._links[second].incoming.append(first)

    def add_shoulder(self, name: str, edge: Array, width: float) -> None:
        """A paved strip `width` m wide to the right of `edge` [n, 2]."""
        self.carparks.append(Area(name, np.vstack([edge, offset(edge, -width)[::-1]])))

    def centerline(self, lane_id: str) -> Array:
        """The centreline [n, 2] of a lane."""
        return self._lanes[lane_id][3]

    def line(self, *lane_ids: str) -> Array:
        """The centrelines of lanes that follow each other, joined."""
        lines = [self.centerline(lane_id) for lane_id in lane_ids]
        return np.vstack([*(line[:-1] for line in lines[:-1]), lines[-1]])

    def build(self) -> SceneMap:
        """The finished map."""
        blocks = tuple(Roadblock(block_id, kind, polygon, ids, tuple(self._links[block_id].incoming),
                                 tuple(self._links[block_id].outgoing))
                       for block_id, (kind, polygon, ids) in self._blocks.items())
        lanes = tuple(Lane(lane_id, kind, block, polygon, center, self._speed_limit,
                           tuple(self._links[lane_id].incoming), tuple(self._links[lane_id].outgoing))
                      for lane_id, (kind, block, polygon, center) in self._lanes.items())
        return SceneMap(blocks, lanes, tuple(self.intersections), tuple(self.carparks), tuple(self.crosswalks))

    def _add_lane(self, lane_id: str, kind: str, block_id: str, polygon: Array, center: Array) -> None:
        self._lanes[lane_id] = (kind, block_id, polygon, center)
        self._links[lane_id] = _Links()

    def _add_block(self, block_id: str, kind: str, polygon: Array, ids: list[str]) -> None:
        self._blocks[block_id] = (kind, polygon, tuple(ids))
        self._links[block_id] = _Links()
