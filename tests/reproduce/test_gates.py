"""Rows as arrays, and the gates on rows that are made up: each passes and fails where it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.evaluation.evaluate import SceneFacts
from nemo_mtdrive.reproduce import gates
from nemo_mtdrive.reproduce.checks import check
from nemo_mtdrive.reproduce.recipe import RECIPES, load_recipe
from nemo_mtdrive.reproduce.rows import Played, joined, read_row, same_scenes
from tests.reproduce.made_up import HUMAN, episode, turn, write_row, write_scores

NO_FACTS: dict[str, SceneFacts] = {}


def row(*scenes: tuple[float | None, ...], seeds: int = 2) -> Played:
    """Each scene's PDMS by turn, the same for each seed; PDMS 0 is a collision."""
    made = [episode(f"s{number}", *(turn(at, pdms, nc=float((pdms or 0.0) > 0.0)) for at, pdms in enumerate(said)))
            for number, said in enumerate(scenes)]
    return joined([(made, NO_FACTS)] * seeds, tuple(range(seeds)))


def test_rows_are_carried_on_to_the_most_turns() -> None:
    played = row((0.5, 0.7, 0.9), (0.8,), (None, 0.4))
    assert played.metrics["PDMS"].shape == (2, 3, 3) and played.turns == 3
    assert played.after("PDMS", 1)[0].tolist() == [50.0, 80.0, 0.0]
    assert played.after("PDMS", 2)[0].tolist() == [70.0, 80.0, 40.0]
    assert played.after("PDMS", 9)[1].tolist() == [90.0, 80.0, 40.0]
    assert played.after("turns", 3)[0].tolist() == [3.0, 1.0, 2.0]
    assert played.after("parsed", 1)[0].tolist() == [100.0, 100.0, 0.0]
    assert np.isnan(played.after("collision", 1)[0, 2]) and played.after("collision", 2)[0].tolist() == [0.0, 0.0, 0.0]


def test_a_scene_that_a_seed_lost_is_left_out_of_all() -> None:
    whole = [episode("a", turn(0, 0.5)), episode("b", turn(0, 0.7))]
    lost = [episode("a", valid=False), episode("b", turn(0, 0.9))]
    played = joined([(whole, NO_FACTS), (lost, NO_FACTS)], (1, 2))
    assert played.scenes == ("b",) and played.after("PDMS", 1).tolist() == [[70.0], [90.0]]


def test_rows_are_held_against_each_other_on_the_same_scenes() -> None:
    rows = [joined([([episode(name, turn(0, score)) for name, score in scores.items()], NO_FACTS)], ())
            for scores in ({"a": 0.1, "b": 0.2, "c": 0.3}, {"d": 0.1, "c": 0.4, "b": 0.5})]
    one, other = same_scenes(rows)
    assert one.scenes == other.scenes == ("b", "c")
    assert (other.after("PDMS", 1) - one.after("PDMS", 1)).tolist() == [pytest.approx([30.0, 10.0])]


def test_a_row_is_read_as_it_was_kept(tmp_path: Path) -> None:
    write_scores(tmp_path, "eval_sft_single", "model_oracle", (1, 2), [[0.5], [0.25, 0.75]])
    played = read_row(tmp_path, "eval_sft_single", "model_oracle", (1, 2))
    assert played.seeds == (1, 2) and played.after("PDMS", 2).tolist() == [[50.0, 75.0]] * 2
    assert played.after("ADE", 1).tolist() == [[0.0, 0.0]] * 2 and played.kinds == ("straight/free",) * 2
    with pytest.raises(ConfigError, match="eval_sft_single-s3.*not evaluated"):
        read_row(tmp_path, "eval_sft_single", "model_oracle", (1, 3))


def test_gains() -> None:
    single, multi = row((0.5,), (0.6,)), row((0.3, 0.52), (0.4, 0.62))
    assert gates.sft_gain(single, multi, 6).passed and gates.sft_gain(single, multi, 6).found.startswith("2.00 [2.00, 2.00]")
    assert not gates.sft_gain(single, multi, 1).passed
    assert not gates.sft_gain(single, row((0.5, 0.51), (0.6, 0.61)), 6).passed, "1 is not 2"
    assert gates.rl_gain(multi, row((0.5, 0.57), (0.6, 0.67)), 6).passed
    assert not gates.rl_gain(multi, row((0.5, 0.54), (0.6, 0.64)), 6).passed, "2 is not 4"


def test_later_turns() -> None:
    assert gates.later_turns(row((0.5, 0.7)), 6).passed
    assert not gates.later_turns(row((0.5, 0.5)), 6).passed and not gates.later_turns(row((0.5, 0.4)), 6).passed


@pytest.mark.parametrize(("scenes", "passed"), [
    (((0.0, 0.9), (0.0, 0.0), (0.8,), (0.7,)), True),  # 2 of 4 -> 1 of 4
    (((0.0, 0.9), (0.0, 0.0), (0.0, 0.0), (0.7,)), False),  # 3 -> 2
    (((0.9,), (0.8,)), True),  # none at first, none at last
    (((0.9, 0.0), (0.8,)), False),  # one that was not there before
])
def test_violations_at_the_last_turn(scenes: tuple[tuple[float, ...], ...], passed: bool) -> None:
    gate = gates.violations_left(row(*scenes), "collision", "collisions", 6)
    assert gate.passed == passed, gate.found


