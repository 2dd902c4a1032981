"""Scene sources: generated, files, and the errors a user meets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.driving.command import generate_scenes, show_scene
from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.driving.scene import SceneError, scene_to_json
from nemo_mtdrive.driving.sources import open_scenes, parse_address
from nemo_mtdrive.driving.sources.files import INDEX
from nemo_mtdrive.driving.sources.pictures import read_picture


def write(out: Path, count: int, seed: int = 5, workers: int = 1, **changes: int) -> list[int]:
    done: list[int] = []
    size = {"width": 224, "height": 112} | changes
    generate_scenes(count, seed, out, size["width"], size["height"], {}, workers, done.append)
    return done


def test_procedural() -> None:
    source = open_scenes("procedural://?count=3&seed=11", 224, 112)
    assert list(source.ids()) == ["p0000011", "p0000012", "p0000013"]
    scene = source.load("p0000012")
    assert scene is source.load("p0000012") and scene.drivable
    assert scene.camera is not None and (scene.camera.width, scene.camera.height) == (224, 112)
    bare = scene_to_json(generate(12, MIXTURE))
    assert {k: v for k, v in scene_to_json(scene).items() if k != "camera"} == bare
    assert source.image("p0000012").shape == (112, 224, 3)
    with pytest.raises(KeyError):
        source.load("p0000014")


def test_files_hold_what_was_generated(tmp_path: Path) -> None:
    assert sum(write(tmp_path, 3)) == 3
    files, generated = open_scenes(f"files://{tmp_path}"), open_scenes("procedural://?count=3&seed=5", 224, 112)
    assert list(files.ids()) == list(generated.ids())
    for name in files.ids():
        assert scene_to_json(files.load(name)) == scene_to_json(generated.load(name))
        np.testing.assert_array_equal(files.image(name), generated.image(name))
        assert files.load(name).drivable
    assert len(open_scenes(f"files://{tmp_path}?count=2", 224, 112).ids()) == 2
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_generating_again_keeps_whole_files(tmp_path: Path) -> None:
    write(tmp_path, 2)
    kept = (tmp_path / "p0000005.json").stat().st_mtime_ns
    (tmp_path / "p0000006.json").unlink()
    assert write(tmp_path, 3) == [1, 2]
    assert (tmp_path / "p0000005.json").stat().st_mtime_ns == kept
    assert len(list(tmp_path.glob("*.json"))) == 3
    with pytest.raises(SceneError, match="another folder"):
        write(tmp_path, 3, width=448)


def test_worker_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", 2)
    write(tmp_path / "two", 2, workers=2)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(names) == 6 and names == sorted(file.name for file in (tmp_path / "two").iterdir())
    for file in (file for file in sorted((tmp_path / "one").iterdir()) if file.name != INDEX):  # it holds times
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_errors_say_what_to_set(tmp_path: Path) -> None:
    for source, path, word in (("files", tmp_path / "none", "no such folder"), ("files", tmp_path, "no scene files"),
                               ("av2", tmp_path / "none", "no such folder"), ("av2", tmp_path, "no AV2 log"),
                               ("movies", tmp_path, "procedural://, files://, av2://")):
        with pytest.raises(SceneError, match=word) as caught:
            open_scenes(f"{source}://{path}", 224, 112)
        assert "\n" not in str(caught.value)
    with pytest.raises(SceneError, match="count=0"):
        open_scenes("procedural://", 224, 112)


def test_broken_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    source = open_scenes(f"files://{tmp_path}", 448, 224)
    with pytest.raises(SceneError, match="224 x 112, wanted 448 x 224"):
        source.image("p0000005")
    (tmp_path / "p0000005.png").write_bytes(b"no picture")
    with pytest.raises(SceneError, match=r"p0000005.png: not a picture"):
        open_scenes(f"files://{tmp_path}").image("p0000005")
    (tmp_path / "p0000005.json").write_text("{")
    with pytest.raises(SceneError, match=r"p0000005.json"):
        open_scenes(f"files://{tmp_path}").load("p0000005")


def test_show(tmp_path: Path) -> None:
    write(tmp_path, 1)
    show_scene(str(tmp_path / "p0000005.json"), None, tmp_path / "shown.png")
    picture = read_picture(tmp_path / "shown.png")
    assert picture.shape[1] == 1600 and picture.shape[0] > 800 and picture.std() > 20
    data = json.loads((tmp_path / "p0000005.json").read_text())
    data["camera"] = None
    (tmp_path / "bare.json").write_text(json.dumps(data))
    show_scene(str(tmp_path / "bare.json"), None, tmp_path / "bare.png")
    assert read_picture(tmp_path / "bare.png").shape[1] == 1600


def test_addresses(tmp_path: Path) -> None:
    at = parse_address("navsim:///data/open%20scene?split=mini&count=3")
    assert (at.scheme, at.path, at.number("count", 0)) == ("navsim", "/data/open scene", 3)
    assert parse_address(str(at)) == at
    weighted = parse_address("procedural://?kinds=curve/lead:2,crossing&commands=TURN%20LEFT:1,GO+STRAIGHT:0.5")
    assert weighted.weights("kinds") == {"curve/lead": 2.0, "crossing": 1.0}
    assert weighted.weights("commands") == {"TURN LEFT": 1.0, "GO STRAIGHT": 0.5}
    for text, said in (("scenes", "not SCHEME://PATH"),
                       ("movies://x", "unknown kind of source 'movies'; set one of procedural://"),
                       ("procedural://?count=2&speed=3", "unknown parameter 'speed'; set one of count, seed"),
                       ("procedural://?count=x", "got count=x, set it to a whole number"),
                       ("procedural://?count", "set it to name=value"), ("procedural://?count=1&count=2", "given twice"),
                       ("procedural://here?count=1", "have no folder"),
                       ("procedural://?count=1&kinds=curve:x", "set it to NAME or NAME:WEIGHT"),
                       ("procedural://?count=1&difficulty=2", "got difficulty=2, set it to a number from 0 to 1"),
                       ("procedural://?count=1&width=5", "set both sides or none"),
                       ("procedural://?count=1&split=holdout", "holdout"),
                       ("procedural://?count=2&split=train&seed=999999999", "scene number 1000000000"),
                       ("files://", "(empty path)")):
        with pytest.raises(SceneError) as caught:
            open_scenes(text)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_splits_share_no_scene_and_wishes_reach_the_generator() -> None:
    ids = [set(open_scenes(f"procedural://?count=50&split={split}").ids()) for split in ("train", "held_out", "test")]
    assert len(set.union(*ids)) == 150
    source = open_scenes("procedural://?count=3&seed=1&kinds=curve/lead:1&commands=TURN LEFT:1&difficulty=0.25", 28, 28)
    for name in source.ids():
        scene = source.load(name)
        assert scene.kind == "curve/lead" and scene.extra["generator"]["difficulty"] == 0.25
