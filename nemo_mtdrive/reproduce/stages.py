"""Stages: what each makes, of which others, by which of this project's commands.

A command is written with `{out}` for the stage's own output folder, `{NAME}` for that of a stage that it needs, and
`{conf}`, `{converters}`, `{tokenizer}` for folders of this project, so that neither its words nor the hash of a stage depend
on where the whole lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from nemo_mtdrive.config import CONF_DIR, ConfigError
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER

CONFIGS = CONF_DIR / "reproduce"
OWN_FOLDERS = {"conf": CONFIGS, "converters": CONF_DIR.parent / "converters", "tokenizer": TINY_TOKENIZER}


@dataclass(frozen=True)
class Stage:
    """A part of the reproduction that is made once."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    """One after the other, `nemo-mtdrive ...` or `python SCRIPT ...`; each goes on where it was when it is given again."""
    needs: tuple[str, ...]
    """Names of stages whose output the commands read."""
    config: str = ""
    """Name of the config in conf/reproduce whose content decides the result, where there is one."""
    cpu_s: float = 0.0
    """Expected CPU time [s] of one core."""
    records: tuple[str, ...] = ()
    """Of its output, what was measured (patterns of files): it can be published; weights and scenes are not of it."""


Graph = Mapping[str, Stage]
"""Name -> stage, each after all that it needs."""


def graph_of(stages: Iterable[Stage]) -> Graph:
    """Order stages so that each comes after what it needs; the same stage may be given several times.

    Raises:
        ConfigError: two stages of one name that differ, one that is needed and not there, or a cycle.
    """
    given: dict[str, Stage] = {}
    for stage in stages:
        if given.setdefault(stage.name, stage) != stage:
            raise ConfigError(f"stage {stage.name}: two of one name that differ")
    ordered: dict[str, Stage] = {}

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in ordered:
            return
        if name in above:
            raise ConfigError(f"stages need each other: {' -> '.join((*above[above.index(name):], name))}")
        if name not in given:
            raise ConfigError(f"stage {above[-1] if above else '?'} needs {name}, which is not there")
        for needed in given[name].needs:
            place(needed, (*above, name))
        ordered[name] = given[name]

    for name in given:
        place(name, ())
    return ordered


def needed_for(graph: Graph, names: Iterable[str]) -> Graph:
    """The part of a graph that some stages stand on, themselves included; in the graph's order."""
    wanted = set[str]().union(*(_standing_on(graph, name, set()) for name in names))
    return {name: stage for name, stage in graph.items() if name in wanted}


def missing_for(graph: Graph, names: Iterable[str], measured: Set[str], done: Set[str]) -> list[str]:
    """What has to be made: of `names` what is not measured, and of all that those stand on what is not done; each after what
    it stands on, those of the first names first. What only finished stages stood on may be absent."""
    found: dict[str, None] = {}
    for name in names:
        if name not in measured:
            part = _standing_on(graph, name, {*done, *found})
            found |= dict.fromkeys(other for other in graph if other in part)
    return list(found)


def _standing_on(graph: Graph, name: str, known: Set[str]) -> set[str]:
    """A stage and all that it needs, up to what is known."""
    wanted: set[str] = set()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name not in wanted and name not in known:
            wanted.add(name)
            waiting += graph[name].needs
    return wanted


def hashes(graph: Graph, configs: Path = CONFIGS) -> dict[str, str]:
    """Name -> a mark of all that decides the stage's result: its commands, its config's text, and its needs' marks."""
    found: dict[str, str] = {}
    for name, stage in graph.items():
        text = (configs / f"{stage.config}.yaml").read_text() if stage.config else ""
        made_of = {"commands": [list(command) for command in stage.commands], "config": text,
                   "needs": {needed: found[needed] for needed in stage.needs}}
        found[name] = hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=8).hexdigest()
    return found


def places(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """Name -> the output folder of a stage below the root."""
    return {name: root / "stages" / name / "out" for name in names}


def spelled(stage: Stage, root: Path) -> list[list[str]]:
    """The commands with folders in the place of names."""
    folders = {name: str(path) for name, path in places(root, stage.needs).items()}
    folders |= {name: str(_from_here(path)) for name, path in OWN_FOLDERS.items()}
    folders["out"] = str(places(root, [stage.name])[stage.name])
    return [[_filled(word, folders) for word in command] for command in stage.commands]


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _filled(word: str, folders: Mapping[str, str]) -> str:
    for name, folder in folders.items():
        word = word.replace("{" + name + "}", folder)
    return word


def named(name: str, seed: int) -> str:
    """The name of a stage that each seed has its own of."""
    return f"{name}-s{seed}"


def unseeded(names: Sequence[str]) -> dict[str, list[str]]:
    """Names without their seeds -> the names."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("-s")[0] or name, []).append(name)
    return found
