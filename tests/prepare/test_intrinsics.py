from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.prepare.intrinsics import read_intrinsics

SIZE = (720, 1280)
FX, FY, CX, CY = 912.5, 910.25, 641.75, 361.5
CAMERA = PinholeCamera(FX, FY, CX, CY)
K = [FX, 0.0, CX, 0.0, FY, CY, 0.0, 0.0, 1.0]
COLUMNS = [FX, 0.0, 0.0, 0.0, FY, 0.0, CX, CY, 1.0]
P = [900.0, 0.0, 640.0, 0.0, 0.0, 901.0, 360.0, 0.0, 0.0, 0.0, 1.0, 0.0]
NO_DISTORTION = [0.0] * 5

OPEN3D = {
    "color_mode": "MJPG_720P", "depth_scale": 1000.0, "height": 720, "intrinsic_matrix": COLUMNS, "width": 1280,
    "serial_number": "000123", "stream_length_usec": 5000,
}  # fmt: skip
REALSENSE = {
    "width": 1280, "height": 720, "fx": FX, "fy": FY, "ppx": CX, "ppy": CY, "model": "distortion.inverse_brown_conrady",
    "coeffs": NO_DISTORTION,
}  # fmt: skip
ROS_MESSAGE = {
    "header": {"seq": 1, "frame_id": "camera_color_optical_frame"}, "height": 720, "width": 1280,
    "distortion_model": "plumb_bob", "D": NO_DISTORTION, "K": K, "R": [1, 0, 0, 0, 1, 0, 0, 0, 1], "P": P,
}  # fmt: skip
ROS_CALIBRATION = {
    "image_width": 1280, "image_height": 720, "camera_name": "head",
    "camera_matrix": {"rows": 3, "cols": 3, "data": K},
    "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, -0.2, 0.0, 0.0, 0.0]},
    "projection_matrix": {"rows": 3, "cols": 4, "data": P},
}  # fmt: skip


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "meters_per_unit", "distorted"),
    [
        ("plain.json", {"fx": FX, "fy": FY, "cx": CX, "cy": CY}, None, False),
        ("open3d.json", OPEN3D, 0.001, False),
        ("rows.json", {"intrinsic_matrix": [K[:3], K[3:6], K[6:]]}, None, False),
        ("realsense.json", REALSENSE, None, False),
        ("streams.json", {"depth_scale": 0.00025, "depth": {}, "color": REALSENSE}, 0.00025, False),
        ("distorted.json", {**REALSENSE, "coeffs": [0.1, 0, 0, 0, 0]}, None, True),
        ("message.yaml", ROS_MESSAGE, None, False),
        ("ros2.yml", {key.lower(): value for key, value in ROS_MESSAGE.items()}, None, False),
        ("calibration.yaml", ROS_CALIBRATION, None, True),
        ("message.json", ROS_MESSAGE, None, False),
        ("row-major-open3d.json", {**OPEN3D, "intrinsic_matrix": K}, 0.001, False),
        ("nested.json", {"K": [K[:3], K[3:6], K[6:]]}, None, False),
        ("record3d.json", {"w": 1280, "h": 720, "K": COLUMNS}, None, False),
        ("list.json", {"intrinsics": K}, None, False),
        ("bop.json", {"cam_K": K, "depth_scale": 0.1}, 0.0001, False),
        (
            "scene_camera.json",
            {"0": {"cam_K": K, "depth_scale": 1.0}, "1": {"cam_K": K, "depth_scale": 1.0}},
            1e-3,
            False,
        ),
        ("ambiguous.json", {"fx": FX, "fy": FY, "cx": CX, "cy": CY, "depth_scale": 1.0}, None, False),
    ],
)
def test_every_format_gives_the_same_camera(
    tmp_path: Path, name: str, content: object, meters_per_unit: float | None, distorted: bool
) -> None:
    found = read_intrinsics(write(tmp_path / name, content), SIZE)
    assert found.camera == CAMERA
    assert (found.meters_per_unit, found.distorted) == (meters_per_unit, distorted)


OPENCV = f"""%YAML:1.0
---
image_width: 1280
image_height: 720
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ {FX}, 0., {CX}, 0., {FY}, {CY}, 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 1
   cols: 5
   dt: d
   data: [ 1.5e-01, 0., 0., 0., 0. ]
"""
ORB_SLAM = f"""%YAML:1.0

# Camera calibration
Camera.fx: {FX}
Camera.fy: {FY}
Camera.cx: {CX}
Camera.cy: {CY}
Camera.k1: 0.0
Camera.width: 1280
Camera.height: 720
DepthMapFactor: 5000.0
"""
SCANNET = f"{FX} 0.000000 {CX} 0.000000\n0.0 {FY} {CY} 0.0\n0.0 0.0 1.0 0.0\n0.0 0.0 0.0 1.0\n"


