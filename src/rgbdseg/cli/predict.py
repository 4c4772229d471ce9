"""``rgbdseg predict``: label your own images."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.common import Parser, default_workers, say, steady_progress
from rgbdseg.cli.config_args import split_config_options
from rgbdseg.cli.recording_options import add_recording_options, recording_options
from rgbdseg.cli.run_options import PredictOptions, add_protocol_options, parse_parts
from rgbdseg.config.protocol import EvaluationProtocol, for_other_images, stored_protocol
from rgbdseg.config.train import PRECISIONS, LoaderConfig
from rgbdseg.errors import DataError, UsageError
from rgbdseg.input_spec import InputSpec

if TYPE_CHECKING:
    import torch

    from rgbdseg.engine.bulk import BulkOptions, BulkResult, FrameSource
    from rgbdseg.engine.predict import Inputs
    from rgbdseg.segmenter import Segmenter
    from rgbdseg.weights.checkpoint import ModelBundle

EPILOG = """
Every other option is a field of the groups evaluation, hardware and loader of a configuration, as for rgbdseg train:
--evaluation.stride_rate 0.5, --hardware.compile true, --loader.workers 4.  Those above are short for some of them.  Of
loader, workers and validation_split (--split) have a meaning here.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    own, rest = split_config_options(arguments)
    options = _parser().parse_args(own)
    _check_places(options)
    from rgbdseg.engine.bulk import predict_in_bulk
    from rgbdseg.engine.bulk_processes import shared
    from rgbdseg.engine.run_lock import locked
    from rgbdseg.weights.checkpoint import load_bundle
    from rgbdseg.weights.source import resolve_source

    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # of several processes; about its own use
    inputs = _open_inputs(options)
    outputs = _outputs(options, inputs.single)
    bundle = load_bundle(resolve_source(options.checkpoint))
    parts = _parts(bundle, options, rest)
    inputs = _of_split(inputs, parts.loader.validation_split)
    if options.source is None:
        _check_given(bundle.facts.input_spec, options)
    with shared(parts.hardware) as share:
        segmenter = _segmenter(bundle, parts, options, share.device, fit_size=not _chosen_view(options, rest))
        bulk = _bulk_options(options, outputs, inputs.single, parts.loader.workers)
        for name in bulk.classes or ():
            segmenter.label_set.index(name)  # an unknown name is refused before anything is computed
        _survey(inputs, segmenter, options)
        source = inputs.source(segmenter, outputs)
        if share.is_main:
            _say_start(inputs, source, segmenter, options, share.processes)
        with (
            locked(Path(options.out)) if share.is_main else contextlib.nullcontext(),
            steady_progress("predicting", "frames", quiet=not share.is_main) as move,
        ):
            result = predict_in_bulk(segmenter, source, options.out, bulk, share=share, progress=move)
    if not share.is_main:
        return 0
    return _say_result(result, options, outputs, parts.evaluation, inputs)


def _parts(bundle: ModelBundle, options: argparse.Namespace, rest: Sequence[str]) -> PredictOptions:
    """Return what was given over what is usual: the checkpoint's recipe, every frame, one worker per core."""
    from rgbdseg.data.description import ALL

    usual = for_other_images(stored_protocol(bundle.facts.config))
    loader = LoaderConfig(workers=default_workers(), validation_split=ALL)
    return parse_parts("predict", PredictOptions(usual, loader=loader), options, rest)


def _segmenter(
    bundle: ModelBundle,
    parts: PredictOptions,
    options: argparse.Namespace,
    device: torch.device | None,
    *,
    fit_size: bool,
) -> Segmenter:
    """Return the model on ``device``, or where the options want it."""
    from rgbdseg.geometry.hha import parse_hha_parameters
    from rgbdseg.segmenter import Segmenter

    hardware = parts.hardware
    segmenter = Segmenter.from_bundle(
        bundle,
        protocol=parts.evaluation,
        device=device or options.device or {"gpu": "cuda"}.get(hardware.accelerator, hardware.accelerator),
        precision=hardware.precision,
        fit_size=fit_size,
        keep_layers=hardware.compile,  # the compiler finds what can be computed together by itself
    )
    if options.hha is not None:
        segmenter.hha = parse_hha_parameters(options.hha, segmenter.hha)
    if hardware.compile:
        segmenter.model.compile()
    return segmenter


