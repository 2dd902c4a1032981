"""One line of SFT data: a conversation, its image, and where it comes from.

Every line of every kind has the same keys with values of the same types, so that readers which infer one schema for a
file (Hugging Face `datasets`, and LLaMA-Factory and ms-swift on top of it) read any mixture of kinds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_mtdrive.driving.scene import Scene

IMAGE_PLACEHOLDER = "<image>\n"
"""How the conversation format that HF, LLaMA-Factory and ms-swift read marks the place of an image."""

Line = dict[str, Any]
"""{"id", "kind", "scene_id", "messages", "images", "provenance"}, as `make_line` writes it."""


@dataclass(frozen=True)
class Provenance:
    """Where a line comes from; what does not apply is an empty text."""

    source: str
    """Of the scene."""
    licence: str
    """Of the scene."""
    scene: str
    model: str
    """The model directory whose answers are in it."""
    seed: int
    """Of the curation; with the scene's id it decides every random choice in the line."""
    perception: str
    """What the agent saw that gave the feedback or labels: oracle or kinematic."""
    answers: list[str]
    """Who gave each answer: constant_velocity, perturbed_human, model, human, or the scorer."""
    metric: str
    """understanding: the metric that is asked about."""
    form: str
    """understanding: the form of the question (`questions.FORMS`)."""


def provenance_of(scene: Scene, seed: int, answers: Sequence[str], *, perception: str = "", model: str = "",
                  metric: str = "", form: str = "") -> Provenance:
    """The provenance of a line that is made from a scene."""
    return Provenance(scene.source, scene.licence, scene.scene_id, model, seed, perception, list(answers), metric, form)


def make_line(name: str, kind: str, image_key: str, texts: Sequence[str], provenance: Provenance) -> Line:
    """A line.

    Args:
        name: what tells it apart from the scene's other lines of this kind.
        kind: one of `KINDS`.
        image_key: content hash of the front image.
        texts: of user and assistant in turn, without the image's mark.
        provenance: whose answers they are has one entry for every answer.

    Raises:
        ValueError: texts do not alternate, or an answer has no author.
    """
    if len(texts) % 2 or len(texts) // 2 != len(provenance.answers):
        raise ValueError(f"line {name}: got {len(texts)} texts and {len(provenance.answers)} authors of answers")
    roles = ("user", "assistant")
    contents = [IMAGE_PLACEHOLDER + texts[0], *texts[1:]]
    return {
        "id": f"{provenance.scene}/{kind}/{name}" if name else f"{provenance.scene}/{kind}",
        "kind": kind,
        "scene_id": provenance.scene,
        "messages": [{"role": roles[place % 2], "content": text} for place, text in enumerate(contents)],
        "images": [f"images/{image_key}.png"],
        "provenance": asdict(provenance),
    }


def answers_of(line: Line) -> list[str]:
    """The assistant's texts."""
    return [message["content"] for message in line["messages"][1::2]]


def random_of(seed: int, scene_id: str, purpose: str) -> np.random.Generator:
    """The random numbers of one purpose in one scene: whatever else is curated, and in whichever order."""
    digest = hashlib.blake2b(f"{scene_id}\n{purpose}".encode(), digest_size=8).digest()
    return np.random.default_rng((seed, int.from_bytes(digest, "big")))
