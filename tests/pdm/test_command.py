"""`nemo-mtdrive score` and `import-caches`: their lines and their refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_mtdrive.cli import main
from nemo_mtdrive.driving.scene import SceneError, load_scene, save_scene
from nemo_mtdrive.pdm.command import COLUMNS, find_scenes, score
from tests.pdm import navsim_format
from tests.pdm.conftest import MakeScene, straight_plan

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm" / "g021_lead.json"


def scored(paths: list[Path | str], perception: str = "oracle",
           trajectory: Path | None = None) -> tuple[list[dict], list[str]]:
    complaints: list[str] = []
    plan = None if trajectory is None else str(trajectory)
    wanted = find_scenes([str(path) for path in paths])
    lines = list(score(wanted, perception, plan, None, complaints.append, lambda count: None))
    return lines, complaints


def test_a_line_for_each_case() -> None:
    lines, complaints = scored([GOLDEN])
    scene = load_scene(GOLDEN)
    assert complaints == []
    assert [line["case"] for line in lines] == [case.name for case in scene.cases]
    assert list(lines[0]) == ["scene_id", "case", "NC", "DAC", "TTC", "EP", "C", "DDC", "PDMS"]
    for line, case in zip(lines, scene.cases, strict=True):
        assert line["PDMS"] == pytest.approx(case.expected["PDMS"], abs=1e-8)  # type: ignore[index]
    json.dumps(lines)


def test_a_trajectory_file_takes_the_place_of_cases(make_scene: MakeScene, tmp_path: Path) -> None:
    plan, plain = tmp_path / "plan.json", tmp_path / "plain.json"
    plan.write_text(json.dumps(straight_plan(6.2).tolist()))
    save_scene(make_scene(), plain)
    lines, _ = scored([plain, GOLDEN], "kinematic", plan)
    assert [(line["scene_id"], line["case"]) for line in lines] == [("hand", "plan"), ("g021_lead", "plan")]


def test_a_bad_file_is_told_and_the_others_are_scored(make_scene: MakeScene, tmp_path: Path) -> None:
    plain, broken = tmp_path / "plain.json", tmp_path / "broken.json"
    save_scene(make_scene(), plain)
    broken.write_text("{")
    (tmp_path / "other.json").write_text("[]")
    lines, complaints = scored([plain, broken, GOLDEN, tmp_path / "other.json"])
    assert {line["scene_id"] for line in lines} == {"g021_lead"}
    assert len(complaints) == 3
    assert complaints[0].endswith("plain.json: the scene has no cases, set --trajectory FILE")
    assert "broken.json" in complaints[1] and "other.json" in complaints[2]


def test_a_bad_trajectory_stops_at_once(tmp_path: Path) -> None:
    for text in ("[[1, 2, 3]]", "{", '{"a": 1}', "[[NaN, 0, 0]]", "null"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(SceneError, match=r"bad\.json: want JSON of 8 x \[x, y, heading\]"):
            scored([GOLDEN], trajectory=tmp_path / "bad.json")


def test_folders_are_their_scenes(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no scenes"):
        find_scenes([str(tmp_path)])
    for name in ("b.json", "a.json", ".hidden.json", "note.txt", "c.npz"):
        (tmp_path / name).write_text("")
    wanted = [GOLDEN, *(tmp_path / name for name in ("a.json", "b.json", "c.npz"))]
    assert [item.name for item in find_scenes([str(GOLDEN), str(tmp_path)])] == [str(path) for path in wanted]
    with pytest.raises(FileNotFoundError):
        find_scenes([str(tmp_path / "nowhere")])


def test_an_address_is_all_its_scenes(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(straight_plan(6.2).tolist()))
    lines, complaints = scored(["procedural://?count=2&seed=40"], trajectory=plan)
    assert [line["scene_id"] for line in lines] == ["p0000040", "p0000041"] and complaints == []


def test_caches_are_imported_once_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = [load_scene(GOLDEN.with_name(f"{name}.json")) for name in ("g021_lead", "g030_pedestrian")]
    for scene in scenes:
        navsim_format.write(tmp_path / "exp", scene)
    hostile = tmp_path / "exp" / "log" / "unknown" / "bad" / "metric_cache.pkl"
    hostile.parent.mkdir()
    hostile.write_bytes(b"not a cache")
    request = ["import-caches", str(tmp_path / "exp"), "--out", str(tmp_path / "caches")]

    assert main([*request]) == 2 and "set --trust-pickle" in capsys.readouterr().err
    assert not (tmp_path / "caches").exists()
    written = []
    for _ in range(2):  # a second time, nothing is left to do
        assert main([*request, "--trust-pickle"]) == 2
        said = capsys.readouterr()
        assert json.loads(said.out) == {"imported": 2, "refused": 1, "out": str(tmp_path / "caches")}
        assert "bad/metric_cache.pkl: not a whole NAVSIM metric cache" in said.err and "1 of 3 were left out" in said.err
        written.append([file.stat().st_mtime_ns for file in sorted((tmp_path / "caches").iterdir())])
    assert len(written[0]) == 2 and written[0] == written[1]

    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(scenes[0].cases[3].trajectory.tolist()))
    bare = tmp_path / "bare"
    bare.mkdir()
    for scene in scenes:
        save_scene(scene, bare / f"{scene.scene_id}.json")
    for paths in ([str(tmp_path / "caches")], [str(bare), "--caches", str(tmp_path / "caches")]):
        assert main(["score", *paths, "--trajectory", str(plan)]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["scene_id"] for line in lines] == ["g021_lead", "g030_pedestrian"]
        expected = scenes[0].cases[3].expected
        assert expected is not None
        assert [lines[0][name] for name in COLUMNS] == pytest.approx([expected[name] for name in COLUMNS], abs=1e-6)
