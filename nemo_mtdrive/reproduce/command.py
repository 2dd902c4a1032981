"""What `nemo-mtdrive reproduce` does with what it is asked for."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nemo_mtdrive.config import ConfigError
from nemo_mtdrive.process import available_cpus
from nemo_mtdrive.reproduce.checks import check
from nemo_mtdrive.reproduce.graph import MODEL_DIRECTORY, WHATS, graph_for, stages_of, whole_graph
from nemo_mtdrive.reproduce.hacks import hacks
from nemo_mtdrive.reproduce.learning import estimators, learning
from nemo_mtdrive.reproduce.marks import done, drop, expected_s, locked, measured, read_mark, stale
from nemo_mtdrive.reproduce.page import CHECK_FILE, budget_markdown, gates_markdown, write_page
from nemo_mtdrive.reproduce.published import pack, unpack
from nemo_mtdrive.reproduce.recipe import Recipe
from nemo_mtdrive.reproduce.repairs import repairs
from nemo_mtdrive.reproduce.results import RESULTS, Result, write_result
from nemo_mtdrive.reproduce.runner import Runner
from nemo_mtdrive.reproduce.stages import Graph, hashes, missing_for, places, spelled
from nemo_mtdrive.reproduce.tables import mock, pictures, size, table1, table2, table3, turns
from nemo_mtdrive.telemetry.progress import format_seconds, open_progress
from nemo_mtdrive.whole_file import write_whole

TABLES: Mapping[str, tuple[Callable[[Path, Recipe, Sequence[int]], Result], ...]] = {
    "model": (), "table1": (table1, pictures, learning), "table2": (table2,), "table3": (table3, estimators),
    "turns": (turns,), "mock": (mock,), "size": (size,)}
"""What can be asked for -> the results that come with it."""
LOOKS: Mapping[str, Callable[[Path, Recipe, Sequence[int]], list[Path]]] = {"repairs": repairs, "hacks": hacks}
"""Closer looks at Table 1's episodes, with pictures of some."""
DONE, FAILED = 0, 1
PLAIN_EVERY_S = 60.0


@dataclass(frozen=True)
class Request:
    """The command's options."""

    what: str
    out: Path
    recipe: Recipe
    seeds: Sequence[int]
    jobs: int
    """Stages at the same time; 0: one a CPU."""
    again: bool
    commands: bool
    page: Path
    measured: Path
    """Folder of published measurements."""


def reproduce(asked: Request) -> int:
    """Do it; returns the exit code.

    Raises:
        ConfigError: the folder holds stages of other values, or another process works in it.
        JobFailed: a stage failed.
    """
    if asked.what == "list":
        graph = graph_for(asked.recipe, asked.seeds, WHATS)
        print("\n".join(listing(asked.out, graph, hashes(graph), asked.commands)))
        return DONE
    if asked.what == "check":
        return _check(asked)
    if asked.what in LOOKS:
        return _print(LOOKS[asked.what](asked.out, asked.recipe, asked.seeds))
    if asked.what == "page":
        return _page(asked)
    if asked.what in ("pack", "unpack"):
        return _pack(asked) if asked.what == "pack" else _unpack(asked)
    whats = WHATS if asked.what == "all" else (asked.what,)
    with locked(asked.out):
        _prepare(asked, whats)
        _make(asked, whats)
    if asked.what != "all":
        return DONE
    for look in LOOKS.values():
        _print(look(asked.out, asked.recipe, asked.seeds))
    checked = _check(asked)
    return _page(asked) or checked


def _read(asked: Request, what: str) -> list[Result]:
    return [read(asked.out, asked.recipe, asked.seeds) for read in TABLES[what]]


def _print(files: Sequence[Path]) -> int:
    for file in files:
        print(file)
    return DONE


def _check(asked: Request) -> int:
    """Print each gate and keep them for the page; 1 where one is not passed."""
    gates = check(asked.out, asked.recipe, asked.seeds)
    for gate in gates:
        print(f"{'pass' if gate.passed else 'FAIL'}  {gate.name}: wanted {gate.wanted}, found {gate.found}")
    (asked.out / RESULTS).mkdir(parents=True, exist_ok=True)
    write_whole(asked.out / RESULTS / CHECK_FILE, gates_markdown(gates))
    failed = sum(not gate.passed for gate in gates)
    print(f"{len(gates) - failed} of {len(gates)} passed")
    return FAILED if failed else DONE


