"""Rows held against each other, turns enough, verdicts of feedback, tables with intervals: worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.evaluation.evaluate import Bootstrap, SceneFacts
from nemo_mtdrive.evaluation.grids import Cell, Grid
from nemo_mtdrive.evaluation.outputs import by_turn, knees
from nemo_mtdrive.evaluation.paired import Side, by_kind, by_metric, compare, verdict
from nemo_mtdrive.evaluation.sweep import sweep
from nemo_mtdrive.evaluation.verdicts import verdicts
from tests.evaluation.hand_episodes import make_episode, make_turn

BOOTSTRAP = Bootstrap(500, 0)


def side(label: str, scores: dict[str, float], kinds: dict[str, str] | None = None) -> Side:
    facts = {name: SceneFacts((kinds or {}).get(name, "road"), None) for name in scores}
    return Side(label, [make_episode(name, make_turn(0, score)) for name, score in scores.items()], facts)


def test_differences_are_of_the_same_scenes() -> None:
    first = side("old", {f"s{i}": 0.5 for i in range(10)} | {"mine": 1.0}, {"s0": "bend", "s1": "bend"})
    second = side("new", {f"s{i}": 0.6 if i < 8 else 0.5 for i in range(10)} | {"other": 0.0, "more": 0.0})
    second = Side("new", second.episodes, {})
    found = compare(first, second, BOOTSTRAP)
    assert (found["only_first"], found["only_second"]) == (1, 2)
    pdms = found["all"]["PDMS"]
    assert (pdms["first"], pdms["second"], pdms["difference"]) == (50.0, 58.0, 8.0)
    assert pdms["ci95"][0] > 4.0 and pdms["ci95"][1] <= 10.0
    assert [found["all"][key] for key in ("scenes", "wins", "losses", "ties")] == [10, 8, 0, 2]
    assert found["all"]["sign_test_p"] == pytest.approx(2 * 0.5**8)
    assert found["kinds"]["bend"]["scenes"] == 2 and found["kinds"]["bend"]["PDMS"]["difference"] == 10.0
    assert found["all"]["NC"] == {"first": 100.0, "second": 100.0, "difference": 0.0, "ci95": [0.0, 0.0]}
    assert verdict(found).startswith("new is better: PDMS +8.00 [")
    assert verdict(compare(second, first, BOOTSTRAP)).startswith("new is better: PDMS -8.00 [")
    assert verdict(compare(first, first, BOOTSTRAP)).startswith("no difference that these scenes show: PDMS +0.00")
    assert "| PDMS | 50.00 | 58.00 | 8.00 [" in by_metric(found).markdown()
    assert [names[0] for names, _ in by_kind(found).rows] == ["all", "bend", "road"]


def test_the_paired_interval_is_the_narrow_one() -> None:
    hard = np.random.default_rng(0).random(200)
    first = side("a", {f"s{i}": float(value) * 0.8 for i, value in enumerate(hard)})
    second = side("b", {f"s{i}": float(value) * 0.8 + 0.02 for i, value in enumerate(hard)})
    found = compare(first, second, BOOTSTRAP)["all"]
    assert found["PDMS"]["ci95"] == [2.0, 2.0] and found["wins"] == 200 and found["sign_test_p"] < 1e-50


def test_scenes_of_several_episodes_and_turns() -> None:
    one = Side("one", [make_episode("a", make_turn(0, 0.2), make_turn(1, 0.8), index=0),
                       make_episode("a", make_turn(0, 0.4), index=1),
                       make_episode("a", make_turn(0, 0.0), index=2, valid=False)], {})
    other = Side("other", [make_episode("a", make_turn(0, None))], {})
    assert compare(other, one, BOOTSTRAP)["all"]["PDMS"]["second"] == pytest.approx(60.0)
    assert compare(other, one, BOOTSTRAP, turn=1)["all"]["PDMS"]["second"] == pytest.approx(30.0)
    assert verdict(compare(other, one, BOOTSTRAP)).startswith("one scene in common: no interval; PDMS differs by +60.00")
    with pytest.raises(ConfigError, match="no scene in common"):
        compare(one, side("far", {"b": 1.0}), BOOTSTRAP)


def test_an_episode_with_fewer_turns_is_the_beginning_of_one_with_more() -> None:
    rng = np.random.default_rng(3)
    episodes = []
    for i in range(100):
        start = float(rng.uniform(0.3, 0.5))
        episodes.append(make_episode(f"s{i}", *(make_turn(j, start + gain)
                                                for j, gain in enumerate((0.0, 0.3, 0.4, 0.401, 0.401)))))
    found = sweep(episodes, 6, facts={}, bootstrap=BOOTSTRAP)
    assert found is not None
    means = [found["turns"][str(turns)]["PDMS"] for turns in range(1, 7)]
    assert np.diff(means) == pytest.approx([30.0, 10.0, 0.1, 0.0, 0.0], abs=1e-3)
    assert (found["best"], found["knee"], found["paired_knee"]) == (4, 3, 4)
    assert found["turns"]["3"]["behind_best"]["ci95"] == pytest.approx([0.1, 0.1], abs=1e-3)
    assert [found["turns"][turns]["mean_turns"] for turns in ("1", "5", "6")] == [1.0, 5.0, 5.0]
    assert sweep([make_episode("a", make_turn(0, 1.0), valid=False)], 3, facts={}, bootstrap=BOOTSTRAP) is None
    part: dict[str, Any] = {"turn_1": {}, "last_turn": {}, "scenes": 100, "label": "Mine", "sweep": found}
    assert [names[2] for names, _ in by_turn({"m": part}).rows] == ["-", "-", "knee", "best, paired knee", "-", "-"]
    (line,) = knees({"m": part})
    assert line.startswith("Mine: at most 4 turns are best, PDMS ") and "; 3 are within that interval" in line


def accusing(score_fails: Sequence[str], accused: Sequence[str]) -> Any:
    return make_turn(0, 0.5, nc=0.0 if "NC" in score_fails else 1.0, dac=0.0 if "DAC" in score_fails else 1.0,
                     violations=[{"metric": metric, "point": 1, "object": None} for metric in accused])


def test_precision_and_recall_of_feedback() -> None:
    turns = [accusing(["NC"], ["NC"]), accusing(["NC"], []), accusing([], ["NC"]), accusing(["DAC"], ["NC"])]
    lost = make_episode("x", accusing(["NC"], ["NC"]), valid=False)
    found = verdicts([make_episode("a", *turns[:2], make_turn(2, None)), make_episode("b", *turns[2:]), lost])
    assert found["NC"] == {"precision": 33.3333, "recall": 50.0, "accused": 3, "failing": 2, "both": 1, "trajectories": 4}
    assert found["DAC"] == {"precision": None, "recall": 0.0, "accused": 0, "failing": 1, "both": 0, "trajectories": 4}
    assert found["TTC"]["precision"] is found["TTC"]["recall"] is None
    assert found["any"] == {"precision": 66.6667, "recall": 66.6667, "accused": 3, "failing": 3, "both": 2,
                            "trajectories": 4}


def test_a_grid_in_every_form() -> None:
    grid = Grid("Some", ("Method", "Kind"), ("PDMS", "Scenes"),
                [(("a|b & c", "x_y"), [Cell(96.21, (95.0, 97.0)), Cell(12)]), (("d", "z"), [Cell(None), Cell(3)])])
    assert grid.csv() == "Method,Kind,PDMS,PDMS_low,PDMS_high,Scenes\na|b & c,x_y,96.21,95.0,97.0,12\nd,z,,,,3\n"
    assert grid.markdown().splitlines()[2:] == [r"| a\|b & c | x_y | 96.2 [95.0, 97.0] | 12 |", "| d | z | - | 3 |"]
    assert r"a|b \& c & x\_y & 96.2 {\scriptsize [95.0, 97.0]} & 12 \\" in grid.latex()
    assert r"d & z & -- & 3 \\" in grid.latex()
    table = grid.terminal()
    assert list(table.columns[2].cells) == ["96.2 [95.0, 97.0]", "-"] and table.row_count == 2
