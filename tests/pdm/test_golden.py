"""Every golden case of NAVSIM v1.1 (tests/golden/pdm/README.md): states, the seven scores, and what led to them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Scene, load_scene
from nemo_mtdrive.pdm.cache import PreparedScene, prepare
from nemo_mtdrive.pdm.collisions import NO_HIT
from nemo_mtdrive.pdm.comfort import comfort_signals
from nemo_mtdrive.pdm.geometry import wrap_angle
from nemo_mtdrive.pdm.score import Measured, scores
from nemo_mtdrive.pdm.simulate import (
    AX,
    HEADING,
    STEERING,
    STEERING_RATE,
    VX,
    YAW_ACCELERATION,
    YAW_RATE,
    X,
    Y,
)
from nemo_mtdrive.types import SCORE_NAMES

FILES = sorted((Path(__file__).parent.parent / "golden" / "pdm").glob("*.json"))
STATE_COLUMNS = [X, Y, HEADING, VX, AX, STEERING, STEERING_RATE, YAW_RATE, YAW_ACCELERATION]


@cache
def scored(path: Path) -> tuple[Scene, PreparedScene, np.ndarray, Measured]:
    scene = load_scene(path)
    prepared = prepare(scene, "oracle")
    states = prepared.simulate(np.stack([case.trajectory for case in scene.cases]))
    return scene, prepared, states, prepared.measure(states)


def first_step(hits: np.ndarray) -> int | None:
    steps = np.flatnonzero(hits.any(axis=1))
    return int(steps[0]) if len(steps) else None


def bits(flags: np.ndarray) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def test_the_golden_scenes_are_here() -> None:
    assert len(FILES) == 51
    assert sum(len(load_scene(path).cases) for path in FILES) == 918


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scores_equal_the_original(path: Path) -> None:
    scene, prepared, _, measured = scored(path)
    for case, got in zip(scene.cases, scores(measured, prepared.reference_progress_m), strict=True):
        assert case.expected is not None
        assert {name for name in SCORE_NAMES if abs(got[name] - case.expected[name]) > 1e-8} == set(), case.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_simulated_states_equal_the_original(path: Path) -> None:
    scene, _, states, _ = scored(path)
    compared = 0
    for case, row in zip(scene.cases, states, strict=True):
        assert case.expected is not None
        wanted = case.expected["raw"]["pred"].get("states")
        if wanted is None:
            continue
        error = row[:, STATE_COLUMNS] - np.array(wanted)
        error[:, 2] = wrap_angle(error[:, 2])
        assert np.abs(error).max() < 5.1e-6, case.name  # the file has five decimals
        compared += 1
    assert compared >= 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_led_to_the_scores_equals_the_original(path: Path) -> None:
    scene, prepared, states, measured = scored(path)
    signals = comfort_signals(states)
    for row, case in enumerate(scene.cases):
        assert case.expected is not None
        raw = case.expected["raw"]["pred"]
        assert measured.progress_m[row] == pytest.approx(raw["progress_raw_m"], abs=1e-8), case.name
        assert bits(measured.areas.multiple_lanes[row]) == raw["multiple_lanes"], case.name
        assert bits(measured.areas.non_drivable[row]) == raw["non_drivable"], case.name
        assert bits(measured.areas.oncoming[row]) == raw["oncoming"], case.name
        assert first_step(measured.collisions.at_fault[row]) == raw["collision_time_idx"], case.name
        assert first_step(measured.collisions.ttc_after[row] != NO_HIT) == raw["ttc_time_idx"], case.name
        for name, signal in signals.items():
            low, high = raw["comfort"][name]["min"], raw["comfort"][name]["max"]
            assert abs(signal[row].min() - low) < 1e-6, name
            assert abs(signal[row].max() - high) < 1e-6, name
    reference = scene.cases[0].expected["raw"]["pdm_closed"]  # type: ignore[index]
    clean = reference["progress_raw_m"] * reference["NC"] * reference["DAC"]
    assert prepared.reference_progress_m == pytest.approx(clean, abs=1e-8)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_route_and_reference_equal_the_original(path: Path) -> None:
    scene, prepared, _, _ = scored(path)
    derived = scene.extra["derived"]
    assert list(prepared.drivable.ids) == derived["drivable_map_tokens"]
    assert list(prepared.route.lane_ids) == derived["route_lane_ids"]
    assert prepared.centerline == pytest.approx(np.array(derived["centerline"])[:, :2], abs=1e-6)
    error = prepared.reference - np.array(derived["pdm_closed_poses"])
    error[:, 2] = wrap_angle(error[:, 2])
    assert np.abs(error).max() < 1e-6


def test_a_batch_scores_as_its_rows_alone() -> None:
    path = FILES[0]
    scene, prepared, _, measured = scored(path)
    together = scores(measured, prepared.reference_progress_m)
    for row, case in enumerate(scene.cases):
        alone = prepared.measure(prepared.simulate(case.trajectory[None]))
        assert scores(alone, prepared.reference_progress_m) == [together[row]]
