"""What every picture of one camera and one atmosphere shares, computed once: the sky with its clouds and hills, and how
light, haze, grain and wetness change the ground pixel by pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.atmosphere import Atmosphere
from nemo_mtdrive.driving.scene import Array

Image = NDArray[np.uint8]

UNIT = 128
"""The value of `Backdrop.light` that leaves a pixel as it is."""
FARTHEST_M = 600.0
_CLOUDS = {"clear": 0.34, "cloudy": 0.62, "rain": 0.5, "fog": 0.0}
_GRAIN = ((0.05, 0.055), (0.35, 0.05), (2.6, 0.06))
"""(cell [m], strength) of the ground's grain, fine to coarse; a cell smaller than a pixel fades away."""


@dataclass(frozen=True)
class Pinhole:
    """The numbers of a camera that a backdrop depends on: pixels, metres, radians."""

    width: int
    height: int
    focal: float
    centre: tuple[float, float]
    mount: float
    yaw: float


@dataclass(frozen=True)
class Backdrop:
    """`sky` [rows above `horizon`, width, 3], to be rolled sideways; `light` and `veil` [rows from `horizon`, width, 3]:
    a ground of albedo a looks like a * light / UNIT + veil.
    """

    horizon: int
    sky: Image
    light: Image
    veil: Image


def noise(height: int, width: int, cells: int, seed: int, octaves: int) -> Array:
    """Smooth noise in -1..1, [height, width], periodic in both directions."""
    draws = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for octave in range(octaves):
        across = cells << octave
        down = max(2, round(across * height / width))
        grid = np.pad(draws.uniform(-1.0, 1.0, (down, across)), 2, mode="wrap").astype(np.float32)
        # cell centres of the padded grid, so that the last column runs on into the first
        columns = 1.5 + (np.arange(width, dtype=np.float32) + 0.5) * across / width
        rows = 1.5 + (np.arange(height, dtype=np.float32) + 0.5) * down / height
        total += cv2.remap(grid, np.tile(columns, (height, 1)), np.tile(rows[:, None], (1, width)),
                           cv2.INTER_CUBIC) / 2.0**octave
    return total / np.abs(total).max()


@lru_cache(maxsize=12)
def backdrop(camera: Pinhole, air: Atmosphere) -> Backdrop:
    """The backdrop of a camera in an atmosphere; the last dozen are kept."""
    horizon = int(np.clip(round(camera.centre[1]), 0, camera.height))
    light, veil = _ground(camera, air, horizon)
    return Backdrop(horizon, _sky(camera, air, horizon), light, veil)


