"""``rgbdseg demo``: from nothing to a trained model with pictures, on the built-in rooms."""

from __future__ import annotations

import dataclasses
import html
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rgbdseg.cli.common import CONSOLE, Parser, default_workers, print_table, progress_bar, say
from rgbdseg.errors import UsageError
from rgbdseg.files import write_text
from rgbdseg.recipes import get_recipe

if TYPE_CHECKING:
    from rgbdseg.engine.evaluate import EvaluationResult

VARIANTS = {"RGB-D": "demo", "RGB only": "demo-rgb-only", "depth only": "demo-depth-only"}
SIZE = (120, 160)
TRAIN_FRAMES, TEST_FRAMES = 400, 80
PICTURES = 6


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("demo", "Make rooms, train SA-Gate and two one-modality controls, evaluate, write pictures.")
    parser.add_argument("--out", default="demo", help="folder to write; an unfinished demo in it is continued")
    parser.add_argument("--epochs", type=int, help="fewer or more than the recipe's epochs, for all three models")
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if (out / "report.html").exists():
        say(f"this demo is finished: look at {out / 'report.html'}, or remove {out} to run it again")
        return 0
    if out.exists() and not (out / "rooms").is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} holds something else than a demo; choose another --out")
    start = time.monotonic()
    data = _make_rooms(out / "rooms")
    from rgbdseg.engine.stop import Interrupted

    try:
        results = {
            title: _train_and_evaluate(title, recipe, data, out, options.epochs) for title, recipe in VARIANTS.items()
        }
    except Interrupted:
        say(f"stopped; the state is saved. Continue with: rgbdseg demo --out {out}")
        return 130
    pictures = _draw_pictures(out / "rgbd", data, out / "pictures.png")
    report = _write_report(out, results, time.monotonic() - start)
    _show(results)
    say(f"pictures: {pictures}")
    say(f"report:   {report}")
    return 0


def _make_rooms(root: Path) -> Path:
    from rgbdseg.data.hha_cache import cache_hha
    from rgbdseg.rooms.write import write_rooms

    say(f"1/4 making {TRAIN_FRAMES} training and {TEST_FRAMES} test frames of {SIZE[0]}x{SIZE[1]}")
    workers = default_workers()
    with progress_bar("rooms") as move:
        write_rooms(root, train=TRAIN_FRAMES, test=TEST_FRAMES, size=SIZE, seed=0, workers=workers, progress=move)
    say("2/4 computing their HHA images")
    with progress_bar("HHA") as move:
        cache_hha(root, workers=workers, progress=move)
    return root


def _train_and_evaluate(title: str, recipe: str, data: Path, out: Path, epochs: int | None) -> EvaluationResult:
    from rgbdseg.data.dataset import RGBDDataset, rasters_needed
    from rgbdseg.engine.evaluate import evaluate
    from rgbdseg.engine.run_folder import RunFolder
    from rgbdseg.engine.train import quiet_lightning, train
    from rgbdseg.weights.checkpoint import load_bundle

    quiet_lightning()
    config = dataclasses.replace(get_recipe(recipe), data=str(data.resolve()))
    if epochs is not None:
        config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, epochs=epochs))
    folder = run_folder(out, recipe)
    steps = f"{config.schedule.iterations} iterations of {config.loader.batch_size}"
    say(f"3/4 training {title}: {config.model.name}, {steps}")
    run = train(config, folder, resume=RunFolder(folder).config_file.is_file(), console=CONSOLE)
    bundle = load_bundle(run.last)
    dataset = RGBDDataset(data, "test", needs=rasters_needed(bundle.facts.input_spec, label=True))
    result = evaluate(bundle, dataset, config.evaluation, hardware=config.hardware, workers=0, console=CONSOLE)
    result.write(out / "evaluation", recipe)
    say(f"    {title}: mIoU {100 * result.scores.mean_iou:.1f} on {result.scores.images} frames of unseen rooms")
    return result


def run_folder(out: Path, recipe: str) -> Path:
    """Return where the demo keeps the run of a recipe."""
    return out / {"demo": "rgbd", "demo-rgb-only": "rgb_only", "demo-depth-only": "depth_only"}[recipe]


def _draw_pictures(run: Path, data: Path, target: Path) -> Path:
    import numpy as np

    from rgbdseg.data.dataset import RGBDDataset
    from rgbdseg.loading import load
    from rgbdseg.visualize import colorize, contact_sheet, depth_image, legend, picture, save_png

    say("4/4 drawing pictures")
    network = load(run, device="cpu")
    palette = network.label_set.palette
    dataset = RGBDDataset(data, "test", needs=("rgb", "raw_depth_m", "hha", "label"))
    rows = []
    for index in np.linspace(0, len(dataset) - 1, PICTURES).astype(int):
        sample = dataset[int(index)]
        assert sample.label is not None
        assert sample.raw_depth_m is not None
        truth = colorize(sample.label[0].numpy(), palette)
        depth = depth_image(sample.raw_depth_m.numpy())
        rows.append([picture(sample.rgb), depth, truth, network.segment(sample, with_confidence=False).colors()])
    sheet = contact_sheet(rows, ("RGB", "depth", "truth", "prediction"), cell_width=240)
    names = legend(network.names, palette, columns=6, cell_width=sheet.shape[1] // 6)
    names = np.pad(names, ((0, 0), (0, sheet.shape[1] - names.shape[1]), (0, 0)), constant_values=255)
    save_png(target, np.concatenate((sheet, names)))
    return target


def _rows(results: dict[str, EvaluationResult]) -> list[tuple[str, ...]]:
    columns = [result.scores.table() for result in results.values()]
    rows: list[tuple[str, ...]] = [(lines[0][0], *(line[1] for line in lines)) for lines in zip(*columns, strict=True)]
    return [*rows, ("mean", *(f"{100 * r.scores.mean_iou:.1f}" for r in results.values()))]


def _show(results: dict[str, EvaluationResult]) -> None:
    print_table("IoU % on rooms that no model has seen", ["class", *results], _rows(results))


def _write_report(out: Path, results: dict[str, EvaluationResult], seconds: float) -> Path:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("class", *results))
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in _rows(results)
    )
    any_result = next(iter(results.values()))
    config = get_recipe("demo")
    text = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>rgbdseg demo</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }}
td, th {{ padding: .15rem .8rem; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
tr:last-child td {{ font-weight: bold }}
img {{ max-width: 100% }}
</style>
<h1>RGB-D segmentation of rooms</h1>
<p>SA-Gate with two small ResNets, and two networks of the same decoder, encoder, schedule and seed that see only one
of its inputs. Trained from random weights on {TRAIN_FRAMES} generated frames, evaluated on {any_result.scores.images}
frames of other rooms with the last checkpoint. Protocol: {html.escape(any_result.protocol.describe())}.
Seed {config.seed}; {seconds / 60:.1f} minutes in all on this machine.</p>
<p>Intersection over union in percent:</p>
<table><tr>{head}</tr>
{body}
</table>
<p><img src="pictures.png" alt="RGB, depth, truth and prediction of {PICTURES} frames"></p>
</html>
"""
    write_text(out / "report.html", text)
    return out / "report.html"
