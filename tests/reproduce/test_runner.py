"""Stages that are short scripts: done once, gone on with after a kill, refused when made of other values."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.reproduce.marks import begin, done, drop, expected_s, folder_of, locked, read_mark, stale
from nemo_mtdrive.reproduce.runner import Runner, at_work
from nemo_mtdrive.reproduce.stages import Graph, Stage, graph_of, hashes, named
from nemo_mtdrive.supervision import JobFailed
from nemo_mtdrive.telemetry.progress import Progress, open_progress

WAIT_S = 120.0
SCRIPT = """
import os, sys, time
from pathlib import Path
name, out, *waits = sys.argv[1:]
Path(out).mkdir(parents=True, exist_ok=True)
with open(Path(out) / "attempts", "a") as file:
    file.write(f"{os.getpid()}\\n")
for wait in waits:
    while not Path(wait).exists():
        time.sleep(0.02)
(Path(out) / "made").write_text(name)
if name == "fails":
    print("it cannot be", file=sys.stderr)
    sys.exit(5)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "stage_script.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def progress() -> Iterator[Progress]:
    with open(os.devnull, "w") as quiet, open_progress(quiet, plain_every_s=60.0) as shown:
        yield shown


def stage(script: Path, name: str, *needs: str, waits: tuple[Path, ...] = (), says: str = "") -> Stage:
    return Stage(name, (("python", str(script), says or name, "{out}", *map(str, waits)),), needs, cpu_s=1.0)


def run(root: Path, graph: Graph, progress: Progress, jobs: int = 1) -> None:
    Runner(root, graph, hashes(graph), jobs, progress).run()


def attempts(root: Path, name: str) -> list[int]:
    path = folder_of(root, name) / "out" / "attempts"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def until(condition: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_each_stage_once_and_in_order(tmp_path: Path, script: Path, progress: Progress) -> None:
    root = tmp_path / "root"
    graph = graph_of([stage(script, "b", "a", waits=(root / "stages" / "a" / "out" / "made",)), stage(script, "a")])
    run(root, graph, progress)
    mark = read_mark(root, "b")
    assert mark is not None and mark.done and mark.made_of == hashes(graph)["b"] and mark.cpu_seconds > 0.0
    assert mark.commands == [["python", str(script), "b", str(root / "stages" / "b" / "out"),
                              str(root / "stages" / "a" / "out" / "made")]]
    assert done(root, graph, hashes(graph)) == {"a", "b"}
    run(root, graph, progress)
    assert len(attempts(root, "a")) == len(attempts(root, "b")) == 1
    more = graph_of([*graph.values(), stage(script, "c", "a")])
    run(root, more, progress)
    assert len(attempts(root, "a")) == 1 and len(attempts(root, "c")) == 1


def test_stages_that_do_not_need_each_other_run_side_by_side(tmp_path: Path, script: Path, progress: Progress) -> None:
    root = tmp_path / "root"
    made = {name: root / "stages" / name / "out" / "attempts" for name in "ab"}
    run(root, graph_of([stage(script, "a", waits=(made["b"],)), stage(script, "b", waits=(made["a"],))]), progress, jobs=2)
    assert len(attempts(root, "a")) == 1


def test_a_killed_reproduction_takes_its_commands_along_and_goes_on(tmp_path: Path, script: Path,
                                                                    progress: Progress) -> None:
    root, go = tmp_path / "root", tmp_path / "go"
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from nemo_mtdrive.telemetry.progress import open_progress
from tests.reproduce.test_runner import run, three
with open_progress(sys.stderr, plain_every_s=60.0) as progress:
    run(Path({str(root)!r}), three(Path({str(script)!r}), Path({str(go)!r})), progress)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until(lambda: attempts(root, "b"), process)
    finally:
        process.kill()
        process.communicate()
    until(lambda: gone(attempts(root, "b")[0]))
    mark = read_mark(root, "b")
    assert mark is not None and not mark.done
    go.touch()
    run(root, three(script, go), progress)
    assert [len(attempts(root, name)) for name in "abc"] == [1, 2, 1], "what was done is not done again"


def three(script: Path, go: Path) -> Graph:
    return graph_of([stage(script, "a"), stage(script, "b", "a", waits=(go,)), stage(script, "c", "b")])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_order(number: signal.Signals, tmp_path: Path, script: Path, progress: Progress) -> None:
    root, go = tmp_path / "root", tmp_path / "go"
    graph = three(script, go)
    before = signal.getsignal(number)
    runner = Runner(root, graph, hashes(graph), 1, progress)
    look = runner._look

    def look_and_stop(*given: object) -> None:
        look(*given)  # type: ignore[arg-type]
        if attempts(root, "b"):
            os.kill(os.getpid(), number)

    runner._look = look_and_stop  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    assert gone(attempts(root, "b")[0]) and not attempts(root, "c")
    assert signal.getsignal(number) == before
    go.touch()
    run(root, graph, progress)
    assert [len(attempts(root, name)) for name in "abc"] == [1, 2, 1]


def test_a_command_that_fails_is_named_with_its_last_words(tmp_path: Path, script: Path, progress: Progress) -> None:
    root = tmp_path / "root"
    graph = graph_of([stage(script, "a", says="fails"), stage(script, "b", "a")])
    with pytest.raises(JobFailed, match=r"stage a exited with code 5; .*stages/a/log.txt ends with\n(.*\n)*  it cannot be"):
        run(root, graph, progress)
    assert not attempts(root, "b") and done(root, graph, hashes(graph)) == set()


def test_what_was_made_of_other_values_is_found(tmp_path: Path, script: Path, progress: Progress) -> None:
    root = tmp_path / "root"
    graph = graph_of([stage(script, "a"), stage(script, "b"), stage(script, "c", "b")])
    run(root, graph, progress)
    other = graph_of([stage(script, "a"), stage(script, "b", says="other"), stage(script, "c", "b")])
    assert stale(root, graph, hashes(graph)) == []
    assert stale(root, other, hashes(other)) == ["b", "c"], "and what stands on it"
    assert done(root, other, hashes(other)) == {"a"}
    drop(root, ["b", "c"])
    run(root, other, progress)
    assert (folder_of(root, "b") / "out" / "made").read_text() == "other"
    assert [len(attempts(root, name)) for name in "abc"] == [1, 1, 1]


def test_two_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} works in it"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_expectations_are_measured_ones_where_there_are(tmp_path: Path, script: Path, progress: Progress) -> None:
    root = tmp_path / "root"
    graph = graph_of([stage(script, named("a", seed)) for seed in (1, 2)] + [stage(script, "b")])
    assert expected_s(root, graph) == {"a-s1": 1.0, "a-s2": 1.0, "b": 1.0}
    run(root, graph_of([graph["a-s1"]]), progress)
    mark = read_mark(root, "a-s1")
    assert mark is not None
    assert expected_s(root, graph) == {"a-s1": mark.cpu_seconds, "a-s2": mark.cpu_seconds, "b": 1.0}


