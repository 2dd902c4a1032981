"""Marks, projection, and that the figures show them (by their pixels)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nemo_mtdrive.driving.camera import front_camera
from nemo_mtdrive.evaluation.figures import COLOURS, Row, episodes_figure, save_figure
from nemo_mtdrive.evaluation.marks import (
    PANEL_ASPECT,
    Mark,
    Window,
    marks_of,
    points_in_image,
    project,
    ribbon,
    window_of,
)
from nemo_mtdrive.telemetry.excerpt import Box, CameraView, SceneExcerpt

OBSTACLE = [20.0, -1.0, 0.8, 4.0, 2.0, 1.6, 0.0, "vehicle"]


def camera_view(width: int, height: int) -> CameraView:
    camera = front_camera(width, height, "")
    return CameraView(width, height, camera.intrinsics.tolist(), camera.extrinsics.tolist())


@pytest.fixture
def excerpt() -> SceneExcerpt:
    road = [[[-25.0, -4.0], [85.0, -4.0], [85.0, 4.0], [-25.0, 4.0]]]
    car = Box("vehicle", 30.0, 2.0, 0.0, 4.5, 1.9, 1.6, [[30.0, 2.0]])
    ego = {"width": 2.3, "front_length": 4.0, "rear_length": 1.1}
    return SceneExcerpt("s", "lead", "GO STRAIGHT", 8.0, ego, [road], [], [], [], [car], None, None,
                        camera_view(224, 112))


def turn(*violations: dict[str, Any], points: bool = True) -> dict[str, Any]:
    path = [[2.5 * k, 0.0, 0.0] for k in range(1, 9)]
    return {"index": 0, "trajectory": path if points else None, "violations": list(violations),
            "scores": {"NC": 1.0, "DAC": 1.0, "TTC": 1.0, "EP": 1.0, "C": 1.0, "PDMS": 1.0} if points else None}


def test_marks_follow_figure_4() -> None:
    violations = [{"metric": "DAC", "point": 7, "object": None}, {"metric": "TTC", "point": 3, "object": OBSTACLE},
                  {"metric": "TTC", "point": 4, "object": OBSTACLE}, {"metric": "NC", "point": 5, "object": None},
                  {"metric": "EP", "point": 1, "object": None}]
    assert marks_of(turn(*violations)) == [
        Mark("DAC", 20.0, 0.0, None), Mark("TTC", 20.0, -1.0, (20.0, -1.0, 0.0, 4.0, 2.0)), Mark("NC", 15.0, 0.0, None)]
    assert marks_of(turn(violations[0], points=False)) == []


def test_projection_scales_with_the_picture_and_hides_what_is_behind() -> None:
    points = np.array([[11.65, 0.0, 1.55], [11.65, 1.0, 0.55], [1.0, 0.0, 0.0]])
    pixels = project(points, camera_view(1920, 1080), 960, 540)
    np.testing.assert_allclose(pixels[:2], [[480.0, 280.0], [480.0 - 77.25, 280.0 + 77.25]])
    assert np.isnan(pixels[2]).all()


def test_the_band_on_the_road_narrows_with_distance() -> None:
    camera = camera_view(224, 112)
    path = [[4.0 * k, 0.0, 0.0] for k in range(1, 9)]
    band = ribbon(path, camera, 224, 112)
    left, right = band[: len(band) // 2], band[len(band) // 2:][::-1]
    widths = right[:, 0] - left[:, 0]
    assert (np.diff(widths) < 0).all() and widths[-1] == pytest.approx(1.8 * camera.intrinsics[0][0] / (32.0 - 1.65))
    assert np.isfinite(points_in_image(path, camera, 224, 112)).all()
    assert ribbon([[-4.0 * k, 0.0, 0.0] for k in range(1, 9)], camera, 224, 112).shape == (0, 2)


def test_a_window_holds_the_scene_whatever_the_answer() -> None:
    wild = turn()
    wild["trajectory"] = [[1e6, -1e6, 0.0]] * 8
    assert window_of(None, [wild]) == Window(-10.0, 26.0, 0.5 * PANEL_ASPECT * 36.0)
    left = turn()
    left["trajectory"] = [[3.0 * k, 4.0 * k, 0.0] for k in range(1, 9)]
    window = window_of(None, [turn(), left])
    assert window.side >= 32.0 + 6.0 and window.side == pytest.approx(0.5 * PANEL_ASPECT * (window.front - window.back))


def coloured(picture: np.ndarray, name: str) -> int:
    """Number of pixels of exactly this colour of the legend and the drawing."""
    wanted = [int(COLOURS[name][i:i + 2], 16) for i in (1, 3, 5)]
    return int((picture == wanted).all(axis=-1).sum())


def test_figures_show_the_marks_in_their_colours(tmp_path: Path, excerpt: SceneExcerpt) -> None:
    def count(*violations: dict[str, Any]) -> dict[str, int]:
        file = save_figure(tmp_path / "figure.png", [Row(excerpt, None, [turn(*violations)], "title")])
        picture = cv2.imread(str(file))[..., ::-1]
        return {name: coloured(picture, name) for name in ("DAC", "TTC", "NC", "plan", "vehicle")}

    clean = count()
    assert clean["plan"] > 500 and clean["vehicle"] > 30
    for metric, point, thing in (("DAC", 7, None), ("TTC", 3, OBSTACLE), ("NC", 3, OBSTACLE)):
        marked = count({"metric": metric, "point": point, "object": thing})
        assert marked[metric] > clean[metric] + 50
        assert all(marked[other] == clean[other] for other in ("DAC", "TTC", "NC") if other != metric)


def test_the_mark_is_at_its_place(excerpt: SceneExcerpt) -> None:
    figure = episodes_figure([Row(excerpt, None, [turn({"metric": "NC", "point": 3, "object": OBSTACLE})], "title")])
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    panel = figure.axes[-1]
    x, y = panel.transData.transform((1.0, 20.0))
    pixel = picture[round(picture.shape[0] - y), round(x)]
    assert pixel.tolist() == [int(COLOURS["NC"][i:i + 2], 16) for i in (1, 3, 5)]


def test_a_row_an_episode_with_a_camera_and_a_panel_for_each_turn(excerpt: SceneExcerpt) -> None:
    image = np.full((112, 224, 3), 90, np.uint8)
    failing = {"metric": "TTC", "point": 3, "object": OBSTACLE}
    figure = episodes_figure([Row(excerpt, image, [turn(), turn(failing), turn(points=False)], "first"),
                              Row(None, None, [turn()], "second")])
    assert [axes.get_title() for axes in figure.axes] == [
        "", "", "turn 1   PDMS 100", "turn 1   PDMS 100  (TTC)", "turn 1   no trajectory", "", "turn 1   PDMS 100"]
    assert {text.get_text() for text in figure.texts} == {"first", "second"}
    for rows in ([], [Row(excerpt, image, [], "empty")]):
        with pytest.raises(ValueError, match="at least one"):
            episodes_figure(rows)


@pytest.mark.parametrize(("name", "start"), [("f.png", b"\x89PNG"), ("f.SVG", b"<?xml"), ("f.pdf", b"%PDF-")])
def test_the_suffix_chooses_the_form_and_the_same_rows_give_the_same_bytes(tmp_path: Path, excerpt: SceneExcerpt,
                                                                          name: str, start: bytes) -> None:
    rows = [Row(excerpt, None, [turn({"metric": "DAC", "point": 7, "object": None})], "title")]
    first, second = (save_figure(tmp_path / folder / name, rows).read_bytes() for folder in "ab")
    assert first == second and first.startswith(start)
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == [name, name]


def test_another_suffix_is_refused_and_leaves_nothing(tmp_path: Path, excerpt: SceneExcerpt) -> None:
    with pytest.raises(ValueError, match=r"a\.jpg: a figure's name ends in \.png, \.svg or \.pdf"):
        save_figure(tmp_path / "a.jpg", [Row(excerpt, None, [turn()], "title")])
    assert list(tmp_path.iterdir()) == []
