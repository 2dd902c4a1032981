"""The front camera: a pinhole like NAVSIM's CAM_F0, and the picture it takes of a scene.

CAM_F0 is 1920 x 1080 with f = 1545 px and centre (960, 560), mounted 1.65 m before the rear axle and 1.55 m above the
ground, looking straight ahead. Another width scales it; another aspect ratio crops rows from the top (sky), never
squashes. Ego frame: x forward, y left, z up from the ground under the rear axle. Camera frame: x right, y down, z
forward.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemo_mtdrive.driving.rendering.bodies import paint_bodies
from nemo_mtdrive.driving.rendering.canvas import Canvas
from nemo_mtdrive.driving.rendering.ground import paint_ground
from nemo_mtdrive.driving.scene import Array, Camera, Scene

FULL_WIDTH, FULL_HEIGHT = 1920, 1080
FOCAL_PX, CENTRE_PX = 1545.0, (960.0, 560.0)
MOUNT_M = (1.65, 0.0, 1.55)
SUPERSAMPLE_UP_TO = 640
"""Pictures up to this width are drawn twice as large and averaged down."""


def front_camera(width: int, height: int, file: str) -> Camera:
    """The camera record of a picture `width` x `height` px; `file` is where the picture lies beside the scene file.

    Raises:
        ValueError: a side is not positive.
    """
    if width < 1 or height < 1:
        raise ValueError(f"camera size: got {width} x {height}, want both sides above 0")
    scale = width / FULL_WIDTH
    # rows are cropped from the top: the road is worth more than the sky
    cropped = FULL_HEIGHT * scale - height
    intrinsics = np.array([[FOCAL_PX * scale, 0.0, CENTRE_PX[0] * scale],
                           [0.0, FOCAL_PX * scale, CENTRE_PX[1] * scale - cropped],
                           [0.0, 0.0, 1.0]])
    extrinsics = np.eye(4)
    extrinsics[:3, :3] = [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    extrinsics[:3, 3] = MOUNT_M
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


def render(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """The front picture of a scene at t = 0: uint8 RGB [height, width, 3]; the same scene gives the same bytes."""
    factor = 2 if width <= SUPERSAMPLE_UP_TO else 1
    canvas = Canvas(front_camera(width * factor, height * factor, ""))
    paint_ground(canvas, scene)
    paint_bodies(canvas, scene)
    return canvas.picture(factor)
