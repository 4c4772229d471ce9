"""``rgbdseg prepare folder``: own recordings."""

from __future__ import annotations

from pathlib import Path

from rgbdseg.cli.common import Parser, add_workers, progress_bars
from rgbdseg.cli.prepare_common import STAGES, report
from rgbdseg.errors import UsageError


def run(arguments: list[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    from rgbdseg.camera import PinholeCamera
    from rgbdseg.prepare.folder import RecordingOptions, prepare_folder, read_class_names

    recording = RecordingOptions(
        rgb_folder=options.rgb,
        depth_folder=options.depth,
        label_folder=options.label,
        pairing=options.pair,
        associations=options.associations and Path(options.associations),
        max_difference_s=options.max_difference,
        metres_per_unit=options.metres_per_unit,
        camera=options.camera and PinholeCamera.from_string(options.camera),
        intrinsics=options.intrinsics and Path(options.intrinsics),
        rectified=options.rectified,
        label_set=options.labels and read_class_names(options.labels),
        first_label=options.first_label,
        void_labels=_void_labels(options.void_label),
        every=options.every,
        test_share=options.test_share,
        seed=options.seed,
        lists={name: Path(path) for name, path in (("train", options.train), ("test", options.test)) if path},
    )
    with progress_bars(*STAGES) as move:
        prepared = prepare_folder(
            options.source,
            options.destination,
            recording,
            name=options.name,
            workers=options.workers,
            progress=move,
        )
    notes = []
    if prepared.without_depth:
        notes.append(f"{prepared.without_depth} images have no depth map within {options.max_difference} s: left out")
    if prepared.without_label:
        notes.append(f"{prepared.without_label} frames have no label: left out")
    if prepared.distorted:
        notes.append("note: the intrinsics state lens distortion, which a pinhole camera does not have; rectify")
    if prepared.result.description.camera is None:
        notes.append("note: without a camera no HHA can be computed; give --camera or --intrinsics")
    if recording.test_share:
        notes.append("note: neighbouring frames of one recording look alike; a random split overrates a model")
    report(prepared.result, notes)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "prepare folder", "Write a recording as a prepared tree: images, depth maps and, where there are any, labels."
    )
    parser.add_argument("source", help="folder of the recording")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--name", help="of the dataset; by default the folder's")
    parser.add_argument("--rgb", metavar="FOLDER", help="of the images, inside the recording")
    parser.add_argument("--depth", metavar="FOLDER", help="of the depth maps")
    parser.add_argument(
        "--pair",
        choices=("auto", "name", "time"),
        default="auto",
        help="images with depth maps; auto: by time where rgb.txt and depth.txt or associations.txt are, else by name",
    )
    parser.add_argument("--associations", metavar="FILE", help="lines of time, path, time, path")
    parser.add_argument("--max-difference", type=float, default=0.02, metavar="SECONDS", help="between paired files")
    parser.add_argument(
        "--metres-per-unit", type=float, metavar="M", help="of depth: 0.001 for millimetres, 1 for metres"
    )
    parser.add_argument("--camera", metavar="FX,FY,CX,CY", help="intrinsics in pixels, pixel centres counted from 0")
    parser.add_argument(
        "--intrinsics", metavar="FILE", help="JSON of Open3D, RealSense or Azure Kinect, or a ROS camera_info YAML"
    )
    parser.add_argument("--rectified", action="store_true", help="take P instead of K of a camera_info")
    parser.add_argument("--labels", metavar="NAMES", help="file of class names, one per line, or a built-in set")
    parser.add_argument("--label", metavar="FOLDER", help="of the label maps")
    parser.add_argument("--first-label", type=int, default=0, metavar="VALUE", help="stored value of the first class")
    parser.add_argument(
        "--void-label", default="255", metavar="VALUES", help="not labelled: values with commas, or none"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="keep every n-th frame")
    parser.add_argument("--test-share", type=float, default=0.0, help="random split; 0 makes none")
    parser.add_argument("--seed", type=int, default=0, help="of the random split")
    parser.add_argument("--train", metavar="FILE", help="names of the training frames instead, one per line")
    parser.add_argument("--test", metavar="FILE", help="names of the test frames, one per line")
    add_workers(parser)
    return parser


def _void_labels(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise UsageError(f"void label '{text}' is not understood; expected e.g. 255, or 0,255, or none") from None
