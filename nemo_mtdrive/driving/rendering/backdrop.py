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
Field = NDArray[np.float32]

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


@lru_cache(maxsize=20)
def backdrop(camera: Pinhole, air: Atmosphere) -> Backdrop:
    """The backdrop of a camera in an atmosphere; the last twenty are kept, so every weather and hour of one camera."""
    horizon = int(np.clip(round(camera.centre[1]), 0, camera.height))
    light, veil = _ground(camera, air, horizon)
    return Backdrop(horizon, _sky(camera, air, horizon), light, veil)


def _sky(camera: Pinhole, air: Atmosphere, horizon: int) -> Image:
    up = _up(camera, horizon)
    share = np.clip(up / 0.36, 0.0, 1.0) ** 0.75
    low, high = np.array(air.low, dtype=np.float32), np.array(air.top, dtype=np.float32)
    sky = low + share[..., None] * (high - low)
    sky = np.repeat(sky, camera.width, axis=1)
    if horizon > 8 and _CLOUDS[air.weather] > 0.0:
        cover = np.clip((_clouds(camera, horizon) - 0.45 + _CLOUDS[air.weather]) * 2.2, 0.0, 1.0)
        cover *= np.clip(up / 0.05, 0.0, 1.0)
        bright = low * 0.82 if air.weather != "clear" else low * 0.6 + 0.4 * np.minimum(low * 1.2 + 14.0, 255.0)
        sky += (0.75 * cover)[..., None] * (bright - sky)
    if air.night and air.weather == "clear":
        stars = np.random.default_rng(3).random((horizon, camera.width)) < 0.0004 * (960.0 / camera.width)
        sky[stars & (share > 0.35)] += 90.0
    _hills(sky, camera, air, horizon)
    return _bytes(sky)


def _up(camera: Pinhole, horizon: int) -> Field:
    """[rows of the sky, 1] tangent of the height above the horizon."""
    return ((horizon - np.arange(horizon, dtype=np.float32) - 0.5) / np.float32(camera.focal))[:, None]


@lru_cache(maxsize=3)
def _clouds(camera: Pinhole, horizon: int) -> Field:
    """[rows of the sky, width] density of a layer of clouds overhead: flat and small towards the horizon."""
    tile = noise(512, 512, 4, 5, 6).astype(np.float32)
    turn = np.linspace(0.0, 512.0, camera.width, dtype=np.float32)[None]
    height = 90.0 / (_up(camera, horizon) + 0.035)
    field: Field = cv2.remap(tile, np.repeat(turn, horizon, axis=0), np.repeat(height % 512.0, camera.width, axis=1),
                             cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return field


def _hills(sky: Field, camera: Pinhole, air: Atmosphere, horizon: int) -> None:
    """Two lines of far hills and woods over the horizon, hazier the farther."""
    for number, (height, cells, distance, green) in enumerate(((0.030, 3, 900.0, (96, 124, 118)),
                                                               (0.014, 9, 420.0, (70, 100, 66)))):
        line = noise(2, camera.width, cells, 31 + number, 6)[0] * 0.5 + 0.55
        top = (horizon - height * camera.focal * np.clip(line, 0.15, 1.2)).astype(np.float32)
        first = max(0, math.floor(top.min()) - 1)
        rows = np.arange(first, horizon, dtype=np.float32)[:, None]
        # an edge of one pixel's softness, so that it does not flicker
        cover = np.clip(rows - top + 0.5, 0.0, 1.0)[..., None]
        colour = air.surface(np.array([green], dtype=np.float64), 0.3, 0.0, 0.45 * distance)[0].astype(np.float32)
        sky[first:] += cover * (colour - sky[first:])


@dataclass(frozen=True)
class _Ground:
    """Ground points of a camera's pixels [rows from the horizon, width], in metres in the ego frame; the same in every
    atmosphere."""

    down: Field
    """[rows, 1] tangent of the angle below the horizon."""
    distance: Field
    ahead: Field
    left: Field
    grain: Field


@lru_cache(maxsize=3)
def _ground_points(camera: Pinhole, horizon: int) -> _Ground:
    rows = np.arange(horizon, camera.height, dtype=np.float32) + 0.5
    down = np.maximum((rows - camera.centre[1]) / camera.focal, camera.mount / FARTHEST_M)[:, None].astype(np.float32)
    depth = np.repeat(camera.mount / down, camera.width, axis=1)
    aside = -depth * ((np.arange(camera.width, dtype=np.float32) + 0.5 - camera.centre[0])[None] / camera.focal)
    aside = aside.astype(np.float32)
    ahead = depth * math.cos(camera.yaw) - aside * math.sin(camera.yaw)
    left = depth * math.sin(camera.yaw) + aside * math.cos(camera.yaw)
    return _Ground(down, np.hypot(depth, aside), ahead, left, _grain(ahead, left, depth, camera.focal))


def _ground(camera: Pinhole, air: Atmosphere, horizon: int) -> tuple[Image, Image]:
    points = _ground_points(camera, horizon)
    clear = np.exp(points.distance * np.float32(-1.0 / air.haze_m))
    seen = (1.0 + points.grain) * clear
    if air.wet:
        seen *= 0.72
    daylight = np.array(air.ambient, dtype=np.float32) + np.array(air.sun, dtype=np.float32) * math.sin(air.elevation)
    strength = daylight.astype(np.float32) * UNIT
    light = seen[..., None] * (strength + UNIT * _beam(points)[..., None] if air.night else strength)
    haze = 1.0 - clear
    if air.wet:
        # a wet road mirrors the sky, the more the flatter one looks
        haze += 0.34 * clear * np.exp(points.down * -7.0)
    return _bytes(light), _bytes(haze[..., None] * np.array(air.low, dtype=np.float32))


def _beam(points: _Ground) -> Field:
    """[rows, width] light of the ego's own head lamps."""
    near = np.maximum(points.distance, 1.0)
    lobe = np.clip(points.ahead / near, 0.0, 1.0) ** 10
    return 0.95 * lobe * np.exp(near / -26.0) * np.clip((near - 1.0) / 5.0, 0.0, 1.0)


def _bytes(values: Field) -> Image:
    return np.ascontiguousarray(np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8))


def _grain(ahead: Field, left: Field, depth: Field, focal: float) -> Field:
    """Relative brightness of the ground's texture at ground points, without detail finer than a pixel."""
    footprint = depth / focal
    tile = noise(512, 512, 128, 11, 3).astype(np.float32)
    grain = np.zeros_like(ahead)
    for cell, strength in _GRAIN:
        sample = cv2.remap(tile, left * (2.0 / cell) % 512.0, ahead * (2.0 / cell) % 512.0, cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_WRAP)
        # along the view a pixel covers far more ground than across it
        grain += strength * sample * np.clip(cell / (footprint * (1.0 + depth / 6.0)) / 2.0, 0.0, 1.0)
    return grain