def _bulk_options(options: argparse.Namespace, outputs: tuple[str, ...], single: bool, workers: int) -> BulkOptions:
    from rgbdseg.engine.bulk import BulkOptions

    return BulkOptions(
        outputs=outputs,
        classes=None if options.classes is None else tuple(name.strip() for name in options.classes.split(",")),
        on_error=options.on_error,
        workers=max(1, workers),
        force=options.force,
        record=not single,
    )


def _check_places(options: argparse.Namespace) -> None:
    if (options.rgb is None) == (options.source is None):
        raise UsageError("expected either --rgb with the images, or --source with a recording or a prepared dataset")
    if options.source is not None and (options.depth or options.raster):
        raise UsageError("--source has its own depth and rasters; leave out --depth and --raster")
    for place in (options.rgb, options.depth, options.source, *(place for _, place in options.raster)):
        # Said before what takes seconds to import; an address or a device is no path.
        if place is not None and "://" not in place and not Path(place).exists():
            raise DataError(f"{place} does not exist")


def _open_inputs(options: argparse.Namespace) -> Inputs:
    from rgbdseg.engine.predict import open_inputs

    if options.source is not None:
        return open_inputs(Path(options.source), recording_options(options), format=options.format)
    from rgbdseg.depth import parse_depth_unit
    from rgbdseg.engine.predict import FileInputs, find_frames

    further = {name: Path(path) for name, path in options.raster}
    frames = find_frames(Path(options.rgb), Path(options.depth) if options.depth else None, further)
    unit = None if options.depth_unit is None else parse_depth_unit(options.depth_unit)
    camera = PinholeCamera.from_string(options.camera) if options.camera else None
    return FileInputs(frames, unit, camera, single=Path(options.rgb).is_file(), resample=options.resample_depth)


def _of_split(inputs: Inputs, split: str) -> Inputs:
    """Return a split of a prepared dataset; anything else has none."""
    from rgbdseg.engine.predict import TreeInputs

    return TreeInputs(inputs.tree, split) if isinstance(inputs, TreeInputs) else inputs


def _survey(inputs: Inputs, segmenter: Segmenter, options: argparse.Namespace) -> None:
    """Look at a few of the user's files: what is unusual becomes notes, and the unit of their depth is known."""
    from rgbdseg.depth import parse_missing
    from rgbdseg.engine.frame_survey import survey_frames
    from rgbdseg.engine.predict import FileInputs

    if not isinstance(inputs, FileInputs):
        return
    survey = survey_frames(
        inputs.frames,
        unit=inputs.unit,
        missing="usual" if options.missing is None else parse_missing(options.missing),
        largest_m=options.largest_depth,
        camera=inputs.camera,
        label_set=segmenter.label_set,
        training_size=segmenter.training_size,
        hha=segmenter.hha if "hha" in segmenter.input_spec.rasters else None,
    )
    inputs.notes = [note.replace("scales=(1,)", "--scales 1") for note in survey.notes]
    if survey.depth is not None and (inputs.unit or options.missing or options.largest_depth):
        inputs.unit = survey.depth.unit


def _outputs(options: argparse.Namespace, single: bool) -> tuple[str, ...]:
    """Return what is written of each frame: clouds are large, so of many frames only where they are asked for."""
    if options.outputs is not None:
        return tuple(dict.fromkeys(kind.strip() for kind in options.outputs.split(",")))
    return ("label", "color", "overlay", *(("cloud",) if single and options.camera and options.depth else ()))


def _say_start(
    inputs: Inputs, source: FrameSource, segmenter: Segmenter, options: argparse.Namespace, processes: int
) -> None:
    if options.source is None:
        _say_assumptions(segmenter.input_spec, options)
    for note in inputs.notes:
        say(note)
    if not inputs.single:
        shared = f", shared by {processes} processes" if processes > 1 else ""
        frames = f"{len(source.names)} frame{'' if len(source.names) == 1 else 's'}"
        say(f"{frames} of {inputs.place} with {segmenter.name}{shared}")


