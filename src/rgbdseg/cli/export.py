"""``rgbdseg export``: a trained model as one graph for other runtimes, or as a folder that needs no PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import Parser, progress_bar, say
from rgbdseg.cli.config_args import split_config_options
from rgbdseg.cli.run_options import ExportOptions, add_protocol_options, for_a_graph, parse_parts
from rgbdseg.config.protocol import stored_protocol
from rgbdseg.depth import METERS, parse_depth_unit
from rgbdseg.errors import UsageError
from rgbdseg.files import is_replaceable

if TYPE_CHECKING:
    from rgbdseg.export.export import Exported, Frames
    from rgbdseg.export.plan import GraphPlan
    from rgbdseg.weights.checkpoint import ModelBundle

SUFFIX_OF_FORMAT = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}
ROOM_SIZE = (240, 320)
EPILOG = """
The graph takes rgb uint8 (N, H, W, 3), depth float32 in meters (or uint16 with --depth-unit) and camera float64 (N, 4),
as far as the model looks at them, and returns labels uint8 (N, H, W) and confidence.  It is compared with PyTorch
before it is written; a graph that does not keep the model's numbers is not written.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    own, rest = split_config_options(arguments)
    options = _parser().parse_args(own, argparse.Namespace(rest=rest))
    if options.table:
        return _write_table(options)
    if options.model and not options.out and not options.bundle:
        options.model, options.out = None, options.model  # of the model that comes with the package
    if bool(options.out) == bool(options.bundle):
        raise UsageError("rgbdseg export: give [MODEL] and either OUT or --bundle DIR; see rgbdseg export --help")
    return _export(options)


def _export(options: argparse.Namespace) -> int:
    from rgbdseg.weights.checkpoint import load_bundle
    from rgbdseg.weights.source import resolve_source

    target = Path(options.bundle or options.out)
    if options.out and target.suffix not in SUFFIX_OF_FORMAT.values():
        expected = ", ".join(SUFFIX_OF_FORMAT.values())
        raise UsageError(f"{target} is no file to write a graph to; expected OUT to end in {expected}")
    suffix = SUFFIX_OF_FORMAT[options.format] if options.format else None
    if options.out and suffix and target.suffix != suffix:
        raise UsageError(f"{target} does not end in {suffix}, as --format {options.format} does")
    if options.bundle and suffix not in (None, ".onnx"):
        raise UsageError(f"--bundle holds an ONNX graph; leave out --format {options.format}")
    _check_free(target, options)
    bundle = load_bundle(resolve_source(options.model))
    if options.bundle:
        with tempfile.TemporaryDirectory() as folder:
            exported = _write(bundle, Path(folder) / "model.onnx", options)
            from rgbdseg.export.bundle import write_bundle

            files = write_bundle(exported.file, target)
        _report(exported, options)
        say(f"wrote {', '.join(str(file) for file in files)}")
        return 0
    exported = _write(bundle, target, options)
    _report(exported, options)
    say(f"wrote {target} ({target.stat().st_size / 2**20:.1f} MiB)")
    if target.suffix == ".onnx":
        from rgbdseg.export.export import trtexec_line

        say(f"for TensorRT, see docs/export.md: {trtexec_line(target, exported.plan, options.precision)}")
    return 0


def _check_free(target: Path, options: argparse.Namespace) -> None:
    """Raise UsageError for files that are there, unless they may be replaced."""
    if options.bundle:
        from rgbdseg.export.bundle import check_bundle_folder

        check_bundle_folder(target)
    files = [target / "model.onnx"] if options.bundle else [target]
    if target.suffix == ".xml":
        files.append(target.with_suffix(".bin"))
    for file in files:
        if not is_replaceable(file) and not options.force:
            raise UsageError(f"{file} exists; choose another name or add --force")


def _write(bundle: ModelBundle, file: Path, options: argparse.Namespace) -> Exported:
    from rgbdseg.export.export import export_model
    from rgbdseg.export.parity import BARS
    from rgbdseg.segmenter import Segmenter

    usual = ExportOptions(for_a_graph(stored_protocol(bundle.facts.config)))
    protocol = parse_parts("export", usual, options, options.rest).evaluation
    segmenter = Segmenter.from_bundle(bundle, protocol=protocol, device="cpu", keep_layers=True)
    plan, frames = _plan_and_frames(segmenter.hha, bundle, protocol, options)
    bar = BARS[options.precision]
    if options.agreement is not None:
        bar = dataclasses.replace(bar, agreement=options.agreement / 100)
    if options.miou_loss is not None:
        bar = dataclasses.replace(bar, mean_iou=options.miou_loss / 100)
    say(f"exporting {bundle.facts.model_name}, {protocol.describe()}; comparing it on {len(frames.compared)} frames")
    return export_model(segmenter, bundle.facts, plan, file, frames, precision=options.precision, bar=bar)


