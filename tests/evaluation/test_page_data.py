"""The page's data: packs, order, the limit, and shapes at their places."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nemo_mtdrive.driving.camera import front_camera
from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.drawing import AS_IT_IS, FORWARD_UP, svg_shapes
from nemo_mtdrive.evaluation.marks import Window
from nemo_mtdrive.evaluation.page_data import PICTURE_WIDTH, page_data
from nemo_mtdrive.evaluation.run_files import count_episodes, read_run
from nemo_mtdrive.evaluation.shapes import camera_shapes, turn_shapes
from nemo_mtdrive.telemetry.excerpt import CameraView
from nemo_mtdrive.telemetry.recorder import EpisodeRecorder
from tests.evaluation.hand_episodes import make_episode, make_turn
from tests.evaluation.pages import large_run, many_episodes


def opened(pack: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(pack)))


def test_packs_hold_every_episode_once_and_pictures_small(tmp_path: Path, generated: Scene) -> None:
    run = large_run(tmp_path, generated, np.full((400, 800, 3), 90, np.uint8), 50)
    told: list[int] = []
    data = page_data(read_run(run).dumps, 1000, told.append)
    assert sum(told) == data.episodes == count_episodes(run) == 50 and data.left_out == 0
    assert set(data.packs) == {"index", "scenes-0", "scenes-1", "episodes-0", "episodes-1"}
    index = opened(data.packs["index"])
    assert [row["name"] for row in index["episodes"]] == [f"s{number:05d}" for number in range(50)]
    first = index["episodes"][0]
    assert (first["pdms"], first["fails"], first["gain"]) == ([0.0, 90.0], [["DAC"], []], 90.0)
    assert index["episodes"][9]["pdms"] == [None, None] and index["episodes"][9]["fails"] == [["parse"], ["parse"]]
    assert index["kinds"] == ["bend/cut_in", "crossing/lead", "straight/free"]
    picture = opened(data.packs["scenes-0"])[0]["picture"]
    webp = np.frombuffer(base64.b64decode(picture["src"].removeprefix("data:image/webp;base64,")), np.uint8)
    assert cv2.imdecode(webp, cv2.IMREAD_COLOR).shape == (PICTURE_WIDTH // 2, PICTURE_WIDTH, 3)
    assert (picture["width"], picture["height"]) == (PICTURE_WIDTH, PICTURE_WIDTH // 2)
    turn = opened(data.packs["episodes-0"])[0]["turns"][0]
    assert turn["points"] == [[], [], [], [], [], [], ["DAC"], ["DAC"]]
    assert [shape[0] for shape in turn["shapes"]] == ["plan", *["point"] * 8, "dac", "dac"]


def test_the_last_dump_of_each_stage_comes_first_and_what_is_too_much_is_counted(tmp_path: Path, generated: Scene) -> None:
    recorder = EpisodeRecorder(tmp_path, max_episodes=9, with_tokens=False)
    for purpose, step in (("train", 0), ("train", 1), ("after_sft", 0), ("after_rl", 2)):
        recorder.record(step, purpose, many_episodes(generated, 3), prompts={}, images={}, scenes={})
    data = page_data(read_run(tmp_path).dumps, 10, lambda _: None)
    index = opened(data.packs["index"])
    shown = [(index["stages"][row["stage"]], row["step"]) for row in index["episodes"]]
    assert shown == [("after_rl", 2)] * 3 + [("after_sft", 0)] * 3 + [("train", 1)] * 3 + [("train", 0)]
    assert data.left_out == 2


def test_no_episodes_make_no_packs(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"seconds": 1}')
    assert page_data(read_run(tmp_path).dumps, 10, lambda _: None).packs == {}


def test_an_episode_without_turns_and_lone_surrogates_have_their_place(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, max_episodes=9, with_tokens=False)
    odd = [make_episode("a", valid=False), make_episode("b", make_turn(0, None, answer="lone \ud800"))]
    recorder.record(0, "train", odd, prompts={}, images={}, scenes={})
    packs = page_data(read_run(tmp_path).dumps, 10, lambda _: None).packs
    rows = opened(packs["index"])["episodes"]
    assert [(row["pdms"], row["fails"], row["gain"], row["valid"]) for row in rows] == [
        ([], [], 0.0, False), ([None], [["parse"]], 0.0, True)]
    assert opened(packs["episodes-0"])[1]["turns"][0]["answer"] == ["lone \ud800"]


def test_forward_is_up_and_the_window_sets_the_marks_size() -> None:
    turn = {"trajectory": [[10.0, 2.0, 0.0]] * 8, "violations": [{"metric": "DAC", "point": 7, "object": None}]}
    plan, *points, cross = svg_shapes(turn_shapes(turn, Window(-10.0, 50.0, 20.0)), FORWARD_UP, 1)
    assert plan == ["plan", "M0.0 0.0" + "L-2.0 -10.0" * 8]
    assert points == [["point", -2.0, -10.0, 0.6, number] for number in range(8)]
    assert cross == ["dac", "M-1.0 -9.0L-3.0 -11.0M-3.0 -9.0L-1.0 -11.0"]


@pytest.mark.parametrize("path", [[[-5.0, 0.0, 0.0]] * 8, None])
def test_a_trajectory_out_of_sight_draws_nothing_in_the_camera(path: list | None) -> None:
    pinhole = front_camera(224, 112, "")
    camera = CameraView(224, 112, pinhole.intrinsics.tolist(), pinhole.extrinsics.tolist())
    assert svg_shapes(camera_shapes(camera, {"trajectory": path}, 224, 112), AS_IT_IS, 1) == []
    assert camera_shapes(None, {"trajectory": [[5.0, 0.0, 0.0]] * 8}, 224, 112) == []
