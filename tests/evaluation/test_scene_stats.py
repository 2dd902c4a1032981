"""Statistics of scenes: counts by hand, the table, the picture, and a source scored for real."""

from __future__ import annotations

import io
import json
from pathlib import Path

from nemo_mtdrive.driving.sources.pictures import read_picture
from nemo_mtdrive.evaluation.scene_charts import draw_stats
from nemo_mtdrive.evaluation.scene_stats import SceneRow, count_scenes, stats_table, summarise
from nemo_mtdrive.telemetry.progress import open_progress


def score(pdms: float, **others: float) -> dict[str, float]:
    return {"PDMS": pdms, "NC": 1.0, "DAC": 1.0, "TTC": 1.0, "EP": 0.5, "C": 1.0, **others}


ROWS = [
    SceneRow("road/free", "GO STRAIGHT", 5.0, {"vehicle": 3},
             {"recorded": score(1.0), "constant_velocity": score(0.0, NC=0.0)}),
    SceneRow("road/free", "GO STRAIGHT", 12.0, {"vehicle": 1, "pedestrian": 2},
             {"recorded": score(0.8), "constant_velocity": score(0.5, TTC=0.0)}),
    SceneRow("bend/lead", "TURN LEFT", 21.0, {}, {"recorded": score(0.0, DAC=0.0), "constant_velocity": score(1.0)}),
]


def test_counts_by_hand() -> None:
    stats = summarise(ROWS, {"p9": "broken"})
    assert stats["scenes"] == 3 and stats["skipped"] == {"p9": "broken"}
    assert stats["kinds"] == {"bend/lead": 1, "road/free": 2}
    assert stats["commands"] == {"GO STRAIGHT": 2, "TURN LEFT": 1}
    assert stats["speed_mps"]["mean"] == 12.667 and stats["speed_mps"]["quantiles"]["0.5"] == 12.0
    assert {low: count for low, count in stats["speed_mps"]["histogram"].items() if count} == {"4": 1, "12": 1, "20": 1}
    assert stats["tracks_per_scene"] == {"pedestrian": 0.667, "vehicle": 1.333}
    recorded, constant = stats["drivers"]["recorded"], stats["drivers"]["constant_velocity"]
    assert recorded["PDMS"] == 0.6 and recorded["NC_and_DAC"] == 0.6667 and recorded["failing"]["DAC"] == 0.3333
    assert constant["PDMS"] == 0.5 and constant["failing"] == {"NC": 0.3333, "DAC": 0.0, "TTC": 0.3333, "C": 0.0}
    assert stats["by_kind"]["road/free"] == {"recorded": 0.9, "constant_velocity": 0.25}


def test_table_and_picture(tmp_path: Path) -> None:
    stats = summarise(ROWS, {})
    text = stats_table(stats)
    assert "3 scenes, 0 skipped" in text and "road/free" in text and "66.7" in text and "TURN LEFT" in text
    draw_stats(stats, tmp_path / "stats.png")
    picture = read_picture(tmp_path / "stats.png")
    assert picture.shape[0] > 300 and picture.std() > 10
    unscored = summarise([SceneRow("k", "none", 1.0, {})], {})
    assert "drivers" not in unscored and "constant" not in stats_table(unscored)
    draw_stats(unscored, tmp_path / "unscored.png")
    assert read_picture(tmp_path / "unscored.png").shape[1] < picture.shape[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["stats.png", "unscored.png"]


def test_a_source_is_scored() -> None:
    stats = count_scenes("procedural://?count=4&seed=3", True, 1, open_progress(io.StringIO(), plain_every_s=60.0))
    assert stats["scenes"] == stats["drivers"]["recorded"]["scenes"] == 4
    assert stats["drivers"]["recorded"]["NC_and_DAC"] is not None and json.loads(json.dumps(stats)) == stats
