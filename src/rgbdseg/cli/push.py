"""``rgbdseg push``: a run or checkpoint of one's own to a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rgbdseg.cli.common import Parser, say
from rgbdseg.errors import DataError


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("push", "Upload the weights of a run to the hub, with a model card written from the run.")
    parser.add_argument("checkpoint", help="a run folder or checkpoint file")
    parser.add_argument("repository", help="OWNER/NAME; made when it does not exist (log in with 'hf auth login')")
    parser.add_argument("--scores", metavar="FILE", help="a .json that evaluate wrote; default: the newest of the run")
    parser.add_argument("--license", default="", help="identifier for the card, such as apache-2.0")
    parser.add_argument("--private", action="store_true", help="make a repository that only its owner sees")
    options = parser.parse_args(arguments)
    from rgbdseg.weights.hub import push
    from rgbdseg.weights.source import find_checkpoints

    path = find_checkpoints(options.checkpoint)[0]
    scores = _scores(Path(options.scores) if options.scores else _newest(Path(options.checkpoint)))
    address = push(path, options.repository, scores=scores, license_name=options.license, private=options.private)
    say(f"pushed {path} to {options.repository}: {address}")
    say(f"next: rgbdseg predict hf:{options.repository} --rgb image.png --depth depth.png --out labels")
    return 0


def _newest(place: Path) -> Path | None:
    """Return the newest result of a run on frames as they are: what faults cost is no score of the model."""
    files = sorted((place / "evaluation").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return next((file for file in reversed(files) if "inputs" not in _read(file)), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{file} is not a result of evaluate; give another file with --scores")
    return values


def _scores(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    values = _read(file)
    try:
        inputs = f"; inputs: {json.dumps(values['inputs'])}" if "inputs" in values else ""
        return {
            "mean_iou": float(values["mean_iou"]),
            "split": f"{values['split']} of {values['dataset']} ({int(values['images'])} images)",
            "protocol": f"{values['protocol_text']}{inputs}",
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a result of evaluate: {error!r}; give another file with --scores") from None
