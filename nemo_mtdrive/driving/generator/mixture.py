"""What is generated: kinds `road/situation` with weights, commands with weights, and seeds that splits never share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from nemo_mtdrive.driving.scene import COMMANDS, Array, SceneError

LEFT, STRAIGHT, RIGHT = COMMANDS

_TABLE = {
    "straight": "free lead hard_brake cut_in parked work_zone bus cyclist pedestrian jaywalker occluded fast_behind",
    "curve": "free lead hard_brake cut_in cyclist fast_behind",
    "merge": "free lead",
    "lane_drop": "free lead",
    "crossing": "red_light green_light unprotected_turn pedestrian lead free",
    "t_junction": "unprotected_turn pedestrian red_light",
    "roundabout": "free lead cyclist",
    "narrow_street": "parked oncoming occluded",
}
_HEAVIER = {"curve/free": 4.2, "curve/lead": 3.4, "crossing/green_light": 3.4, "crossing/unprotected_turn": 3.4,
            "t_junction/unprotected_turn": 3.4, "roundabout/free": 3.4, "crossing/red_light": 2.8}
_USUAL = 2.5

MIXTURE: Mapping[str, float] = MappingProxyType({
    f"{road}/{situation}": _HEAVIER.get(f"{road}/{situation}", _USUAL)
    for road, situations in _TABLE.items() for situation in situations.split()})
"""The generator's own mixture: every kind it knows with its weight; the rarest is one scene in forty."""

ROADS = tuple(_TABLE)
SITUATIONS = tuple(dict.fromkeys(kind.split("/")[1] for kind in MIXTURE))

COMMAND_SHARES: Mapping[str, float] = MappingProxyType({LEFT: 0.25, STRAIGHT: 0.5, RIGHT: 0.25})
"""Shares of the commands over all scenes of the own mixture."""

_TURNING = frozenset({"curve", "crossing", "t_junction", "roundabout"})
_NO_LEFT = frozenset({"crossing/red_light", "t_junction/red_light"})
"""From the stop line the left turn begins too far ahead to count."""

SPLIT_SIZE = 10**9
SPLITS = ("train", "held_out", "test")
"""A split's seeds are a range of its own: train from 0, held_out from 1e9, test from 2e9."""


def split_seed(split: str, number: int) -> int:
    """The seed of the `number`-th scene of a split; no two splits share one.

    Raises:
        SceneError: an unknown split, or a number outside 0 .. 1e9 - 1.
    """
    if split not in SPLITS:
        raise SceneError(f"split: got {split!r}, want one of {', '.join(SPLITS)}")
    if not 0 <= number < SPLIT_SIZE:
        raise SceneError(f"split {split}: got scene number {number}, want 0 to {SPLIT_SIZE - 1}")
    return SPLITS.index(split) * SPLIT_SIZE + number


def weights_of(kinds: Mapping[str, float]) -> dict[str, float]:
    """Weights by kind `road/situation` of a mixture.

    `kinds` names kinds (`curve/lead`) or, apart, roads and situations: then a kind's weight is the product of its road's
    and its situation's, and the side of which nothing is named has the weights of `MIXTURE`.

    Raises:
        SceneError: an unknown name, a negative weight, or nothing left with a weight above 0.
    """
    unknown = sorted(set(kinds) - set(MIXTURE) - set(ROADS) - set(SITUATIONS))
    if unknown:
        raise SceneError(f"kinds: got {', '.join(unknown)}, want some of {', '.join((*ROADS, *SITUATIONS))} or pairs like "
                         "crossing/red_light")
    if any(not weight >= 0 for weight in kinds.values()):
        raise SceneError(f"kinds: got {dict(kinds)}, want weights of 0 or more")
    roads = {name: weight for name, weight in kinds.items() if name in ROADS}
    situations = {name: weight for name, weight in kinds.items() if name in SITUATIONS}
    found = {name: float(weight) for name, weight in kinds.items() if name in MIXTURE}
    for kind, own in MIXTURE.items():
        road, situation = kind.split("/")
        if not roads and not situations:
            break
        usual = 1.0 if roads and situations else own
        weight = usual * (roads.get(road, 0.0) if roads else 1.0) * (situations.get(situation, 0.0) if situations else 1.0)
        found[kind] = found.get(kind, 0.0) + weight
    found = {kind: weight for kind, weight in found.items() if weight > 0}
    if not found:
        raise SceneError(f"kinds: got {dict(kinds)}, which leaves no kind; want weights above 0 for some of "
                         f"{', '.join(MIXTURE)}")
    return found


def joint_shares(kinds: Mapping[str, float], commands: Mapping[str, float]) -> tuple[tuple[str, ...], Array]:
    """Names of the kinds and shares [kinds, 3 commands] whose sums are the kinds' weights and the commands' shares.

    Straight roads have no turns, so the turns fall to the other kinds (iterative proportional fitting); where the kinds
    cannot give the shares asked for, the kinds' weights are kept and the commands come as near as they can.

    Raises:
        SceneError: a command unknown, a negative share, or none above 0.
    """
    if set(commands) - set(COMMANDS) or any(not share >= 0 for share in commands.values()) or not sum(commands.values()):
        raise SceneError(f"commands: got {dict(commands)}, want shares of 0 or more for {', '.join(COMMANDS)}")
    names = tuple(kinds)
    rows = np.array([kinds[name] for name in names])
    columns = np.array([float(commands.get(name, 0.0)) for name in COMMANDS])
    rows, columns = rows / rows.sum(), columns / columns.sum()
    turns = np.array([name.split("/")[0] in _TURNING for name in names])
    left = turns & np.array([name not in _NO_LEFT for name in names])
    table = np.column_stack([left, np.ones(len(names)), turns]).astype(np.float64)
    for _ in range(200):
        table *= (columns / np.maximum(table.sum(0), 1e-12))
        table += 1e-12 * (table.sum(1, keepdims=True) == 0)
        table *= (rows / table.sum(1))[:, None]
    return names, table


def draw(rng: np.random.Generator, names: tuple[str, ...], table: Array) -> tuple[str, str]:
    """A kind and a command from `joint_shares`."""
    cell = int(rng.choice(table.size, p=(table / table.sum()).ravel()))
    return names[cell // len(COMMANDS)], COMMANDS[cell % len(COMMANDS)]