def test_a_damaged_mark_is_refused(tmp_path: Path, script: Path) -> None:
    graph = graph_of([stage(script, "a")])
    begin(tmp_path, graph["a"], "mark", [["x"]])
    (folder_of(tmp_path, "a") / "stage.json").write_text("{}")
    with pytest.raises(ConfigError, match="not the mark of a stage"):
        read_mark(tmp_path, "a")


def test_what_is_added_to_a_command_changes_nothing_of_its_result(tmp_path: Path) -> None:
    """Worker processes where a command takes them, and going on from a checkpoint where a run has begun."""
    made = Stage("x", (), ())
    curate = ["nemo-mtdrive", "curate", "single-turn", "--out", "D"]
    assert at_work(curate, 2, tmp_path, made) == [*curate, "--workers", "2"]
    assert at_work([*curate, "--model", "M"], 2, tmp_path, made) == [*curate, "--model", "M"]
    generate = ["nemo-mtdrive", "scenes", "generate", "--out", "D"]
    assert at_work(generate, 1, tmp_path, made) == [*generate, "--workers", "1"]
    sft = ["nemo-mtdrive", "sft", "run_dir=R"]
    assert at_work(sft, 2, tmp_path, made) == sft
    run_dir = folder_of(tmp_path, "x") / "out"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").touch()
    assert at_work(sft, 2, tmp_path, made) == [*sft, "resume=true"]
    for other in (["nemo-mtdrive", "evaluate", "--out", "D"], ["python", "convert.py"]):
        assert at_work(other, 2, tmp_path, made) == other


def test_the_first_asked_for_come_first_and_each_is_told(tmp_path: Path, script: Path, progress: Progress) -> None:
    root = tmp_path / "root"
    told: list[set[str]] = []
    graph = graph_of([stage(script, "a"), stage(script, "b"), stage(script, "c", "b")])
    runner = Runner(root, graph, hashes(graph), 1, progress, ["c", "a"])
    runner.run(lambda: told.append(done(root, graph, hashes(graph))))
    assert told == [{"b"}, {"b", "c"}, {"a", "b", "c"}]
