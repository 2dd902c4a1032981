"""Caches that NAVSIM wrote: imported once, scored like the original; what is no such cache runs nothing."""

from __future__ import annotations

import lzma
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely

from nemo_mtdrive.driving.scene import SceneError, load_scene
from nemo_mtdrive.pdm.agent import PDMAgent
from nemo_mtdrive.pdm.imported import ImportedCaches, load_cache, save_cache
from nemo_mtdrive.pdm.navsim_cache import _ring, read_metric_cache
from nemo_mtdrive.pdm.records import PickleRefused
from nemo_mtdrive.pdm.rings import inside_ring, make_rings
from nemo_mtdrive.types import SCORE_NAMES
from tests.pdm import navsim_format

GOLDEN = Path(__file__).parent.parent / "golden" / "pdm"
NAMES = ("g000_straight", "g021_lead", "g030_pedestrian", "g037_static_barrier", "g011_intersection_left",
         "g080_in_carpark", "g014_intersection_straight", "g026_cut_in")


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_cache_scores_as_the_original(name: str, tmp_path: Path) -> None:
    scene = load_scene(GOLDEN / f"{name}.json")
    written = navsim_format.write(tmp_path, scene, as_array=name == NAMES[0], protocol=4 if name == NAMES[1] else 5)
    save_cache(read_metric_cache(written), tmp_path / f"{scene.scene_id}.npz")
    cache = load_cache(tmp_path / f"{scene.scene_id}.npz")
    assert cache.scene_id == scene.scene_id
    agent = PDMAgent("oracle", 1, ImportedCaches(tmp_path).prepare)
    bare = replace(cache.scene(), cases=())  # nothing but what the cache holds: no map, no route
    assert bare.map.lanes == () and bare.route_roadblock_ids == ()
    plans = np.stack([case.trajectory for case in scene.cases])
    reviews, ours = agent.review(bare, plans), PDMAgent("oracle", 1).review(scene, plans)
    for case, review, own in zip(scene.cases, reviews, ours, strict=True):
        assert case.expected is not None
        for score in SCORE_NAMES:
            assert review.scores[score] == pytest.approx(case.expected[score], abs=1e-6), (case.name, score)
        assert [(v["metric"], v["point"]) for v in review.violations] == [(v["metric"], v["point"]) for v in own.violations]
    assert reviews[0].feedback == ours[0].feedback


def test_kinematic_moves_the_boxes_of_a_cache(tmp_path: Path) -> None:
    scene = load_scene(GOLDEN / "g021_lead.json")
    save_cache(read_metric_cache(navsim_format.write(tmp_path, scene)), tmp_path / f"{scene.scene_id}.npz")
    plans = np.stack([case.trajectory for case in scene.cases])
    imported = PDMAgent("kinematic", 1, ImportedCaches(tmp_path).prepare).review(scene, plans)
    ours = PDMAgent("kinematic", 1).review(scene, plans)
    for got, want in zip(imported, ours, strict=True):
        assert got.scores == pytest.approx(want.scores, abs=1e-6)


def test_scenes_without_a_cache_are_prepared_by_us(tmp_path: Path) -> None:
    first, other = (load_scene(GOLDEN / f"{name}.json") for name in NAMES[:2])
    save_cache(read_metric_cache(navsim_format.write(tmp_path, first)), tmp_path / f"{first.scene_id}.npz")
    plans = np.stack([case.trajectory for case in other.cases])
    got = PDMAgent("oracle", 1, ImportedCaches(tmp_path).prepare).review(other, plans)
    assert [r.scores for r in got] == [r.scores for r in PDMAgent("oracle", 1).review(other, plans)]
    with pytest.raises(SceneError, match="no imported metric caches"):
        ImportedCaches(tmp_path / "log")


