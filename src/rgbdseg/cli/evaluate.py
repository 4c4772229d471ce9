"""``rgbdseg evaluate``: score checkpoints on a split."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rgbdseg.cli.common import CONSOLE, Parser, print_table, say
from rgbdseg.cli.config_args import split_config_options
from rgbdseg.cli.run_options import EvaluateOptions, add_area_options, add_protocol_options, parse_parts
from rgbdseg.config.disturbance import FAULTS, InputFaults, parse_faults
from rgbdseg.config.protocol import stored_protocol
from rgbdseg.config.train import PRECISIONS, LoaderConfig
from rgbdseg.errors import UsageError

if TYPE_CHECKING:
    from rgbdseg.data.dataset import RGBDDataset
    from rgbdseg.engine.evaluate import EvaluationResult
    from rgbdseg.metrics import SegmentationScores
    from rgbdseg.weights.facts import ModelFacts

EPILOG = """
Every other option is a field of the groups evaluation, hardware and loader of a configuration, as for rgbdseg train:
--evaluation.stride_rate 0.5, --hardware.compile true, --loader.workers 4.  Those above are short for some of them.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    own, rest = split_config_options(arguments)
    options = _parser().parse_args(own)
    if options.name is not None and (not options.name or {"/", "\0"} & set(options.name)):
        raise UsageError(f"--name {options.name} is not the stem of a file's name; name its folder with --out")
    faults = InputFaults(parse_faults(options.disturb), options.disturb_seed, tuple(options.without))
    from rgbdseg.engine.evaluate import check_results
    from rgbdseg.engine.train import is_main_process, quiet_lightning
    from rgbdseg.weights.source import BUILT_IN, find_checkpoints

    quiet_lightning()
    paths = find_checkpoints(BUILT_IN if options.checkpoint is None else options.checkpoint, options.epochs)
    if options.save_submission and len(paths) > 1:
        raise UsageError(f"--save-submission takes one checkpoint; --epochs {options.epochs} gives {len(paths)}")
    out = Path(options.out) if options.out else _usual_folder(options.checkpoint)
    results: list[EvaluationResult] = []
    for path in paths:
        start = time.monotonic()
        name = options.name if options.name is None or len(paths) == 1 else f"{options.name}-{path.stem}"
        save = Path(options.save) if options.save else None
        if save is not None and len(paths) > 1:
            save /= path.stem  # or each would replace those of the one before
        job = _prepare(path, options, rest, name=name, save=save, faults=faults)
        replaced = check_results(out, job.stem)  # before hours of computing
        result = job.evaluate()
        results.append(result)
        if is_main_process():
            # Shown first: hours of computing must not be lost to a full disk.
            _show(result, time.monotonic() - start)
            if result.scores.images:
                files = ", ".join(str(file) for file in result.write(out, job.stem))
                say(f"wrote {files}{replaced and f', in place of {replaced}'}")
    if len(results) > 1 and is_main_process():
        rows = [
            (Path(one.checkpoint).name, f"{100 * one.scores.mean_iou:.2f}", f"{100 * one.scores.pixel_accuracy:.2f}")
            for one in results
        ]
        print_table("all checkpoints", ["checkpoint", "mIoU %", "pixel accuracy %"], rows)
    return 0


def _usual_folder(checkpoint: str | None) -> Path:
    """Return ``evaluation`` in a run's folder, beside a file, and here for what lies in a cache or the package."""
    from rgbdseg.engine.run_folder import RunFolder

    if checkpoint is None or not Path(checkpoint).exists():
        return Path("evaluation")
    place = Path(checkpoint)
    return (RunFolder(place).root if place.is_dir() else place.parent) / "evaluation"


def _parser() -> Parser:
    parser = Parser("evaluate", "Score checkpoints on a split of a prepared dataset.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a checkpoint file, a run folder (its last.ckpt) or a name from 'rgbdseg zoo'; default: the model that "
        "comes with rgbdseg",
    )
    parser.add_argument("--data", metavar="DATASET", help="prepared dataset; default: the one it was trained on")
    parser.add_argument("--split", help="split to score (default: test)")
    parser.add_argument("--epochs", metavar="A-B", help="every numbered checkpoint of the run in this range")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N frames")
    add_protocol_options(parser)
    add_area_options(parser)
    _add_fault_options(parser)
    parser.add_argument(
        "--save",
        metavar="DIR",
        help="write raw and colored predictions there, those of several checkpoints into a folder each",
    )
    parser.add_argument(
        "--save-submission", metavar="DIR", help="write the files that the benchmark's server takes (Cityscapes) there"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the result files; default: evaluation/ in the run's folder or beside the file, or here",
    )
    parser.add_argument("--name", help="stem of the result files; default: CHECKPOINT-SPLIT-PROTOCOL")
    parser.add_argument("--hha-cache", metavar="DIR", help="folder where computed HHA images are kept")
    parser.add_argument("--workers", type=int, help="loader processes per device (default: 2)")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), help="where to compute (default: auto)")
    parser.add_argument("--devices", type=int, help="number of devices, -1 for all (default: 1)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network (default: 32-true)")
    parser.epilog = EPILOG
    return parser


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is wrong with the frames (default: nothing)")
    group.add_argument(
        "--disturb",
        nargs="+",
        metavar="FAULT[=STRENGTH]",
        default=[],
        help=f"faults of depth sensors: {', '.join(FAULTS)}; the same for a frame in every run",
    )
    group.add_argument("--disturb-seed", type=int, default=0, metavar="N", help="for other draws of the faults")
    group.add_argument(
        "--without",
        nargs="+",
        metavar="STREAM",
        default=[],
        help="leave out streams that the model can do without; depth stands for all that a depth sensor measures",
    )


