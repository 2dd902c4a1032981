"""Episodes of any shape for the transfer tests, different in every value and reproducible by seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.image_key import image_key
from nemo_mtdrive.types import NOT_OURS, SCORE_NAMES, Episode, RolloutTask, Turn


def make_image(seed: int, height: int = 56, width: int = 84) -> NDArray[np.uint8]:
    """Noise [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_task(scene: str, group_size: int = 4, step: int = 3, version: int = 2) -> RolloutTask:
    """A task of the test's step."""
    return RolloutTask(scene, group_size, seed=7, policy_version=version, step=step, temperature=1.0)


def make_episode(task: RolloutTask, index: int, image: NDArray[np.uint8], turns: int = 2) -> Episode:
    """An episode whose second turn could not be parsed and whose others have every optional field."""
    rng = np.random.default_rng([index, len(task.scene_id), turns])
    length = 40 + 10 * turns
    owner = np.full(length, NOT_OURS, np.int16)
    made = []
    for j in range(turns):
        start, stop = 30 + 10 * j, 38 + 10 * j
        owner[start:stop] = j
        parsed = j != 1
        made.append(
            Turn(
                index=j, start=start, stop=stop, answer=f"Здесь the planning trajectory {j}: +{rng.random()}",
                trajectory=rng.normal(size=(8, 3)) if parsed else None,
                scores={name: float(rng.random()) for name in SCORE_NAMES} if parsed else None,
                format_score=float(parsed), reward=float(rng.random()), feedback="" if j else "1. NC issue",
                violations=[{"metric": "NC", "point": 3, "object": [1.5, -2.0, 0.0, 4.0, 2.0, 1.5, 0.1, "vehicle"]},
                            {"metric": "DAC", "point": 0, "object": None}],
            )
        )
    return Episode(
        episode_id=task.episode_id(index), scene_id=task.scene_id, index=index, seed=2**63 - 1 - index,
        policy_version=task.policy_version, tokens=rng.integers(0, 152000, length).astype(np.int32),
        turn_of_token=owner,
        logprobs=np.where(owner >= 0, -rng.random(length), 0).astype(np.float32), image_keys=(image_key(image),),
        image_grids=((1, image.shape[0] // 14, image.shape[1] // 14),), turns=tuple(made), valid=index != 3,
        reason="clean" if index != 3 else "error: environment gone",
    )


def assert_same_episode(left: Episode, right: Episode) -> None:
    """Every field of the same type and, for arrays, of the same dtype and bytes."""
    for name in Episode.__dataclass_fields__:
        if name != "turns":
            _assert_same(getattr(left, name), getattr(right, name), name)
    assert len(left.turns) == len(right.turns)
    for left_turn, right_turn in zip(left.turns, right.turns, strict=True):
        for name in Turn.__dataclass_fields__:
            _assert_same(getattr(left_turn, name), getattr(right_turn, name), f"turn.{name}")


def _assert_same(left: object, right: object, name: str) -> None:
    assert type(left) is type(right), name
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        assert left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes(), name
    else:
        assert left == right, name
