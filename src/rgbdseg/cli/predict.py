"""``rgbdseg predict``: label your own images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.common import Parser, progress_bar, say
from rgbdseg.cli.protocol_args import add_protocol_options, chosen_protocol, stored_protocol
from rgbdseg.errors import UsageError

if TYPE_CHECKING:
    import torch


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("predict", "Label your own images: label map, coloured map, overlay and labelled point cloud.")
    parser.add_argument("checkpoint", help="a checkpoint file or a run folder")
    parser.add_argument("--rgb", required=True, metavar="PATH", help="an image, or a folder of images")
    parser.add_argument("--depth", metavar="PATH", help="the depth map, or a folder of depth maps with the same names")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--camera", metavar="fx,fy,cx,cy", help="intrinsics in pixels, counted from 0")
    parser.add_argument(
        "--depth-unit",
        metavar="UNIT",
        help="m, cm, mm or metres per stored unit; default: m for .npy, mm for 16-bit images",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--force", action="store_true", help="replace predictions of the same names in --out")
    add_protocol_options(parser)
    parser.add_argument(
        "--margin",
        type=int,
        default=0,
        metavar="PIXELS",
        help="cut off each side before the model sees the image (for the white frame of NYU Depth V2: 7); "
        "default: nothing, whatever the recipe cuts off its dataset",
    )
    options = parser.parse_args(arguments)
    from rgbdseg.engine.predict import find_frames, parse_depth_unit, predict
    from rgbdseg.engine.run_folder import find_checkpoints
    from rgbdseg.weights.checkpoint import load_bundle

    out = Path(options.out)
    frames = find_frames(Path(options.rgb), Path(options.depth) if options.depth else None)
    taken = [frame.name for frame in frames if (out / "label" / f"{frame.name}.png").exists()]
    if taken and not options.force:
        raise UsageError(f"{out} already holds a prediction of '{taken[0]}'; choose another --out or add --force")
    unit = parse_depth_unit(options.depth_unit) if options.depth_unit else None
    camera = PinholeCamera.from_string(options.camera) if options.camera else None
    bundle = load_bundle(find_checkpoints(options.checkpoint)[0])
    protocol = chosen_protocol(options, stored_protocol(bundle.facts.config))
    with progress_bar("predicting") as move:
        names = predict(
            bundle,
            frames,
            out,
            unit=unit,
            camera=camera,
            protocol=protocol,
            device=_device(options.device),
        )
        for done, _ in enumerate(names, start=1):
            move(done, len(frames))
    cloud = "" if camera is not None and options.depth else "; no point cloud: it needs --depth and --camera"
    say(f"labelled {len(frames)} image{'s' if len(frames) > 1 else ''} with {protocol.describe()}")
    say(f"wrote {out}/label, colour, overlay{'' if cloud else ' and cloud'}{cloud}")
    return 0


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device '{name}'; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device '{name}'; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device '{name}' is not available: PyTorch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu or another number"
        )
    return device
