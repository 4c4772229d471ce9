"""Generated frames as the library's samples."""

from __future__ import annotations

import torch

from rgbdseg.rooms.generator import DEFAULT_PARAMETERS, DEFAULT_SIZE, render_frame
from rgbdseg.rooms.parameters import RoomsParameters
from rgbdseg.sample import RGBDSample


def render_room(
    seed: int,
    frame: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    parameters: RoomsParameters = DEFAULT_PARAMETERS,
) -> RGBDSample:
    """Render a frame of a room as a sample.

    ``raw_depth_m`` holds the sensor's readings (0 = none), ``depth_m`` the same with holes filled, ``label`` class
    indices of `rgbdseg.datasets.rooms.ROOMS`.  The same arguments give the same bytes.

    Args:
        seed: of the room.
        frame: number of the view, from 0.
        size: (height, width) in pixels.
        parameters: of rooms and sensor.

    Raises:
        UsageError: for negative numbers or a size below 16 pixels.
    """
    made = render_frame(seed, frame, size, parameters)
    return RGBDSample(
        rgb=torch.from_numpy(made.rgb_3HW),
        depth_m=torch.from_numpy(made.depth_HW)[None],
        raw_depth_m=torch.from_numpy(made.raw_depth_HW)[None],
        label=torch.from_numpy(made.label_HW)[None],
        camera=made.camera,
        sample_id=f"room{seed}_frame{frame}",
    )
