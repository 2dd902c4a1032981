"""What the page says of a run before its episodes: facts of its config, tiles, tables, curves, where time goes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_mtdrive.evaluation import charts, tables
from nemo_mtdrive.evaluation.run_files import RunFiles
from nemo_mtdrive.telemetry.progress import format_seconds

CONFIG_KEYS = (
    ("scenes", "scenes.source"), ("training scenes", "scenes.count"), ("held out", "scenes.held_out"),
    ("perception", "environment.perception"), ("turns at most", "rollout.max_turns"), ("model", "model.init_from"),
    ("tensor parallel", "parallel.tensor"), ("data parallel", "parallel.data"), ("SFT batch", "sft.batch_size"),
    ("RL steps", "mtgrpo.steps"), ("estimator", "mtgrpo.estimator"), ("group size", "mtgrpo.group_size"),
    ("scenes a step", "mtgrpo.prompts_per_step"), ("RL learning rate", "mtgrpo.lr"),
    ("KL coefficient", "mtgrpo.kl_coefficient"), ("IPSS", "transfer.ipss"), ("IPTC", "transfer.iptc"), ("seed", "seed"),
)


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and value of the config's keys that tell runs apart."""
    return [(label, _shown(value)) for label, key in CONFIG_KEYS if (value := _at(config, key)) not in (None, "")]


def curves_of(run: RunFiles) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The run's charts: those that matter first, and the others."""
    own = charts.charts_of(run.metrics)
    return ([drawn(chart) for chart in [*_validation(run), *own] if chart.headline],
            [drawn(chart) for chart in own if not chart.headline])


def tiles(run: RunFiles) -> list[dict[str, str]]:
    """The few numbers at the top: of a run's last stage, or of an evaluation's best row."""
    rows = _of_models(run.summary)
    found = []
    if rows:
        stages = [name for name in rows if name in tables.LABELS]
        name = stages[-1] if stages else max(rows, key=lambda name: rows[name]["last_turn"]["PDMS"] or 0.0)
        summary = rows[name]
        last, first, gain = summary["last_turn"], summary["turn_1"], summary.get("gain", {})
        found.append({"label": f"PDMS, last turn, {_label(name, summary)}", "value": tables.format_value(last["PDMS"]),
                      "note": _interval(last.get("PDMS_ci95"))})
        found.append({"label": "PDMS, first turn", "value": tables.format_value(first["PDMS"]),
                      "note": _interval(first.get("PDMS_ci95"))})
        if gain.get("PDMS") is not None:
            found.append({"label": "Gained by later turns", "value": f"{gain['PDMS']:+.1f}",
                          "note": _interval(gain.get("PDMS_ci95"))})
        if last.get("parse_rate") is not None:
            found.append({"label": "Answers that parse", "value": f"{last['parse_rate']:.1f}%",
                          "note": f"of {summary['scenes']} held-out scenes"})
    if len(run.metrics) > 1:
        seconds = run.metrics[-1].get("time", 0.0) - run.metrics[0].get("time", 0.0)
        counts = ", ".join(f"{len({line['step'] for line in run.metrics if line['phase'] == phase})} {phase.upper()}"
                           for phase in dict.fromkeys(line["phase"] for line in run.metrics))
        found.append({"label": "Wall time of the steps", "value": format_seconds(seconds), "note": f"{counts} steps"})
    return found


def kinds(summary: Mapping[str, Any]) -> dict[str, Any]:
    """PDMS at the last turn by scene kind and stage."""
    stages = {name: part["kinds"] for name, part in tables.parts_of(summary).items() if part.get("kinds")}
    names = sorted({kind for part in stages.values() for kind in part})
    rows = [{"kind": kind, "scenes": max(part[kind]["scenes"] for part in stages.values() if kind in part),
             "values": [part[kind]["last_turn"]["PDMS"] if kind in part else None for part in stages.values()]}
            for kind in names]
    labels = [_label(name, part) for name, part in tables.parts_of(summary).items() if name in stages]
    return {"stages": labels, "rows": rows}


def by_turn(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curve of PDMS after at most j turns, one line a stage of the model."""
    lines = tuple(
        charts.Series(_label(name, part), tuple((int(turn), value) for turn, value in part["by_turn"].items()))
        for name, part in _of_models(summary).items() if len(part.get("by_turn", {})) > 1)
    chart = charts.Chart("PDMS after at most n turns", "held-out scenes", lines, False, True, "turn")
    return drawn(chart) if lines else None


def phases(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where the time of a step goes, a table a phase of the job: mean seconds and share (0..1) of each timer.

    Timers inside others come below them (`depth` 1), as parts of the same step.
    """
    found = []
    for job in dict.fromkeys(line["phase"] for line in metrics):
        lines = [line for line in metrics if line["phase"] == job and any(name.startswith("timers/") for name in line)]
        names = [name for name in dict.fromkeys(name for line in lines for name in line)
                 if name.startswith("timers/") and name != "timers/step" and not name.startswith("timers/share/")]
        seconds = {name.removeprefix("timers/"): sum(line.get(name) or 0.0 for line in lines) / len(lines) for name in names}
        outer = sorted((name for name in seconds if "/" not in name), key=lambda name: (name == "other", -seconds[name]))
        timed = sum(line.get("timers/step") or 0.0 for line in lines) / max(1, len(lines))
        step = timed or sum(seconds[name] for name in outer)
        if not step:
            continue
        rows = [{"name": name.split("/")[-1], "depth": name.count("/"), "seconds": seconds[name],
                 "share": seconds[name] / step}
                for first in outer for name in (first, *(inner for inner in seconds if inner.startswith(f"{first}/")))]
        found.append({"job": job, "steps": len(lines), "seconds": step, "rows": rows})
    return found


def _validation(run: RunFiles) -> list[charts.Chart]:
    """PDMS of held-out scenes over RL steps, where a run was validated in between; SFT's result is step 0."""
    summary = run.summary
    parts = {int(match[1]): part for name, part in tables.parts_of(summary).items()
             if (match := re.fullmatch(r"rl_step_(\d+)", name))}
    if not parts:
        return []
    start = next((summary[name] for name in ("before_rl", "after_sft") if name in summary), None)
    if start is not None:
        parts[0] = start
    if "after_rl" in summary:
        last = max((line["step"] + 1 for line in run.metrics if line["phase"] == "rl"), default=0)
        parts.setdefault(max(last, *parts), summary["after_rl"])
    points = sorted(parts.items())
    series = tuple(charts.Series(turn, tuple((step, part[turn]["PDMS"]) for step, part in points))
                   for turn in ("last_turn", "turn_1"))
    return [charts.Chart("PDMS on held-out scenes", "rl", series, False, True)]


def drawn(chart: charts.Chart) -> dict[str, Any]:
    """A chart with its SVG and legend."""
    return {"title": chart.title, "phase": chart.phase, "svg": charts.draw(chart), "legend": charts.legend(chart)}


def _at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def _of_models(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows that may have turns."""
    return {name: part for name, part in tables.parts_of(summary).items() if name not in tables.WITHOUT_TURNS}


def _label(name: str, part: Mapping[str, Any]) -> str:
    return str(part.get("label") or tables.label_of(name))


def _interval(interval: Any) -> str:
    return "" if interval is None else f"95% CI {interval[0]:.1f} to {interval[1]:.1f}"