def test_nothing_read_passes_nothing() -> None:
    unread = row((None,), (None,))
    assert not gates.violations_left(unread, "off_road", "off-road", 6).passed
    assert not gates.pictures_matter(unread, unread).passed
    assert not gates.answers_read(0, 0).passed


def shown(offsets: dict[str, float], scores: dict[str, float], kinds: dict[str, str]) -> Played:
    made = [episode(name, turn(0, scores[name], off=off)) for name, off in offsets.items()]
    return joined([(made, {name: SceneFacts(kinds[name], HUMAN) for name in offsets})], (1,))


def test_pictures() -> None:
    names = [f"s{number}" for number in range(20)]
    kinds = {name: "crossing/red_light" if at % 2 else "straight/free" for at, name in enumerate(names)}
    own = shown(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.9), kinds)
    worse = shown(dict.fromkeys(names, 1.1001), {name: 0.9 - 0.4 * (at % 2) for at, name in enumerate(names)}, kinds)
    assert gates.pictures_matter(own, worse).passed and gates.pictures_matter(own, worse).found.startswith("10.01")
    assert not gates.pictures_matter(own, own).passed
    decides = gates.pictures_decide(own, worse, ["crossing/red_light"])
    assert decides.passed and decides.found.startswith("40.00")
    assert gates.pictures_decide(own, worse, ["red_light"]).found == gates.pictures_decide(own, worse, ["crossing"]).found
    assert not gates.pictures_decide(own, worse, ["straight/free"]).passed
    assert not gates.pictures_decide(own, worse, ["narrow_street/parked"]).passed, "no such scene"


def test_answers_and_splits() -> None:
    assert gates.answers_read(991, 1000).passed and not gates.answers_read(990, 1000).passed
    assert gates.disjoint("x", ["a", "b"], ["c"]).passed
    assert gates.format_scored([1.0] * 98 + [0.5]).passed and not gates.format_scored([1.0] * 49 + [0.5]).passed
    assert not gates.format_scored([]).passed
    shared = gates.disjoint("x", ["a", "b"], ["b", "c"])
    assert not shared.passed and shared.found.endswith("1 in both: b")
    assert not gates.disjoint("x", ["a"], []).passed
    assert gates.nothing_leaks("x", 3, []).passed and not gates.nothing_leaks("x", 0, []).passed
    assert not gates.nothing_leaks("x", 3, ["(+1.00, 0.0, 0.0)"]).passed


def test_format_stays_in_every_ten_steps_of_every_run() -> None:
    good = {float(step): 0.995 for step in range(25)}
    assert gates.format_stays({"a": good, "b": good}).passed
    falls = good | {float(step): 0.984 for step in range(20, 25)}
    gate = gates.format_stays({"a": good, "b": falls})
    assert not gate.passed and gate.found == "98.40% in steps 20 to 24 of b"
    assert gates.format_stays({"a": good | {3.0: 0.96}}).passed, "one step has too few answers to judge"
    assert not gates.format_stays({}).passed and not gates.format_stays({"a": {}}).passed


def test_what_is_not_there_has_not_passed(tmp_path: Path) -> None:
    found = check(tmp_path, load_recipe(RECIPES / "recipe.yaml"), (1,))
    assert {gate.name for gate in found} == {"gains", "turns", "pictures", "answers", "format", "splits", "questions",
                                             "feedback"}
    assert not any(gate.passed for gate in found)
    assert "eval_sft_single-s1" in found[0].found


def test_check_reads_the_rows_of_the_tables(tmp_path: Path) -> None:
    for stage, scores in (("eval_sft_single", [[0.5], [0.6]]), ("eval_sft_multi", [[0.5, 0.6], [0.6, 0.7]]),
                          ("eval_rl_model", [[0.0, 0.9], [0.7, 0.8]])):
        write_scores(tmp_path, stage, "model_oracle", (1, 2), scores)
    for seed in (1, 2):
        for name, off in (("model_oracle", 1.0), ("model_oracle_shuffled", 2.0)):
            write_row(tmp_path, f"pictures_rl_model-s{seed}", name, [
                episode("s0", turn(0, 0.5, off=off)), episode("s1", turn(0, 0.5, off=off))], {"s0": "crossing/red_light"})
    found = {gate.name: gate for gate in check(tmp_path, load_recipe(RECIPES / "recipe.yaml"), (1, 2))}
    assert found["multi-turn SFT over single-turn SFT"].found == "10.00 [10.00, 10.00]"
    assert found["RL over its SFT start"].found.startswith("20.00 [")
    assert found["collisions at the last turn, RL model"].passed
    assert found["ADE with other pictures, RL model"].found.startswith("100.00")
    assert found["answers that can be read, RL model"].found == "100.00% of 8"
