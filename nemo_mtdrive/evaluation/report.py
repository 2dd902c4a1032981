"""report.html: a run in one self-contained page, made from the files of its run directory alone.

The page makes no request: style, script, pictures and numbers are in it, and its content security policy allows only
the one script that is ours (by hash). Text of the model is untrusted; Jinja escapes it like everything else.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nemo_mtdrive.evaluation import charts, drawing, tables
from nemo_mtdrive.evaluation.figures import save_turns_figure
from nemo_mtdrive.evaluation.marks import window_of
from nemo_mtdrive.evaluation.run_files import (
    RecordedEpisode,
    RunFiles,
    latest_dumps,
    read_episodes,
    read_run,
)

MAX_PNG_BYTES = 150_000
"""Larger pictures become JPEG in the page."""
SCORES = ("NC", "DAC", "TTC", "C", "EP")
CONFIG_KEYS = (
    ("scenes", "scenes.source"), ("training scenes", "scenes.count"), ("held out", "scenes.held_out"),
    ("perception", "environment.perception"), ("turns at most", "rollout.max_turns"), ("model", "model.init_from"),
    ("tensor parallel", "parallel.tensor"), ("data parallel", "parallel.data"), ("SFT batch", "sft.batch_size"),
    ("RL steps", "mtgrpo.steps"), ("estimator", "mtgrpo.estimator"), ("group size", "mtgrpo.group_size"),
    ("scenes a step", "mtgrpo.prompts_per_step"), ("RL learning rate", "mtgrpo.lr"),
    ("KL coefficient", "mtgrpo.kl_coefficient"), ("IPSS", "transfer.ipss"), ("IPTC", "transfer.iptc"), ("seed", "seed"),
)


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path.

    Raises:
        RunError: no such run, an empty one, or a file in it that cannot be understood.
    """
    run = read_run(run_dir)
    page = render(run)
    path = run.directory / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, encoding="utf-8", errors="replace")
    temporary.replace(path)
    return path


def render(run: RunFiles) -> str:
    """The page as HTML."""
    templates = files("nemo_mtdrive.evaluation") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    template = environment.from_string((templates / "report.html.j2").read_text(encoding="utf-8"))
    symbols: dict[str, Markup] = {}
    cards = [_card(episode, dump.purpose, dump.step, number, symbols)
             for dump in latest_dumps(run.dumps) for number, episode in enumerate(read_episodes(dump))]
    curves = charts.charts_of(run.metrics)
    return template.render(
        name=run.directory.resolve().name,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        config=[(label, _shown(value)) for label, key in CONFIG_KEYS
                if (value := _at(run.config, key)) not in (None, "")],
        config_text=run.config_text,
        tiles=_tiles(run),
        rows=tables.rows_of(run.summary),
        columns=tables.COLUMNS,
        number=tables.format_value,
        kinds=_kinds(run.summary),
        by_turn=_by_turn(run.summary),
        headline=[_curve(chart) for chart in [*_validation(run), *curves] if chart.headline],
        others=[_curve(chart) for chart in curves if not chart.headline],
        purposes=list(dict.fromkeys(card["purpose"] for card in cards)),
        scene_kinds=sorted({card["kind"] for card in cards}),
        cards=cards,
        symbols=list(symbols.values()),
        score_names=SCORES,
    )