def _sky(camera: Pinhole, air: Atmosphere, horizon: int) -> Image:
    up = ((horizon - np.arange(horizon) - 0.5) / camera.focal)[:, None]
    share = np.clip(up / 0.36, 0.0, 1.0) ** 0.75
    sky = np.array(air.low) + share[..., None] * (np.array(air.top) - np.array(air.low))
    sky = np.repeat(sky, camera.width, axis=1)
    if horizon > 8 and _CLOUDS[air.weather] > 0.0:
        # a layer of clouds overhead, seen in perspective: flat and small towards the horizon
        tile = noise(512, 512, 4, 5, 6).astype(np.float32)
        turn = np.linspace(0.0, 512.0, camera.width, dtype=np.float32)[None]
        height = (90.0 / (up + 0.035)).astype(np.float32)
        field = cv2.remap(tile, np.repeat(turn, horizon, axis=0), np.repeat(height % 512.0, camera.width, axis=1),
                          cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        cover = np.clip((field - 0.45 + _CLOUDS[air.weather]) * 2.2, 0.0, 1.0)
        cover *= np.clip(up / 0.05, 0.0, 1.0)
        bright = np.array(air.low) * 0.6 + 0.4 * np.minimum(np.array(air.low) * 1.2 + 14.0, 255.0)
        if air.weather != "clear":
            bright = np.array(air.low) * 0.82
        sky += (0.75 * cover)[..., None] * (bright - sky)
    if air.night and air.weather == "clear":
        stars = np.random.default_rng(3).random((horizon, camera.width)) < 0.0004 * (960.0 / camera.width)
        sky[stars & (share > 0.35)] += 90.0
    _hills(sky, camera, air, horizon)
    return np.ascontiguousarray(np.clip(np.round(sky), 0, 255).astype(np.uint8))


def _hills(sky: Array, camera: Pinhole, air: Atmosphere, horizon: int) -> None:
    """Two lines of far hills and woods over the horizon, hazier the farther."""
    rows = np.arange(horizon)[:, None]
    for number, (height, cells, distance, green) in enumerate(((0.030, 3, 900.0, (96, 124, 118)),
                                                               (0.014, 9, 420.0, (70, 100, 66)))):
        line = noise(2, camera.width, cells, 31 + number, 6)[0] * 0.5 + 0.55
        top = horizon - height * camera.focal * np.clip(line, 0.15, 1.2)
        # an edge of one pixel's softness, so that it does not flicker
        cover = np.clip(rows - top + 0.5, 0.0, 1.0)[..., None]
        colour = air.surface(np.array([green], dtype=np.float64), 0.3, 0.0, 0.45 * distance)[0]
        sky += cover * (colour - sky)


def _ground(camera: Pinhole, air: Atmosphere, horizon: int) -> tuple[Image, Image]:
    rows = np.arange(horizon, camera.height) + 0.5
    down = np.maximum((rows - camera.centre[1]) / camera.focal, camera.mount / FARTHEST_M)[:, None]
    depth = np.repeat(camera.mount / down, camera.width, axis=1)
    aside = -depth * (np.arange(camera.width) + 0.5 - camera.centre[0])[None] / camera.focal
    distance = np.hypot(depth, aside)
    ahead = depth * math.cos(camera.yaw) - aside * math.sin(camera.yaw)
    left = depth * math.sin(camera.yaw) + aside * math.cos(camera.yaw)
    beam = np.zeros_like(distance)
    if air.night:
        near = np.maximum(np.hypot(ahead, left), 1.0)
        lobe = np.clip(ahead / near, 0.0, 1.0) ** 10
        beam = 0.95 * lobe * np.exp(-near / 26.0) * np.clip((near - 1.0) / 5.0, 0.0, 1.0)
    clear = np.exp(-distance / air.haze_m)
    wet = 0.72 if air.wet else 1.0
    strength = np.array(air.ambient) + np.array(air.sun) * math.sin(air.elevation) + beam[..., None]
    light = strength * ((1.0 + _grain(ahead, left, depth, camera.focal)) * clear * wet)[..., None]
    veil = np.array(air.low) * (1.0 - clear)[..., None]
    if air.wet:
        # a wet road mirrors the sky, the more the flatter one looks
        veil = veil + np.array(air.low) * (0.34 * clear * np.exp(-down * 7.0))[..., None]
    return _bytes(light * UNIT), _bytes(veil)


def _bytes(values: Array) -> Image:
    return np.ascontiguousarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def _grain(ahead: Array, left: Array, depth: Array, focal: float) -> Array:
    """Relative brightness of the ground's texture at ground points, without detail finer than a pixel."""
    footprint = depth / focal
    tile = noise(512, 512, 128, 11, 3).astype(np.float32)
    grain = np.zeros_like(ahead)
    for cell, strength in _GRAIN:
        across = (left / cell * 2.0).astype(np.float32) % 512.0
        along = (ahead / cell * 2.0).astype(np.float32) % 512.0
        sample = cv2.remap(tile, across, along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        # along the view a pixel covers far more ground than across it
        grain += strength * sample * np.clip(cell / (footprint * (1.0 + depth / 6.0)) / 2.0, 0.0, 1.0)
    return grain