def _plan_and_frames(
    hha: object, bundle: ModelBundle, protocol: object, options: argparse.Namespace
) -> tuple[GraphPlan, Frames]:
    from rgbdseg.export.export import Frames
    from rgbdseg.export.frames import dataset_frames, room_frames
    from rgbdseg.export.plan import GraphPlan

    spec = bundle.facts.input_spec
    size = _size(options)
    calibrated = options.frames if options.precision == "int8" else 0
    if options.frames < 1:
        raise UsageError(f"--frames is {options.frames}; expected 1 at least")
    if options.data:
        compared, label_set = dataset_frames(Path(options.data), options.split, options.frames, spec)
        if options.size is None:
            size = compared[0].size
        calibration = dataset_frames(Path(options.data), "train", calibrated, spec)[0] if calibrated else []
    else:
        compared, label_set = room_frames(size or ROOM_SIZE, options.frames, spec)
        calibration = room_frames(size or ROOM_SIZE, calibrated, spec, first_seed=1000)[0]
    plan = GraphPlan(
        spec=spec,
        protocol=protocol,  # type: ignore[arg-type]
        hha=hha,  # type: ignore[arg-type]
        depth_unit=METERS if options.depth_unit is None else parse_depth_unit(options.depth_unit),
        whole_numbers=options.depth_unit not in (None, "m"),
        size=size,
        scores=options.scores,
    )
    return plan, Frames(compared, label_set, calibration)


def _size(options: argparse.Namespace) -> tuple[int, int] | None:
    if options.size in (None, ["open"]):
        return None
    if len(options.size) != 2 or not all(side.isdecimal() for side in options.size):
        raise UsageError(f"--size {' '.join(options.size)} is not understood; expected a height and a width, or open")
    return int(options.size[0]), int(options.size[1])


def _report(exported: Exported, options: argparse.Namespace) -> None:
    say(f"{options.precision} against PyTorch: {exported.report.describe()}")
    from rgbdseg.export.views import views_per_frame

    views = views_per_frame(exported.plan)
    if views != 1:
        say(f"the network looks {views} times at every frame; --mode whole --no-flip is the fastest")
    if not exported.free_batch:
        say("the graph takes one frame at a time: the model does not leave their number open")


def _write_table(options: argparse.Namespace) -> int:
    from rgbdseg.export.table import check_table_file, export_families, write_table

    check_table_file(Path(options.table))  # before an hour of work
    size = _size(options) or (96, 128)
    with progress_bar("families") as move:
        rows = export_families(size, frames=options.frames, models=options.models, progress=move)
    write_table(Path(options.table), rows, size)
    failed = [row.model for row in rows if row.problem]
    say(f"{len(rows) - len(failed)} of {len(rows)} families export; wrote {options.table}")
    return 0


def _parser() -> Parser:
    parser = Parser("export", "Write a trained model as one graph with all of its pre-processing inside.")
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        nargs="?",
        help="a checkpoint, a run folder or a name of the zoo; left out: the model that comes with rgbdseg",
    )
    parser.add_argument("out", nargs="?", help="file to write: .onnx, .pt2 (torch-export) or .xml (openvino)")
    parser.add_argument("--bundle", metavar="DIR", help="write graph, labels.json and run.py, which needs no PyTorch")
    parser.add_argument(
        "--format", choices=SUFFIX_OF_FORMAT, help="by default what the name of the file says; openvino if installed"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of the network")
    parser.add_argument(
        "--size",
        nargs="+",
        metavar="PIXELS",
        help="height and width of the frames, or: open.  default: as --data, or open",
    )
    parser.add_argument(
        "--depth-unit", metavar="UNIT", help="depth is uint16 in mm, cm or meters per unit (default: meters)"
    )
    parser.add_argument("--scores", action="store_true", help="the graph also returns the share of every class")
    compared = parser.add_argument_group("what it is compared with PyTorch on (default: made rooms)")
    compared.add_argument("--data", metavar="DATASET", help="folder of a prepared dataset")
    compared.add_argument("--split", default="test", help="of the dataset")
    compared.add_argument("--frames", type=int, default=8, help="number of frames")
    compared.add_argument(
        "--agreement", type=float, metavar="PERCENT", help="equal labels (default: 99.9; fp16 99.5, int8 90)"
    )
    compared.add_argument("--miou-loss", type=float, metavar="POINTS", help="lower mIoU (default: 0.1; int8 2)")
    add_protocol_options(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--table", metavar="FILE.md", help="instead: export the small model of every family, write a table"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of the table; default: all small ones")
    return parser
