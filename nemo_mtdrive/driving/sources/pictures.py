"""Pictures as PNG or JPEG, in files beside scene files and as bytes in shards; files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.schema import SceneError

PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
"""Drawn pictures have large even areas: runs of bytes pack them smaller than a search at level 4, in less time."""


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """An RGB picture [H, W, 3] as PNG; equal pictures give equal bytes."""
    done, data = cv2.imencode(".png", picture[..., ::-1], PNG)
    if not done:
        raise SceneError(f"a picture of shape {picture.shape} cannot be written as PNG")
    return bytes(data.tobytes())


def decode_picture(data: bytes, where: str, size: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """PNG or JPEG bytes as RGB [H, W, 3].

    Args:
        data: the file's bytes.
        where: what a message names.
        size: the width and height that are wanted; 0, 0 for any.

    Raises:
        SceneError: not a picture, or one of another size.
    """
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise SceneError(f"{where}: not a picture; write the scene anew")
    height, width = picture.shape[:2]
    if any(size) and (width, height) != size:
        raise SceneError(f"{where}: its picture is {width} x {height}, wanted {size[0]} x {size[1]}; set the image size to "
                         "it or write the scenes anew")
    return np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)


def read_picture(path: Path, size: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """A picture file as RGB [H, W, 3]; SceneError when it is missing, not a picture, or of another size."""
    if not path.is_file():
        raise SceneError(f"{path}: no such picture; write the scene anew")
    return decode_picture(path.read_bytes(), str(path), size)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture as PNG, whole or not at all."""
    write_bytes(path, encode_picture(picture))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
