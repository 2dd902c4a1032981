"""Comfort against the written rules; the goldens never trip lateral acceleration and jerk, so these have their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import savgol_filter

from nemo_mtdrive.driving.scene import Ego
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.cache import prepare
from nemo_mtdrive.pdm.comfort import BOUNDS, FILTERS, LIMITS, WORK_ROWS, comfort_signals, is_comfortable
from nemo_mtdrive.pdm.simulate import AX, AY, COLUMNS, HEADING, STEP_S, STEPS
from tests.pdm.conftest import MakeScene, straight_plan

TIMES_S = STEP_S * np.arange(STEPS)


def states_with(**columns: np.ndarray) -> np.ndarray:
    states = np.zeros((STEPS, COLUMNS))
    for name, values in columns.items():
        states[:, {"ax": AX, "ay": AY, "heading": HEADING}[name]] = values
    return states


def tripped(states: np.ndarray) -> set[str]:
    return {name for name, signal in comfort_signals(states[None]).items()
            if not ((BOUNDS[name][0] < signal) & (signal < BOUNDS[name][1])).all()}


def is_fine(states: np.ndarray) -> bool:
    return bool(is_comfortable(states, FILTERS, LIMITS, np.empty((WORK_ROWS, STEPS))))


@pytest.mark.parametrize("seed", range(3))
def test_signals_are_the_filters_of_the_written_rules(seed: int) -> None:
    random = np.random.default_rng(seed)
    ax, ay, heading = random.normal(0.0, 2.0, (3, STEPS))
    heading = np.cumsum(0.3 * heading) + 3.0

    def smooth(signal: np.ndarray, window: int, order: int, derivative: int = 0) -> np.ndarray:
        return np.round(savgol_filter(signal, window, order, deriv=derivative, delta=STEP_S), 8)

    wanted = {
        "lon_accel": smooth(ax, 41, 2), "lat_accel": smooth(ay, 41, 2),
        "jerk": smooth(smooth(np.hypot(ax, ay), 8, 2), 41, 2, 1), "lon_jerk": smooth(smooth(ax, 8, 2), 41, 2, 1),
        "yaw_accel": smooth(heading, 5, 3, 2), "yaw_rate": smooth(heading, 5, 2, 1),
    }
    wrapped = (heading + np.pi) % (2 * np.pi) - np.pi
    got = comfort_signals(states_with(ax=ax, ay=ay, heading=wrapped)[None])
    assert list(got) == list(BOUNDS)
    for name, signal in wanted.items():
        assert got[name][0] == pytest.approx(signal, abs=2e-8), name


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_lateral_acceleration_has_a_strict_bound(sign: float) -> None:
    for value, wanted in ((4.8899, set()), (4.89, {"lat_accel"}), (4.8901, {"lat_accel"})):
        states = states_with(ay=np.full(STEPS, sign * value))
        assert tripped(states) == wanted
        assert is_fine(states) == (not wanted)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_jerk_has_a_bound_of_its_own(sign: float) -> None:
    # The size of the acceleration grows evenly while its direction swings from side to side: neither the longitudinal
    # jerk nor, much, the lateral acceleration over 4 s sees it.
    swing = np.where(np.arange(STEPS) % 2 == 0, 1.0, -1.0)
    size = (TIMES_S if sign > 0 else TIMES_S[-1] - TIMES_S) * swing
    peak = np.abs(comfort_signals(states_with(ay=size)[None])["jerk"]).max()
    assert peak == pytest.approx(1.0, abs=0.06)  # a window of 8 samples has no middle, which bends the ends
    for share, wanted in ((0.9999, False), (1.0001, True)):
        states = states_with(ay=share * BOUNDS["jerk"][1] / peak * size)
        assert ("jerk" in tripped(states)) == wanted
        assert tripped(states) <= {"jerk", "lat_accel"}
        assert not (wanted and is_fine(states))


def test_a_start_with_hard_lateral_acceleration_is_uncomfortable(make_scene: MakeScene) -> None:
    """The bicycle has no lateral acceleration after t = 0, so it is the start alone that can trip these two."""
    agent = PDMAgent("oracle", 3)
    for lateral, wanted in ((5.0, 1.0), (40.0, 0.0)):
        scene = make_scene(scene_id=str(lateral))
        scene = replace(scene, ego=Ego(scene.ego.rear_axle_pose, scene.ego.velocity, np.array([0.0, lateral])))
        prepared = prepare(scene, "oracle")
        signals = tripped(prepared.simulate(straight_plan(6.2)[None])[0])
        assert ("lat_accel" in signals) == (wanted == 0.0)
        assert agent.review(scene, straight_plan(6.2)[None])[0].scores["C"] == wanted
