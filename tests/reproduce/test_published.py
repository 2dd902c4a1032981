"""Records travel without weights: packed, unpacked elsewhere, read as the stages' own, never taken for what they lack."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.reproduce.marks import done, folder_of, measured, read_mark
from nemo_mtdrive.reproduce.published import pack, unpack
from nemo_mtdrive.reproduce.runner import Runner
from nemo_mtdrive.reproduce.stages import Graph, Stage, graph_of, hashes, missing_for
from nemo_mtdrive.telemetry.progress import Progress, open_progress

SCRIPT = """
import sys
from pathlib import Path
name, out = sys.argv[1:]
(Path(out) / "episodes").mkdir(parents=True, exist_ok=True)
(Path(out) / "weights").write_text("heavy")
(Path(out) / "summary.json").write_text(f"{name} in {Path(out).resolve()}")
with open(Path(out) / "episodes" / "0.jsonl", "a") as file:
    file.write(name)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """scenes <- model <- evaluation, as real ones stand on each other."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def stage(name: str, needs: tuple[str, ...], records: tuple[str, ...]) -> Stage:
        return Stage(name, (("python", str(script), name, "{out}"),), needs, cpu_s=1.0, records=records)

    return graph_of([stage("scenes", (), ()), stage("model", ("scenes",), ("summary.json",)),
                     stage("evaluation", ("model",), ("*.json", "episodes/*"))])


@pytest.fixture
def progress() -> Iterator[Progress]:
    with open(os.devnull, "w") as quiet, open_progress(quiet, plain_every_s=60.0) as shown:
        yield shown


@pytest.fixture
def archives(tmp_path: Path, graph: Graph, progress: Progress) -> Path:
    Runner(tmp_path / "first", graph, hashes(graph), 1, progress).run()
    assert len(pack(tmp_path / "first", graph, hashes(graph), tmp_path / "archives")) == 3
    return tmp_path / "archives"


def files_of(root: Path, name: str) -> set[str]:
    out = folder_of(root, name) / "out"
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_records_travel_and_weights_do_not(tmp_path: Path, graph: Graph, archives: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert unpack(second, graph, hashes(graph), archives) == (["scenes", "model", "evaluation"], [])
    assert [files_of(second, name) for name in graph] == [set(), {"summary.json"}, {"summary.json", "episodes/0.jsonl"}]
    for name in graph:
        here, there = read_mark(second, name), read_mark(first, name)
        assert here is not None and there is not None and not here.whole and there.whole
        assert (here.cpu_seconds, here.commit, here.made_of) == (there.cpu_seconds, there.commit, there.made_of)
    for name in ("model", "evaluation"):
        kept = (folder_of(second, name) / "out" / "summary.json").read_text()
        assert kept == f"{name} in stages/{name}/out", "and the machine's folders do not"
    assert done(second, graph, hashes(graph)) == set() and measured(second, graph, hashes(graph)) == {"model", "evaluation"}
    assert unpack(second, graph, hashes(graph), archives) == ([], []), "what is there stays"


def test_what_was_unpacked_is_packed_to_the_same_bytes(tmp_path: Path, graph: Graph, archives: Path) -> None:
    assert pack(tmp_path / "first", graph, hashes(graph), archives) == [], "packing again changes nothing"
    unpack(tmp_path / "second", graph, hashes(graph), archives)
    pack(tmp_path / "second", graph, hashes(graph), tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (archives / path.name).read_bytes()


def test_only_what_is_asked_for_and_lacks_is_made(tmp_path: Path, graph: Graph, archives: Path, progress: Progress) -> None:
    root = tmp_path / "second"
    unpack(root, graph, hashes(graph), archives)
    Runner(root, graph, hashes(graph), 1, progress, ["evaluation"]).run()
    assert not files_of(root, "scenes"), "the evaluation is measured, so nothing was made"
    Runner(root, graph, hashes(graph), 1, progress, ["scenes"]).run()
    assert "weights" in files_of(root, "scenes") and "weights" not in files_of(root, "model")
    more = graph_of([*graph.values(), Stage("other", graph["evaluation"].commands, ("model",), cpu_s=1.0)])
    Runner(root, more, hashes(more), 1, progress, ["evaluation", "other"]).run()
    assert "weights" in files_of(root, "model"), "another stage stands on it, so records are not enough"
    assert (folder_of(root, "evaluation") / "out" / "episodes" / "0.jsonl").read_text() == "evaluation", "once"
    assert (folder_of(root, "model") / "out" / "episodes" / "0.jsonl").read_text() == "model", "from nothing"


def test_what_lacks(graph: Graph) -> None:
    assert missing_for(graph, ["evaluation"], set(), set()) == ["scenes", "model", "evaluation"]
    assert missing_for(graph, ["evaluation"], set(), {"model"}) == ["evaluation"], "the scenes may be gone"
    assert missing_for(graph, ["evaluation", "model"], {"evaluation"}, set()) == ["scenes", "model"]
    assert missing_for(graph, ["evaluation"], {"evaluation"}, set()) == []
    other = graph_of([Stage("other", (), ()), *graph.values()])
    assert missing_for(other, ["model", "other"], set(), set()) == ["scenes", "model", "other"], "the first asked for first"


def test_archives_of_other_values_are_left_out(tmp_path: Path, graph: Graph, archives: Path) -> None:
    other = graph_of([Stage("scenes", (("python", "x"),), ()), *list(graph.values())[1:]])
    assert unpack(tmp_path / "second", other, hashes(other), archives) == ([], ["scenes", "model", "evaluation"])
    assert not list((tmp_path / "second" / "stages").iterdir())


@pytest.mark.parametrize("damage", ["short", "other", "escapes"])
def test_a_damaged_archive_leaves_nothing(damage: str, tmp_path: Path, graph: Graph, archives: Path) -> None:
    path = archives / "scenes.tar.xz"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "other":
        path.write_text("not an archive")
    else:
        with tarfile.open(path, "w:xz") as archive:
            entry = tarfile.TarInfo("../../escaped")
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(ConfigError, match=r"scenes.tar.xz: not what `nemo-mtdrive reproduce pack` wrote"):
        unpack(tmp_path / "second", graph, hashes(graph), archives)
    assert not list((tmp_path / "second" / "stages").iterdir()) and not (tmp_path / "second" / "escaped").exists()
    with pytest.raises(ConfigError, match="--measured .*nowhere: no such folder"):
        unpack(tmp_path / "second", graph, hashes(graph), tmp_path / "nowhere")
