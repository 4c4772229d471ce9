"""``rgbdseg convert``: a published checkpoint becomes one that evaluate and predict take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rgbdseg.cli.common import Parser, say
from rgbdseg.datasets import get_label_set, label_sets
from rgbdseg.errors import UsageError


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("convert", "Turn a published checkpoint into a .safetensors that evaluate and predict take.")
    parser.add_argument("model", help="a model from 'rgbdseg models'")
    parser.add_argument("published", help="the published file, .pth or .safetensors")
    parser.add_argument("out", help="file to write, .safetensors")
    parser.add_argument(
        "--label-set", default="nyu40", help=f"classes in the order of the logits: {', '.join(label_sets())}"
    )
    parser.add_argument(
        "--option",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="build the model with this option, such as compat unofficial; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors, the format that convert writes")
    if out.exists() and not options.force:
        raise UsageError(f"{out} exists; choose another name or add --force")
    label_set = get_label_set(options.label_set)
    from rgbdseg.geometry.hha import INDOOR
    from rgbdseg.models._registry import create_model
    from rgbdseg.weights.checkpoint import ModelFacts, save_bundle
    from rgbdseg.weights.published import load_published

    model_options = {name: _value(name, text) for name, text in options.option}
    model = create_model(options.model, len(label_set), **model_options)
    load_published(model, options.published)
    hha = INDOOR.to_dict() if "hha" in model.input_spec.rasters else None
    facts = ModelFacts(options.model, model_options, model.input_spec, label_set, hha=hha)
    save_bundle(facts, model.state_dict(), out)
    say(f"wrote {out}: {options.model}, {len(label_set)} classes of {label_set.name}")
    return 0


def _value(name: str, text: str) -> Any:
    """Read the value of a model option as configs write it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--option {name} {text} is not understood: {' '.join(str(error).split())}") from None
