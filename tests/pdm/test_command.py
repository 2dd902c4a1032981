"""`nemo-mtdrive score`: its lines and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_mtdrive.driving.scene import SceneError, load_scene, save_scene
from nemo_mtdrive.pdm.command import score
from tests.pdm.conftest import MakeScene, straight_plan

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm" / "g021_lead.json"


def test_a_line_for_each_case() -> None:
    lines = list(score([str(GOLDEN)], "oracle", None))
    scene = load_scene(GOLDEN)
    assert [line["case"] for line in lines] == [case.name for case in scene.cases]
    assert list(lines[0]) == ["scene_id", "case", "NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS"]
    for line, case in zip(lines, scene.cases, strict=True):
        assert line["PDMS"] == pytest.approx(case.expected["PDMS"], abs=1e-8)  # type: ignore[index]
    json.dumps(lines)


def test_a_trajectory_file_takes_the_place_of_cases(make_scene: MakeScene, tmp_path: Path) -> None:
    plan, plain = tmp_path / "plan.json", tmp_path / "plain.json"
    plan.write_text(json.dumps(straight_plan(6.2).tolist()))
    save_scene(make_scene(), plain)
    lines = list(score([str(plain), str(GOLDEN)], "kinematic", str(plan)))
    assert [(line["scene_id"], line["case"]) for line in lines] == [("hand", "plan"), ("g021_lead", "plan")]


def test_refusals_name_the_file_and_the_cure(make_scene: MakeScene, tmp_path: Path) -> None:
    plain = tmp_path / "plain.json"
    save_scene(make_scene(), plain)
    with pytest.raises(SceneError, match=r"plain\.json: the scene has no cases, set --trajectory FILE"):
        list(score([str(plain)], "oracle", None))
    for text in ("[[1, 2, 3]]", "{", '{"a": 1}', "[[NaN, 0, 0]]", "null"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(SceneError, match=r"bad\.json: want JSON of 8 x \[x, y, heading\]"):
            list(score([str(plain)], "oracle", str(tmp_path / "bad.json")))
