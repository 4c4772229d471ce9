"""``rgbdseg models``: list the models."""

from __future__ import annotations

from rgbdseg.cli.common import Parser, print_table
from rgbdseg.errors import UsageError


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("models", "List the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell-style pattern of names")
    parser.add_argument("--details", action="store_true", help="also build each one and count its parameters")
    parser.add_argument("--classes", type=int, default=40, help="number of classes to count parameters for")
    options = parser.parse_args(arguments)
    from rgbdseg.models.catalog import create_model, list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"no model matches '{options.pattern}'; see rgbdseg models")
    rows: list[tuple[str, ...]] = []
    for name in names:
        if not options.details:
            rows.append((name,))
            continue
        model = create_model(name, options.classes)
        count = sum(parameter.numel() for parameter in model.parameters())
        rows.append((name, model.family, model.input_spec.geometry, f"{count:,}"))
    columns = (
        ["model", "family", "geometry", f"parameters, {options.classes} classes"] if options.details else ["model"]
    )
    print_table("models", columns, rows, left=3)
    return 0