def write_readme_picture(run_dir: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> Path | None:
    """A strip of one episode that shows what the turns are for: camera and a bird's-eye view of each of up to 3 turns.

    Chosen among the last dumps: several turns and no violation at the end, then the largest gain of PDMS, then the
    fewest turns. None, and no picture, when no recorded episode has image, scene and trajectories.

    Raises:
        RunError: no such run, an empty one, or a file in it that cannot be understood.
    """
    run = read_run(run_dir)
    episodes = [episode for dump in latest_dumps(run.dumps) for episode in read_episodes(dump)]
    fit = [e for e in episodes if e.excerpt is not None and e.image_file is not None and e.turns
           and all(turn["trajectory"] is not None for turn in e.turns)]
    if not fit:
        return None
    best = max(fit, key=lambda e: (len(e.turns) > 1, not e.turns[-1]["violations"], _gain(e), -len(e.turns)))
    turns = best.turns if len(best.turns) <= 3 else [best.turns[0], best.turns[len(best.turns) // 2], best.turns[-1]]
    assert best.excerpt is not None
    title = f"{best.excerpt.kind.replace('_', ' ')}, {best.excerpt.command or 'no command'}: PDMS " + " → ".join(
        f"{100 * turn['scores']['PDMS']:.0f}" for turn in turns)
    return save_turns_figure(out_png, best.excerpt, best.image, turns, title)


def _gain(episode: RecordedEpisode) -> float:
    first, last = (turn["scores"]["PDMS"] for turn in (episode.turns[0], episode.turns[-1]))
    return float(last - first)


def _at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def _tiles(run: RunFiles) -> list[dict[str, str]]:
    """The few numbers at the top: of the last stage that was evaluated."""
    stages = {name: part for name, part in tables.parts_of(run.summary).items() if name not in tables.WITHOUT_TURNS}
    tiles = []
    if stages:
        name, summary = list(stages.items())[-1]
        last, first, gain = summary["last_turn"], summary["turn_1"], summary.get("gain", {})
        tiles.append({"label": f"PDMS, last turn, {tables.label_of(name)}", "value": tables.format_value(last["PDMS"]),
                      "note": _interval(last.get("PDMS_ci95"))})
        tiles.append({"label": "PDMS, first turn", "value": tables.format_value(first["PDMS"]),
                      "note": _interval(first.get("PDMS_ci95"))})
        if gain.get("PDMS") is not None:
            tiles.append({"label": "Gained by later turns", "value": f"{gain['PDMS']:+.1f}",
                          "note": _interval(gain.get("PDMS_ci95"))})
        if last.get("parse_rate") is not None:
            tiles.append({"label": "Answers that parse", "value": f"{last['parse_rate']:.1f}%",
                          "note": f"of {summary['scenes']} held-out scenes"})
    if len(run.metrics) > 1:
        seconds = run.metrics[-1].get("time", 0.0) - run.metrics[0].get("time", 0.0)
        counts = ", ".join(f"{max(line['step'] for line in run.metrics if line['phase'] == phase)} {phase.upper()}"
                           for phase in dict.fromkeys(line["phase"] for line in run.metrics))
        tiles.append({"label": "Wall time of the steps", "value": _duration(seconds), "note": f"{counts} steps"})
    return tiles


def _interval(interval: Any) -> str:
    return "" if interval is None else f"95% CI {interval[0]:.1f} to {interval[1]:.1f}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60.0
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _kinds(summary: Mapping[str, Any]) -> dict[str, Any]:
    """PDMS at the last turn by scene kind and stage."""
    stages = {name: part["kinds"] for name, part in tables.parts_of(summary).items() if part.get("kinds")}
    names = sorted({kind for part in stages.values() for kind in part})
    rows = [{"kind": kind, "scenes": max(part[kind]["scenes"] for part in stages.values() if kind in part),
             "values": [part[kind]["last_turn"]["PDMS"] if kind in part else None for part in stages.values()]}
            for kind in names]
    return {"stages": [tables.label_of(name) for name in stages], "rows": rows}


def _by_turn(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The curve of PDMS after at most j turns, one line a stage of the model."""
    lines = tuple(
        charts.Series(tables.label_of(name), tuple((int(turn), value) for turn, value in part["by_turn"].items()))
        for name, part in tables.parts_of(summary).items()
        if name not in tables.WITHOUT_TURNS and len(part.get("by_turn", {})) > 1)
    return _curve(charts.Chart("PDMS after at most n turns", "held-out scenes", lines, False, True)) if lines else None


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


def _curve(chart: charts.Chart) -> dict[str, Any]:
    return {"title": chart.title, "phase": chart.phase, "svg": charts.draw(chart), "legend": charts.legend(chart)}


def _card(episode: RecordedEpisode, purpose: str, step: int, number: int, symbols: dict[str, Markup]) -> dict[str, Any]:
    """What the template shows of one episode; its map is added to `symbols` once a scene."""
    record, excerpt, turns = episode.record, episode.excerpt, episode.turns
    symbol = None
    if excerpt is not None:
        symbol = "map-" + hashlib.blake2b(record["scene"].encode(), digest_size=6).hexdigest()
        symbols.setdefault(symbol, drawing.map_symbol(symbol, excerpt))
    window = window_of(excerpt, turns)
    image = episode.image
    overlay = None
    if image is not None and excerpt is not None and excerpt.camera is not None:
        overlay = drawing.camera_overlay(excerpt.camera, turns, image.shape[1], image.shape[0])
    return {
        "id": f"{purpose}-{number}",
        "purpose": purpose,
        "step": step,
        "scene_id": record["scene_id"],
        "index": record["index"],
        "kind": excerpt.kind if excerpt is not None else "unknown",
        "command": excerpt.command if excerpt is not None else None,
        "speed": excerpt.speed if excerpt is not None else None,
        "valid": record["valid"],
        "reason": record["reason"],
        "prompt": record["prompt"],
        "image": None if image is None or episode.image_file is None else _data_uri(image, episode.image_file),
        "overlay": overlay,
        "turns": [turn | {"view": drawing.bird_eye(symbol, turn, window)} for turn in turns],
        "gain": 100.0 * ((turns[-1]["scores"] or {"PDMS": 0.0})["PDMS"] - (turns[0]["scores"] or {"PDMS": 0.0})["PDMS"])
        if turns else 0.0,
        "violating": any(turn["violations"] for turn in turns),
    }


def _data_uri(image: NDArray[np.uint8], file: Path) -> str:
    if file.stat().st_size <= MAX_PNG_BYTES:
        return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    _, jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
