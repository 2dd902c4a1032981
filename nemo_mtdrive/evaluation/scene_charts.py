"""The statistics of a set of scenes as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_mtdrive.evaluation.scene_stats import DRIVERS

COLOURS = {"recorded": "#2a7f62", "constant_velocity": "#c8553d"}
COUNTED = "#4a6fa5"


def draw_stats(stats: Mapping[str, Any], out_png: Path) -> None:
    """Draw kinds, commands, speeds and, if drivers were scored, their PDMS by kind; written whole or not at all."""
    scored = "by_kind" in stats
    kinds = list(stats["kinds"])
    figure = Figure(figsize=(15 if scored else 10, max(4.0, 1.2 + 0.24 * len(kinds))), layout="constrained")
    axes = figure.subplot_mosaic("ABD;ACD" if scored else "AB;AC")
    axes["A"].barh(kinds, [stats["kinds"][kind] for kind in kinds], color=COUNTED)
    axes["A"].set(title=f"{stats['scenes']} scenes by kind", xlabel="scenes")
    axes["A"].invert_yaxis()
    axes["B"].bar(list(stats["commands"]), list(stats["commands"].values()), color=COUNTED)
    axes["B"].set(title="command", ylabel="scenes")
    histogram = stats["speed_mps"]["histogram"]
    axes["C"].bar([float(low) for low in histogram], list(histogram.values()), width=1.6, align="edge", color=COUNTED)
    axes["C"].set(title="speed at t = 0", xlabel="m/s, from", ylabel="scenes")
    if scored:
        _scores(axes["D"], kinds, stats)
    temporary = out_png.with_name(f".{out_png.name}")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(out_png)


def _scores(axes: Axes, kinds: list[str], stats: Mapping[str, Any]) -> None:
    for driver in DRIVERS:
        known = [kind for kind in kinds if driver in stats["by_kind"].get(kind, {})]
        axes.scatter([100 * stats["by_kind"][kind][driver] for kind in known], known, label=driver.replace("_", " "),
                     color=COLOURS[driver], zorder=3)
    axes.set(title="PDMS by kind", xlim=(-2, 102))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.4)
    axes.legend(loc="lower left")
