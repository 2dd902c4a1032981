"""Summaries of hand-made episodes, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from nemo_mtdrive.driving.scene import Scene
from nemo_mtdrive.evaluation.baselines import DRIVERS, summarise_drivers
from nemo_mtdrive.evaluation.evaluate import Bootstrap, SceneFacts, confidence_interval, summarise
from nemo_mtdrive.pdm.review import Review
from nemo_mtdrive.telemetry.metrics import flatten
from nemo_mtdrive.types import SCORE_NAMES
from tests.evaluation.hand_episodes import make_episode, make_turn

NO_INTERVALS = Bootstrap(0, 0)


def straight(speed: float) -> np.ndarray:
    return np.column_stack([speed * 0.5 * np.arange(1, 9), np.zeros((8, 2))])


def test_an_episode_counts_once_however_many_turns_it_had() -> None:
    long = make_episode("a", *(make_turn(j, 0.1 * j) for j in range(6)))
    short = make_episode("b", make_turn(0, 1.0))
    summary = summarise([long, short], facts={}, bootstrap=NO_INTERVALS)
    assert summary["turn_1"]["PDMS"] == 50.0
    assert summary["last_turn"]["PDMS"] == 75.0
    assert summary["gain"]["PDMS"] == 25.0
    assert summary["by_turn"] == {"1": 50.0, "2": 55.0, "3": 60.0, "4": 65.0, "5": 70.0, "6": 75.0}
    assert summary["turns"] == {"mean": 3.5, "counts": {"1": 1, "6": 1}}
    assert (summary["scenes"], summary["episodes"], summary["invalid"]) == (2, 2, 0)


def test_unparseable_answers_are_zero_and_counted() -> None:
    episodes = [make_episode("a", make_turn(0, None), make_turn(1, 0.8, nc=0.5)),
                make_episode("b", make_turn(0, 0.6)), make_episode("c")]
    summary = summarise(episodes, facts={}, bootstrap=NO_INTERVALS)
    first, last = summary["turn_1"], summary["last_turn"]
    assert (first["PDMS"], first["NC"], first["C"], first["DDC"]) == (20.0, 33.3333, 33.3333, 33.3333)
    assert (first["parse_rate"], first["unparsed"], first["collision_rate"]) == (33.3333, 2, 0.0)
    assert (last["PDMS"], last["NC"], last["EP"]) == (46.6667, 50.0, 46.6667)
    assert (last["parse_rate"], last["unparsed"], last["collision_rate"]) == (66.6667, 1, 50.0)


def test_invalid_episodes_are_left_out_not_scored_zero() -> None:
    lost = make_episode("b", make_turn(0, 0.0), valid=False)
    summary = summarise([make_episode("a", make_turn(0, 1.0)), lost], facts={}, bootstrap=NO_INTERVALS)
    assert summary["last_turn"]["PDMS"] == 100.0
    assert (summary["episodes"], summary["invalid"], summary["scenes"]) == (1, 1, 1)
    nothing = summarise([lost], facts={}, bootstrap=Bootstrap(10, 0))
    assert nothing["last_turn"]["PDMS"] is None and nothing["gain"] == {"PDMS": None, "PDMS_ci95": None}
    assert nothing["scenes"] == 0 and nothing["by_turn"] == {}
    assert math.isnan(flatten({"turn_1": {"PDMS": nothing["turn_1"]["PDMS"]}})["turn_1/PDMS"])


def test_errors_against_the_human_where_there_is_one() -> None:
    facts = {"a": SceneFacts("lead", straight(10.0)), "b": SceneFacts("lead", None),
             "c": SceneFacts("curve", straight(8.0))}
    episodes = [make_episode(name, make_turn(0, 1.0, trajectory=straight(8.0))) for name in "abc"]
    row = summarise([*episodes, make_episode("a", make_turn(0, None), index=1)], facts=facts, bootstrap=NO_INTERVALS)
    # 2 m/s apart: 1, 2, ... 8 m, so ADE 4.5 and FDE 8 on scene a, 0 on scene c
    assert (row["last_turn"]["ADE"], row["last_turn"]["FDE"], row["last_turn"]["human_known"]) == (2.25, 4.0, 2)
    assert row["kinds"]["curve"]["last_turn"]["ADE"] == 0.0 and row["kinds"]["curve"]["scenes"] == 1
    assert row["kinds"]["lead"]["turn_1"]["PDMS"] == 66.6667 and row["kinds"]["lead"]["scenes"] == 2


def test_the_order_of_episodes_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    episodes = [make_episode(f"s{i // 3}", make_turn(0, float(rng.random())), index=i % 3) for i in range(30)]
    bootstrap = Bootstrap(200, 5)
    summary = summarise(episodes, facts={}, bootstrap=bootstrap)
    assert summary == summarise(episodes[::-1], facts={}, bootstrap=bootstrap)


def test_intervals_are_seeded_and_draw_whole_scenes() -> None:
    values = np.array([0.0, 0.0, 100.0, 100.0])
    by_scene = confidence_interval(values, ["a", "a", "b", "b"], Bootstrap(2000, 3))
    assert by_scene == [0.0, 100.0] == confidence_interval(values, ["a", "a", "b", "b"], Bootstrap(2000, 3))
    assert confidence_interval(values, list("abcd"), Bootstrap(2000, 3)) == [0.0, 100.0]
    assert confidence_interval(values, ["a"] * 4, Bootstrap(2000, 3)) is None
    assert confidence_interval(values, list("abcd"), Bootstrap(0, 3)) is None
    normal = np.random.default_rng(0).normal(50.0, 10.0, 400)
    interval = confidence_interval(normal, [f"s{i}" for i in range(400)], Bootstrap(2000, 0))
    assert interval is not None
    half = 1.96 * normal.std() / 20.0
    assert interval == pytest.approx([normal.mean() - half, normal.mean() + half], abs=0.1)


class SpeedReviewer:
    """Scores a trajectory by its length: 40 m is PDMS 1."""

    def review(self, scene: Scene, trajectories: np.ndarray) -> Sequence[Review]:
        return [Review(dict.fromkeys(SCORE_NAMES, min(1.0, path[-1, 0] / 40.0)), [], "") for path in trajectories]


def test_drivers_without_a_model_give_rows_of_the_same_form(generated: Scene) -> None:
    rows = summarise_drivers([generated], SpeedReviewer(), drivers=DRIVERS, bootstrap=NO_INTERVALS)
    assert generated.future is not None
    assert list(rows) == ["constant_velocity", "human"]
    velocity = float(generated.ego.velocity[0])
    assert rows["constant_velocity"]["turn_1"]["PDMS"] == pytest.approx(100 * min(1.0, velocity * 4.0 / 40.0), abs=1e-4)
    assert rows["human"]["last_turn"]["PDMS"] == pytest.approx(100 * min(1.0, generated.future[-1, 0] / 40.0), abs=1e-4)
    assert rows["human"]["last_turn"]["ADE"] == 0.0 and rows["human"]["scenes"] == 1
    model = summarise([make_episode("a", make_turn(0, 1.0))], facts={}, bootstrap=NO_INTERVALS)
    assert model.keys() == rows["human"].keys() and model["turn_1"].keys() == rows["human"]["turn_1"].keys()
