"""Generated furnished rooms seen by a moving, tilted RGB-D camera: data that needs no download.

The classes (`rgbdseg.datasets.rooms.ROOMS`) are made so that neither color nor depth alone is enough:

* Told apart by shape only, because their looks come from one distribution whatever the class:
  table, chair, cabinet and bookshelf (`materials.wood_finish`); bed, sofa, box and cushion (`materials.fabric_finish`);
  wall and ceiling in those rooms (three in ten) where both have the same paint.
* Told apart by color only, because their shapes come from one distribution whatever the class, and their relief of
  2 cm is less than the sensor resolves across a room: window, picture and whiteboard (`layout`, wall panels); door
  against wall; rug (6 mm thick) against floor.  One known exception: readings tend to fail on window panes, so
  ``raw_depth_m`` hints at windows; in ``depth_m`` these holes are filled.
* Told apart by either, more or less: books and lamp.

World frame: meters, z up, floor at z = 0.  The camera's pose is part of `RoomFrame`.
"""

from rgbdseg.rooms.generator import RoomFrame, render_frame
from rgbdseg.rooms.parameters import RoomsParameters
from rgbdseg.rooms.samples import render_room
from rgbdseg.rooms.visibility import CameraPose
from rgbdseg.rooms.write import write_rooms

__all__ = ["CameraPose", "RoomFrame", "RoomsParameters", "render_frame", "render_room", "write_rooms"]
