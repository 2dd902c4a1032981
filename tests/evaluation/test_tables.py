"""Result tables, to the letter."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from nemo_mtdrive.evaluation.evaluate import Bootstrap, summarise
from nemo_mtdrive.evaluation.tables import csv_table, label_of, latex_table, markdown_table, rows_of, terminal_table
from tests.evaluation.hand_episodes import make_episode, make_turn


@pytest.fixture
def summary() -> dict[str, Any]:
    """Human before the model in the file, after it in the table; other keys are passed over."""
    def of(*turns: float) -> dict[str, Any]:
        return summarise([make_episode("a", *(make_turn(j, pdms) for j, pdms in enumerate(turns)))], facts={},
                         bootstrap=Bootstrap(0, 0))

    after_rl = of(0.5, 0.962)
    after_rl["last_turn"]["PDMS_ci95"] = [95.04, 97.5]
    return {"human": of(0.948), "after_rl": after_rl, "rl_step_25": of(0.4, 0.45), "before_sft": of(0.0),
            "constant_velocity": of(0.25), "seconds": 10.0, "checkpoints": ["rl-000006"]}


def test_markdown(summary: dict[str, Any]) -> None:
    assert markdown_table(summary) == """\
| Method | Turn | NC ↑ | DAC ↑ | TTC ↑ | CF ↑ | EP ↑ | PDMS ↑ |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| Constant velocity | - | 100.0 | 100.0 | 100.0 | 100.0 | 25.0 | 25.0 |
| Before SFT | 1 | **100.0** | **100.0** | **100.0** | **100.0** | 0.0 | 0.0 |
| RL step 25 | 1 | **100.0** | **100.0** | **100.0** | **100.0** | 40.0 | 40.0 |
| RL step 25 | last | **100.0** | **100.0** | **100.0** | **100.0** | 45.0 | 45.0 |
| After RL | 1 | **100.0** | **100.0** | **100.0** | **100.0** | 50.0 | 50.0 |
| After RL | last | **100.0** | **100.0** | **100.0** | **100.0** | **96.2** | **96.2** |
| Human | - | 100.0 | 100.0 | 100.0 | 100.0 | 94.8 | 94.8 |
"""


def test_csv_has_all_digits_and_empty_cells_for_the_unknown(summary: dict[str, Any]) -> None:
    lines = csv_table({"after_rl": summary["after_rl"]}).splitlines()
    assert lines == [
        "method,turn,NC,DAC,TTC,CF,EP,PDMS,ADE,parse_rate,collision_rate,PDMS_low,PDMS_high,scenes",
        "After RL,1,100.0,100.0,100.0,100.0,50.0,50.0,,100.0,0.0,,,1",
        "After RL,last,100.0,100.0,100.0,100.0,96.2,96.2,,100.0,0.0,95.04,97.5,1"]


def test_latex(summary: dict[str, Any]) -> None:
    assert latex_table({"after_rl": summary["after_rl"], "human": summary["human"]}) == r"""\begin{tabular}{lrrrrrrr}
\toprule
Method & Turn & NC$\uparrow$ & DAC$\uparrow$ & TTC$\uparrow$ & CF$\uparrow$ & EP$\uparrow$ & PDMS$\uparrow$ \\
\midrule
After RL & 1 & \textbf{100.0} & \textbf{100.0} & \textbf{100.0} & \textbf{100.0} & 50.0 & 50.0 \\
After RL & last & \textbf{100.0} & \textbf{100.0} & \textbf{100.0} & \textbf{100.0} & \textbf{96.2} & \textbf{96.2} \\
Human & -- & 100.0 & 100.0 & 100.0 & 100.0 & 94.8 & 94.8 \\
\bottomrule
\end{tabular}
"""


def test_terminal(summary: dict[str, Any]) -> None:
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None).print(
        terminal_table({"after_rl": summary["after_rl"], "human": summary["human"]}, title="Held-out scenes"))
    lines = [" ".join(line.replace("│", " ").split()) for line in stream.getvalue().splitlines()]
    assert "After RL 1 100.0 100.0 100.0 100.0 50.0 50.0 - - 100.0 1" in lines
    assert "last 100.0 100.0 100.0 100.0 96.2 96.2 95.0..97.5 - 100.0 1" in lines
    assert "Human - 100.0 100.0 100.0 100.0 94.8 94.8 - - 100.0 1" in lines


def test_one_summary_alone_and_one_turn_only(summary: dict[str, Any]) -> None:
    assert [(row.method, row.turn) for row in rows_of(summary["rl_step_25"])] == [("Result", "1"), ("Result", "last")]
    assert [(row.method, row.turn) for row in rows_of({"before_sft": summary["before_sft"]})] == [("Before SFT", "1")]
    assert rows_of({}) == [] and rows_of({"seconds": 3.0}) == []
    assert [label_of(name) for name in ("after_rl", "rl_step_25", "my_run")] == ["After RL", "RL step 25", "My run"]


def test_latex_escapes_names() -> None:
    one = summarise([make_episode("a", make_turn(0, 0.5))], facts={}, bootstrap=Bootstrap(0, 0))
    assert r"Mine\&50\% & 1 &" in latex_table({"mine&50%": one})
