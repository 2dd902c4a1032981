"""Tables of made-up evaluations, number by number; as files and as a page; odd motions."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_mtdrive.cli import main
from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.driving.command import generate_scenes
from nemo_mtdrive.reproduce.curves import smooth
from nemo_mtdrive.reproduce.gates import Gate
from nemo_mtdrive.reproduce.graph import mock_name, size_name
from nemo_mtdrive.reproduce.hacks import FAR, JERK, choose, hacks, oddness, well_paid
from nemo_mtdrive.reproduce.intervals import Estimate
from nemo_mtdrive.reproduce.learning import estimators, learning
from nemo_mtdrive.reproduce.page import budget_markdown, gates_markdown, provenance, write_page
from nemo_mtdrive.reproduce.recipe import RECIPES, Recipe, load_recipe
from nemo_mtdrive.reproduce.repairs import COUNTS, count, repairs
from nemo_mtdrive.reproduce.repairs import choose as choose_repairs
from nemo_mtdrive.reproduce.results import Row, read_result, write_result
from nemo_mtdrive.reproduce.stages import named, places
from nemo_mtdrive.reproduce.tables import mock, pictures, size, table1, table2, table3, turns
from tests.reproduce.made_up import HUMAN, episode, turn, write_row, write_scores

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPES / "recipe.yaml")


@pytest.fixture
def root(tmp_path: Path, recipe: Recipe) -> Path:
    """Two scenes; what a row scores at turns 1 and 2 is the same in both."""
    scores = {"eval_sft_single": (0.50,), "eval_sft_two_stage": (0.48, 0.52), "eval_sft_one_stage": (0.5, 0.55),
              "eval_sft_understanding": (0.5, 0.56), "eval_sft_multi": (0.5, 0.54, 0.58), "eval_rl_sequence": (0.6, 0.61),
              "eval_rl_per_turn": (0.6, 0.63), "eval_rl_cross_turn": (0.6, 0.7, 0.66), "eval_rl_unbiased": (0.6, 0.65),
              "eval_rl_model": (0.6, 0.7, 0.66)}
    for stage, said in scores.items():
        write_scores(tmp_path, stage, "model_oracle", SEEDS, [said, said])
    write_scores(tmp_path, "eval_sft_multi", "model_kinematic", SEEDS, [(0.5, 0.51), (0.5, 0.51)])
    write_scores(tmp_path, "eval_rl_model", "model_kinematic", SEEDS, [(0.6,), (0.6,)])
    for driver, pdms in (("constant_velocity", 0.3), ("pdm_closed", 0.8), ("human", 0.95)):
        write_row(tmp_path, "eval_drivers", driver, [episode("s0", turn(0, pdms)), episode("s1", turn(0, pdms))])
    return tmp_path


def column(rows: Sequence[Row], name: str) -> list[Any]:
    cells = [row.cells.get(name) for row in rows]
    return [pytest.approx(cell.value) if isinstance(cell, Estimate) else cell for cell in cells]


def test_table_2(root: Path, recipe: Recipe) -> None:
    found = table2(root, recipe, SEEDS)
    assert column(found.rows, "PDMS") == [50.0, 52.0, 55.0, 56.0, 58.0], "each with its own turns"
    assert column(found.rows, "Over single-turn") == [None, 2.0, 5.0, 6.0, 8.0]
    assert column(found.rows, "Paper") == [83.7, 84.9, 87.3, 87.7, 88.1]
    assert [row.names[2] for row in found.rows] == ["1", "2", "2", "2", "6"] and found.scenes == 2


def test_table_3(root: Path, recipe: Recipe) -> None:
    found = table3(root, recipe, SEEDS)
    assert column(found.rows, "PDMS") == [58.0, 61.0, 63.0, 66.0, 65.0]
    assert column(found.rows, "Over SFT") == [None, 3.0, 5.0, 8.0, 7.0]
    assert column(found.rows, "Over ID 1") == [None, None, 2.0, 5.0, 4.0]
    assert column(found.rows, "Turn 1") == [50.0, 60.0, 60.0, 60.0, 60.0]


def test_table_1(root: Path, recipe: Recipe) -> None:
    found = table1(root, recipe, SEEDS)
    assert column(found.rows, "PDMS") == [30.0, 80.0, 95.0, 50.0, 51.0, 58.0, 60.0, 66.0]
    assert [row.names[0] for row in found.rows][-4:] == [
        f"{model}, {feedback} feedback" for model in ("SFT", "RL") for feedback in ("kinematic", "oracle")]
    assert column(found.rows, "Over SFT") == [*[None] * 6, 9.0, 8.0], "each over the row with the same feedback"
    assert column(found.rows, "Paper") == [None, None, 94.8, 83.7, None, 88.1, 91.1, 96.2]
    assert column(found.rows, "ADE m") == [0.0] * 8


def test_turns(root: Path, recipe: Recipe) -> None:
    found = turns(root, recipe, SEEDS)
    oracle, kinematic = found.rows[:8], found.rows[8:]
    assert column(oracle, "PDMS") == [60.0, 70.0, *[66.0] * 6] and column(kinematic, "PDMS") == [60.0] * 8
    assert [row.names[2] for row in oracle[:3]] == ["", "best, knee", ""] and kinematic[0].names[2] == "best, knee"
    assert column(oracle, "Behind best") == [10.0, 0.0, *[4.0] * 6]
    assert column(oracle, "Turns taken") == [1.0, 2.0, *[3.0] * 6]
    assert [point[1] for point in found.panels[0].lines[0].points] == pytest.approx([60.0, 70.0, *[66.0] * 6])


def test_mock(root: Path, recipe: Recipe) -> None:
    for number, share in enumerate(recipe.mock.shares):
        write_scores(root, f"eval_{mock_name(share)}", "model_oracle", SEEDS, [(0.5, 0.5 + 0.02 * number)] * 2)
    found = mock(root, recipe, SEEDS)
    assert [row.names for row in found.rows] == [["0%"], ["25%"], ["50%"], ["100%"]]
    assert column(found.rows, "Over the first") == [None, 2.0, 4.0, 6.0]


def test_size(root: Path, recipe: Recipe) -> None:
    for part in recipe.size.parts:
        write_scores(root, f"eval_{size_name(part)}", "model_oracle", SEEDS, [(0.5, 0.5 + 0.01 * part)] * 2)
        for seed in SEEDS:
            name = named(size_name(part), seed)
            run = places(root, [name])[name]
            run.mkdir(parents=True)
            (run / "metrics.jsonl").write_text("".join(json.dumps(
                {"phase": "rl", "step": step, "time": 0.0, "rollout/last_turn/PDMS": 50.0 + step + seed}) + "\n"
                for step in range(10)))
            (run / "summary.json").write_text(json.dumps({
                name: {"last_turn": {"PDMS": pdms}} for name, pdms in (("before_rl", 50.0), ("rl_step_4", 55.0 + seed),
                                                                        ("after_rl", 58.0))} | {"seconds": 3.0}))
    found = size(root, recipe, SEEDS)
    assert column(found.rows, "Over the fewest") == [None, 6.0, 19.0]
    training, validation = found.panels
    last = float(recipe.size.steps)
    assert [(x, mean) for x, mean, _, _ in training.lines[0].points] == [
        (2.0 + at, pytest.approx(53.5 + at)) for at in range(6)], "means of five steps and of both seeds"
    assert validation.lines[2].points == [(0.0, 50.0, 50.0, 50.0), (4.0, 56.5, 56.0, 57.0), (last, 58.0, 58.0, 58.0)]
    assert column(found.rows, "Training, last steps") == [58.5] * 3
    assert smooth({1.0: 4.0, 2.0: 6.0}) == {1.5: 5.0} and smooth({}) == {}


def write_rollouts(root: Path, base: str, seed: int, steps: int, last: float, format_score: float) -> None:
    """Metrics of a training whose last turns gain a point a step, and whose turn 1 stays."""
    name = named(base, seed)
    run = places(root, [name])[name]
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps({
        "phase": "rl", "step": step, "time": 0.0, "rollout/last_turn/PDMS": last + step, "rollout/turn_1/PDMS": 50.0,
        "format/mean": format_score, "kl": 0.002}) + "\n" for step in range(steps)))


def test_learning_goes_on_over_both_parts(root: Path, recipe: Recipe) -> None:
    for seed in SEEDS:
        write_rollouts(root, "rl_cross_turn", seed, 20, 60.0 + seed, 0.99)
        write_rollouts(root, "rl_model", seed, 15, 80.0 + seed, 1.0 - 0.01 * seed)
    found = learning(root, recipe, SEEDS)
    assert [row.names for row in found.rows] == [["seed 1"], ["seed 2"]]
    assert column(found.rows, "PDMS, first 10") == [65.5, 66.5] and column(found.rows, "PDMS, last 10") == [93.0, 94.0]
    assert column(found.rows, "Turn 1, last 10") == [50.0, 50.0] and column(found.rows, "1000 KL") == [2.0, 2.0]
    assert column(found.rows, "Worst 10") == [99.0, 98.0], "the second part's, seed 2"
    last, _, format_score = found.panels
    assert [line.label for line in last.lines] == ["seed 1", "seed 2"]
    assert [(x, mean) for x, mean, *_ in last.lines[0].points][:2] == [(4.5, 65.5), (5.5, 66.5)]
    assert len(last.lines[0].points) == 35 - 9 and format_score.lines[1].points[-1][1] == pytest.approx(98.0)


def test_estimators_are_means_over_seeds(root: Path, recipe: Recipe) -> None:
    for number, name in enumerate(recipe.rl.estimators):
        for seed in SEEDS:
            write_rollouts(root, f"rl_{name}", seed, 12, 60.0 + 10.0 * number + seed, 0.97 + 0.01 * seed)
    found = estimators(root, recipe, SEEDS)
    assert len(found.rows) == 4 and found.rows[3].names == ["unbiased (ours)"]
    assert column(found.rows, "PDMS, first 10") == [66.0, 76.0, 86.0, 96.0]
    assert column(found.rows, "Worst 10") == [98.0] * 4
    assert [(line.points[0][2], line.points[0][3]) for line in found.panels[0].lines][:1] == [(65.5, 66.5)]
    assert read_result(root, "estimators") is None
    write_result(root, found)
    assert read_result(root, "estimators") == found


def test_pictures(root: Path, recipe: Recipe) -> None:
    kinds = {"s0": "crossing/red_light", "s1": "straight/free"}
    for model in ("sft_multi", "rl_model"):
        for seed in SEEDS:
            for row, off, pdms in (("model_oracle", 1.0, 0.9), ("model_oracle_shuffled", 1.5, 0.6)):
                write_row(root, named(f"pictures_{model}", seed), row, [
                    episode("s0", turn(0, pdms, off=off)), episode("s1", turn(0, 0.9, off=1.0))], kinds)
    found = pictures(root, recipe, SEEDS)
    assert [row.names for row in found.rows] == [
        ["SFT", "all"], ["SFT", "of the picture alone"], ["RL", "all"], ["RL", "of the picture alone"],
        ["RL", "crossing/red_light"], ["RL", "straight/free"]]
    assert column(found.rows, "Worse %") == [25.0, 50.0, 25.0, 50.0, 50.0, 0.0]
    assert column(found.rows, "PDMS lost") == [15.0, 30.0, 15.0, 30.0, 30.0, 0.0]


def test_a_result_is_kept_whole_and_drawn_alike(root: Path, recipe: Recipe) -> None:
    for result in (table2(root, recipe, SEEDS), turns(root, recipe, SEEDS)):
        files = write_result(root, result)
        assert read_result(root, result.what) == result
        drawn = files[3].read_text()
        assert result.title in drawn or result.panels[0].title in drawn
        assert write_result(root, result)[3].read_text() == drawn, "the same bytes"
    table = list(csv.DictReader((root / "results" / "table2.csv").open()))
    assert float(table[4]["PDMS"]) == pytest.approx(58.0) and table[4]["PDMS_low"]
    (root / "results" / "table2.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"table2.json: not a result of this version"):
        read_result(root, "table2")


def test_the_page_is_filled_between_its_marks(root: Path, recipe: Recipe, tmp_path: Path) -> None:
    write_result(root, table2(root, recipe, SEEDS))
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("Before.\n<!-- reproduce:table2 -->\nold\n<!-- /reproduce:table2 -->\nBetween.\n"
                    "<!-- reproduce:pictures -->\n<!-- /reproduce:pictures -->\n"
                    "<!-- reproduce:budget -->\n<!-- /reproduce:budget -->\nAfter.\n")
    budget = budget_markdown([("all", 115, 7200.0, 3)])
    assert write_page(root, page, {"budget": budget}) == ["pictures"]
    first = page.read_text()
    assert first.startswith("Before.\n") and first.endswith("After.\n") and "\nBetween.\n" in first and "old" not in first
    assert "| 5 | One stage, with understanding and multi-turn data | 6 |" in first and "58.0 [58.0, 58.0]" in first
    assert "2 seeds, 2 held-out scenes; 95% intervals of scenes and seeds." in first
    assert "![Table 2: SFT](results/table2.svg)" in first and (page.parent / "results" / "table2.svg").is_file()
    assert "Not measured yet: `nemo-mtdrive reproduce table1`" in first
    assert "| all | 115 | 2.0 | 3 |" in first
    write_page(root, page, {"budget": budget})
    assert page.read_text() == first
    (tmp_path / "plain.md").write_text("nothing")
    with pytest.raises(ConfigError, match="no block"):
        write_page(root, tmp_path / "plain.md", {})
    with pytest.raises(ConfigError, match="no such file"):
        write_page(root, tmp_path / "none.md", {})


def test_the_page_says_of_how_many_steps_a_result_is(root: Path, recipe: Recipe) -> None:
    made = {"recipe": asdict(recipe), "cpu_seconds": 3600, "stages": 3, "code": ["abc"]}
    table = table2(root, recipe, SEEDS)
    said = {what: provenance(replace(table, what=what, made_of=made)) for what in ("table2", "mock", "size")}
    stages = recipe.sft["two_stage"].stages
    assert f", two_stage {stages[0].steps} + {stages[1].steps}, " in said["table2"]
    assert f"; RL steps: {recipe.rl.steps}, of the model {recipe.rl.more} more. 1.0 CPU hours" in said["table2"]
    assert f"; SFT steps: {recipe.mock.stages[0].steps}. 1.0 CPU hours" in said["mock"]
    assert f"; RL steps: {recipe.size.steps}. 1.0 CPU hours" in said["size"]


def test_gates_as_a_table() -> None:
    text = gates_markdown([Gate("a|b", "1", "2", True), Gate("c", "3", "none", False)])
    assert text.splitlines()[2:] == [r"| pass | a\|b | 1 | 2 |", "| **fail** | c | 3 | none |"]


def test_odd_motions() -> None:
    steady = oddness(HUMAN, HUMAN)
    assert steady.jerk == pytest.approx(0.0) and steady.stands == steady.far == 0.0
    assert oddness(np.zeros((8, 3)), HUMAN).stands == 2.0 and oddness(np.zeros((8, 3)), np.zeros((8, 3))).stands == 0.0
    assert oddness(HUMAN + np.array([0.0, 2 * FAR, 0.0]), HUMAN).far == pytest.approx(2.0)
    kinked = HUMAN.copy()
    kinked[4:, 0] += 2.0  # third differences of a step of 2 m: 2, 4, 2
    assert oddness(kinked, HUMAN).jerk == pytest.approx(4.0 / 0.125 / JERK)


def test_hacks_count_and_choose(root: Path, recipe: Recipe) -> None:
    generate_scenes(2, 40, places(root, ["scenes_held_out"])["scenes_held_out"], 56, 28, {}, 1, lambda count: None)
    one, other = "p0000040", "p0000041"
    away = HUMAN + np.array([0.0, 3 * FAR, 0.0])
    led_astray = [episode(one, turn(0, 0.95)), episode(other, turn(0, 0.2), turn(1, 0.97, trajectory=away))]
    for model, played in (("sft_multi", [episode(one, turn(0, 0.95)), episode(other, turn(0, 0.5, trajectory=away))]),
                          ("rl_model", led_astray)):
        for seed in SEEDS:
            write_row(root, named(f"eval_{model}", seed), "model_oracle", played)
    paid = well_paid([*led_astray, episode("s2", turn(0, None)), episode("s3", valid=False)], {}, 1, 6)
    assert [odd.episode.scene_id for odd in paid] == [one, other]
    assert [odd.episode.scene_id for odd in choose(paid)] == [other, one], "the oddest first, each scene once"
    files = hacks(root, recipe, SEEDS)
    assert files[-1].name == "hacks_episodes.png" and files[-1].read_bytes().startswith(b"\x89PNG")
    result = read_result(root, "hacks")
    assert result is not None
    assert column(result.rows, "well paid") == [50.0, 100.0] and column(result.rows, "any sign") == [0.0, 50.0]


def test_repairs_are_counted_answer_by_answer(root: Path, recipe: Recipe) -> None:
    """Off the road, unreadable, a collision, clean: what follows an answer is held against it, in its own episode."""
    generate_scenes(2, 40, places(root, ["scenes_held_out"])["scenes_held_out"], 56, 28, {}, 1, lambda count: None)
    one, other = "p0000040", "p0000041"
    long = episode(one, turn(0, 0.0, dac=0.0), turn(1, None), turn(2, 0.0, nc=0.0), turn(3, 0.9))
    kept = episode(other, turn(0, 0.0, dac=0.0), turn(1, 0.0, dac=0.0), turn(2, 0.0, dac=0.0, nc=0.0))
    assert COUNTS == ("scenes", "first", "had", "repaired", "free", "made", "last")
    assert list(count(long, "DAC", 6).values()) == [1, 1, 1, 0, 1, 0, 0]
    assert list(count(long, "NC", 6).values()) == [1, 0, 1, 1, 1, 0, 0]
    assert list(count(long, "read", 6).values()) == [1, 0, 1, 1, 2, 1, 0]
    assert list(count(kept, "NC", 6).values()) == [1, 0, 0, 0, 2, 1, 1]
    assert count(long, "DAC", 1)["last"] == 1, "at most one turn"
    for model in ("sft_multi", "rl_model"):
        for seed in SEEDS:
            write_row(root, named(f"eval_{model}", seed), "model_oracle", [long, kept])
    assert [(shown.episode.scene_id, shown.turns, shown.remark) for shown in choose_repairs([(1, kept), (1, long)], 6)] == [
        (one, [0, 1, 3], "off the road, repaired, PDMS 90"), (other, [0, 1, 2], "off the road, not repaired, PDMS 0")]
    files = repairs(root, recipe, SEEDS)
    assert files[-1].name == "repairs_episodes.png" and files[-1].read_bytes().startswith(b"\x89PNG")
    result = read_result(root, "repairs")
    assert result is not None and [row.names for row in result.rows][1] == ["SFT", "off the road"]
    of_road = result.rows[1].cells
    assert [column([result.rows[1]], name)[0] for name in of_road] == [100.0, 0.0, 0.0, 50.0], "0 of 3, 0 of 1"


def test_check_of_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "check", "--out", str(tmp_path)]) == 1
    assert "FAIL  gains" in capsys.readouterr().out and (tmp_path / "results" / "check.md").is_file()


def test_list_says_what_it_will_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "list", "--out", str(tmp_path), "--seeds", "1", "--commands"]) == 0
    text = capsys.readouterr().out
    assert "    nemo-mtdrive rl --config-dir" in text and "expected  rl_cross_turn-s1" in text
    assert re.fullmatch(r"\d+ stages, (\d+\.\d) CPU hours, \1 of them left", text.splitlines()[-1])


@pytest.mark.parametrize(("words", "said"), [
    (("nothing",), "invalid choice"), (("list", "--scale", "0"), "set it above 0"),
    (("list", "--held-out", "0"), "set it to 1 or more"),
])
def test_wrong_requests(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", *words])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
