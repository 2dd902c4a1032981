"""What must be true of the reproduction, each with its number: passed or not, from rows as they were measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_mtdrive.reproduce.curves import TOGETHER, spans
from nemo_mtdrive.reproduce.intervals import Estimate, estimate, ratio
from nemo_mtdrive.reproduce.rows import Played, paired, same_scenes
from nemo_mtdrive.reproduce.tables import ALONE, picture_cells

SFT_GAIN, RL_GAIN, WORSE_PERCENT, READ_PERCENT, SHARE_LEFT = 2.0, 4.0, 10.0, 99.0, 0.5
"""PDMS of multi-turn over single-turn SFT, of RL over SFT; ADE with other pictures; answers read; violations left."""
SHOWN = 5


@dataclass(frozen=True)
class Gate:
    """One of the things that must be true."""

    name: str
    wanted: str
    found: str
    passed: bool


def sft_gain(single: Played, multi: Played, turns: int) -> Gate:
    """Multi-turn SFT after its last turn over single-turn SFT."""
    single, multi = same_scenes([single, multi])
    gain = estimate(paired(single.after("PDMS", 1), multi.after("PDMS", turns)))
    return _at_least("multi-turn SFT over single-turn SFT", gain, SFT_GAIN, "PDMS")


def rl_gain(sft: Played, rl: Played, turns: int) -> Gate:
    """RL over the SFT model that it starts from, both after their last turn."""
    sft, rl = same_scenes([sft, rl])
    return _at_least("RL over its SFT start", estimate(paired(sft.after("PDMS", turns), rl.after("PDMS", turns))), RL_GAIN,
                     "PDMS")


def later_turns(rl: Played, turns: int) -> Gate:
    """The last turn of the RL model over its first."""
    gain = estimate(paired(rl.after("PDMS", 1), rl.after("PDMS", turns)))
    return Gate("last turn over turn 1, RL model", "above 0 PDMS", _shown(gain), gain.value is not None and gain.value > 0.0)


def violations_left(rl: Played, metric: str, name: str, turns: int) -> Gate:
    """Of what fails at the first turn, how much fails at the last."""
    first, last = estimate(rl.after(metric, 1)), estimate(rl.after(metric, turns))
    left = ratio(rl.after(metric, turns), rl.after(metric, 1))
    known = first.value is not None and last.value is not None
    passed = first.value is not None and last.value is not None and last.value <= SHARE_LEFT * first.value
    found = f"{first.value:.2f}% -> {last.value:.2f}%" if known else "nothing measured"
    if left.value is not None:
        found += f", {_shown(Estimate(100.0 * left.value, _times(left.ci95, 100.0)))} of it left"
    return Gate(f"{name} at the last turn, RL model", f"at most {100 * SHARE_LEFT:g}% of turn 1's", found, passed)


def pictures_matter(own: Played, other: Played) -> Gate:
    """Another scene's picture makes ADE of the first answers worse."""
    own, other = same_scenes([own, other])
    worse = picture_cells(own, other, "all", ())["Worse %"]
    assert isinstance(worse, Estimate)
    return _at_least("ADE with other pictures, RL model", worse, WORSE_PERCENT, "% worse")


def pictures_decide(own: Played, other: Played, kinds: Sequence[str]) -> Gate:
    """Where the picture alone says what to do, another one costs score, more than chance would."""
    own, other = same_scenes([own, other])
    lost = picture_cells(own, other, ALONE, kinds)["PDMS lost"]
    assert isinstance(lost, Estimate)
    passed = lost.value is not None and lost.ci95 is not None and lost.ci95[0] > 0.0
    return Gate("PDMS lost with other pictures, kinds of the picture alone, RL model", "above 0, interval too", _shown(lost),
                passed)


def answers_read(read: int, answers: int) -> Gate:
    """Answers that could be read, of all turns."""
    share = 100.0 * read / answers if answers else 0.0
    return Gate("answers that can be read, RL model", f"above {READ_PERCENT:g}%", f"{share:.2f}% of {answers}",
                share > READ_PERCENT)


def format_scored(scores: Sequence[float]) -> Gate:
    """Mean format score of each episode's turns, as RL counts it (`format/mean`): every episode weighs alike, so that a
    scene on which no answer can be read counts once and not six times."""
    mean = 100.0 * float(np.mean(scores)) if scores else 0.0
    return Gate("format score on held-out scenes, RL model", f"above {READ_PERCENT:g}%",
                f"{mean:.2f}% of {len(scores)} episodes", mean > READ_PERCENT)


def format_stays(runs: Mapping[str, Mapping[float, float]]) -> Gate:
    """Run -> RL step -> mean format score: it stays high in all steps of all runs, `TOGETHER` steps at a time."""
    found = [(100.0 * mean, f"{100.0 * mean:.2f}% in steps {first:g} to {last:g} of {name}")
             for name, curve in runs.items() for first, last, mean in spans(curve)]
    worst = min(found, default=None)
    return Gate("format score of RL's rollouts", f"above {READ_PERCENT:g}% in every {TOGETHER} steps",
                worst[1] if worst else "nothing measured", worst is not None and worst[0] > READ_PERCENT)


def disjoint(name: str, train: Collection[str], held_out: Collection[str]) -> Gate:
    """No scene is trained on and measured with."""
    both = sorted(set(train) & set(held_out))
    found = f"{len(set(train))} and {len(set(held_out))} scenes, {len(both)} in both"
    return Gate(f"training and held-out scenes, {name}", "none in both, none empty", _with_some(found, both),
                not both and bool(train) and bool(held_out))


def nothing_leaks(name: str, looked_at: int, leaks: Sequence[str]) -> Gate:
    """What stands in prompts beside what belongs there."""
    return Gate(f"futures in prompts, {name}", "none", _with_some(f"{len(leaks)} in {looked_at}", leaks),
                not leaks and looked_at > 0)


def _at_least(name: str, found: Estimate, least: float, unit: str) -> Gate:
    return Gate(name, f"at least {least:g} {unit}", _shown(found), found.value is not None and found.value >= least)


def _shown(found: Estimate) -> str:
    if found.value is None or not np.isfinite(found.value):
        return "nothing measured"
    if found.ci95 is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]"


def _times(ends: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    return None if ends is None else (factor * ends[0], factor * ends[1])


def _with_some(text: str, names: Sequence[str]) -> str:
    return text + (f": {', '.join(names[:SHOWN])}" if names else "")
