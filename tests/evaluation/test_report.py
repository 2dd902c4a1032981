"""The report page: complete, self-contained, safe with hostile text, clear about a run that is not there."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path

import cv2
import pytest

from nemo_mtdrive.cli import main
from nemo_mtdrive.evaluation import charts, overview
from nemo_mtdrive.evaluation.episode_figures import write_readme_picture
from nemo_mtdrive.evaluation.report import write_report
from nemo_mtdrive.evaluation.run_files import RunError, latest_dumps
from nemo_mtdrive.telemetry.recorder import RolloutFile
from nemo_mtdrive.telemetry.spans import Span
from nemo_mtdrive.telemetry.timeline import Window, write_trace
from tests.evaluation.hand_episodes import HOSTILE
from tests.evaluation.pages import Page

URLS = {"src", "href", "data", "action", "poster", "srcset", "xlink:href"}


def test_the_page_shows_the_run(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path.read_text())
    text = page.text()
    for shown in ("mine", "After RL", "After SFT", "PDMS", "45.0", "group_size: 8", "Where a step's time goes"):
        assert shown in text, shown
    titles = [text for tag, text in page.texts if tag == "b"]
    assert {"Loss", "Reward", "Time per step (s)", "SFT", "RL"} <= set(titles)
    # after_rl has the two-turn episode and the hostile one, after_sft the hostile one
    index = page.packs["index"]
    assert index["stages"] == ["after_rl", "after_sft"] and len(index["episodes"]) == 3
    assert len(page.packs["scenes-0"]) == 1 and len(page.packs["episodes-0"]) == 3


def test_nothing_is_requested_from_elsewhere(run_dir: Path) -> None:
    html = write_report(run_dir).read_text()
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in URLS & attributes.keys():
            assert (attributes[name] or "").startswith(("data:image/", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
    assert "url(" not in html and "@import" not in html
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for part in ("script", "style"):
        text = next(text for tag, text in page.texts if tag == part and "{" in text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy


def test_the_model_s_text_is_never_markup(run_dir: Path) -> None:
    html = write_report(run_dir).read_text()
    page = Page(html)
    said = [turn["answer"] for detail in page.packs["episodes-0"] for turn in detail["turns"]]
    assert said.count([HOSTILE]) == 2 and "onerror" not in html  # it stays in the packs
    assert page.count("img") == 0 and page.count("script") == 1 + len(page.packs)
    assert "odd <metric>" not in html  # never finite, so it has no chart


def test_a_run_in_its_first_minutes_has_a_page_too(run_dir: Path) -> None:
    for name in ("summary.json", "config.yaml"):
        (run_dir / name).unlink()
    for file in (run_dir / "rollouts").glob("*.jsonl"):
        file.unlink()
    page = Page(write_report(run_dir).read_text())
    assert page.count("figure", "curve") == 4 and page.packs == {} and page.count("table") == 2


def test_what_is_gone_is_left_out(run_dir: Path) -> None:
    for folder in ("images", "scenes"):
        for file in (run_dir / "rollouts" / folder).iterdir():
            file.unlink()
    page = Page(write_report(run_dir).read_text())
    assert [row["kind"] for row in page.packs["index"]["episodes"]] == [0, 0, 0]
    assert page.packs["index"]["kinds"] == ["unknown"]
    assert all(scene["picture"] is None and len(scene["shapes"]) == 1 for scene in page.packs["scenes-0"])
    assert write_readme_picture(run_dir, run_dir / "demo.png") is None


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda run: [file.unlink() for file in run.rglob("*") if file.is_file()], "no metrics.jsonl, summary.json or"),
    (lambda run: os.rename(run, run.with_name("gone")), "no such run directory"),
    (lambda run: (run / "summary.json").write_text("{"), r"summary\.json: Expecting"),
    (lambda run: (run / "config.yaml").write_text("a: [1"), r"config\.yaml: "),
    (lambda run: (run / "metrics.jsonl").write_text("nonsense\n"), r"metrics\.jsonl:1: not a line"),
    (lambda run: (run / "rollouts" / "train-000001.jsonl").write_text("{}\n"), r"train-000001\.jsonl:1: not a rec"),
])
def test_a_run_that_cannot_be_shown_is_one_clear_line(run_dir: Path, spoil, message: str) -> None:
    spoil(run_dir)
    with pytest.raises(RunError, match=message) as caught:
        write_report(run_dir)
    assert "\n" not in str(caught.value)
    assert not (run_dir / "report.html").exists()


def test_a_reference_out_of_the_run_is_refused(run_dir: Path, tmp_path: Path) -> None:
    dump = run_dir / "rollouts" / "after_rl-000000.jsonl"
    record = json.loads(dump.read_text().splitlines()[0]) | {"images": ["../../../secret.png"]}
    dump.write_text(json.dumps(record) + "\n")
    with pytest.raises(RunError, match="leads out of"):
        write_report(run_dir)


def test_validation_between_steps_is_a_curve(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"rl_step_2": summary["after_rl"]}))
    html = write_report(run_dir).read_text()
    data = next(json.loads(a["data-chart"] or "") for t, a in Page(html).elements
                if a.get("aria-label") == "PDMS on held-out scenes")
    # after_sft is step 0; the metrics of the run end with step 2, so after_rl is step 3
    assert data["unit"] == "step" and data["series"][0] == {"name": "last turn", "points": [[0, 0.0], [2, 45.0], [3, 45.0]]}


def test_the_readme_picture_is_the_episode_that_improved(run_dir: Path) -> None:
    path = write_readme_picture(run_dir, run_dir / "demo.png")
    assert path == run_dir / "demo.png"
    assert cv2.imread(str(path)).shape[1] > 1000


def test_charts_bridge_nulls_stack_times_and_stay_small() -> None:
    lines = [{"phase": "rl", "step": step, "time": 0.0, "timers/rollout": 2.0, "timers/update": 3.0, "timers/step": 9.0,
              "rollout/last_turn/PDMS": 50.0 if step % 2 else None, "lr": 1e-3, "never": None} for step in range(1000)]
    found = {chart.title: chart for chart in charts.charts_of(lines)}
    assert list(found) == ["PDMS", "Time per step (s)", "timers/step", "lr"]
    assert [one.name for one in found["Time per step (s)"].series] == ["timers/rollout", "timers/update"]
    assert len(found["lr"].series[0].points) == charts.MAX_POINTS
    svg = str(charts.draw(found["Time per step (s)"]))
    assert svg.count('class="area') == 2 and len(svg) < 60_000
    top = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", re.findall(r'class="line s1" d="([^"]+)"', svg)[0])]
    bottom = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", re.findall(r'class="line s0" d="([^"]+)"', svg)[0])]
    zero = charts.HEIGHT - charts.BOTTOM
    assert (zero - top[0]) / (zero - bottom[0]) == pytest.approx(2.5, abs=0.01)
    assert str(charts.draw(found["PDMS"])).count('class="line') == 1


@pytest.mark.parametrize(("low", "high", "count", "expected"), [
    (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.0, 7.0, 5, [-2.0, 0.0, 2.0, 4.0, 6.0]), (5.0, 5.0, 4, [5.0]),
    (0.0, 3.1e-5, 4, [0.0, 1e-5, 2e-5, 3e-5]),
])
def test_ticks_are_round(low: float, high: float, count: int, expected: list[float]) -> None:
    assert charts.ticks(low, high, count) == pytest.approx(expected, abs=1e-12)


def test_phases_are_shares_of_the_mean_step() -> None:
    lines = [{"phase": "rl", "step": step, "timers/rollout": 6.0 + step, "timers/rollout/generate": 3.0,
              "timers/update": 2.0, "timers/other": 0.5, "timers/step": 8.5 + step, "timers/share/update": 0.2}
             for step in (0, 1)]
    (job,) = overview.phases([*lines, {"phase": "sft", "step": 0, "loss": 1.0}])
    assert (job["job"], job["steps"], job["seconds"]) == ("rl", 2, 9.0)
    assert [(row["name"], row["depth"], row["seconds"]) for row in job["rows"]] == [
        ("rollout", 0, 6.5), ("generate", 1, 3.0), ("update", 0, 2.0), ("other", 0, 0.5)]
    assert sum(row["share"] for row in job["rows"] if not row["depth"]) == pytest.approx(1.0)


def test_the_last_step_s_timeline_is_in_the_page(run_dir: Path) -> None:
    spans = [Span("generate", 0, 3_000_000_000, "worker-0", 0), Span("update", 3_000_000_000, 4_000_000_000, "rank-0", 0)]
    write_trace(run_dir / "trace.json", spans, [Window(7, 0, 5_000_000_000)])
    page = Page(write_report(run_dir).read_text())
    assert page.count("svg", "timeline") == 1 and "Step 7" in page.text()
    cells = [text for tag, text in page.texts if tag in ("td", "th")]
    assert cells[cells.index("generate"):][:3] == ["generate", "3.000", "60.0"]
    (run_dir / "trace.json").write_text("{}")
    with pytest.raises(RunError, match=r"trace\.json: not a trace"):
        write_report(run_dir)


def test_the_command(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{run_dir / 'report.html'}\n" and "3/3 episodes" in said.err
    assert main(["report", str(run_dir / "nowhere")]) == 2
    assert "no such run directory; give the run_dir of a run\n" in capsys.readouterr().err


def test_an_evaluation_shows_its_best_row_and_models_before_drivers(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    good, bad = summary["after_rl"] | {"label": "demo (oracle)"}, summary["after_sft"] | {"label": "demo (self)"}
    rows = {"demo_oracle": good, "demo_self": bad, "human": good | {"label": "Human"}}
    (run_dir / "summary.json").write_text(json.dumps(rows))
    page = Page(write_report(run_dir).read_text())
    assert "PDMS, last turn, demo (oracle)" in page.text() and "CF" in [text for tag, text in page.texts if tag == "th"]
    purposes = ("human", "train", "demo_oracle", "constant_velocity", "demo_self")
    dumps = [RolloutFile(Path(name), name, 0) for name in purposes]
    assert [dump.purpose for dump in latest_dumps(dumps)] == [
        "demo_self", "demo_oracle", "train", "human", "constant_velocity"]
