"""report.html: a run in one self-contained page, made from the files of its run directory alone.

The page makes no request: style, script, pictures and numbers are in it, and its content security policy allows only
the one script and the one style sheet that are ours (by hash). Text of the model is untrusted: Jinja escapes what it
writes, and the script puts text into the page as text only (Trusted Types keep it so).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nemo_mtdrive.evaluation import overview, tables, timeline
from nemo_mtdrive.evaluation.page_data import page_data
from nemo_mtdrive.evaluation.run_files import RunError, RunFiles, read_run
from nemo_mtdrive.whole_file import write_whole

MAX_EPISODES = 2000
"""Of one page; older dumps are left out beyond it, and the page says so."""
SCRIPTS = ("page.js", "charts.js", "packs.js", "episode.js", "list.js", "browser.js")
"""Joined in this order into the page's one script."""


def write_report(run_dir: str | os.PathLike[str], advance: Callable[[int], None] = lambda _: None) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path; `advance` is told of each episode.

    Raises:
        RunError: no such run, an empty one, or a file in it that cannot be understood.
    """
    run = read_run(run_dir)
    page = render(run, advance)
    path = run.directory / "report.html"
    write_whole(path, page.encode(errors="replace"))
    return path


def render(run: RunFiles, advance: Callable[[int], None] = lambda _: None) -> str:
    """The page as HTML."""
    assets = files("nemo_mtdrive.evaluation") / "templates"
    style = (assets / "report.css").read_text(encoding="utf-8")
    script = "\n".join(['"use strict";', "(() => {", *((assets / name).read_text(encoding="utf-8") for name in SCRIPTS),
                        "})();"])
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf-8"))
    headline, others = overview.curves_of(run)
    return template.render(
        name=run.directory.resolve().name,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        facts=overview.facts(run.config),
        config_text=run.config_text,
        tiles=overview.tiles(run),
        rows=tables.rows_of(run.summary),
        columns=tables.COLUMNS,
        headings=tables.HEADINGS,
        number=tables.format_value,
        kinds=overview.kinds(run.summary),
        by_turn=overview.by_turn(run.summary),
        headline=headline,
        others=others,
        phases=overview.phases(run.metrics),
        timeline=_timeline(run.directory),
        data=page_data(run.dumps, MAX_EPISODES, advance),
    )


def _timeline(directory: Path) -> dict[str, Any] | None:
    """The last step's timeline: its SVG, and (phase, exposed s, overlapped s, share of the step 0..1), longest first."""
    try:
        shown = timeline.last_step(directory)
    except ValueError as error:
        raise RunError(str(error)) from error
    if shown is None:
        return None
    rows = [(timeline.label(name), each.exposed_s, each.overlapped_s, each.exposed_s / shown.step_s if shown.step_s else 0.0)
            for name, each in timeline.rows_by_exposure(shown)]
    return {"step": shown.step, "svg": Markup(shown.svg), "rows": rows, "seconds": shown.step_s}


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