class _Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["system", "eval", "getattr", "nested", "numpy", "dotted"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "it-ran"
    data = {
        "system": pickle.dumps(_Command(mark)),
        "nested": pickle.dumps({"observation": [_Command(mark)]}),
        "eval": b"cbuiltins\neval\n(V__import__('os').mkdir('" + str(mark).encode() + b"')\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cnuplan.common.actor_state.agent\nAgent\nV__init__\ntR.",
        "numpy": b"cnumpy.testing._private.utils\nrunstring\n(Vx\n}tR.",
        "dotted": b"\x80\x04\x8c\x07shapely\x8c\x0cio.os.system\x93.",
    }[kind]
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(lzma.compress(data))
    with pytest.raises(PickleRefused, match="metric_cache.pkl: it asks for .*nothing was run") as caught:
        read_metric_cache(path)
    assert "\n" not in str(caught.value) and not mark.exists()


def test_stand_ins_keep_nothing_from_one_file_to_the_next(tmp_path: Path) -> None:
    """A pickle may set attributes of a class that it names; they must be gone with it."""
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(lzma.compress(
        b"\x80\x04cnuplan.common.actor_state.agent\nAgent\n(N}Vx\nVpoison\nst\x62."))
    with pytest.raises(PickleRefused):
        read_metric_cache(path)
    scene = load_scene(GOLDEN / f"{NAMES[0]}.json")
    assert read_metric_cache(navsim_format.write(tmp_path / "next", scene)).scene_id == scene.scene_id


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.97])
def test_a_truncated_file_is_one_line(tmp_path: Path, kept: float) -> None:
    written = navsim_format.write(tmp_path, load_scene(GOLDEN / f"{NAMES[0]}.json"))
    whole = written.read_bytes()
    written.write_bytes(whole[:int(kept * len(whole))])
    with pytest.raises(PickleRefused, match="metric_cache.pkl: .*cut short") as caught:
        read_metric_cache(written)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "message"), [
    (b"not lzma at all", "not a whole NAVSIM metric cache"),
    (lzma.compress(b"not a pickle"), "not a whole NAVSIM metric cache"),
    (lzma.compress(pickle.dumps({"observation": 3})), "it has no trajectory, ego_state, observation"),
    (lzma.compress(pickle.dumps(np.array([None, 2], dtype=object))), "it has no trajectory"),
    (lzma.compress(pickle.dumps([1.0] * 9)[:-20]), "not a whole NAVSIM metric cache"),
])
def test_what_is_no_cache_is_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(data)
    with pytest.raises(PickleRefused, match=message) as caught:
        read_metric_cache(path)
    assert "\n" not in str(caught.value)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_mtdrive.pdm.records.LARGEST_BYTES", 1 << 20)
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(lzma.compress(bytes(1 << 22)))
    with pytest.raises(PickleRefused, match="unpacks to more than 1 MB"):
        read_metric_cache(path)


def test_a_broken_imported_cache_is_one_line(tmp_path: Path) -> None:
    scene = load_scene(GOLDEN / f"{NAMES[0]}.json")
    path = tmp_path / "a.npz"
    save_cache(read_metric_cache(navsim_format.write(tmp_path, scene)), path)
    whole = path.read_bytes()
    for data in (whole[:len(whole) // 2], b"", b"{}"):
        path.write_bytes(data)
        with pytest.raises(SceneError, match="a.npz: not an imported metric cache") as caught:
            load_cache(path)
        assert "\n" not in str(caught.value)
    np.savez(path, header=np.frombuffer(b'{"format": "other/9"}', dtype=np.uint8))
    with pytest.raises(SceneError, match="format 'other/9'"):
        load_cache(path)
    np.savez(path, header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SceneError, match="not an imported metric cache"):
        load_cache(path)


def test_holes_and_parts_are_kept_in_one_ring() -> None:
    square = shapely.box(0, 0, 10, 10).difference(shapely.box(4, 4, 6, 6))
    both = shapely.union(square, shapely.box(20, 0, 25, 5))
    points = np.random.default_rng(3).uniform(-1, 26, (400, 2))
    rings = make_rings([_ring(both)])
    found = [inside_ring(rings, 0, x, y) for x, y in points]
    assert found == shapely.contains_xy(both, points[:, 0], points[:, 1]).tolist()
