"""The house stands: imports run one way, some packages never see torch, no file grows past its size."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nemo_mtdrive"
BASE = {"types", "config", "config_checks", "config_pretraining", "config_rollout", "commands", "process", "image_key",
        "torchvision_ops", "whole_file", "stations", "__init__"}

MAY_IMPORT = {
    "types": set(),
    "config": {"config_checks", "config_pretraining", "config_rollout"},
    "config_checks": {"config", "config_rollout"},
    "config_pretraining": set(),
    "config_rollout": set(),
    "commands": set(),
    "process": set(),
    "stations": {"process"},
    "supervision": {"process"},
    "image_key": set(),
    "whole_file": set(),
    "torchvision_ops": set(),
    "dialogue": BASE,
    "driving": BASE,
    "pdm": BASE | {"driving"},
    "transfer": BASE | {"telemetry"},
    "telemetry": BASE | {"driving"},
    "environment": BASE | {"driving", "pdm", "dialogue"},
    "data": BASE | {"driving", "pdm", "dialogue", "telemetry", "environment", "rollout"},
    "rollout": BASE | {"driving", "dialogue", "environment", "transfer", "models", "telemetry"},
    "evaluation": BASE | {"driving", "pdm", "telemetry", "dialogue", "environment", "data", "rollout", "models"},
    "models": BASE | {"transfer"},
    "callbacks": BASE | {"transfer", "models", "telemetry"},
    "algorithms": BASE | {"dialogue", "driving", "pdm", "data", "transfer", "callbacks", "telemetry", "evaluation",
                          "rollout"},
    "cluster": BASE | {"launch", "jobs", "supervision", "telemetry", "transfer"},
}
"""Package (or base module) -> what it may import besides itself. What is not here ties everything together."""
TIES = {"cli", "cli_cluster", "cli_data", "cli_evaluation", "cli_scenes", "cli_scoring", "cli_pages", "cli_reproduce",
        "reproduce", "jobs", "pretraining", "ranks", "launch"}

HEAVY = {"torch", "megatron", "nemo", "nemo_aligner", "lightning", "transformers"}
WITHOUT_HEAVY = {"driving", "pdm", "dialogue", "environment"}
ONLY_IN_ALIGNER = {"nemo_aligner"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The package of a file, or its own name at the top level."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Names of all imported modules with their lines, those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it whole"
            yield node.module or "", node.lineno


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    assert here in MAY_IMPORT or here in TIES | {"__init__"}, f"{here}: say in MAY_IMPORT what it may import"
    for name, line in imports(path):
        parts = name.split(".")
        if here in WITHOUT_HEAVY:
            assert parts[0] not in HEAVY, f"{path.name}:{line}: {here} must not import {parts[0]}"
        if parts[0] in ONLY_IN_ALIGNER:
            assert path.relative_to(PACKAGE).as_posix() == "models/aligner.py", f"{path.name}:{line}: {name}"
        if parts[0] == "nemo_mtdrive" and len(parts) > 1 and here in MAY_IMPORT:
            assert parts[1] == here or parts[1] in MAY_IMPORT[here], f"{path.name}:{line}: {here} must not import {name}"


def test_names_say_something() -> None:
    meaningless = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [path for path in modules() if path.stem in meaningless]


def test_files_stay_small() -> None:
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in modules()}
    assert not {name: length for name, length in lengths.items() if length > 400}
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) // 2] < 250


@pytest.mark.parametrize("name", ["demo_cpu", "scratch_cpu"])
def test_the_demo_config_is_a_short_delta(name: str) -> None:
    assert len((PACKAGE.parent / "conf" / f"{name}.yaml").read_text().splitlines()) <= 50