class _Job(NamedTuple):
    """An evaluation that can begin."""

    stem: str
    """Of the result files."""
    evaluate: Callable[[], EvaluationResult]


def _prepare(
    path: Path,
    options: argparse.Namespace,
    rest: list[str],
    *,
    name: str | None,
    save: Path | None,
    faults: InputFaults,
) -> _Job:
    """Open what is needed to evaluate a checkpoint.

    Args:
        name: stem of the result files, None for the usual one.
        save: folder of the predictions.
        faults: that the frames get.
    """
    from rgbdseg.engine.evaluate import check_save, evaluate
    from rgbdseg.engine.processes import is_main_process
    from rgbdseg.engine.submission import SubmissionFolder
    from rgbdseg.weights.checkpoint import load_bundle

    bundle = load_bundle(path)
    config = bundle.facts.config or {}
    data = options.data or config.get("data")
    if not data:
        raise UsageError(f"{path} does not say what it was trained on; add --data DATASET")
    parts = parse_parts("evaluate", EvaluateOptions(stored_protocol(config)), options, rest)
    dataset = _open_dataset(data, bundle.facts, parts.loader, faults, scored=not options.save_submission)
    earlier = check_save(save, dataset.ids) if save is not None else 0
    if earlier and is_main_process():
        say(f"note: {earlier} predictions of an earlier evaluation in {save} are replaced")
    begin = functools.partial(
        evaluate,
        bundle,
        dataset,
        parts.evaluation,
        hardware=parts.hardware,
        workers=parts.loader.workers,
        save=save,
        submission=SubmissionFolder(options.save_submission, dataset.label_set, dataset.ids)
        if options.save_submission
        else None,
        console=CONSOLE,
    )
    usual = [path.stem, dataset.split, parts.evaluation.slug(), *([faults.slug()] if faults else [])]
    return _Job(name or "-".join(usual), begin)


def _open_dataset(
    data: str, facts: ModelFacts, loader: LoaderConfig, faults: InputFaults, *, scored: bool
) -> RGBDDataset:
    """Open what a model is evaluated on; raises UsageError where it must be ``scored`` and there are no labels."""
    from rgbdseg.data.tree import open_tree
    from rgbdseg.engine.evaluated_data import evaluated_dataset

    tree, split = open_tree(data), loader.validation_split
    labeled = bool({frame.sample_id for frame in tree.frames(split)} & tree.index("label").files.keys())
    if scored and not labeled:
        raise UsageError(
            f"split '{split}' of {tree.root} has no labels, so nothing can be scored; choose another split, or "
            "have the predictions written with --save-submission DIR"
        )
    limit = loader.validation_limit
    return evaluated_dataset(
        facts, tree, split, labeled=labeled, limit=limit, hha_cache=loader.hha_cache, faults=faults
    )


def _show(result: EvaluationResult, seconds: float) -> None:
    scored = bool(result.scores.images)
    if scored:
        _show_tables(result)
    say(f"dataset    {result.dataset}, split {result.split}, {result.frames} images")
    say(f"protocol   {result.protocol.describe()}")
    for line in result.faults.describe():
        say(f"disturbed  {line}")
    if scored:
        _show_summary(result.scores)
    else:
        say(f"split {result.split} has no labels: nothing is scored")
    if result.submission is not None:
        say(
            f"wrote {result.submission.folder}, checked against the rules of the evaluation server; zip it to submit it"
        )
        for remark in result.submission.remarks(result.dataset, result.split):
            say(f"note: {remark}")
    say(f"{result.frames / seconds:.2f} images/s")


def _show_tables(result: EvaluationResult) -> None:
    scores = result.scores
    title = f"{result.model}, {result.checkpoint}" + (f" (epoch {result.epoch})" if result.epoch is not None else "")
    means = (f"{100 * score:.1f}" for score in (scores.mean_iou, scores.mean_accuracy))
    rows = [*scores.table(), (f"mean of {_classes_counted(scores)}", *means, "")]
    print_table(title, ["class", "IoU %", "accuracy %", "pixels %"], rows)
    if scores.category_names:
        print_table("by category", ["category", "IoU %"], scores.category_table())
    for kind, parts in (("sensor", result.sensors), ("condition", result.conditions)):
        rows = [
            (name, str(one.images), *(f"{100 * score:.2f}" for score in (one.mean_iou, one.pixel_accuracy)))
            for name, one in parts.items()
        ]
        if rows:
            print_table(f"by {kind}", [kind, "images", "mIoU %", "pixel accuracy %"], rows)


def _classes_counted(scores: SegmentationScores) -> str:
    """Say over how many classes the mean is: those that are neither in the truth nor predicted have no score."""
    if scores.scored_classes == len(scores.iou):
        return f"{len(scores.iou)} classes"
    return f"{scores.scored_classes} of {len(scores.iou)} classes"


def _show_summary(scores: SegmentationScores) -> None:
    say(
        f"mIoU {100 * scores.mean_iou:.2f} over {_classes_counted(scores)}   "
        f"pixel accuracy {100 * scores.pixel_accuracy:.2f}   "
        f"mean accuracy {100 * scores.mean_accuracy:.2f}   "
        f"frequency-weighted IoU {100 * scores.frequency_weighted_iou:.2f}"
    )
    if scores.category_names:
        say(f"category mIoU {100 * scores.mean_category_iou:.2f}")
