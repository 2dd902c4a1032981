"""Sets of scenes on disk: both layouts hold the same, killed writers leave only whole files, broken scenes are named."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nemo_mtdrive.driving import writing
from nemo_mtdrive.driving.command import validate_scenes
from nemo_mtdrive.driving.packed import as_lists, pack, unpack
from nemo_mtdrive.driving.scene import Scene, SceneError, load_scene, save_scene, scene_to_json
from nemo_mtdrive.driving.sources import open_scenes, parse_address
from nemo_mtdrive.driving.sources.files import INDEX
from nemo_mtdrive.driving.sources.shards import SceneShards, pack_scene, read_shard, shard_file, write_index, write_shard
from nemo_mtdrive.driving.writing import Layout, write_scenes

SIZE = (224, 112)
GOLDEN = Path(__file__).parents[1] / "golden" / "pdm" / "g014_intersection_straight.json"


def write(out: Path, count: int = 7, *, kind: str = "shards", images: bool = True, size: int = 3, workers: int = 1,
          ) -> dict[str, str]:
    address = parse_address(f"procedural://?count={count}&seed=5")
    return write_scenes(address, out, Layout(kind, images, size, *SIZE), workers, lambda count: None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scenes in three shards."""
    folder = tmp_path_factory.mktemp("shards")
    assert write(folder) == {}
    return folder


