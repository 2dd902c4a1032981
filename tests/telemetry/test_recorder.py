"""Rollout dumps: what is recorded, how many, and that nothing half-written is left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.telemetry.excerpt import excerpt_from_json, excerpt_of
from nemo_mtdrive.telemetry.recorder import EpisodeRecorder, choose, read_rollouts, rollout_files
from nemo_mtdrive.types import Episode, Turn


def episode(scene_id: str, index: int, answer: str = "Here.") -> Episode:
    scores = {"NC": 1.0, "DAC": 1.0, "TTC": 0.0, "EP": 0.5, "C": 1.0, "DDC": 1.0, "PDMS": 0.375}
    turn = Turn(0, 2, 5, answer, np.arange(24.0).reshape(8, 3), scores, 1.0, 0.5, "slower",
                [{"metric": "TTC", "point": 3, "object": [20.0, 0.0, 0.8, 4.6, 1.9, 1.6, 0.0, "vehicle"]}])
    return Episode(f"train/0/{scene_id}/{index}", scene_id, index, 7, 2, np.arange(6, dtype=np.int32),
                   np.array([-1, -1, 0, 0, 0, -1], dtype=np.int16),
                   np.array([0, 0, -1, np.nan, -2, 0], dtype=np.float32),
                   ("key0",), ((1, 8, 16),), (turn,), True, "max_turns")


def test_a_record_is_complete_and_reads_back(tmp_path: Path, scene: Scene) -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 224, 3), dtype=np.uint8)
    recorder = EpisodeRecorder(tmp_path, max_episodes=4, with_tokens=False)
    path = recorder.record(12, "train", [episode("hand", 0), episode("hand", 1), episode("other", 0)],
                           prompts={"hand": "Where to?"}, images={"key0": image}, scenes={"hand": scene})
    assert path == tmp_path / "rollouts" / "train-000012.jsonl"
    records = read_rollouts(path)
    assert [(r["scene_id"], r["index"]) for r in records] == [("hand", 0), ("other", 0), ("hand", 1)]
    first, other = records[0], records[1]
    assert first["prompt"] == "Where to?" and other["prompt"] is None and other["scene"] is None
    assert (first["step"], first["purpose"], first["tokens"], first["reason"]) == (12, "train", 6, "max_turns")
    assert first["turns"][0] == {
        "index": 0, "tokens": 3, "answer": "Here.", "trajectory": np.arange(24.0).reshape(8, 3).tolist(),
        "scores": {"NC": 1.0, "DAC": 1.0, "TTC": 0.0, "EP": 0.5, "C": 1.0, "DDC": 1.0, "PDMS": 0.375},
        "format_score": 1.0, "reward": 0.5, "feedback": "slower",
        "violations": [{"metric": "TTC", "point": 3, "object": [20.0, 0.0, 0.8, 4.6, 1.9, 1.6, 0.0, "vehicle"]}]}
    assert "logprobs" not in first and "token_ids" not in first
    assert [f.name for f in (tmp_path / "rollouts" / "images").iterdir()] == ["key0.png"]
    stored = cv2.imread(str(tmp_path / "rollouts" / first["images"][0]))[..., ::-1]
    np.testing.assert_array_equal(stored, image)
    assert excerpt_from_json(json.loads((tmp_path / "rollouts" / first["scene"]).read_text())) == excerpt_of(scene)
    assert first["scene"] == records[2]["scene"]


def test_large_images_are_shrunk_for_looking(tmp_path: Path) -> None:
    path = EpisodeRecorder(tmp_path, max_episodes=1, with_tokens=False).record(
        0, "train", [episode("a", 0)], prompts={}, images={"key0": np.full((1092, 1932, 3), 90, np.uint8)}, scenes={})
    assert path is not None
    assert cv2.imread(str(path.parent / "images" / "key0.png")).shape == (362, 640, 3)


def test_tokens_only_when_asked_and_never_nan(tmp_path: Path) -> None:
    path = EpisodeRecorder(tmp_path, max_episodes=1, with_tokens=True).record(
        0, "train", [episode("a", 0)], prompts={}, images={}, scenes={})
    assert path is not None
    record = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert record["token_ids"] == [0, 1, 2, 3, 4, 5] and record["turn_of_token"] == [-1, -1, 0, 0, 0, -1]
    assert record["logprobs"] == [0.0, 0.0, -1.0, None, -2.0, 0.0]
    assert record["images"] == []


def test_the_number_is_bounded_and_scenes_come_before_repeats() -> None:
    group = [episode(scene_id, index) for index in range(3) for scene_id in ("b", "a", "c")]
    assert [(e.scene_id, e.index) for e in choose(group, 5)] == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1)]
    assert choose(group[::-1], 5) == choose(group, 5)


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, max_episodes=0, with_tokens=False)
    assert recorder.record(0, "train", [episode("a", 0)], prompts={}, images={}, scenes={}) is None
    assert not (tmp_path / "rollouts").exists()


def test_a_failed_dump_leaves_no_file(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, max_episodes=2, with_tokens=False)
    bad = replace(episode("a", 0), image_keys=("../../escape",))
    with pytest.raises(ValueError, match="image key"):
        recorder.record(0, "train", [bad], prompts={}, scenes={},
                        images={"../../escape": np.zeros((2, 2, 3), np.uint8)})
    with pytest.raises(ValueError, match="purpose"):
        recorder.record(0, "a/b", [episode("a", 0)], prompts={}, images={}, scenes={})
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_hostile_answers_stay_one_line(tmp_path: Path) -> None:
    text = "a\nb\u2028c\r\x00\ud800</script>"
    path = EpisodeRecorder(tmp_path, max_episodes=1, with_tokens=False).record(
        0, "train", [episode("a", 0, text)], prompts={}, images={}, scenes={})
    assert path is not None and path.read_bytes().count(b"\n") == 1
    assert read_rollouts(path)[0]["turns"][0]["answer"] == text


def test_resume_drops_later_dumps_of_the_same_purpose(tmp_path: Path) -> None:
    recorder = EpisodeRecorder(tmp_path, max_episodes=1, with_tokens=False)
    for purpose, step in (("train", 1), ("train", 2), ("train", 3), ("rl_step_2", 9)):
        recorder.record(step, purpose, [episode("a", 0)], prompts={}, images={}, scenes={})
    recorder.drop_after("train", 2)
    assert [(f.purpose, f.step) for f in rollout_files(tmp_path)] == [("rl_step_2", 9), ("train", 1), ("train", 2)]


def test_an_excerpt_is_in_the_ego_frame_and_cut_to_the_window(scene: Scene) -> None:
    excerpt = excerpt_of(scene)
    assert [(b.type, b.x, b.y, len(b.path)) for b in excerpt.boxes] == [("vehicle", 20.0, 0.0, 9),
                                                                       ("pedestrian", 15.0, -4.0, 1)]
    assert excerpt.boxes[0].path[-1] == [44.0, 0.0]
    (area,) = excerpt.drivable
    xs, ys = np.array(area[0]).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (-25.0, 85.0, -2.0, 6.0)
    assert excerpt.speed == 8.0 and excerpt.future is not None and excerpt.future[-1] == [32.0, 0.0, 0.0]
    assert len(json.dumps(excerpt.to_json())) < 3000


def test_an_excerpt_of_another_form_is_refused(scene: Scene) -> None:
    data = excerpt_of(scene).to_json()
    for broken in ({"schema": "x"}, data | {"extra": 1}, {k: v for k, v in data.items() if k != "boxes"}):
        with pytest.raises(ValueError, match=r"schema|excerpt"):
            excerpt_from_json(broken)