def _page(asked: Request) -> int:
    """Write the page; a block without a result says so."""
    rows = []
    for what in (*WHATS, "all"):
        graph = graph_for(asked.recipe, asked.seeds, WHATS if what == "all" else [what])
        rows.append((what, len(graph), sum(expected_s(asked.out, graph).values()),
                     len(measured(asked.out, graph, hashes(graph)))))
    for name in write_page(asked.out, asked.page, {"budget": budget_markdown(rows)}):
        print(f"nemo-mtdrive: {asked.page}: {name} is not measured yet", file=sys.stderr)
    return _print([asked.page])


def _prepare(asked: Request, whats: Sequence[str]) -> None:
    """Refuse or drop what was made of other values, and say what it will take."""
    graph = graph_for(asked.recipe, asked.seeds, whats)
    made_of = hashes(graph)
    if others := stale(asked.out, graph, made_of):
        if not asked.again:
            raise ConfigError(f"--out {asked.out}: {', '.join(others)} made of other values (recipe, config, --scale, "
                              "--held-out, --seeds); set them as they were, another --out, or --again to make them anew")
        drop(asked.out, others)
    jobs = asked.jobs or available_cpus()
    names = [name for what in whats for name in stages_of(asked.recipe, asked.seeds, what)]
    left = missing_for(graph, names, measured(asked.out, graph, made_of), done(asked.out, graph, made_of))
    cpu = sum(seconds for name, seconds in expected_s(asked.out, graph).items() if name in left)
    print(f"reproduce {asked.what}: {len(left)} of {len(graph)} stages to make, about {format_seconds(cpu)} of CPU, "
          f"{format_seconds(cpu / jobs)} or more with {jobs} at the same time", file=sys.stderr)


def _make(asked: Request, whats: Sequence[str]) -> None:
    """Every stage that they stand on, those of the first ones first; a table is written as soon as it can be."""
    graph = graph_for(asked.recipe, asked.seeds, whats)
    made_of, waiting = hashes(graph), {what: stages_of(asked.recipe, asked.seeds, what) for what in whats}
    names = [name for of_what in waiting.values() for name in of_what]
    written: list[Path] = []
    shown: list[Result] = []

    def write() -> None:
        finished = measured(asked.out, graph, made_of)
        for what in [what for what, needed in waiting.items() if finished.issuperset(needed)]:
            del waiting[what]
            results = _read(asked, what)
            shown.extend(results)
            written.extend([file for result in results for file in write_result(asked.out, result)]
                           or places(asked.out, [MODEL_DIRECTORY]).values())

    write()
    with open_progress(sys.stderr, plain_every_s=PLAIN_EVERY_S) as progress:
        Runner(asked.out, graph, made_of, asked.jobs or available_cpus(), progress, names).run(write)
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160)
    for result in shown:
        console.print(result.grid().terminal())
    _print(written)


def _pack(asked: Request) -> int:
    """Publish what was measured."""
    graph = whole_graph(asked.recipe, asked.seeds)
    return _print(pack(asked.out, graph, hashes(graph), asked.measured))


def _unpack(asked: Request) -> int:
    """Take what was published for measured here."""
    graph = whole_graph(asked.recipe, asked.seeds)
    with locked(asked.out):
        put, others = unpack(asked.out, graph, hashes(graph), asked.measured)
    print("\n".join([*put, f"{len(put)} of {len(graph)} stages unpacked; `nemo-mtdrive reproduce table2 --out {asked.out}` "
                     "reads a table from them"]))
    if others:
        print(f"nemo-mtdrive: {asked.measured}: left out, as they are of other values (recipe, config, --scale, --held-out, "
              f"--seeds): {', '.join(others)}", file=sys.stderr)
    return DONE


def listing(root: Path, graph: Graph, made_of: dict[str, str], with_commands: bool) -> list[str]:
    """A line a stage: how far it is, its CPU minutes, its name; the sum at the end."""
    expected, finished, whole = expected_s(root, graph), measured(root, graph, made_of), done(root, graph, made_of)
    lines = [f"{'state':<9} {'CPU min':>8}  {'':<9} stage"]
    for name, stage in graph.items():
        mark = read_mark(root, name)
        state = "done" if name in whole else "records" if name in finished else "absent" if mark is None else (
            "begun" if mark.made_of == made_of[name] else "stale")
        lines.append(f"{state:<9} {expected[name] / 60:8.1f}  {'measured' if name in finished else 'expected':<9} {name}")
        if with_commands:
            lines += [f"    {shlex.join(command)}" for command in spelled(stage, root)]
    cpu, left = sum(expected.values()), sum(seconds for name, seconds in expected.items() if name not in finished)
    return [*lines, f"{len(graph)} stages, {cpu / 3600:.1f} CPU hours, {left / 3600:.1f} of them left"]
