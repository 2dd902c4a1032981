"""The metrics page is read rightly; `test_end_to_end` holds it against a run."""

from __future__ import annotations

from tests.metrics_reference import PAGE, differences, rows

TEXT = """
## SFT
| name | unit | when | what | healthy |
|---|---|---|---|---|
| `loss` | nats | always | a | b |
## RL: rewards
| `reward/turn_N` | 0..1 | turn N was reached | a | b |
| `entropy` | nats | `mtgrpo.entropy_coefficient` | a | b |
## Time
| `timers/step` | s | always | a | b |
| `timers/rollout` | s | rl | a | b |
| `timeline/exposed_s/PHASE` | s | rl, `logging.trace_steps` | a | b |
"""


def test_differences_by_hand() -> None:
    sft = {"phase": "sft", "step": 0, "time": 1.0, "loss": 1.0, "timers/step": 1.0}
    rl = {"phase": "rl", "step": 0, "time": 1.0, "reward/turn_12": 0.5, "timers/step": 1.0, "timers/rollout": 1.0}
    assert differences(rows(TEXT), [sft, rl, rl | {"timeline/exposed_s/log_prob": 1.0}]) == []
    assert differences(rows(TEXT), [sft | {"entropy": 1.0}, {"phase": "rl", "reward/turn_x": 0.5, "timers/step": 1.0}]) == [
        "sft: entropy is logged, add its row", "rl: reward/turn_x is logged, add its row",
        "rl: timers/rollout is not logged, remove its row or say when"]


def test_no_name_stands_twice_in_a_phase() -> None:
    found = [(row.name, phase) for row in rows(PAGE.read_text()) for phase in row.phases]
    assert len(found) > 80 and len(set(found)) == len(found)
