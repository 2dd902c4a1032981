"""What decides the answers of a model, beside its scenes: sampling as in its training run, and the weights themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_mtdrive.config import Config, ConfigError, ParallelConfig, read_config
from nemo_mtdrive.config_checks import check
from nemo_mtdrive.evaluation.players import ModelPlay
from nemo_mtdrive.evaluation.scene_sets import SceneSet, find_run
from nemo_mtdrive.rollout.model_driver import ENGINES

SECTIONS = ("rollout", "reward", "agent")
"""Of a config, what an evaluation goes by."""
_ANSWERS = ("max_turns", "max_answer_tokens", "max_context", "max_running", "temperature", "top_p", "dtype")
"""Keys of `rollout` that change answers."""
_ONE_RANK = ParallelConfig(tensor=1, data=1)
"""The checks of a whole config hold sizes of a model against it; nothing is trained here."""
_FILES = (".safetensors", ".distcp", ".json", "")
"""Suffixes of weights and configuration."""


def sampling_config(model: Path | None, overrides: Sequence[str]) -> Config:
    """How a model samples: as the run that trained it ("we adopt the same sampling configuration as in the training
    rollout stage", Section 4.1), else by the defaults, with keys set anew.

    Args:
        model: a model directory; one inside a run takes that run's config.
        overrides: `rollout.temperature=0`, ...; keys of `SECTIONS`.

    Raises:
        ConfigError: another key, an unknown one, a value of the wrong type, or one that is refused.
    """
    run = None if model is None else find_run(model)
    config = Config(parallel=_ONE_RANK) if run is None else read_config(run / "config.yaml")
    for item in overrides:
        if "=" not in item or item.partition(".")[0] not in SECTIONS:
            raise ConfigError(f"{item}: set keys of {', '.join(SECTIONS)} as rollout.temperature=0")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist(list(overrides)))
        changed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError("; ".join(str(error).splitlines()[:1])) from error
    assert isinstance(changed, Config)
    check(changed)
    return changed


def check_model(model: Path, engine: str) -> None:
    """Refuse what cannot be opened before any folder is made.

    Raises:
        ConfigError: no model is there, or an unknown engine.
    """
    from nemo_mtdrive.models.directories import model_directory
    from nemo_mtdrive.models.whole_directory import ConversionError

    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine}: set it to one of {', '.join(ENGINES)}")
    try:
        model_directory(model)
    except ConversionError as error:
        raise ConfigError(f"--model: {error}") from error


def row_settings(play: ModelPlay, scenes: SceneSet) -> dict[str, Any]:
    """Everything that an episode of a model's row depends on: rows of the same settings have the same episodes."""
    rollout = asdict(play.config.rollout)
    return {
        "kind": "model",
        "model": str(play.model.resolve()),
        "weights": weights_mark(play.model),
        "engine": play.engine,
        "feedback": play.feedback,
        "agent": asdict(play.config.agent),
        "reward": asdict(play.config.reward),
        "rollout": {key: rollout[key] for key in _ANSWERS},
        "seed": play.seed,
        "episodes_a_scene": play.group_size,
        "batch": play.batch,
        **({"pictures": _digest(play.pictures.items())} if play.pictures else {}),
        **scene_settings(scenes),
    }


def scene_settings(scenes: SceneSet) -> dict[str, Any]:
    """What tells one set of scenes from another."""
    return {"scenes": scenes.address, "count": len(scenes.ids), "ids": scenes.digest,
            "image": [scenes.arguments.width, scenes.arguments.height]}


def _digest(pairs: Iterable[tuple[str, str]]) -> str:
    return hashlib.blake2b("\n".join(f"{name} {value}" for name, value in sorted(pairs)).encode(), digest_size=8).hexdigest()


def weights_mark(model: Path) -> str:
    """Changes when the files of a model do: of their names, sizes and times, without reading gigabytes."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(file for file in model.resolve().rglob("*") if file.is_file() and file.suffix in _FILES):
        stat = path.stat()
        found.update(f"{path.relative_to(model.resolve())} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return found.hexdigest()
