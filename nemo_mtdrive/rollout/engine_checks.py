"""What every engine refuses, in the same words: requests that cannot be served and weights that do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.rollout.engine import EngineError, WeightsError
from nemo_mtdrive.transfer.images import MERGE, grid_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def check_stop_token(stop_token: int, forbidden_tokens: Collection[int]) -> None:
    """Raises EngineError where the model could never stop."""
    if stop_token in forbidden_tokens:
        raise EngineError(f"stop_token={stop_token} is among the forbidden tokens: the model could never stop")


def check_prompt(
    sequence_ids: Sequence[str], known: Collection[str], tokens: NDArray[np.int32], image: NDArray[np.uint8] | None,
    image_token: int, max_context: int,
) -> tuple[int, int]:
    """(offset, number) of the image's placeholders in a prompt [n] that may be added; (0, 0) without an image.

    Raises EngineError for a known id, a length that cannot be, or placeholders that are not the image's.
    """
    seen = [name for name in sequence_ids if name in known]
    if seen or len(set(sequence_ids)) != len(sequence_ids) or not sequence_ids:
        raise EngineError(f"cannot add {list(sequence_ids)}: ids must be new and given once (known: {seen})")
    if not 1 < len(tokens) <= max_context:
        raise EngineError(f"a prompt of {len(tokens)} tokens: it must hold 2 to max_context={max_context}")
    places = np.flatnonzero(tokens == image_token)
    if image is None:
        if len(places):
            raise EngineError(f"the prompt has {len(places)} image placeholders but no image was given")
        return 0, 0
    t, h, w = grid_of(image)
    wanted = t * h * w // MERGE**2
    if wanted != len(places):
        raise EngineError(f"the prompt has {len(places)} image placeholders, its image needs {wanted}")
    if places[-1] - places[0] + 1 != wanted:
        raise EngineError(f"the prompt's {wanted} image placeholders are not side by side: an image has one place")
    return int(places[0]), wanted


def check_extension(
    sequence_id: str, length: int, tokens: NDArray[np.integer], image_token: int, max_context: int
) -> None:
    """Raises EngineError for tokens that cannot follow `length` others: an image's, or too many."""
    if (np.asarray(tokens) == image_token).any():
        raise EngineError(f"{sequence_id}: an image can only be in the prompt given to add()")
    if length + len(tokens) > max_context:
        raise EngineError(f"{sequence_id}: {length} + {len(tokens)} tokens exceed max_context={max_context}")


def check_call(
    sequence_ids: Sequence[str], max_new_tokens: int, temperature: float, seeds: Sequence[int]
) -> None:
    """Raises EngineError for arguments of `generate` that no engine can serve."""
    if max_new_tokens < 1 or temperature < 0.0:
        raise EngineError(f"max_new_tokens={max_new_tokens}, temperature={temperature}: need >= 1 and >= 0")
    if len(seeds) != len(sequence_ids) or len(set(sequence_ids)) != len(sequence_ids):
        raise EngineError(f"got {len(seeds)} seeds for {len(set(sequence_ids))} different sequences")


def check_room(longest: int, max_new_tokens: int, max_context: int) -> None:
    """Raises EngineError where an answer would not fit behind the longest sequence."""
    if longest + max_new_tokens > max_context:
        raise EngineError(
            f"{longest} tokens and an answer of {max_new_tokens} exceed max_context={max_context}: "
            "end the episode or raise max_context"
        )


def check_none_alive(sequences: Collection[str], doing: str) -> None:
    """Raises EngineError while sequences are alive: their cache would be lost or of another policy."""
    if sequences:
        raise EngineError(
            f"{len(sequences)} sequences are alive (first: {next(iter(sequences))}): remove them before {doing}"
        )


def checked_weights(
    weights: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size | tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """The pairs of a whole set of weights, checked as they pass; `shapes` names each weight once, a tied head not.

    A head that comes although it is tied must be the embedding; it is not handed on.

    Raises:
        WeightsError: an unknown or repeated name, a wrong shape, or at the end a missing one.
    """
    seen: set[str] = set()
    tied: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name in seen:
            raise WeightsError(f"{name} came twice")
        seen.add(name)
        if HEAD not in shapes and name in (HEAD, EMBEDDING):
            tied[name] = tensor
        if name not in shapes:
            if name == HEAD:
                continue
            raise WeightsError(f"{name} is not a weight of this model")
        if tuple(shapes[name]) != tuple(tensor.shape):
            raise WeightsError(f"{name}: got shape {list(tensor.shape)}, the model has {list(shapes[name])}")
        yield name, tensor
    missing = sorted(shapes.keys() - seen)
    if missing:
        raise WeightsError(f"{len(missing)} weights are missing, the first: {', '.join(missing[:3])}")
    if HEAD in tied and not bool((tied[HEAD] == tied[EMBEDDING]).all()):
        raise WeightsError("lm_head.weight differs from the embedding, but the config says tie_word_embeddings")
