"""``rgbdseg info``: say what a checkpoint is."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, say
from rgbdseg.input_spec import Stream


def _stream_text(stream: Stream) -> str:
    return stream.name if stream.name == stream.raster else f"{stream.name} ({stream.raster})"


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("info", "Say what a checkpoint is: model, input, classes, progress.")
    parser.add_argument("checkpoint", help="a checkpoint file or a run folder")
    parser.add_argument("--config", action="store_true", help="also print the training configuration as YAML")
    options = parser.parse_args(arguments)
    from rgbdseg.weights.header import read_header
    from rgbdseg.weights.source import resolve_source

    header = read_header(resolve_source(options.checkpoint))
    facts = header.facts
    lines = {
        "checkpoint": str(header.path),
        "model": facts.model_name + "".join(f" {k}={v}" for k, v in facts.model_options.items()),
        "weights": f"{header.numbers:,} numbers in {header.tensors} tensors",
        "input": ", ".join(_stream_text(stream) for stream in facts.input_spec.streams),
        "classes": f"{len(facts.label_set)} of {facts.label_set.name}: {', '.join(facts.label_set.classes)}",
        "trained on": facts.dataset or "unknown",
        "recipe": (facts.config or {}).get("recipe") or "none",
        "progress": "unknown" if header.epoch is None else f"epoch {header.epoch}, iteration {header.iteration}",
    }
    width = max(map(len, lines))
    for key, value in lines.items():
        say(f"{key:<{width}}  {value}")
    if options.config and facts.config:
        import yaml

        print(yaml.safe_dump(facts.config, sort_keys=False), end="")
    return 0