def copy(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_packing_keeps_every_number(scenes: list[Scene]) -> None:
    for data in [scene_to_json(scene) for scene in scenes[:8]] + [json.loads(GOLDEN.read_text())]:
        plain = json.loads(json.dumps(data))
        packed = pack(plain)
        assert as_lists(unpack(packed)) == plain
        assert len(packed) < len(json.dumps(plain, separators=(",", ":"))) / 2.5


def test_packing_far_from_the_origin_and_too_far() -> None:
    data = json.loads(GOLDEN.read_text())
    data["tracks"][0]["states"][0][1] = 664_430.123456
    assert as_lists(unpack(pack(data)))["tracks"][0]["states"][0][1] == 664_430.123456
    data["tracks"][0]["states"][0][1] = 1e13
    with pytest.raises(SceneError, match="want at most"):
        pack(data)


def test_damaged_bytes_are_an_error_and_never_code() -> None:
    packed = pack(json.loads(GOLDEN.read_text()))
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(packed)
        damaged[random.integers(len(packed))] ^= 1 << int(random.integers(8))
        cut = bytes(damaged[: random.integers(len(packed))]) if random.random() < 0.5 else bytes(damaged)
        try:
            unpack(cut)
        except SceneError:
            continue
    with pytest.raises(SceneError):
        unpack(b"\xff\xff\xff\xff" + packed[4:])


def test_both_layouts_hold_the_same(shards: Path, tmp_path: Path) -> None:
    write(tmp_path, kind="json")
    packed, files = open_scenes(f"files://{shards}"), open_scenes(f"files://{tmp_path}")
    assert isinstance(packed, SceneShards) and list(packed.ids()) == list(files.ids()) and len(packed.ids()) == 7
    for name in packed.ids():
        assert scene_to_json(packed.load(name)) == scene_to_json(files.load(name))
        np.testing.assert_array_equal(packed.image(name), files.image(name))
    assert len(open_scenes(f"files://{shards}?count=4").ids()) == 4
    with pytest.raises(KeyError):
        packed.load("p9999999")
    with pytest.raises(SceneError, match="224 x 112, wanted 448 x 224"):
        open_scenes(f"files://{shards}", 448, 224).image("p0000005")


def test_shards_turn_into_files_and_back(shards: Path, tmp_path: Path) -> None:
    to_files = parse_address(f"files://{shards}")
    write_scenes(to_files, tmp_path / "files", Layout("json", width=224, height=112), 1, lambda count: None)
    back = parse_address(f"files://{tmp_path / 'files'}")
    write_scenes(back, tmp_path / "back", Layout("shards", True, 3, *SIZE), 1, lambda count: None)
    for file in sorted(shards.glob("shard-*")):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_workers_and_repeats_write_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    write(tmp_path, workers=2)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert files == {file.name: file.read_bytes() for file in shards.iterdir()}
    before = (tmp_path / shard_file(0)).stat().st_mtime_ns
    (tmp_path / shard_file(1)).unlink()
    write(tmp_path)
    assert files == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert (tmp_path / shard_file(0)).stat().st_mtime_ns == before
    write(tmp_path, 8)  # the last shard gets one scene more, the others stay
    assert len(open_scenes(f"files://{tmp_path}").ids()) == 8 and (tmp_path / shard_file(0)).stat().st_mtime_ns == before


def test_a_folder_keeps_to_one_set(shards: Path, tmp_path: Path) -> None:
    copy(shards, tmp_path)
    for changes in ({"size": 4}, {"images": False}, {"kind": "json"}):
        with pytest.raises(SceneError, match="another folder"):
            write(tmp_path, **changes)
    for layout in (Layout("movies"), Layout(shard_size=0)):
        with pytest.raises(SceneError, match="set the kind to one of json, shards"):
            write_scenes(parse_address("procedural://?count=1"), tmp_path, layout, 1, lambda count: None)


def test_scenes_without_pictures(tmp_path: Path) -> None:
    write(tmp_path, 2, images=False)
    source = open_scenes(f"files://{tmp_path}")
    assert not source.load("p0000005").drivable
    with pytest.raises(SceneError, match="without a picture"):
        source.image("p0000005")
    assert validate_scenes([tmp_path]).problems == {}


def test_a_killed_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nemo_mtdrive.cli", "scenes", "generate", "--count", "4000", "--seed", "5", "--out",
               str(tmp_path), "--format", "shards", "--shard-size", "3", "--width", "224", "--height", "112",
               "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60.0
    while len(list(tmp_path.glob("shard-*.arrow"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = sorted(tmp_path.glob("shard-*.arrow"))
    assert len(whole) >= 3 and not (tmp_path / "index.arrow").exists()
    for file in whole:
        assert read_shard(file).num_rows == 3
    opened = open_scenes(f"files://{tmp_path}")
    assert len(opened.ids()) >= 9 and opened.skipped == {}
    assert scene_to_json(opened.load("p0000005")) == scene_to_json(
        open_scenes("procedural://?count=1&seed=5", *SIZE).load("p0000005"))


def test_opening_reads_the_index_alone(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(shards, tmp_path)
    monkeypatch.setattr("nemo_mtdrive.driving.sources.shards.read_shard", lambda path: pytest.fail(f"read {path}"))
    source = open_scenes(f"files://{tmp_path}")
    assert len(source.ids()) == 7


def test_a_stale_or_broken_index_is_not_believed(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy(shards, tmp_path)
    (tmp_path / shard_file(2)).unlink()
    assert len(open_scenes(f"files://{tmp_path}").ids()) == 6
    (tmp_path / "index.arrow").write_bytes(b"no index")
    with caplog.at_level(logging.WARNING):
        assert len(open_scenes(f"files://{tmp_path}").ids()) == 6
    assert "index.arrow: not an index of scenes" in caplog.text
    (tmp_path / "index.arrow").unlink()
    assert write_index(tmp_path) == 6
    (tmp_path / shard_file(7)).write_bytes((tmp_path / shard_file(0)).read_bytes())
    with pytest.raises(SceneError, match="more than once"):
        write_index(tmp_path)


def test_a_cut_shard_is_reported_and_skipped(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy(shards, tmp_path)
    file = tmp_path / shard_file(1)
    file.write_bytes(file.read_bytes()[:-500])
    with caplog.at_level(logging.WARNING):
        source = open_scenes(f"files://{tmp_path}")
    assert list(source.ids()) == ["p0000005", "p0000006", "p0000007", "p0000011"]
    assert "shard-00001.arrow: not a shard of scenes, or not a whole one" in source.skipped["shard-00001.arrow"]
    assert "shard skipped" in caplog.text
    assert list(validate_scenes([tmp_path]).problems) == ["shard-00001.arrow"]
    pa.ipc.new_file(str(file), pa.schema([("other", pa.string())])).close()
    with pytest.raises(SceneError, match="its columns are other"):
        read_shard(file)


def test_a_changed_byte_is_found(shards: Path, tmp_path: Path) -> None:
    copy(shards, tmp_path)
    file = tmp_path / shard_file(0)
    packed = read_shard(file).column(5)[1].as_py()
    file.write_bytes(file.read_bytes().replace(packed, packed[:-1] + bytes([packed[-1] ^ 1])))
    source = open_scenes(f"files://{tmp_path}")
    source.load("p0000005")
    with pytest.raises(SceneError, match=r"shard-00000.arrow: row 1, scene p0000006: the checksum does not fit"):
        source.load("p0000006")
    assert list(validate_scenes([tmp_path]).problems) == ["p0000006"]


def test_one_broken_file_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 3, kind="json")
    file = tmp_path / "p0000006.json"
    data = json.loads(file.read_text())
    data["tracks"] = [{"token": "t", "type": "vehicle", "size": [4.0, -2.0, 1.5], "states": [[0, 1, 2, 0, 0, 0]]}]
    file.write_text(json.dumps(data))
    said = f"{file}: tracks[0].size[1]: got -2.0, want a number above 0"
    with caplog.at_level(logging.WARNING):
        source = open_scenes(f"files://{tmp_path}")
    assert list(source.ids()) == ["p0000005", "p0000007"] and source.skipped == {"p0000006.json": said}
    assert f"scene skipped: {said}" in caplog.text
    entries = {entry["file"]: entry["problem"] for entry in map(json.loads, (tmp_path / INDEX).read_text().splitlines())}
    assert entries == {"p0000005.json": "", "p0000006.json": said, "p0000007.json": ""}
    checked = validate_scenes([tmp_path, GOLDEN])
    assert (checked.scenes, checked.problems) == (4, {str(file): said})
    (tmp_path / "p0000007.png").write_bytes(b"no picture")
    assert "p0000007.png: not a picture" in validate_scenes([tmp_path]).problems[str(tmp_path / "p0000007.json")]
    with pytest.raises(SceneError, match="no such scene file"):
        validate_scenes([tmp_path / "none"])


def test_a_folder_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3, kind="json")
    monkeypatch.setattr("nemo_mtdrive.driving.sources.files.load_scene", lambda path: pytest.fail(f"read {path}"))
    assert len(open_scenes(f"files://{tmp_path}").ids()) == 3
    monkeypatch.undo()
    with (tmp_path / INDEX).open("a") as file:  # a writer that was killed within a line
        file.write('{"file": "p00')
    assert len(open_scenes(f"files://{tmp_path}").ids()) == 3
    (tmp_path / "p0000006.png").unlink()
    os.utime(tmp_path / "p0000006.json")
    assert "want a picture beside" in open_scenes(f"files://{tmp_path}").skipped["p0000006.json"]
    scene = load_scene(tmp_path / "p0000005.json")
    save_scene(replace(scene, camera=None), tmp_path / "other.json")
    assert "want the file's name 'other'" in open_scenes(f"files://{tmp_path}").skipped["other.json"]


@pytest.mark.parametrize("kind", ["json", "shards"])
def test_what_a_source_breaks_is_left_out_and_said(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    source = open_scenes("procedural://?count=5&seed=5", *SIZE)
    source.load("p0000007").ego.rear_axle_pose[1] = np.nan
    monkeypatch.setattr(writing, "open_scenes", lambda *arguments: source)
    with caplog.at_level(logging.WARNING):
        skipped = write(tmp_path, 5, kind=kind)
    assert list(skipped) == ["p0000007"] and "ego.rear_axle_pose[1]: got NaN" in skipped["p0000007"]
    assert "scene skipped: p0000007" in caplog.text
    opened = open_scenes(f"files://{tmp_path}")
    assert len(opened.ids()) == 4 and opened.skipped == skipped
    assert validate_scenes([tmp_path]).problems == skipped
    assert write(tmp_path, 5, kind=kind) == skipped  # it stays known, and nothing is written twice


def test_equal_rows_give_equal_shards(scenes: list[Scene], tmp_path: Path) -> None:
    rows = [pack_scene(scene, None) for scene in scenes[:3]]
    for name in ("a", "b"):
        write_shard(tmp_path / name, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
