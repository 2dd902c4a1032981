"""The cameras: pinholes like NAVSIM's CAM_F0, CAM_L0 and CAM_R0, and the pictures they take of a scene.

Each is 1920 x 1080 with f = 1545 px and centre (960, 560). CAM_F0 is mounted 1.65 m before the rear axle and 1.55 m above
the ground and looks straight ahead; CAM_L0 and CAM_R0 look 55 degrees to either side. Another width scales a camera;
another aspect ratio crops rows from the top (sky), never squashes. Ego frame: x forward, y left, z up from the ground
under the rear axle. Camera frame: x right, y down, z forward.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.atmosphere import atmosphere_of
from nemo_mtdrive.driving.rendering.bodies import gather, paint_items
from nemo_mtdrive.driving.rendering.canvas import Canvas
from nemo_mtdrive.driving.rendering.ground import base_colour, paint_ground
from nemo_mtdrive.driving.rendering.land import Land
from nemo_mtdrive.driving.rendering.terrain import Terrain
from nemo_mtdrive.driving.rendering.view import View
from nemo_mtdrive.driving.rendering.weather import paint_rain
from nemo_mtdrive.driving.scene import Array, Camera, Scene

FULL_WIDTH, FULL_HEIGHT = 1920, 1080
FOCAL_PX, CENTRE_PX = 1545.0, (960.0, 560.0)
MOUNTS: dict[str, tuple[float, float, float, float]] = {
    "front": (1.65, 0.0, 1.55, 0.0),
    "left": (1.55, 0.3, 1.55, math.radians(55.0)),
    "right": (1.55, -0.3, 1.55, math.radians(-55.0)),
}
"""x, y, z [m] and yaw [rad] of each camera in the ego frame: CAM_F0, CAM_L0, CAM_R0."""
STRIP_CROP_PX = (416, 28)
"""What NAVSIM's own agents cut off the sides of the side cameras and off top and bottom of all, before they join them."""
SUPERSAMPLE_UP_TO = 640
"""Pictures up to this width are drawn twice as large and averaged down."""


def front_camera(width: int, height: int, file: str) -> Camera:
    """The record of the front camera's picture, `width` x `height` px; `file` lies beside the scene file.

    Raises:
        ValueError: a side is not positive.
    """
    return camera_of("front", width, height, file)


def camera_of(name: str, width: int, height: int, file: str = "") -> Camera:
    """The record of a camera of `MOUNTS` for pictures of `width` x `height` px.

    Raises:
        ValueError: a side is not positive, or there is no such camera.
    """
    if width < 1 or height < 1:
        raise ValueError(f"camera size: got {width} x {height}, want both sides above 0")
    if name not in MOUNTS:
        raise ValueError(f"camera={name!r}: set it to one of {', '.join(MOUNTS)}")
    x, y, z, yaw = MOUNTS[name]
    scale = width / FULL_WIDTH
    # rows are cropped from the top: the road is worth more than the sky
    cropped = FULL_HEIGHT * scale - height
    intrinsics = np.array([[FOCAL_PX * scale, 0.0, CENTRE_PX[0] * scale],
                           [0.0, FOCAL_PX * scale, CENTRE_PX[1] * scale - cropped],
                           [0.0, 0.0, 1.0]])
    cos, sin = math.cos(yaw), math.sin(yaw)
    extrinsics = np.eye(4)
    # the camera's axes (right, down, forward) as columns of the ego frame
    extrinsics[:3, :3] = [[sin, 0.0, cos], [-cos, 0.0, sin], [0.0, -1.0, 0.0]]
    extrinsics[:3, 3] = x, y, z
    return Camera(file, width, height, intrinsics, extrinsics)


def project(points: Array, camera: Camera) -> tuple[Array, Array]:
    """Ego-frame points [n, 3] (or [n, 2] on the ground) -> pixels [n, 2] and depths [n] m.

    A depth <= 0 means behind the camera; its pixel is NaN.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.shape[1] == 2:
        points = np.column_stack([points, np.zeros(len(points))])
    rotation, position = camera.extrinsics[:3, :3], camera.extrinsics[:3, 3]
    seen = (points - position) @ rotation
    depth = seen[:, 2]
    image = seen @ camera.intrinsics.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = np.where(depth[:, None] > 0, image[:, :2] / depth[:, None], np.nan)
    return pixels, depth


def on_ground(points: Array, scene: Scene) -> Array:
    """Ego-frame points [n, 2] with the height of the scene's ground under them, [n, 3]; flat where it has none."""
    return np.column_stack([points, Terrain(scene).heights(points)])


def render(scene: Scene, width: int, height: int, camera: str = "front") -> NDArray[np.uint8]:
    """A camera's picture of a scene at t = 0: uint8 RGB [height, width, 3]; the same scene gives the same bytes.

    Raises:
        ValueError: a side is not positive, no such camera, or an unknown weather or time of day in the scene.
    """
    factor = 2 if width <= SUPERSAMPLE_UP_TO else 1
    seed = zlib.crc32(scene.scene_id.encode())
    land = Land(scene)
    canvas = Canvas(camera_of(camera, width * factor, height * factor), atmosphere_of(scene), Terrain(scene),
                    float(scene.ego.rear_axle_pose[2]), base_colour(land), seed)
    view = View(canvas, scene)
    paint_ground(view, scene, land)
    items, shade = gather(view, scene, land)
    shade()
    canvas.light_ground()
    paint_items(canvas, items)
    if canvas.air.wet:
        paint_rain(canvas, seed)
    return canvas.picture(factor)


def render_strip(scene: Scene, height: int) -> NDArray[np.uint8]:
    """Left, front and right pictures side by side as NAVSIM's agents join them: uint8 RGB [height, 4 height, 3]."""
    side, top = STRIP_CROP_PX
    scale = height / (FULL_HEIGHT - 2 * top)
    width, tall = round(FULL_WIDTH * scale), round(FULL_HEIGHT * scale)
    cut, above = round(side * scale), (tall - height) // 2
    parts = []
    for name in ("left", "front", "right"):
        picture = render(scene, width, tall, name)[above : above + height]
        parts.append(picture if name == "front" else picture[:, cut : width - cut])
    return np.hstack(parts)
