"""``rgbdseg predict``: label your own images."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.common import Parser, progress_bar, say
from rgbdseg.cli.config_args import split_config_options
from rgbdseg.cli.run_options import PredictOptions, add_protocol_options, for_other_images, parse_parts
from rgbdseg.config.protocol import stored_protocol
from rgbdseg.config.train import PRECISIONS
from rgbdseg.errors import UsageError
from rgbdseg.input_spec import InputSpec

EPILOG = """
Every other option is a field of the groups evaluation and hardware of a configuration, as for rgbdseg train:
--evaluation.stride_rate 0.5, --hardware.compile true.  Those above are short for some of them.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    own, rest = split_config_options(arguments)
    options = _parser().parse_args(own)
    from rgbdseg.depth import parse_depth_unit
    from rgbdseg.engine.predict import find_frames, predict
    from rgbdseg.segmenter import Segmenter
    from rgbdseg.weights.checkpoint import load_bundle
    from rgbdseg.weights.source import resolve_source

    out = Path(options.out)
    further = {name: Path(path) for name, path in options.raster}
    frames = find_frames(Path(options.rgb), Path(options.depth) if options.depth else None, further)
    taken = [frame.name for frame in frames if (out / "label" / f"{frame.name}.png").exists()]
    if taken and not options.force:
        raise UsageError(f"{out} already holds a prediction of '{taken[0]}'; choose another --out or add --force")
    unit = parse_depth_unit(options.depth_unit) if options.depth_unit else None
    camera = PinholeCamera.from_string(options.camera) if options.camera else None
    bundle = load_bundle(resolve_source(options.checkpoint))
    usual = for_other_images(stored_protocol(bundle.facts.config))
    parts = parse_parts("predict", PredictOptions(usual), options, rest)
    protocol, hardware = parts.evaluation, parts.hardware
    device = options.device or {"gpu": "cuda"}.get(hardware.accelerator, hardware.accelerator)
    segmenter = Segmenter.from_bundle(bundle, protocol=protocol, device=device, precision=hardware.precision)
    if hardware.compile:
        segmenter.model.compile()
    _check_given(segmenter.input_spec, options)
    _say_assumptions(segmenter.input_spec, options)
    classes = None if options.classes is None else [name.strip() for name in options.classes.split(",")]
    for name in classes or ():
        segmenter.label_set.index(name)  # an unknown name is refused before anything is computed
    shares: Counter[str] = Counter()
    with progress_bar("predicting") as move:
        written = predict(segmenter, frames, out, unit=unit, camera=camera, classes=classes)
        for done, frame in enumerate(written, start=1):
            shares.update({name: share / len(frames) for name, share in frame.shares.items()})
            move(done, len(frames))
    say("found: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.most_common() if share >= _SHOWN_SHARE))
    cloud = "" if camera is not None and options.depth else "; no point cloud: it needs --depth and --camera"
    say(f"labelled {len(frames)} image{'s' if len(frames) > 1 else ''} with {protocol.describe()}")
    say(f"wrote {out}/label, color, overlay{'' if cloud else ' and cloud'}{cloud}")
    return 0


_SHOWN_SHARE = 0.005


def _parser() -> Parser:
    parser = Parser("predict", "Label your own images: label map, colored map, overlay and labelled point cloud.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a checkpoint file, a run folder or a name from 'rgbdseg zoo'; default: the model that comes with rgbdseg "
        "(40 classes of NYU Depth V2; works without depth and without a camera)",
    )
    parser.add_argument("--rgb", required=True, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument("--depth", metavar="PATH", help="the depth map, or a folder of depth maps with the same names")
    parser.add_argument(
        "--raster",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PATH"),
        help="a further raster that the model looks at, e.g. thermal, as --depth; may be repeated",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--camera", metavar="fx,fy,cx,cy", help="intrinsics in pixels, counted from 0")
    parser.add_argument(
        "--depth-unit",
        metavar="UNIT",
        help="m, cm, mm or meters per stored unit; default: m for .npy, mm for 16-bit images",
    )
    parser.add_argument("--classes", metavar="A,B", help="draw and write these classes only; all else becomes void")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: by hardware.accelerator)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network (default: 32-true)")
    parser.add_argument("--force", action="store_true", help="replace predictions of the same names in --out")
    add_protocol_options(parser)
    parser.add_argument(
        "--margin",
        type=int,
        metavar="PIXELS",
        help="cut off each side before the model sees the image (for the white frame of NYU Depth V2: 7); "
        "default: nothing, whatever the recipe cuts off its dataset",
    )
    parser.epilog = EPILOG
    return parser


def _say_assumptions(spec: InputSpec, options: argparse.Namespace) -> None:
    """Say what a model that can do without depth or camera makes of their absence."""
    if not any(stream.from_depth and stream.optional for stream in spec.streams):
        return
    if not options.depth:
        say("no --depth: labels from color alone, which are less accurate")
    elif not options.camera:
        say("no --camera: a horizontal view of 63 degrees is assumed")


def _check_given(spec: InputSpec, options: argparse.Namespace) -> None:
    """Say in options, before any frame is read, what the model needs."""
    if spec.needs_depth and not options.depth:
        raise UsageError("the model needs depth; add --depth")
    needs_hha = any(stream.raster == "hha" and not stream.optional for stream in spec.streams)
    if (spec.needs_camera or needs_hha) and not options.camera:
        raise UsageError("the model needs the camera; add --camera fx,fy,cx,cy (pixels, counted from 0)")
    given = {"rgb", "depth_m", "hha", "noise", *(name for name, _ in options.raster)}
    missing = [name for name in spec.rasters if name not in given]
    if missing:
        raise UsageError(f"the model needs {missing[0]}; add --raster {missing[0]} PATH")