@pytest.mark.parametrize(
    ("name", "text", "meters_per_unit", "distorted"),
    [
        ("opencv.yml", OPENCV, None, True),
        ("orb_slam2.yaml", ORB_SLAM, 0.0002, False),
        ("orb_slam3.yaml", ORB_SLAM.replace("Camera.", "Camera1.").replace("Depth", "RGBD.Depth"), 0.0002, False),
        ("orb_slam_distorted.yaml", ORB_SLAM.replace("k1: 0.0", "k1: 0.3"), 0.0002, True),
        ("intrinsic_color.txt", SCANNET, None, False),
        ("sun.txt", " ".join(map(str, K)), None, False),
        ("numpy.txt", str([K[:3], K[3:6], K[6:]]), None, False),
        ("projection.txt", f"{FX},0,{CX},0\n0,{FY},{CY},0\n0,0,1,0\n", None, False),
        ("plain.txt", f"# fx fy cx cy\n{FX} {FY} {CX} {CY}\n", None, False),
        ("json.txt", json.dumps({"fx": FX, "fy": FY, "cx": CX, "cy": CY}), None, False),
    ],
)
def test_texts_of_other_programs(
    tmp_path: Path, name: str, text: str, meters_per_unit: float | None, distorted: bool
) -> None:
    (tmp_path / name).write_text(text)
    found = read_intrinsics(tmp_path / name, SIZE)
    assert found.camera == CAMERA
    assert (found.meters_per_unit, found.distorted) == (meters_per_unit, distorted)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_a_text_file_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "camera.txt"
    path.write_text(json.dumps({"fx": FX, "fy": FY, "cx": CX, "cy": CY}), encoding=encoding)
    assert read_intrinsics(path, SIZE).camera == CAMERA
    path.write_text("{", encoding=encoding)
    with pytest.raises(DataError, match=r"camera\.txt is not JSON: "):
        read_intrinsics(path, SIZE)