def _say_result(
    result: BulkResult,
    options: argparse.Namespace,
    outputs: Sequence[str],
    protocol: EvaluationProtocol,
    inputs: Inputs,
) -> int:
    if result.labeled:
        shown = [f"{name} {share:.0%}" for name, share in result.shares.items() if share >= _SHOWN_SHARE]
        none = f"none of {options.classes}" if options.classes else "no class"
        say("found: " + (", ".join(shown) or f"{none} in {_SHOWN_SHARE:.1%} of the pixels or more"))
    if result.kept == result.frames:
        say(f"nothing to do: all {result.frames} frames were finished before; --force labels them anew")
        return 0
    kept = f"; {result.kept} were finished before" if result.kept else ""
    say(f"labeled {result.labeled} image{'' if result.labeled == 1 else 's'} with {protocol.describe()}{kept}")
    with_cloud = options.outputs is not None or not inputs.single or "cloud" in outputs
    lacking = [f"--{name}" for name in ("depth", "camera") if not getattr(options, name)]
    cloud = "" if with_cloud else f"; no point cloud: it needs {_listed(lacking)}"
    say(f"wrote {options.out}/{_listed(outputs)}{cloud}")
    if "label" in outputs and result.label_files is not None:
        say(f"label files hold {result.label_files.describe()}; see {options.out}/classes.json and legend.png")
    if not result.skipped:
        return 0
    say(f"skipped {len(result.skipped)} of {result.frames} frames, listed in {options.out}/prediction.json:")
    for frame in result.skipped[:_SHOWN_SKIPPED]:
        say(f"  {frame.name}: {frame.reason}")
    if len(result.skipped) > _SHOWN_SKIPPED:
        say(f"  and {len(result.skipped) - _SHOWN_SKIPPED} more")
    return 1


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


_SHOWN_SKIPPED = 20
_SHOWN_SHARE = 0.005


def _parser() -> Parser:
    parser = Parser("predict", "Label your own images: label map, colored map, overlay and labeled point cloud.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a checkpoint file, a run folder or a name from 'rgbdseg zoo'; default: the model that comes with rgbdseg "
        "(40 classes of NYU Depth V2; works without depth and without a camera)",
    )
    parser.add_argument("--rgb", metavar="PATH", help="an image, or a folder of images")
    parser.add_argument("--depth", metavar="PATH", help="the depth map, or a folder of depth maps with the same names")
    parser.add_argument(
        "--raster",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PATH"),
        help="a further raster that the model looks at, e.g. thermal, as --depth; may be repeated",
    )
    parser.add_argument(
        "--source",
        metavar="PATH",
        help="instead of --rgb and --depth: a recording (folder, bag, video with depth) or a prepared dataset",
    )
    parser.add_argument("--split", help="of a prepared dataset (default: all)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--camera", metavar="fx,fy,cx,cy", help="intrinsics in pixels, counted from 0")
    parser.add_argument(
        "--depth-unit",
        metavar="UNIT",
        help="m, cm, mm or meters per stored unit; default: m for numbers with a fraction, mm for whole ones",
    )
    parser.add_argument(
        "--missing",
        metavar="VALUES",
        help="stored depth that means no reading, with commas, or none; default: 0, and 65535 in files of 16 bits",
    )
    parser.add_argument("--largest-depth", type=float, metavar="M", help="depth beyond is no reading; default: any")
    parser.add_argument(
        "--hha",
        metavar="PARAMETERS",
        help="of HHA: indoor, sensor or outdoor, or changes such as floor_percentile=1; default: as in training",
    )
    parser.add_argument(
        "--resample-depth", action="store_true", help="bring depth that is aligned but coarser to the size of its image"
    )
    parser.add_argument(
        "--classes",
        metavar="A,B",
        help="draw and write these classes only; all else becomes void: the image in overlays, no points in clouds",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps (default: by hardware.accelerator)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network (default: 32-true)")
    parser.add_argument(
        "--outputs",
        metavar="A,B",
        help="what is written of each frame: label, color, overlay, cloud (default: all but cloud; of a single image "
        "with depth and camera all)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a damaged frame: stop, or go on and list it at the end, with exit status 1",
    )
    parser.add_argument("--workers", type=int, help="threads that read, and as many that write (default: one per core)")
    parser.add_argument("--devices", type=int, help="number of devices that share the frames, -1 for all (default: 1)")
    parser.add_argument("--force", action="store_true", help="replace predictions of the same names in --out")
    add_recording_options(parser, camera=False)
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


def _chosen_view(options: argparse.Namespace, rest: Sequence[str]) -> bool:
    """Return whether the user says at which size images are looked at."""
    given = any(getattr(options, name) is not None for name in ("mode", "crop", "scales"))
    fields = ("mode", "crop_size", "scales")
    return given or any(part.startswith(f"--evaluation.{field}") for part in rest for field in fields)


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
    if spec.asks_for_camera and not options.camera:
        raise UsageError("the model needs the camera; add --camera fx,fy,cx,cy (pixels, counted from 0)")
    given = {"rgb", "depth_m", "hha", "noise", *(name for name, _ in options.raster)}
    missing = [name for name in spec.rasters if name not in given]
    if missing:
        raise UsageError(f"the model needs {missing[0]}; add --raster {missing[0]} PATH")
