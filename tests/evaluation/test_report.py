"""The report page: complete, self-contained, safe with hostile text, clear about a run that is not there."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from hand_episodes import HOSTILE

from nemo_mtdrive.evaluation import charts, drawing
from nemo_mtdrive.evaluation.report import write_readme_picture, write_report
from nemo_mtdrive.evaluation.run_files import RunError
from nemo_mtdrive.telemetry.excerpt import CameraView

VOID = {"meta", "img", "input", "br"}
URLS = {"src", "href", "data", "action", "poster", "srcset", "xlink:href"}


class Page(HTMLParser):
    """Elements with attributes, text by element, and a check that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def count(self, tag: str, name: str = "") -> int:
        """Elements of this tag whose class list has `name`."""
        return sum(t == tag and (not name or name in (a.get("class") or "").split()) for t, a in self.elements)

    def text(self) -> str:
        return "\n".join(text for tag, text in self.texts if tag not in ("script", "style"))


def test_the_page_shows_the_run(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path.read_text())
    text = page.text()
    # after_rl has the two-turn episode and the hostile one, after_sft the hostile one
    assert page.count("article", "card") == 3 and page.count("button", "turn") == 4 and page.count("svg", "bird") == 4
    assert page.count("img") == 3 and page.count("svg", "overlay") == 3
    assert page.count("path", "dac") == 1 + 2  # the key, and two points of the veering turn
    for shown in ("mine", "cross_turn", "veering", "Where to?", "After RL", "After SFT", "no trajectory", "PDMS",
                  "45.0", "feedback", "group_size: 8"):
        assert shown in text, shown
    titles = [text for tag, text in page.texts if tag == "b"]
    assert {"Loss", "Reward", "Time per step (s)"} <= set(titles)
    assert sum(t == "g" and (a.get("id") or "").startswith("map-") for t, a in page.elements) == 1


def test_nothing_is_requested_from_elsewhere(run_dir: Path) -> None:
    html = write_report(run_dir).read_text()
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in URLS & attributes.keys():
            assert (attributes[name] or "").startswith(("data:image/", "#")), (tag, name)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html and "@import" not in html
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; img-src data:;") and "script-src 'sha256-" in policy


def test_the_model_s_text_is_text(run_dir: Path) -> None:
    html = write_report(run_dir).read_text()
    page = Page(html)
    assert [tag for tag, text in page.texts if HOSTILE in text] == ["p", "p"]
    assert page.count("script") == 1 and html.count("onerror=alert") == html.count("&lt;img src=x onerror=alert")
    assert "odd <metric>" not in html  # never finite, so it has no chart


def test_a_run_in_its_first_minutes_has_a_page_too(run_dir: Path) -> None:
    for name in ("summary.json", "config.yaml"):
        (run_dir / name).unlink()
    for file in (run_dir / "rollouts").glob("*.jsonl"):
        file.unlink()
    page = Page(write_report(run_dir).read_text())
    assert page.count("figure", "curve") == 4 and page.count("article") == 0 and page.count("table") == 0


def test_what_is_gone_is_left_out(run_dir: Path) -> None:
    for folder in ("images", "scenes"):
        for file in (run_dir / "rollouts" / folder).iterdir():
            file.unlink()
    page = Page(write_report(run_dir).read_text())
    assert page.count("article", "card") == 3 and page.count("img") == 0 and page.count("svg", "bird") == 4
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


def test_large_pictures_are_jpeg_in_the_page(run_dir: Path) -> None:
    (image,) = (run_dir / "rollouts" / "images").iterdir()
    cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 255, (320, 640, 3), dtype=np.uint8))
    html = write_report(run_dir).read_text()
    assert "data:image/jpeg;base64," in html and "data:image/png" not in html
    assert 'class="overlay" viewBox="0 0 640 320"' in html


def test_validation_between_steps_is_a_curve(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"rl_step_2": summary["after_rl"]}))
    html = write_report(run_dir).read_text()
    data = next(json.loads(a["data-chart"] or "") for t, a in Page(html).elements
                if a.get("aria-label") == "PDMS on held-out scenes")
    # after_sft is step 0; the metrics of the run end with step 2, so after_rl is step 3
    assert data["series"][0] == {"name": "last turn", "points": [[0, 0.0], [2, 45.0], [3, 45.0]]}


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


def test_a_trajectory_out_of_sight_draws_no_band() -> None:
    from nemo_mtdrive.driving.camera import front_camera

    pinhole = front_camera(224, 112, "")
    camera = CameraView(224, 112, pinhole.intrinsics.tolist(), pinhole.extrinsics.tolist())
    svg = str(drawing.camera_overlay(camera, [{"trajectory": [[-5.0, 0.0, 0.0]] * 8}, {"trajectory": None}], 224, 112))
    assert svg.count("<g ") == 2 and "band" not in svg