@pytest.mark.parametrize("text", ["fx: 500", "the camera", "1 2 3 x"])
def test_a_text_of_no_form_names_the_accepted_ones(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt is of no known form; expected one of: .*4x4.*cam_K.*ORB-SLAM"):
        read_intrinsics(tmp_path / "a.txt", SIZE)


def test_rectified_images_have_the_projection_matrix(tmp_path: Path) -> None:
    for name, content in (("a.yaml", ROS_MESSAGE), ("b.yaml", ROS_CALIBRATION)):
        found = read_intrinsics(write(tmp_path / name, content), SIZE, rectified=True)
        assert (found.camera, found.distorted) == (PinholeCamera(900, 901, 640, 360), False)


def test_of_several_messages_the_first_is_read(tmp_path: Path) -> None:
    path = tmp_path / "echo.yaml"
    path.write_text(yaml.safe_dump(ROS_MESSAGE) + "---\n" + yaml.safe_dump({**ROS_MESSAGE, "K": P[:9]}) + "---\n")
    assert read_intrinsics(path, SIZE).camera == CAMERA


def azure(sensor: tuple[int, int] = (4096, 3072)) -> dict[str, Any]:
    def camera(location: str, parameters: list[float], size: tuple[int, int]) -> dict[str, Any]:
        intrinsics = {"ModelParameterCount": 14, "ModelParameters": [*parameters, 0.7, -2.8, 1.6, 0.6, *[0.0] * 6]}
        return {"Intrinsics": intrinsics, "Location": location, "SensorWidth": size[0], "SensorHeight": size[1]}

    depth = camera(
        "CALIBRATION_CameraLocationD0", [0.5122697949, 0.4945123196, 0.4921168387, 0.4921667278], (1024, 1024)
    )
    color = camera("CALIBRATION_CameraLocationPV0", [0.4967627227, 0.5108628273, 0.4709070623, 0.6274453997], sensor)
    return {"CalibrationInformation": {"Cameras": [depth, color], "InertialSensors": []}}


# A calibration and what the SDK makes of it at 1920x1080 and 640x576, as printed by its calibration example.
def test_azure_kinect_calibrations_are_cropped_and_scaled_as_in_the_sdk(tmp_path: Path) -> None:
    path = write(tmp_path / "calibration.json", azure())
    color = read_intrinsics(path, (1080, 1920))
    assert color.distorted
    assert color.camera.as_tuple() == pytest.approx((904.141541, 903.521362, 953.284424, 555.142456), abs=1e-3)
    depth = read_intrinsics(path, (576, 640)).camera
    assert depth.as_tuple() == pytest.approx((503.927643, 503.978729, 332.064270, 325.880615), abs=1e-3)
    full = read_intrinsics(path, (3072, 4096)).camera
    assert full.as_tuple() == pytest.approx(
        (0.4709070623 * 4096, 0.6274453997 * 3072, 0.4967627227 * 4096 - 0.5, 0.5108628273 * 3072 - 0.5)
    )
    small = read_intrinsics(path, (288, 320)).camera
    assert small.as_tuple() == pytest.approx((depth.fx / 2, depth.fy / 2, (depth.cx - 0.5) / 2, (depth.cy - 0.5) / 2))


def test_older_azure_calibrations_are_of_wide_images(tmp_path: Path) -> None:
    wide = azure((1920, 1080))
    path = write(tmp_path / "calibration.json", wide)
    camera = read_intrinsics(path, (720, 1280)).camera
    # fractions of the 16:9 image itself
    assert camera.as_tuple() == pytest.approx(
        (0.4709070623 * 1280, 0.6274453997 * 720, 0.4967627227 * 1280 - 0.5, 0.5108628273 * 720 - 0.5)
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            {"focal": 500},
            r"holds the keys focal, which are no known intrinsics; expected one of: .*with fx fy cx cy; .*BOP cam_K",
        ),
        ("a.json", {**REALSENSE, "width": 640, "height": 480}, "for images of 480x640, the images are 720x1280"),
        ("a.json", {**REALSENSE, "fx": 0}, r"key 'fx' is 0\.0; expected a positive focal length"),
        ("a.json", {**REALSENSE, "ppx": "x"}, "key 'ppx' is \"x\"; expected a number"),
        ("a.json", {**OPEN3D, "intrinsic_matrix": [*K[:6], 0, 0, 2]}, "a camera matrix fx 0 cx, 0 fy cy, 0 0 1"),
        ("a.json", {**OPEN3D, "intrinsic_matrix": K[:8]}, "row by row or column by column"),
        ("a.json", {**OPEN3D, "intrinsic_matrix": [FX, 50.0, *K[2:]]}, "a camera without skew, which is 50 here"),
        ("a.json", {**OPEN3D, "depth_scale": -1}, "key 'depth_scale' is -1; expected a positive number"),
        ("a.json", {**OPEN3D, "depth_scale": 1e-300}, "key 'depth_scale' is 1e-300; expected a positive number"),
        ("a.json", {"cam_K": K, "depth_scale": 1e300}, r"key 'depth_scale' is 1e\+300; expected a positive number"),
        ("a.yaml", {**ROS_MESSAGE, "K": [0.0] * 9}, "key 'K' .*all zero says that the camera is not calibrated"),
        ("a.yaml", {**ROS_CALIBRATION, "camera_matrix": {"data": K[:6]}}, "of 9 numbers"),
        ("a.json", {"0": {"cam_K": K}, "1": {"cam_K": COLUMNS}}, "different cameras for different images"),
        ("a.json", {"CalibrationInformation": {"Cameras": []}}, "no camera at CALIBRATION_CameraLocationPV0"),
        ("a.json", [1, 2], r"key 'matrix' is \[1, 2\]; expected a camera matrix"),
        ("a.json", "text", r"the file holds \"text\"; expected an object"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_intrinsics(write(tmp_path / name, content), SIZE)


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("%YAML:1.0\nK: !!opencv-matrix [1]")
    with pytest.raises(DataError, match=r"a\.yaml is not YAML: expected rows, cols and data"):
        read_intrinsics(tmp_path / "a.yaml", SIZE)
    with pytest.raises(DataError, match=r"b\.yaml does not exist"):
        read_intrinsics(tmp_path / "b.yaml", SIZE)
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(DataError, match="expected an object"):
        read_intrinsics(tmp_path / "c.yaml", SIZE)


def test_keys_that_are_no_texts_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("D: [0.0]\n999: 1\n")
    with pytest.raises(DataError, match="holds the keys D, 999, which are no known intrinsics"):
        read_intrinsics(tmp_path / "c.yaml", (12, 16))
