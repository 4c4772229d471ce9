"""Rendering one frame of a generated room."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import UsageError
from rgbdseg.rooms.layout import build_room
from rgbdseg.rooms.parameters import RoomsParameters, check_size
from rgbdseg.rooms.sensor import fill_holes, read_depth
from rgbdseg.rooms.shading import expose, shade_image
from rgbdseg.rooms.viewpoint import camera_pose
from rgbdseg.rooms.visibility import CameraPose, Rays, first_hits

DEFAULT_SIZE = (240, 320)
DEFAULT_PARAMETERS = RoomsParameters()

# H height, W width


@dataclasses.dataclass(frozen=True, slots=True)
class RoomFrame:
    """One rendered frame as NumPy arrays.

    Args:
        rgb_3HW: uint8.
        raw_depth_HW: float32 meters, 0 = no reading.
        depth_HW: the same with holes filled.
        true_depth_HW: float32 meters, exact.
        label_HW: uint8 class index of `rgbdseg.datasets.rooms.ROOMS`; there is no void.
    """

    rgb_3HW: npt.NDArray[np.uint8]
    raw_depth_HW: npt.NDArray[np.float32]
    depth_HW: npt.NDArray[np.float32]
    true_depth_HW: npt.NDArray[np.float32]
    label_HW: npt.NDArray[np.uint8]
    camera: PinholeCamera
    pose: CameraPose


def render_frame(
    seed: int,
    frame: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    parameters: RoomsParameters = DEFAULT_PARAMETERS,
    pose: CameraPose | None = None,
) -> RoomFrame:
    """Render frame ``frame`` of the room ``seed``.

    The same arguments give the same bytes.

    Args:
        seed: of the room, 0 or more.
        frame: number of the view, from 0.
        size: (height, width) in pixels, 16 or more.
        parameters: of camera and sensors.
        pose: of the camera, so that it can be led through the room; the noise is that of the frame.  None: the frame's
            own, see `camera_pose`.

    Raises:
        UsageError: for negative numbers or a size below 16 pixels.
    """
    check_size(size)
    if seed < 0 or frame < 0:
        raise UsageError(f"room seed {seed} and frame {frame} must not be negative")
    room = build_room(seed)
    scene = room.scene
    rng = np.random.default_rng([seed, 3, frame])
    camera = parameters.camera(size)
    pose = camera_pose(room, seed, frame, parameters) if pose is None else pose
    rays = Rays.of(camera, size, pose)
    depth_HW, index_HW = first_hits(scene, rays, camera)
    shaded = shade_image(scene, rays, depth_HW, index_HW, focal_px=camera.fx, shadows=parameters.shadows)
    rgb_3HW = expose(shaded.linear_3HW, rays, rng, parameters)
    raw_depth_HW = read_depth(
        depth_HW,
        facing_HW=shaded.facing_HW,
        reflectance_HW=shaded.reflectance_HW,
        glass_HW=scene.materials.glass_N[index_HW],
        focal_px=camera.fx,
        rng=rng,
        parameters=parameters,
    )
    return RoomFrame(rgb_3HW, raw_depth_HW, fill_holes(raw_depth_HW), depth_HW, scene.label_N[index_HW], camera, pose)
